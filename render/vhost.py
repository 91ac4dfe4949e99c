"""What the disk agent reads: the list of its disks, and SPDK's start-up file and arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BDEV_FOLDER = "/disks"  # in the vhost pod: a tmpfs for disks in memory, or the storage host's folder of disk files


@dataclass(frozen=True)
class Disks:
    """The disks of a vhost target. Instance i's disk is vhost.i, on SPDK's bdev Aio<i> or Nvme<i>n1.

    ordinals: of the instances that the target serves. slots: the most disks that it must be able to serve.
    mib: size of each disk in MiB. block_size: in bytes. queues: virtqueues of each disk.
    bdev: "malloc" (memory of the pod), "aio" or "nvme". devices: block devices or PCI addresses in the order of
    `ordinals`; empty: files. places: ordinal -> the VM's name on its host, and the number of its root port. vms:
    the VM's name -> the name that QEMU has when it runs with the present definition (render.vm.definition). limits:
    ordinal -> settings.qos.LIMITS.
    """

    ordinals: Sequence[int]
    slots: int
    mib: int
    block_size: int
    queues: int
    bdev: str = "malloc"
    devices: Sequence[str] = ()
    places: Mapping[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    vms: Mapping[str, str] = field(default_factory=dict[str, str])
    limits: Mapping[int, Mapping[str, int]] = field(default_factory=dict[int, Mapping[str, int]])

    @property
    def kind(self) -> str:
        """The properties that a running target cannot change: another kind needs a new pod."""
        return f"{self.bdev} {self.mib} {self.block_size} {self.queues}"

    def path(self, ordinal: int) -> str:
        """Path in the vhost pod of the disk's file or block device, or the PCI address of an NVMe device."""
        return self.device(ordinal) if self.devices else f"{BDEV_FOLDER}/vhost.{ordinal}"

    def device(self, ordinal: int) -> str:
        """Block device or PCI address of instance `ordinal`."""
        return self.devices[self.ordinals.index(ordinal)]


def vhost_config(disks: Disks) -> str:
    """vhost.json: the disks that the pod serves, each with its VM, root port and file. The disk agent reads it."""
    wanted: list[dict[str, Any]] = [
        {"ordinal": i, "vm": disks.places[i][0], "port": disks.places[i][1], "path": disks.path(i)}
        | ({"limits": disks.limits[i]} if disks.limits.get(i) else {})
        for i in disks.ordinals
    ]
    return json.dumps(
        {
            "bdev": disks.bdev,
            "mib": disks.mib,
            "blockSize": disks.block_size,
            "queues": disks.queues,
            "vms": disks.vms,
            "disks": wanted,
        },
        indent=1,
    )


# Number of SPDK's I/O buffers (8 KiB and 132 KiB) that a vhost controller caches, once in bdev and once in accel. With
# SPDK's defaults (128 and 16) the pools are empty at the 33rd controller, and the guest hangs.
SMALL_BUFFERS, LARGE_BUFFERS = 16, 4


def spdk_config(slots: int) -> str:
    """spdk.json, SPDK's start-up file: buffers for every slot. The disk agent adds the disks, one by one."""
    cache = {"small_cache_size": SMALL_BUFFERS, "large_cache_size": LARGE_BUFFERS}
    pools = {
        "small_pool_count": (slots + 2) * SMALL_BUFFERS * 4,
        "large_pool_count": (slots + 2) * LARGE_BUFFERS * 4,
    }
    subsystems: dict[str, list[dict[str, Any]]] = {
        "iobuf": [{"method": "iobuf_set_options", "params": pools}],
        "accel": [{"method": "accel_set_options", "params": cache}],
        "bdev": [{"method": "bdev_set_options", "params": {f"iobuf_{key}": size for key, size in cache.items()}}],
    }
    return json.dumps({"subsystems": [{"subsystem": n, "config": c} for n, c in subsystems.items()]}, indent=1)


def spdk_args(*, memory_mib: int, cpu_mask: str, polls: bool, hugepages: bool, pci: bool) -> list[str]:
    """Arguments of SPDK's vhost target. The disk agent adds those that do not depend on the config.

    memory_mib: SPDK's memory in MiB. cpu_mask: the cores that it runs on. polls: all of their time; else it sleeps
    until there is something to do. hugepages: its memory is on hugepages. pci: it may take over PCI devices, which bdev
    nvme needs.
    """
    args = ["--json", "/etc/vhost/spdk.json", "-m", cpu_mask, "-s", str(memory_mib)]
    if not polls:
        args += ["--interrupt-mode"]
    if not hugepages:
        args += ["--no-huge"]
    elif not pci:
        # Without DMA, virtual addresses are enough. SPDK's default may be physical ones, which a pod may not see.
        args += ["--iova-mode", "va"]
    return args if pci else [*args, "--no-pci"]
