"""The emulated machine has what the machines of the users have, and this machine has not."""

from __future__ import annotations

import time

import pytest

from tests.machines.machine import LOGIN, Hardware, Machine, Network

pytestmark = pytest.mark.servers

BOOT_LIMIT = 60  # seconds, on two idle cores
PAGES = "/sys/devices/system/node/node{}/hugepages/hugepages-1048576kB/nr_hugepages"


@pytest.fixture(scope="module")
def server(network: Network) -> Machine:
    hardware = Hardware(memory_mib=6144, nvme_mib=(1024, 512), numa_nodes=2)
    machine = network.machine("server", 10, hardware)
    print(f"\nbooted in {machine.wait_booted():.0f} s")
    return machine


def test_it_boots_in_a_minute(network: Network) -> None:
    with network.machine("quick", 11) as machine:
        seconds = machine.wait_booted()
        print(f"\nbooted in {seconds:.0f} s")
        assert seconds < BOOT_LIMIT


def test_systemd_runs_every_unit_on_cgroup_v2(server: Machine) -> None:
    assert server.ssh("stat -fc %T /sys/fs/cgroup; cat /proc/1/comm").split() == ["cgroup2fs", "systemd"]
    state = server.try_ssh("systemctl is-system-running --wait", timeout=120).stdout.strip()
    assert state == "running", server.ssh("systemctl --failed --no-legend")
    assert server.ssh("hostname").strip() == "server"


def test_the_clock_is_right(server: Machine) -> None:
    assert abs(int(server.ssh("date +%s")) - time.time()) < 10


def test_a_plain_user_has_sudo(server: Machine) -> None:
    assert server.ssh("id -un; sudo -n id -un", user=LOGIN).split() == [LOGIN, "root"]


def test_kvm_is_there_once_its_module_is_loaded(server: Machine) -> None:
    server.ssh("modprobe kvm_amd && test -c /dev/kvm")


def test_nvme_devices_have_names_by_id_and_iommu_groups_of_their_own(server: Machine) -> None:
    names = server.ssh("ls /dev/disk/by-id").split()
    groups: list[str] = []
    for i in range(2):
        assert f"nvme-QEMU_NVMe_Ctrl_nvme-{i}" in names
        groups.append(server.ssh(f"readlink -f /sys/block/nvme{i}n1/device/device/iommu_group"))
        members = f"ls /sys/block/nvme{i}n1/device/device/iommu_group/devices | wc -l"
        assert server.ssh(members).strip() == "1"
    assert groups[0] != groups[1]


def test_a_page_of_1_gib_is_reserved_on_each_numa_node(server: Machine) -> None:
    for node in range(2):
        server.ssh(f"echo 1 >{PAGES.format(node)}")
        assert server.ssh(f"cat {PAGES.format(node)}").strip() == "1"
    server.ssh("echo 64 >/proc/sys/vm/nr_hugepages")
    assert server.ssh("cat /proc/sys/vm/nr_hugepages").strip() == "64"
    for node in range(2):
        server.ssh(f"echo 0 >{PAGES.format(node)}")
    server.ssh("echo 0 >/proc/sys/vm/nr_hugepages")


def test_it_has_two_cards_and_reaches_the_package_mirror(server: Machine) -> None:
    assert server.ssh("ls -d /sys/class/net/en* | wc -l").strip() == "2"
    server.ssh("sudo apt-get update -q", user=LOGIN, timeout=300)


def test_a_cut_network_comes_back(server: Machine) -> None:
    before = server.boot_id()
    server.cut_network()
    assert server.try_ssh("true").returncode != 0
    server.cut_network(cut=False)
    server.wait_booted()
    assert server.boot_id() == before


def test_what_was_synced_outlives_reset_and_power_cut(server: Machine) -> None:
    server.ssh("echo kept >/root/file; echo kept | dd of=/dev/nvme0n1 conv=fsync status=none; sync")
    for cut in (server.reset, server.cut_power):
        before = server.boot_id()
        cut()
        if cut == server.cut_power:
            server.start()
        print(f"\nback after {server.wait_booted(before=before):.0f} s")
        assert server.ssh("cat /root/file; head -c 5 /dev/nvme0n1").split() == ["kept", "kept"]
