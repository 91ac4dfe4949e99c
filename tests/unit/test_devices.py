"""scripts/devices.sh and hugepages.sh, run as a host runs them: what cannot be had is refused, nothing is changed."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit

ADDRESS = "0000:5e:00.0"


def run(step: str, action: str = "up", **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-s", action], input=script(step, values), capture_output=True, text=True)


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


def test_a_block_device_is_large_enough_or_refused(disk: str) -> None:
    values = {"BDEV": "aio", "DEVICES": disk, "SYS": str(Path(disk).parent)}
    fits = run("devices", MIB="64", **values)
    assert fits.returncode == 0, fits.stderr
    refused = run("devices", MIB="128", **values)
    assert refused.returncode != 0
    assert f"vhost.devices: {disk} has 67108864 bytes (64 MiB), and a disk must hold 128 MiB" in refused.stderr
    assert "mend: pulumi config set --path vhost.diskMib 64\n" in refused.stderr


def test_an_nvme_device_that_is_too_small_is_refused_and_stays_with_the_kernel(sys: Path) -> None:
    device = sys / "bus/pci/devices" / ADDRESS
    (device / "nvme/nvme0/nvme0n1").mkdir(parents=True)
    (sys / "class/block/nvme0n1").mkdir(parents=True)
    (sys / "class/block/nvme0n1/size").write_text(f"{64 << 11}\n")
    refused = run("devices", BDEV="nvme", DEVICES=ADDRESS, MIB="128", SYS=str(sys))
    assert refused.returncode != 0
    assert f"{ADDRESS} has 67108864 bytes (64 MiB), and a disk must hold 128 MiB" in refused.stderr
    assert not (device / "driver_override").exists()


def test_an_nvme_device_is_handed_to_vfio_and_back(sys: Path) -> None:
    device = sys / "bus/pci/devices" / ADDRESS
    taken = run("devices", BDEV="nvme", DEVICES=ADDRESS, MIB="128", SYS=str(sys))
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


def test_an_nvme_device_in_use_is_refused(sys: Path) -> None:
    tools = sys / "tools"  # an lsblk that knows the device as mounted
    tools.mkdir()
    (tools / "lsblk").write_text("#!/bin/sh\necho /dev/nvme0n1 /srv disk\n")
    (tools / "lsblk").chmod(0o755)
    (sys / "bus/pci/devices" / ADDRESS / "nvme/nvme0/nvme0n1").mkdir(parents=True)
    (sys / "class/block/nvme0n1").mkdir(parents=True)
    (sys / "class/block/nvme0n1/size").write_text(f"{128 << 11}\n")
    values = {"BDEV": "nvme", "DEVICES": ADDRESS, "MIB": "128", "SYS": str(sys)}
    refused = subprocess.run(
        ["bash", "-s", "up"], input=script("devices", values),
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode != 0
    assert f"vhost.devices: {ADDRESS} is in use: /dev/nvme0n1 is mounted at /srv" in refused.stderr
    assert not (sys / "bus/pci/devices" / ADDRESS / "driver_override").exists()


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
