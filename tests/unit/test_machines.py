"""What QEMU and systemd are told about an emulated machine."""

from __future__ import annotations

import base64

import pytest

from tests.machines.machine import Hardware, credentials

pytestmark = pytest.mark.unit


def test_memory_and_cpus_are_shared_out_to_the_numa_nodes() -> None:
    args = " ".join(Hardware(cpus=4, memory_mib=4096, numa_nodes=2).qemu())
    for node, cpus in ((0, "0-1"), (1, "2-3")):
        assert f"memory-backend-ram,id=memory{node},size=2048M" in args
        assert f"node,nodeid={node},cpus={cpus},memdev=memory{node}" in args


def test_devices_come_after_the_iommu_that_is_before_them() -> None:
    args = Hardware(nvme_mib=(64, 64)).qemu()
    iommu = next(i for i, arg in enumerate(args) if arg.startswith("intel-iommu"))
    devices = [i for i, arg in enumerate(args) if arg.startswith("nvme,")]
    assert len(devices) == 2
    assert all(iommu < i for i in devices)


def test_files_reach_the_machine_whole() -> None:
    told = credentials("m", "52:54:00:00:00:0a", "172.30.60.10", "172.30.60.1", "ssh-ed25519 AAAA", "a\nprivate key\n")
    line = next(line for line in told["tmpfiles.extra"].splitlines() if " /etc/ssh/ssh_host_ed25519_key " in line)
    assert line.startswith("f~ /etc/ssh/ssh_host_ed25519_key 0600 root root - ")
    assert base64.b64decode(line.split()[-1]) == b"a\nprivate key\n"
