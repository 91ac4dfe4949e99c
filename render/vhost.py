"""What the vhost pod reads: the list of its disks, and SPDK's start-up file and arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from render.placement import socket_path
from settings.names import SOCKETS

BDEV_FOLDER = "/disks"  # in the vhost pod: a tmpfs for disks in memory, or the storage host's folder of disk files


@dataclass(frozen=True)
class Disks:
    """The disks of a vhost target. Instance i's disk is vhost.i, on bdev Malloc<i>, Aio<i> or Nvme<i>n1.

    ordinals: of the instances that the target serves. slots: the most disks that it must be able to serve.
    mib: size of each disk in MiB. block_size: in bytes. queues: virtqueues of each disk.
    bdev: "malloc", "aio" or "nvme". devices: block devices or PCI addresses in the order of `ordinals`; empty: files.
    """

    ordinals: Sequence[int]
    slots: int
    mib: int
    block_size: int
    queues: int
    bdev: str = "malloc"
    devices: Sequence[str] = ()

    def file(self, ordinal: int) -> str | None:
        """Path in the vhost pod of the disk's file or block device. None: an NVMe device has none."""
        if self.bdev == "nvme":
            return None
        return self.device(ordinal) if self.devices else f"{BDEV_FOLDER}/vhost.{ordinal}"

    def device(self, ordinal: int) -> str:
        """Block device or PCI address of instance `ordinal`."""
        return self.devices[self.ordinals.index(ordinal)]


def vhost_config(disks: Disks) -> str:
    """vhost.json: the disks that the pod serves, each with its vhost-user socket and file. images/vhost reads it."""
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


# Number of SPDK's I/O buffers (8 KiB and 132 KiB) that a vhost controller caches, once in bdev and once in accel. With
# SPDK's defaults (128 and 16) the pools are empty at the 33rd controller, and the guest hangs.
SMALL_BUFFERS, LARGE_BUFFERS = 16, 4


def _bdev(disks: Disks, i: int) -> tuple[str, dict[str, Any]]:
    """Name of instance i's bdev, and the SPDK RPC that creates it."""
    if disks.bdev == "nvme":
        params = {"name": f"Nvme{i}", "trtype": "PCIe", "traddr": disks.device(i)}
        return f"Nvme{i}n1", {"method": "bdev_nvme_attach_controller", "params": params}
    if disks.bdev == "aio":
        # fallocate adds discard, which Malloc has too. A guest that negotiated discard still needs it if bdev changes.
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
    """spdk.json, SPDK's start-up file: buffers for every slot, then each instance's bdev and vhost controller."""
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
    """Arguments of SPDK's vhost target. The image adds those that do not depend on the config.

    memory_mib: SPDK's memory in MiB. cpu_mask: the cores that it polls on. hugepages: its memory is on hugepages.
    pci: it may take over PCI devices, which bdev nvme needs.
    """
    args = ["-S", SOCKETS, "-m", cpu_mask, "-s", str(memory_mib)]
    if not hugepages:
        args += ["--no-huge"]
    elif not pci:
        # Without DMA, virtual addresses are enough. SPDK's default may be physical ones, which a pod may not see.
        args += ["--iova-mode", "va"]
    return args if pci else [*args, "--no-pci"]
