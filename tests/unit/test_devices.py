"""scripts/devices.sh and hugepages.sh, run as a host runs them: what cannot be had is refused, nothing is changed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit

ADDRESS = "0000:5e:00.0"


def run(step: str, action: str = "up", tools: Path | None = None, **values: str) -> subprocess.CompletedProcess[str]:
    path = f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"]
    return subprocess.run(
        ["bash", "-s", action],
        input=script(step, values),
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Programs that look at devices, on a machine where nothing uses any and nothing is on them."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in {"lsblk": "exit 0", "perl": "exit 0", "blkid": "exit 2", "debugfs": "exit 0"}.items():
        say(folder, name, text)
    return folder


def say(tools: Path, name: str, text: str) -> None:
    (tools / name).write_text(f"#!/bin/sh\n{text}\n")
    (tools / name).chmod(0o755)


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A tree like /sys with one NVMe device, on the kernel's driver."""
    device, driver = tmp_path / "bus/pci/devices" / ADDRESS, tmp_path / "bus/pci/drivers/nvme"
    device.mkdir(parents=True)
    driver.mkdir(parents=True)
    (device / "class").write_text("0x010802\n")
    (device / "driver").symlink_to(driver)
    (driver / "unbind").touch()
    (tmp_path / "bus/pci/drivers_probe").touch()
    return tmp_path


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A block device of 64 MiB that no driver knows, with its entry in the tree like /sys."""
    node = tmp_path / "disk"
    try:
        os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(240, 71))
    except PermissionError:
        pytest.skip("only root makes block devices")
    (tmp_path / "class/block/disk").mkdir(parents=True)
    (tmp_path / "class/block/disk/size").write_text(f"{64 << 11}\n")
    return str(node)


def namespace(sys: Path, name: str, head: str = "") -> None:
    """Of the device; with native multipath `name` is a path without a node, and `head` has it."""
    (sys / "bus/pci/devices" / ADDRESS / "nvme/nvme0" / name).mkdir(parents=True)
    node = head or name
    (sys / "class/block" / node).mkdir(parents=True)
    (sys / "class/block" / node / "size").write_text(f"{128 << 11}\n")
    if head:
        (sys / "class/nvme-subsystem/nvme-subsys0/nvme0").mkdir(parents=True)
        (sys / "class/nvme-subsystem/nvme-subsys0" / head).mkdir()


def test_a_block_device_is_large_enough_or_refused(disk: str, tools: Path) -> None:
    values: dict[str, Any] = {"BDEV": "aio", "DEVICES": disk, "SYS": str(Path(disk).parent), "tools": tools}
    fits = run("devices", MIB="64", **values)
    assert fits.returncode == 0, fits.stderr
    refused = run("devices", MIB="128", **values)
    assert refused.returncode != 0
    assert f"vhost.devices: {disk} has 67108864 bytes (64 MiB), and a disk must hold 128 MiB" in refused.stderr
    assert "mend: pulumi config set --path vhost.diskMib 64\n" in refused.stderr


def test_an_nvme_device_that_is_too_small_is_refused_and_stays_with_the_kernel(sys: Path, tools: Path) -> None:
    device = sys / "bus/pci/devices" / ADDRESS
    (device / "nvme/nvme0/nvme0n1").mkdir(parents=True)
    (sys / "class/block/nvme0n1").mkdir(parents=True)
    (sys / "class/block/nvme0n1/size").write_text(f"{64 << 11}\n")
    refused = run("devices", tools=tools, BDEV="nvme", DEVICES=ADDRESS, MIB="128", SYS=str(sys))
    assert refused.returncode != 0
    assert f"{ADDRESS} has 67108864 bytes (64 MiB), and a disk must hold 128 MiB" in refused.stderr
    assert not (device / "driver_override").exists()


def test_an_nvme_device_is_handed_to_vfio_and_back(sys: Path, tools: Path) -> None:
    device = sys / "bus/pci/devices" / ADDRESS
    namespace(sys, "nvme0n1")
    taken = run("devices", tools=tools, BDEV="nvme", DEVICES=ADDRESS, MIB="128", SYS=str(sys))
    assert taken.returncode == 0, taken.stderr
    assert (device / "driver_override").read_text() == "vfio-pci\n"
    assert (sys / "bus/pci/drivers/nvme/unbind").read_text() == ADDRESS
    assert (sys / "bus/pci/drivers_probe").read_text() == ADDRESS
    vfio = sys / "bus/pci/drivers/vfio-pci"
    vfio.mkdir()
    (device / "driver").unlink()
    (device / "driver").symlink_to(vfio)
    assert run("devices", "down", BDEV="nvme", DEVICES=ADDRESS, SYS=str(sys)).returncode == 0
    assert (device / "driver_override").read_text() == "\n"


def mounted_disk() -> str:
    """A block device of this machine that is mounted somewhere."""
    listed = subprocess.run(["findmnt", "-rno", "SOURCE"], capture_output=True, text=True, check=True).stdout
    found = [source for source in listed.split() if source.startswith("/dev/") and Path(source).is_block_device()]
    if not found:
        pytest.skip("no block device is mounted here")
    return found[0]


@pytest.mark.parametrize("head", ["", "nvme0n1"])
def test_an_nvme_device_in_use_is_refused(sys: Path, tools: Path, head: str) -> None:
    """D2: also where native multipath hides the namespace below the device."""
    say(tools, "lsblk", 'case "$*" in *nvme0n1) echo /dev/nvme0n1p1 / part ;; esac')
    namespace(sys, "nvme0c0n1" if head else "nvme0n1", head)
    refused = run("devices", tools=tools, BDEV="nvme", DEVICES=ADDRESS, MIB="128", SYS=str(sys))
    assert refused.returncode != 0
    assert f"vhost.devices: {ADDRESS} is in use: /dev/nvme0n1p1 is mounted at /" in refused.stderr
    assert not (sys / "bus/pci/devices" / ADDRESS / "driver_override").exists()


def test_an_nvme_device_whose_use_cannot_be_known_is_refused(sys: Path, tools: Path) -> None:
    (sys / "bus/pci/devices" / ADDRESS / "nvme/nvme0/nvme0c0n1").mkdir(parents=True)
    refused = run("devices", tools=tools, BDEV="nvme", DEVICES=ADDRESS, MIB="128", SYS=str(sys))
    assert refused.returncode != 0
    assert f"{ADDRESS}: the kernel does not tell which namespaces it has" in refused.stderr
    assert not (sys / "bus/pci/devices" / ADDRESS / "driver_override").exists()


@pytest.mark.parametrize(
    ("tool", "text", "said"),
    [
        ("perl", "printf 'Device or resource busy'", "the kernel says: Device or resource busy"),
        ("blkid", "echo TYPE=xfs", "it holds xfs ; if nobody needs that: wipefs -a "),
        ("blkid", "echo PTTYPE=gpt", "it holds gpt "),
        ("blkid", "echo TYPE=ext4", "it holds ext4 "),
        ("blkid", "exit 8", "what is on it cannot be told"),
    ],
)
def test_a_device_that_anything_uses_or_that_holds_anything_is_refused(
    disk: str, tools: Path, tool: str, text: str, said: str
) -> None:
    """D3, D4: swap, RAID, LVM, ZFS and multipath all hold it exclusively; a filesystem of the user's is his data."""
    say(tools, tool, text)
    values = {"BDEV": "aio", "DEVICES": disk, "SYS": str(Path(disk).parent), "MIB": "64"}
    refused = run("devices", tools=tools, **values)
    assert refused.returncode != 0
    assert f"{disk} is in use: {said}" in refused.stderr


