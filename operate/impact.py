"""What a change costs, read from the steps of the engine's preview: pods, disks, VMs, machines, pages that are away.

Pure: nobody is asked, so it says the same on the machine of a stack and in a pull request.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Protocol, cast

from operate.difference import State, Step, between, flat
from settings.names import VIDEO
from settings.qos import in_words

Steps = Mapping[str, Step]  # by URN


class Cause(StrEnum):
    """Why a page is away, the shortest time first."""

    TARGET = "target"
    ROLLING = "rolling"
    SWAP = "swap"
    TOGETHER = "together"
    GUEST = "guest"
    NODE = "node"

    @property
    def words(self) -> str:
        return {
            Cause.TARGET: "the vhost target restarts, and the disk comes back as it was",
            Cause.ROLLING: "the pods restart one after the other",
            Cause.SWAP: "the disk is replaced, the pod starts anew",
            Cause.TOGETHER: "the StatefulSet is replaced, and all pods start anew at once",
            Cause.GUEST: "the VM boots anew",
            Cause.NODE: "the machine is made anew",
        }[self]

    @property
    def seconds(self) -> float:
        """How long a page is away where the stack has no record of it: as measured on 2 cores without KVM."""
        return {"target": 3, "rolling": 15, "swap": 30, "together": 60, "guest": 110, "node": 240}[self]


LONGER = (Cause.SWAP, Cause.TOGETHER, Cause.GUEST, Cause.NODE)  # than a rolling restart takes a page away
WORDS = ("interrupt", "blank")  # what `make up ALLOW=` may allow


class Change(Protocol):
    """A config key that differs: settings.changes.Change."""

    @property
    def key(self) -> str: ...
    @property
    def old(self) -> Any: ...
    @property
    def new(self) -> Any: ...
    @property
    def way(self) -> str: ...


@dataclass(frozen=True)
class Away:
    """Why a page is away. sure: False where only `up` will know whether it is."""

    cause: Cause
    sure: bool = True


@dataclass(frozen=True)
class Impact:
    """What a change costs. Instances are named by their ordinals.

    pages: those that are away. added, ended: instances that come and go. moved: disk -> from which VM to which.
    limits: disk -> from which limits to which, while it is in use.
    Each with whether that is sure, which it is not where only `up` will know it: blank: disks whose content is lost;
    targets: vhost targets that restart; vms: those that boot anew.
    new, gone: machines and VMs that come and go. anew: machines that are made anew.
    steps: machine -> number of steps that run there. keys: of the config, that differ. seconds: how long a page is
    away for each cause. kept: instances that nobody touches.
    """

    pages: Mapping[int, Away] = field(default_factory=dict[int, Away])
    added: Sequence[int] = ()
    ended: Sequence[int] = ()
    blank: Mapping[int, bool] = field(default_factory=dict[int, bool])
    moved: Mapping[int, str] = field(default_factory=dict[int, str])
    targets: Mapping[str, bool] = field(default_factory=dict[str, bool])
    vms: Mapping[str, bool] = field(default_factory=dict[str, bool])
    new: Sequence[str] = ()
    gone: Sequence[str] = ()
    anew: Sequence[str] = ()
    limits: Mapping[int, str] = field(default_factory=dict[int, str])
    steps: Mapping[str, int] = field(default_factory=dict[str, int])
    keys: Sequence[Change] = ()
    seconds: Mapping[Cause, float] = field(default_factory=dict[Cause, float])
    kept: Sequence[int] = ()

    def of(self, *causes: Cause) -> list[int]:
        return sorted(i for i, away in self.pages.items() if away.cause in causes)

    @property
    def restarted(self) -> list[int]:
        """Instances whose pod starts anew."""
        return sorted(i for i, away in self.pages.items() if away.cause is not Cause.TARGET)

    @property
    def needs(self) -> dict[str, str]:
        """Word of ALLOW -> why the change needs it."""
        found: dict[str, str] = {}
        causes = [cause for cause in LONGER if self.of(cause)]
        interrupts = [f"pages {ranges(self.of(c))} are away for {self._about(c)}: {c.words}" for c in causes]
        if self.anew:
            interrupts.append(f"{', '.join(self.anew)}: made anew")
        if interrupts:
            found["interrupt"] = "; ".join(interrupts)
        if self.blank:
            found["blank"] = f"disks {ranges(self.blank)} go blank; on them: {playlists(self.blank)}"
        return found

    def rows(self) -> list[tuple[str, str]]:
        """What happens -> to what; empty where nothing happens to anybody."""
        perhaps = [i for i, away in self.pages.items() if not away.sure]
        unsure = f" (perhaps: {ranges(perhaps)}; only up knows the new image or value)" if perhaps else ""
        rows = [
            ("config", ", ".join(f"{c.key} {_short(c.old)} → {_short(c.new)} ({c.way})" for c in self.keys)),
            ("pods restarted", f"{ranges(self.restarted)}{unsure}" if self.restarted else ""),
            ("instances added", ranges(self.added)),
            ("instances ended", ranges(self.ended)),
            ("disks that go blank", f"{ranges(self.blank)}; on them: {playlists(self.blank)}" if self.blank else ""),
            ("disks with other limits", self._limits()),
            ("disks that move", ", ".join(f"{i} ({where})" for i, where in sorted(self.moved.items()))),
            ("vhost targets restarted", _named(self.targets)),
            ("VMs that boot anew", _named(self.vms)),
            ("machines made anew", ", ".join(self.anew)),
            ("machines added", ", ".join(self.new)),
            ("machines removed", ", ".join(self.gone)),
            ("steps run", ", ".join(f"{count} on {name}" for name, count in sorted(self.steps.items()))),
            ("pages away", "; ".join(self._pages_away())),
        ]
        rows = [(what, which) for what, which in rows if which]
        return [*rows, ("stays as it is", self._stays())] if rows and self._stays() else rows

    def _limits(self) -> str:
        changes = dict[str, list[int]]()
        for i, change in sorted(self.limits.items()):
            changes.setdefault(change, []).append(i)
        return "; ".join(f"{ranges(which)} ({change})" for change, which in changes.items())

    def _pages_away(self) -> Iterator[str]:
        for cause in Cause:
            if found := self.of(cause):
                yield f"{ranges(found)} for {self._about(cause)}: {cause.words}"

    def _stays(self) -> str:
        parts = [f"pods and pages {ranges(self.kept)}"] if self.kept else []
        if held := sorted((set(self.kept) | set(self.pages)) - set(self.blank)):
            parts.append(f"what is on disks {ranges(held)}")
        return "; ".join(parts)

    def _about(self, cause: Cause) -> str:
        known = self.seconds.get(cause)
        return f"about {known or cause.seconds:.0f} s" + (" (measured)" if known else "")

    def text(self) -> list[str]:
        rows = self.rows()
        if not rows:
            return ["Impact: none"]
        width = max(len(what) for what, _ in rows)
        return ["Impact:", *(f"  {what:<{width}}  {which}" for what, which in rows)]

    def as_json(self) -> dict[str, Any]:
        return {
            "pages": {
                str(i): {
                    "cause": str(a.cause),
                    "seconds": self.seconds.get(a.cause, a.cause.seconds),
                    "sure": a.sure,
                }
                for i, a in sorted(self.pages.items())
            },
            "podsRestarted": self.restarted,
            "added": list(self.added),
            "ended": list(self.ended),
            "blank": list(self.blank),
            "moved": {str(i): where for i, where in self.moved.items()},
            "limits": {str(i): change for i, change in self.limits.items()},
            "targetsRestarted": sorted(self.targets),
            "vmsBooted": sorted(self.vms),
            "machines": {"anew": list(self.anew), "added": list(self.new), "removed": list(self.gone)},
            "steps": dict(self.steps),
            "config": [{"key": c.key, "old": c.old, "new": c.new, "way": str(c.way)} for c in self.keys],
            "kept": list(self.kept),
            "allow": sorted(self.needs),
            "rows": [list(row) for row in self.rows()],
        }


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0 to 2, 5"."""
    found = sorted(set(numbers))
    ends = [i for i, (a, b) in enumerate(pairwise(found)) if b != a + 1]
    spans = zip([0, *(i + 1 for i in ends)], [*ends, len(found) - 1], strict=True)
    return ", ".join(f"{found[a]} to {found[b]}" if a < b else f"{found[a]}" for a, b in spans) if found else ""


