"""What the stack wants: the ConfigMap's vhost.json, as render/vhost.py writes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


class BadConfig(Exception):
    """The file is missing, half-written, or not what render/vhost.py writes."""


@dataclass(frozen=True)
class Kind:
    """What all disks of one vhost pod have in common. Another kind is another pod."""

    bdev: str
    mib: int
    block_size: int
    queues: int

    @property
    def in_memory(self) -> bool:
        return self.bdev == "malloc"

    @property
    def bytes(self) -> int:
        return self.mib << 20

    def __str__(self) -> str:
        return f"{self.bdev} {self.mib} {self.block_size} {self.queues}"


@dataclass(frozen=True)
class Limits:
    """The most that a disk may do in a second, reads and writes together unless the name says otherwise. The names are
    those of the stack's config. 0: no limit."""

    iops: int = 0
    mibPerSecond: int = 0
    readMibPerSecond: int = 0
    writeMibPerSecond: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.set.items()) or "none"

    @property
    def set(self) -> dict[str, int]:
        """Those that there are."""
        return {name: value for name, value in asdict(self).items() if value}


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Disk:
    """vm: name of the QEMU unit on this host. port: number of its root port there. path: backing file, block device or
    PCI address as the pod sees it."""

    ordinal: int
    vm: str
    port: int
    path: str
    limits: Limits = NO_LIMITS

    @property
    def name(self) -> str:
        return f"vhost.{self.ordinal}"


@dataclass(frozen=True)
class Config:
    """vms: name -> the name that QEMU carries when it runs by the wanted definition (render/vm.py). digest: of the
    text, by which a step of the stack knows that kubelet has passed on what it waits for."""

    kind: Kind
    vms: dict[str, str]
    disks: dict[int, Disk]
    digest: str = ""


def load(file: Path) -> Config:
    try:
        text = file.read_text()
        return replace(parse(json.loads(text)), digest=hashlib.sha256(text.encode()).hexdigest()[:12])
    except (OSError, ValueError) as error:
        raise BadConfig(f"{file}: {error}") from None


def parse(data: Any) -> Config:
    try:
        kind = Kind(str(data["bdev"]), int(data["mib"]), int(data["blockSize"]), int(data["queues"]))
        disks = {int(d["ordinal"]): _disk(d) for d in data["disks"]}
        return Config(kind, {str(k): str(v) for k, v in data["vms"].items()}, disks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadConfig(f"vhost.json: {type(error).__name__}: {error}") from None


def _disk(data: Any) -> Disk:
    limits = Limits(**{str(name): int(value) for name, value in data.get("limits", {}).items()})
    return Disk(int(data["ordinal"]), str(data["vm"]), int(data["port"]), str(data.get("path") or ""), limits)
