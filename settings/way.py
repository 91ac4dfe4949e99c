"""Way: what a change of a config key interrupts on a running stack. Each field of settings/models.py carries one."""

from __future__ import annotations

from enum import StrEnum


class Way(StrEnum):
    """From the mildest to the most severe. A change can cost less than its key's way, never more."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Way:
        way = str.__new__(cls, name)
        way._value_, way.meaning = name, meaning
        return way

    LIVE = "live", "nothing that runs is interrupted"
    ROLLING = "rolling", "the video pods restart one after the other"
    MOVE = "move", "the instances that it names start anew on another VM, with blank disks; no other is interrupted"
    TARGET = "target", "the vhost target restarts; disks of bdev malloc are blank after that, others keep their data"
    GUEST = "guest", "each VM is drained and boots anew, one VM after the other"
    NODE = "node", "the machines are set up anew: vhost targets and video pods restart"
    REBUILD = "rebuild", "only a new stack can have another value: make down, then make up"

    @property
    def severity(self) -> int:
        return list(Way).index(self)