def _named(sure: Mapping[str, bool]) -> str:
    return ", ".join(name if sure[name] else f"{name} (perhaps)" for name in sorted(sure))


def playlists(ordinals: Iterable[int]) -> str:
    """What instances copied onto their disks: it is copied again onto a blank one."""
    return f"playlist mp4-{ranges(i + 1 for i in ordinals)} (copied again) and what was added (lost)"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


# --- what is laid out where, before and after ------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """An instance's, as the target's ConfigMap has it. node: that has it, by its PersistentVolume. limits: in words."""

    target: str
    unit: str
    port: int
    path: str
    node: str
    limits: str


@dataclass
class Layout:
    """kinds: target -> what all its disks are. vms: (target, unit) -> definition. names: (target, unit) -> node.
    hosts: target -> machine. numinst: of the StatefulSet."""

    disks: dict[int, Disk] = field(default_factory=dict[int, Disk])
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    vms: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    names: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    hosts: dict[str, str] = field(default_factory=dict[str, str])
    numinst: int = 0

    def name(self, vm: tuple[str, str]) -> str:
        """The node's; of a VM without a disk, which no volume names, its unit's."""
        return self.names.get(vm, f"{vm[1]} on {self.hosts.get(vm[0], vm[0])}")


def layout(states: Iterable[State]) -> Layout:
    """From the objects of Kubernetes among the `states` of one side of a preview."""
    found, nodes, listed = Layout(), dict[int, str](), dict[str, dict[str, Any]]()
    for state in states:
        kind, inputs = _kind(state), _at(state, "inputs")
        name = _name(inputs)
        if kind == "PersistentVolume" and (number := re.fullmatch(r"vhost-(\d+)", name)):
            affinity = flat(_at(inputs, "spec", "nodeAffinity"))
            nodes[int(number[1])] = next((node for path, node in affinity if path.endswith("values[0]")), "")
        elif kind == "ConfigMap" and "vhost.json" in _at(inputs, "data"):
            listed[name] = _parsed(inputs["data"]["vhost.json"])
        elif kind == "Deployment":
            found.hosts[name] = _at(inputs, "spec", "template", "spec", "nodeSelector").get("type1", "")
        elif kind == "StatefulSet" and name == VIDEO:
            found.numinst = int(_at(inputs, "spec").get("replicas") or 0)
    for target, config in listed.items():
        found.kinds[target] = tuple(str(config.get(key)) for key in ("bdev", "mib", "blockSize", "queues"))
        found.vms |= {(target, unit): definition for unit, definition in _at(config, "vms").items()}
        disks: list[dict[str, Any]] = config.get("disks") or []
        for disk in disks:
            i = int(disk["ordinal"])
            limits = in_words(_at(disk, "limits"))
            found.disks[i] = Disk(target, disk["vm"], disk["port"], disk["path"], nodes.get(i, ""), limits)
            if i in nodes:
                found.names[target, disk["vm"]] = nodes[i]
    return found


