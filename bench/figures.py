"""The measured figures: a table beside their goals, and a JSON file that keeps them from run to run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from operate.status import table


@dataclass(frozen=True)
class Figure:
    """value: None if it could not be measured; `note` then says why. goal: the highest acceptable value."""

    part: str
    name: str
    value: float | None
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "skipped"
        if self.goal is None:
            return ""
        return "met" if self.value <= self.goal else "missed"


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile by nearest rank: the smallest of `values` that at least `percent` % of them do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} {unit}".rstrip() if value == int(value) or abs(value) >= 100 else f"{value:.3g} {unit}"


def show(figures: Sequence[Figure]) -> str:
    """The table of figures, measured value beside goal."""
    rows = [["PART", "FIGURE", "MEASURED", "GOAL", "", "NOTE"]]
    for i, f in enumerate(figures):
        part = f.part if i == 0 or figures[i - 1].part != f.part else ""
        goal = "" if f.goal is None else f"≤ {number(f.goal, f.unit)}"
        rows.append([part, f.name, number(f.value, f.unit), goal, f.verdict, f.note])
    return table(rows)


def merge(earlier: Sequence[Figure], now: Sequence[Figure]) -> list[Figure]:
    """All figures. A part that was measured `now` replaces its `earlier` figures."""
    again = {f.part for f in now}
    return [f for f in earlier if f.part not in again] + list(now)


def load(file: Path) -> list[Figure]:
    return [Figure(**item) for item in json.loads(file.read_text())] if file.exists() else []


def save(file: Path, figures: Sequence[Figure]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(f) for f in figures], indent=1, ensure_ascii=False) + "\n")
