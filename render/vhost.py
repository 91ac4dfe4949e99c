"""What a vhost target reads: its disks, and the start-up file and arguments of SPDK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from render.placement import socket_path
from settings.names import SOCKETS

BDEV_FOLDER = "/disks"  # in the vhost pod: of disks in memory, or worker1's folder of files


@dataclass(frozen=True)
class Disks:
    """What a vhost target serves: instance i's disk is vhost.i, on bdev Malloci, Aioi or Nvmein1.

    ordinals: of the instances whose disks it serves. slots: as many as there may be. bdev: malloc, aio or nvme.
    devices: block devices or PCI addresses, in the order of `ordinals`; empty: files.
    """

    ordinals: Sequence[int]
    slots: int
    mib: int
    block_size: int
    queues: int
    bdev: str = "malloc"
    devices: Sequence[str] = ()

    def file(self, ordinal: int) -> str | None:
        """Backing file or block device, as the vhost pod sees it."""
        if self.bdev == "nvme":
            return None
        return self.device(ordinal) if self.devices else f"{BDEV_FOLDER}/vhost.{ordinal}"

    def device(self, ordinal: int) -> str:
        return self.devices[self.ordinals.index(ordinal)]


def vhost_config(disks: Disks) -> str:
    """What the vhost pod serves, as JSON: one disk and one vhost-user-blk export for each instance."""
    return json.dumps(
        {
            "sockets": SOCKETS,
            "bdev": disks.bdev,
            "mib": disks.mib,
            "blockSize": disks.block_size,
            "queues": disks.queues,
            "disks": [{"name": f"vhost.{i}", "socket": socket_path(i), "file": disks.file(i)} for i in disks.ordinals],
        },
        indent=1,
    )


# SPDK's buffers of 8 KiB and 132 KiB. Each vhost controller keeps some of both for itself, twice (bdev, accel); with
# SPDK's own figures (128 and 16) the pools are empty at the 33rd, and the guest hangs.
SMALL_BUFFERS, LARGE_BUFFERS = 16, 4


def _bdev(disks: Disks, i: int) -> tuple[str, dict[str, Any]]:
    """Name of instance `i`'s bdev, and the call that makes it."""
    if disks.bdev == "nvme":
        params = {"name": f"Nvme{i}", "trtype": "PCIe", "traddr": disks.device(i)}
        return f"Nvme{i}n1", {"method": "bdev_nvme_attach_controller", "params": params}
    if disks.bdev == "aio":
        # with discard, as Malloc: a guest that has negotiated it cannot go on with a disk that lacks it
        params = {
            "name": f"Aio{i}",
            "filename": disks.file(i),
            "block_size": disks.block_size,
            "fallocate": True,
        }
        return f"Aio{i}", {"method": "bdev_aio_create", "params": params}
    blocks = (disks.mib << 20) // disks.block_size
    params = {"name": f"Malloc{i}", "num_blocks": blocks, "block_size": disks.block_size}
    return f"Malloc{i}", {"method": "bdev_malloc_create", "params": params}


def spdk_config(disks: Disks) -> str:
    """SPDK's start-up file (--json): buffers for every slot, then each instance's bdev and vhost controller."""
    cache = {"small_cache_size": SMALL_BUFFERS, "large_cache_size": LARGE_BUFFERS}
    pools = {
        "small_pool_count": (disks.slots + 2) * SMALL_BUFFERS * 4,
        "large_pool_count": (disks.slots + 2) * LARGE_BUFFERS * 4,
    }
    bdevs = {i: _bdev(disks, i) for i in disks.ordinals}
    subsystems: dict[str, list[dict[str, Any]]] = {
        "iobuf": [{"method": "iobuf_set_options", "params": pools}],
        "accel": [{"method": "accel_set_options", "params": cache}],
        "bdev": [
            {"method": "bdev_set_options", "params": {f"iobuf_{key}": size for key, size in cache.items()}},
            *(call for _, call in bdevs.values()),
        ],
        "vhost_blk": [
            {"method": "vhost_create_blk_controller", "params": {"ctrlr": f"vhost.{i}", "dev_name": name}}
            for i, (name, _) in bdevs.items()
        ],
    }
    return json.dumps({"subsystems": [{"subsystem": n, "config": c} for n, c in subsystems.items()]}, indent=1)


def spdk_args(*, memory_mib: int, cpu_mask: str, hugepages: bool, pci: bool) -> list[str]:
    """SPDK's arguments beside those that its image gives: sockets, cores, memory, and what it may touch."""
    args = ["-S", SOCKETS, "-m", cpu_mask, "-s", str(memory_mib)]
    if not hugepages:
        args += ["--no-huge"]
    elif not pci:
        # no DMA; SPDK would ask for physical addresses on an Intel host without IOMMU, and its pod may not see any
        args += ["--iova-mode", "va"]
    return args if pci else [*args, "--no-pci"]
