"""What the agent asks of a vhost target. Two classes are behind it, qsd.py and spdk.py; docs/disk-agent.md tells how a
third is added."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from disk_agent.config import NO_LIMITS, Disk, Kind, Limits

RUN = Path("/run/vhost")
"""The pod's own, in memory: the target's sockets, and scrap disks."""


@dataclass(frozen=True)
class Served:
    """life: machine.SCRAP for a scrap disk. limits: those in force, as the target tells them."""

    life: str
    limits: Limits = NO_LIMITS


@dataclass(frozen=True)
class Direction:
    """Of a disk's reads or writes, since the target serves it. seconds: of all requests together."""

    requests: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Reactor:
    """Seconds of a core of the target's, since its start."""

    busy: float
    idle: float


@dataclass(frozen=True)
class Counts:
    """disks: ordinal -> "read" and "write". reactors: core -> its time. Empty where the target counts nothing."""

    disks: Mapping[int, Mapping[str, Direction]] = field(default_factory=dict[int, Mapping[str, Direction]])
    reactors: Mapping[int, Reactor] = field(default_factory=dict[int, Reactor])


class Target(Protocol):
    """A target that runs, is started or has died; `connect` comes before each life of it.

    Errors of all: monitor.Refused, in the target's words; monitor.Silent, where it does not answer.
    A life that the target carries is what its `serve` was told, as long as it serves the disk.
    """

    def command(self) -> Sequence[str]:
        """The program and its arguments. It starts with nothing to serve."""
        ...

    async def connect(self) -> None:
        """To a target that was just started. ConnectionError, FileNotFoundError: it does not listen yet."""
        ...

    async def close(self) -> None: ...

    async def ping(self) -> None:
        """It answers."""
        ...

    async def served(self) -> dict[int, Served]:
        """By ordinal."""
        ...

    async def counts(self) -> Counts:
        """What the target has done so far, for /metrics."""
        ...

    async def look(self, disk: Disk) -> str | None:
        """What `disk` is now: its life; None where it is to be made first. Refused: it cannot be served, and why."""
        ...

    async def serve(self, disk: Disk, life: str | None) -> None:
        """Serve `disk` at its socket. What an earlier try left is taken away first. life: of the last look; what is
        found to be another one by now is not served. Its limits hold before a VM can reach it; a disk whose limits the
        target refuses is served all the same."""
        ...

    async def limit(self, disk: Disk) -> None:
        """Hold what is served to the limits of `disk`, while it is in use."""
        ...

    async def serve_scrap(self, ordinal: int) -> None:
        """Serve an empty throw-away file of the disks' kind at the socket of `ordinal`."""
        ...

    async def stop(self, ordinal: int) -> None:
        """Serve nothing there. Memory, file or device keeps all."""
        ...

    async def free(self, disk: Disk) -> None:
        """Give back the memory that outlives the target."""
        ...


def life(kind: Kind, *identity: object) -> str:
    """Of a disk that outlives the target: the same as long as it is the same, of the same kind."""
    return hashlib.sha256("\0".join(map(str, (kind, *identity))).encode()).hexdigest()[:12]
