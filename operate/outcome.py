"""What the preview said of a change, held against what happened to pods, disks, targets and VMs."""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from operate import view
from operate.impact import Impact
from operate.view import Snapshot
from settings.names import VIDEO


@dataclass(frozen=True)
class Happened:
    """What can be compared in two looks -> whether it happened: instances whose pod restarted, disks that lost what was
    on them, targets that restarted, VMs that booted anew."""

    pods: dict[int, bool]
    disks: dict[int, bool]
    targets: dict[str, bool]
    vms: dict[str, bool]


def happened(before: Snapshot, after: Snapshot) -> Happened:
    """Between two looks. What is only in one of them came or went: operate/check.py tells whether it should have."""
    old, new = before.videos, after.videos
    lives = [[(marker.marker or {}).get("life") for marker in seen.markers] for seen in (before, after)]
    nodes = before.nodes.keys() & after.nodes.keys() & set(before.made.vms) & set(after.made.vms)
    return Happened(
        pods={
            i: view.life(old[name]) != view.life(new[name])
            for name in old.keys() & new.keys()
            if (i := view.ordinal(new[name])) is not None
        },
        # a page that does not answer has no life
        disks={i: a != b for i, (a, b) in enumerate(zip(*lives, strict=False)) if a and b},
        targets={
            app: set(map(view.life, before.of(app))) != set(map(view.life, after.of(app)))
            for app in before.made.targets.keys() & after.made.targets.keys()
            if after.of(app)
        },
        vms={
            name: before.nodes[name].status.node_info.boot_id != after.nodes[name].status.node_info.boot_id
            for name in nodes
        },
    )


def unsaid(said: Impact, before: Snapshot, after: Snapshot) -> list[str]:
    """What happened, and the preview did not say it."""
    found = happened(before, after)
    return [
        *(f"pod {VIDEO}-{i} restarted" for i in _those(found.pods, True) if i not in said.restarted),
        *(f"disk {i} lost what was on it" for i in _those(found.disks, True) if i not in said.blank),
        *(f"the vhost target {app} restarted" for app in _those(found.targets, True) if app not in said.targets),
        *(f"VM {name} booted anew" for name in _those(found.vms, True) if name not in said.vms),
    ]


def undone(said: Impact, before: Snapshot, after: Snapshot) -> list[str]:
    """What the preview said for sure, and it has not happened."""
    found = happened(before, after)
    sure = [i for i in said.restarted if said.pages[i].sure]
    return [
        *(f"pod {VIDEO}-{i} has not restarted" for i in _those(found.pods, False) if i in sure),
        *(f"disk {i} still has what was on it" for i in _those(found.disks, False) if said.blank.get(i)),
        *(f"the vhost target {app} has not restarted" for app in _those(found.targets, False) if said.targets.get(app)),
        *(f"VM {name} has not booted anew" for name in _those(found.vms, False) if said.vms.get(name)),
    ]


Name = TypeVar("Name", int, str)


def _those(found: dict[Name, bool], value: bool) -> list[Name]:
    return sorted(name for name, happened in found.items() if happened is value)