def _at(value: Any, *path: str) -> dict[str, Any]:
    """What is below `path`; empty where that is no structure, or not known yet."""
    for key in path:
        value = cast(dict[str, Any], value).get(key) if isinstance(value, dict) else None
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _parsed(text: Any) -> dict[str, Any]:
    try:
        return _at(json.loads(text))
    except (TypeError, ValueError):  # only `up` will know it
        return {}


def _kind(state: State) -> str:
    return str(state.get("type", "")).rpartition(":")[2]


def _name(inputs: Mapping[str, Any]) -> str:
    return str(_at(inputs, "metadata").get("name", ""))


# --- what the steps do to it -----------------------------------------------------------------------------------------


def of(steps: Steps, *, seconds: Mapping[Cause, float] | None = None, keys: Sequence[Change] = ()) -> Impact:
    """The impact of `steps`. seconds: how long a page was away in the last change with that cause."""
    old, new = layout(s.old for s in steps.values()), layout(s.new for s in steps.values() if s.op != "delete")
    stay = range(min(old.numinst, new.numinst))
    pages, blank, targets, moved = dict[int, Away](), dict[int, bool](), dict[str, bool](), dict[int, str]()
    limits = dict[int, str]()

    def away(cause: Cause, which: Callable[[Disk], bool] = lambda _: True, *, sure: bool = True) -> list[int]:
        """Note it for the instances whose disk is one of `which`; the worst cause stays."""
        found = [i for i in stay if i in old.disks and which(old.disks[i])]
        for i in found:
            had = pages.get(i, Away(cause, sure=False))
            pages[i] = Away(max(had.cause, cause, key=list(Cause).index), had.sure or sure)
        return found

    machines = _machines(steps)
    for step in steps.values():
        kind, name = _kind(step.old), _name(_at(step.old, "inputs"))
        if kind == "StatefulSet" and name == VIDEO:
            if (sure := _replaced(step)) is not None:
                away(Cause.TOGETHER, sure=sure)
            elif (sure := _template_differs(step)) is not None:
                away(Cause.ROLLING, sure=sure)
        elif kind == "Deployment" and name in old.kinds and name in new.kinds:
            sure = True if step.op == "replace" else _template_differs(step)
            if sure is None:
                continue
            targets[name] = sure
            was, becomes = old.kinds[name], new.kinds[name]
            lost = "malloc" in (was[0], becomes[0]) or was[0] != becomes[0] or _folder(step.old) != _folder(step.new)
            found = away(
                Cause.SWAP if lost or was != becomes else Cause.TARGET, lambda d, n=name: d.target == n, sure=sure
            )
            blank |= dict.fromkeys(found, sure) if lost else {}
    for i in stay:
        was, becomes = old.disks.get(i), new.disks.get(i)
        if not was or not becomes:
            continue
        if was.limits != becomes.limits:
            limits[i] = f"{was.limits} → {becomes.limits}"
        if (was.target, was.unit, was.port) != (becomes.target, becomes.unit, becomes.port):
            start, end = old.name((was.target, was.unit)), new.name((becomes.target, becomes.unit))
            moved[i] = f"{start} → {end}" if start != end else f"{start}, root port {was.port} → {becomes.port}"
            away(Cause.SWAP, lambda d, w=was: d is w)
        if (was.target, was.path) != (becomes.target, becomes.path):  # another host's, or another device
            away(Cause.SWAP, lambda d, w=was: d is w)
            blank[i] = True
    stay_vms = old.vms.keys() & new.vms.keys()
    booted = {vm: True for vm in stay_vms if old.vms[vm] != new.vms[vm]}
    away(Cause.GUEST, lambda d: (d.target, d.unit) in booted)
    for target in old.kinds.keys() & new.kinds.keys():
        if (sure := machines.anew.get(old.hosts.get(target, ""))) is not None:
            targets[target] = targets.get(target, False) or sure
            booted |= {vm: booted.get(vm, False) or sure for vm in stay_vms if vm[0] == target}
            found = away(Cause.NODE, lambda d, t=target: d.target == t, sure=sure)
            if old.kinds[target][0] == "malloc":
                blank |= {i: blank.get(i, False) or sure for i in found}
    return Impact(
        pages=pages,
        added=range(old.numinst, new.numinst),
        ended=range(new.numinst, old.numinst),
        blank=dict(sorted(blank.items())),
        moved=moved,
        limits=limits,
        targets=targets,
        vms={old.name(vm): sure for vm, sure in booted.items()},
        new=machines.new,
        gone=machines.gone,
        anew=sorted(machines.anew),
        steps=_commands(steps),
        keys=keys,
        seconds=seconds or {},
        kept=[i for i in stay if i not in pages],
    )