def test_a_disk_of_ours_is_taken_again(disk: str, tools: Path) -> None:
    values = {"BDEV": "aio", "DEVICES": disk, "SYS": str(Path(disk).parent), "MIB": "64"}
    say(tools, "blkid", "echo TYPE=ext4")
    say(tools, "debugfs", """echo '{"ordinal": 3, "playlist": "mp4-4"}'""")
    assert run("devices", tools=tools, **values).returncode == 0
    # and one that the agent holds at the moment
    say(tools, "perl", "printf 'Device or resource busy'")
    assert run("devices", tools=tools, **values).returncode != 0
    notes = tools / "agent.json"
    notes.write_text(json.dumps({"disks": [{"ordinal": 3, "path": disk}], "released": []}))
    taken = run("devices", tools=tools, AGENT=str(notes), **values)
    assert taken.returncode == 0, taken.stderr


def test_two_names_of_one_device_or_a_disk_and_its_partition_are_refused(disk: str, tools: Path) -> None:
    root = Path(disk).parent
    alias, part = root / "alias", root / "disk1"
    alias.symlink_to(disk)
    os.mknod(part, stat.S_IFBLK | 0o600, os.makedev(240, 72))
    (root / "class/block/disk").rename(root / "whole")
    (root / "devices/disk/disk1").mkdir(parents=True)
    (root / "devices/disk/size").write_text(f"{64 << 11}\n")
    for name in ("size", "partition"):
        (root / "devices/disk/disk1" / name).write_text(f"{64 << 11}\n")
    (root / "class/block/disk").symlink_to(root / "devices/disk")
    (root / "class/block/disk1").symlink_to(root / "devices/disk/disk1")
    values = {"BDEV": "aio", "SYS": str(root), "MIB": "64"}
    for devices, said in {
        f"{disk} {alias}": f"{alias} and {disk} are one device",
        f"{disk} {part}": f"{part} is a part of {disk}",
        f"{part} {disk}": f"{disk} is the disk of {part}",
    }.items():
        refused = run("devices", tools=tools, DEVICES=devices, **values)
        assert refused.returncode != 0
        assert said in refused.stderr


def test_a_block_device_in_use_and_one_that_is_none_are_refused_together() -> None:
    disk = mounted_disk()
    refused = run("devices", BDEV="aio", DEVICES=f"{disk} /dev/null", MIB="0")
    assert refused.returncode != 0
    assert f"vhost.devices: {disk} is in use: {disk} is mounted at " in refused.stderr
    assert "/dev/null is no block device" in refused.stderr
    assert "pulumi config set --path vhost.devices" in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may reserve hugepages")
def test_more_hugepages_than_there_is_memory_for_are_refused() -> None:
    total = Path("/proc/sys/vm/nr_hugepages")
    before = total.read_text()
    refused = run("hugepages", HUGEPAGES="2Mi=999999999")
    assert refused.returncode != 0
    assert "are wanted beside the" in refused.stderr
    assert "make vhost.memoryMib or vm.memoryMib smaller" in refused.stderr
    assert total.read_text() == before
