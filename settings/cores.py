"""Lists of CPU cores, as the kernel writes them: "0-2,5"."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def numbers(cores: str) -> list[int]:
    """The cores of a list, in its order."""
    spans = (part.split("-") for part in cores.split(",") if part)
    return [core for span in spans for core in range(int(span[0]), int(span[-1]) + 1)]


def ranges(cores: Iterable[int]) -> str:
    """The cores as a list, in ascending order."""
    spans = (list(span) for _, span in groupby(enumerate(sorted(set(cores))), lambda pair: pair[1] - pair[0]))
    ends = ((span[0][1], span[-1][1]) for span in spans)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
