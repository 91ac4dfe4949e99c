"""The limits of a disk: what one may be, and how they are called. Both vhost targets keep them in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NONE = "none"  # lifts a limit


class BadLimit(ValueError):
    """A limit that the targets cannot keep. instead: the nearest one that they can; None: the key should go."""

    def __init__(self, rule: str, instead: int | None = None) -> None:
        super().__init__(rule)
        self.instead = instead


@dataclass(frozen=True)
class Limit:
    """A kind of limit. step: SPDK keeps multiples of it, and rounds other values up without a word. most: no disk is
    faster, and both targets can count it."""

    step: int
    most: int
    unit: str

    @property
    def rule(self) -> str:
        values = f"a multiple of {self.step}" if self.step > 1 else "a whole number"
        return f"must be {values} from {self.step} to {self.most}, or {NONE}"

    def check(self, value: object) -> object:
        """`value`, if the targets can keep it; else BadLimit."""
        if value is None or value == NONE:
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadLimit(self.rule)
        if value <= 0:
            raise BadLimit(f"{self.rule}; the smallest limit is {self.step}")
        if value > self.most:
            raise BadLimit(f"{self.rule}: no disk is faster; the nearest is {self.most}", self.most)
        if value % self.step == 0:
            return value
        low = value // self.step * self.step
        near = [each for each in (low, low + self.step) if each]
        words = " and ".join(map(str, near))
        raise BadLimit(f"{self.rule}; the nearest: {words}", min(near, key=lambda each: abs(each - value)))


LIMITS = {
    "iops": Limit(1000, 10_000_000, "IOPS"),
    "mibPerSecond": Limit(1, 100_000, "MiB/s"),
    "readMibPerSecond": Limit(1, 100_000, "MiB/s read"),
    "writeMibPerSecond": Limit(1, 100_000, "MiB/s written"),
}


def in_words(limits: Mapping[str, int]) -> str:
    """{"iops": 5000, "writeMibPerSecond": 20} -> "5000 IOPS, 20 MiB/s written"."""
    return ", ".join(f"{limits[name]} {limit.unit}" for name, limit in LIMITS.items() if name in limits) or "no limit"