def _folder(deployment: State) -> list[tuple[str, str]]:
    """Where a target's disk files are: in another folder there are others."""
    volumes: list[dict[str, Any]] = _at(deployment, "inputs", "spec", "template", "spec").get("volumes") or []
    return [found for volume in volumes if volume.get("name") == "disks" for found in flat(volume)]


def _template_differs(step: Step) -> bool | None:
    """Whether the pods' template does; False: only `up` will know; None: it does not."""
    if step.op not in ("update", "replace"):
        return None
    found = between(*(_at(state, "inputs", "spec", "template") for state in (step.old, step.new)))
    return True if found.lines else False if found.unknown else None


MUTABLE = (  # fields of a StatefulSet; another one that differs makes it anew
    "replicas", "template", "updateStrategy", "minReadySeconds", "ordinals", "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
)  # fmt: skip


def _replaced(step: Step) -> bool | None:
    """Whether a StatefulSet is made anew; False: only `up` will know; None: it is not.

    A preview that is compared with a kept one knows no replacement: there the fields that cannot change tell it.
    """
    old, new = (
        {key: value for key, value in _at(state, "inputs", "spec").items() if key not in MUTABLE}
        for state in (step.old, step.new)
    )
    if step.op == "replace":
        return not step.difference.perhaps
    return True if step.op == "update" and between(old, new).lines else None


@dataclass
class _Machines:
    """Containers of dev, servers of lab, and VMs, that come and go. anew: containers made anew -> is it sure."""

    new: list[str] = field(default_factory=list[str])
    gone: list[str] = field(default_factory=list[str])
    anew: dict[str, bool] = field(default_factory=dict[str, bool])


def _machines(steps: Steps) -> _Machines:
    found = _Machines()
    for urn, step in sorted(steps.items()):
        container, name = step.kind.startswith("docker:index/container:"), urn.rpartition("::")[2]
        server = re.fullmatch(r"lab-(\w+)-ready", name)
        if not container and not server and not step.kind.endswith(":WorkerVm"):
            continue
        if container or server:
            name = server[1] if server else str(_at(step.state, "inputs").get("hostname"))
        if step.op == "create":
            found.new.append(name)
        elif step.op == "delete":
            found.gone.append(name)
        elif step.op == "replace" and not server:
            found.anew[name] = not step.difference.perhaps
    return found


def _commands(steps: Steps) -> dict[str, int]:
    """Machine -> number of the program's steps that run there, or undo what they did."""
    found = Counter[str]()
    for urn, step in steps.items():
        if step.kind.startswith("command:") and step.op != "same" and not step.difference.perhaps:
            named = re.search(r"worker\d+", urn.rpartition("::")[2])
            here = "this machine" if step.kind.startswith("command:local:") else ""
            found[here or (named[0] if named else "master")] += 1
    return dict(found)
