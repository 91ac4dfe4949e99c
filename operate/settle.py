"""`make up` ends when what it changed is so: disks plugged, pods ready, each page with the marker of its own disk."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from operate import mend, view
from operate.check import Drift, find
from operate.view import Cluster, Outputs, Snapshot

DUE = 60  # seconds for what the preview said, and has not begun when Pulumi is done: then the preview was wrong
HOLD = 5  # seconds in which a VM's host begins to swap the disks of a target that started anew
PAUSE = 1  # second between two looks


@dataclass(frozen=True)
class Settled:
    """The last look, and what differs in it; drifts is empty when all is as it should be."""

    seen: Snapshot
    drifts: list[Drift]


def limit(numinst: int) -> float:
    """Seconds to wait: on an emulated CPU each pod takes some of them to start."""
    return 120 + 10 * numinst


def nothing(_: Snapshot) -> list[str]:
    return []


def wait(
    cluster: Cluster,
    made: Outputs,
    before: Snapshot | None = None,
    say: Callable[[str], None] = print,
    due: Callable[[Snapshot], list[str]] = nothing,
) -> Settled:
    """Look until nothing differs that comes by itself, at most `limit` seconds; says what it waits for.

    before: a look from before the change. due: what is to happen and has not in this look, such as the restart of a pod
    whose disk goes blank. Where pods or disks are others by now, or something had to be waited for, all must be well
    for HOLD seconds: the old disks answer until they are swapped.
    """
    began = time.monotonic()
    since: float | None = None
    told = ""
    while True:
        seen = view.look(cluster, made)
        drifts = find(seen)
        now = time.monotonic()
        coming = [drift.what for drift in drifts if drift.comes] or (due(seen) if now - began < DUE else [])
        if coming:
            since = None
            if coming[0] != told:
                told = coming[0]
                say(f"waiting: {told}" + (f", and {len(coming) - 1} more" if len(coming) > 1 else ""))
            if now - began > limit(made.numinst):
                say(f"waited {now - began:.0f} s: it is still so")
                return Settled(seen, drifts)
            mend.rebind_released(cluster)
        else:
            since = now if since is None else since
            if not (told or _changed(before, seen)) or now - since >= HOLD:
                return Settled(seen, drifts)
        time.sleep(PAUSE)


def _changed(before: Snapshot | None, seen: Snapshot) -> bool:
    """A first look has no earlier one: then no old disk can answer."""
    return before is not None and (before.made != seen.made or _lives(before) != _lives(seen))


def _lives(seen: Snapshot) -> set[tuple[str, int]]:
    return set(map(view.life, seen.pods))
