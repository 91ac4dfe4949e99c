"""What the disk agent reads: the disks of its host; and the options and arguments of SPDK."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BDEV_FOLDER = "/disks"  # in the vhost pod: of disks in memory, or worker1's folder of files


@dataclass(frozen=True)
class Disks:
    """What a vhost target serves: instance i's disk is vhost.i, on bdev Malloci, Aioi or Nvmein1.

    ordinals: of the instances whose disks it serves. places: of each, the unit of its VM and the number of its root
    port there. vms: unit -> the name that QEMU has when it runs by its present definition (render.vm.definition).
    slots: as many disks as there may be. bdev: malloc, aio or nvme. devices: block devices or PCI addresses, in the
    order of `ordinals`; empty: files.
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

    @property
    def kind(self) -> str:
        """What no running target changes: another kind is another pod."""
        return f"{self.bdev} {self.mib} {self.block_size} {self.queues}"

    def path(self, ordinal: int) -> str:
        """Backing file, block device or PCI address, as the vhost pod sees it."""
        return self.device(ordinal) if self.devices else f"{BDEV_FOLDER}/vhost.{ordinal}"

    def device(self, ordinal: int) -> str:
        return self.devices[self.ordinals.index(ordinal)]


def vhost_config(disks: Disks) -> str:
    """The disks that are wanted on this host, as JSON."""
    wanted = [
        {"ordinal": i, "vm": disks.places[i][0], "port": disks.places[i][1], "path": disks.path(i)}
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


# SPDK's buffers of 8 KiB and 132 KiB. Each vhost controller keeps some of both for itself, twice (bdev, accel); with
# SPDK's own figures (128 and 16) the pools are empty at the 33rd, and the guest hangs.
SMALL_BUFFERS, LARGE_BUFFERS = 16, 4


def spdk_config(slots: int) -> str:
    """SPDK's start-up file (--json): buffers for every slot. The disk agent adds the disks, each by itself."""
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


def spdk_args(*, memory_mib: int, cpu_mask: str, hugepages: bool, pci: bool) -> list[str]:
    """SPDK's arguments beside those of the disk agent: options, cores, memory, and what it may touch."""
    args = ["--json", "/etc/vhost/spdk.json", "-m", cpu_mask, "-s", str(memory_mib)]
    if not hugepages:
        args += ["--no-huge"]
    elif not pci:
        # no DMA; SPDK would ask for physical addresses on an Intel host without IOMMU, and its pod may not see any
        args += ["--iova-mode", "va"]
    return args if pci else [*args, "--no-pci"]
