"""The engine's event log (`pulumi up --event-log FILE`): as time spans, as phases of the bring-up, and as an SVG."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# Phase, named as in floor.sh -> the resources ("Component/name") of which the last one completes it.
PHASES = {
    "machines run": r"DevMachines/.*-ready",
    "registry answers": r"Registry/.*",
    "registry filled": r"Images/.*",
    "control plane Ready": r"Cluster/cluster-control-plane",
    "vhost target serves": r"Vhost/.*",
    "VM answers": r"WorkerVm/.*-answers",
    "VM is a Ready node": r"Cluster/.*-ready",
    "pages answer": r"Video/.*",
}


@dataclass(frozen=True)
class Span:
    """The step of a resource. start, end: whole seconds since the first event. component: "" if it has none."""

    name: str
    component: str
    operation: str
    start: int
    end: int

    @property
    def seconds(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Log:
    spans: list[Span]
    changes: dict[str, int]
    """Operation ("create", "same", …) -> number of resources, from the engine's summary."""


def read(lines: Iterable[str]) -> Log:
    """Read the event log. The spans are of resources with a step, without components and providers, by their start."""
    events = [json.loads(line) for line in lines]
    zero = events[0]["timestamp"] if events else 0
    started: dict[str, int] = {}
    spans: list[Span] = []
    changes: dict[str, int] = {}
    for event in events:
        at = event["timestamp"] - zero
        changes = event.get("summaryEvent", {}).get("resourceChanges", changes)
        step = event.get("resourcePreEvent") or event.get("resOutputsEvent") or event.get("resOpFailedEvent")
        if not step or step["metadata"]["op"] == "same":
            continue
        urn = step["metadata"]["urn"]
        if "resourcePreEvent" in event:
            started[urn] = at
            continue
        _, _, types, name = urn.split("::", 3)
        kind = types.rpartition("$")[2]
        if urn not in started or kind.startswith(("pulumi:", "spdk-k8s:index:")):
            continue
        parents = re.findall(r"spdk-k8s:index:(\w+)\$", types)
        spans.append(Span(name, parents[-1] if parents else "", step["metadata"]["op"], started.pop(urn), at))
    return Log(sorted(spans, key=lambda s: (s.start, s.end)), changes)


def phases(spans: Sequence[Span]) -> dict[str, tuple[int, int]]:
    """Phase -> start of its first resource, end of its last, in seconds. Phases overlap."""
    found: dict[str, tuple[int, int]] = {}
    for phase, pattern in PHASES.items():
        its = [s for s in spans if re.fullmatch(pattern, f"{s.component}/{s.name}")]
        if its:
            found[phase] = min(s.start for s in its), max(s.end for s in its)
    return found


COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#9c755f", "#edc948")
LEFT, WIDTH, ROW, TOP = 190, 960, 17, 60  # pixels


def svg(spans: Sequence[Span], title: str) -> str:
    """An SVG with a bar for each resource that took a second or more, in its component's colour."""
    bars = [s for s in spans if s.seconds >= 1]
    components = list(dict.fromkeys(s.component or "other" for s in bars))
    colour = {c: COLOURS[i % len(COLOURS)] for i, c in enumerate(components)}
    total = max((s.end for s in bars), default=1)
    height = TOP + ROW * len(bars) + 10

    def x(at: float) -> float:
        return round(LEFT + at * (WIDTH - LEFT - 60) / total, 1)

    def text(left: float, top: float, words: str, more: str = "") -> str:
        return f'<text x="{left}" y="{top}" {more}>{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        text(10, 16, title, 'font-size="13" font-weight="bold"'),
    ]
    left = LEFT
    for c in components:
        parts += [f'<rect x="{left}" y="24" width="10" height="10" fill="{colour[c]}"/>', text(left + 14, 33, c)]
        left += 24 + 7 * len(c)
    tick = next(t for t in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600) if total / t <= 14 or t == 3600)
    for at in range(0, total + 1, tick):
        parts += [
            f'<line x1="{x(at)}" y1="{TOP - 4}" x2="{x(at)}" y2="{height - 6}" stroke="#ddd"/>',
            text(x(at), TOP - 7, f"{at} s", 'text-anchor="middle" fill="#777"'),
        ]
    for row, s in enumerate(bars):
        top = TOP + row * ROW
        parts += [
            text(LEFT - 8, top + 12, s.name, 'text-anchor="end"'),
            f'<rect x="{x(s.start)}" y="{top + 2}" width="{x(s.end) - x(s.start):.1f}" height="{ROW - 4}" rx="2"'
            f' fill="{colour[s.component or "other"]}"/>',
            text(x(s.end) + 4, top + 12, f"{s.seconds} s", 'fill="#777"'),
        ]
    return "\n".join([*parts, "</svg>", ""])
