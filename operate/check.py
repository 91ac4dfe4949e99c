"""Is what runs what the program says? `make check`: config, target, VM, volumes, pods and pages compared, live.

Nothing is changed; exits 1 with every difference and its remedy.
"""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from operate import view
from operate.view import Snapshot
from settings.cores import numbers
from settings.names import NAMESPACE, VIDEO

UP = "make up"
CONTROL_PLANE = "cluster-control-plane"


@dataclass(frozen=True)
class Drift:
    """What differs, and what helps: `make up` does all of it but a `mend` that is another one.

    steps: names of the program's remote steps that must run again. change: what operate/mend.py does to the object
    `name` of the cluster. comes: it may be so without a further step, by waiting.
    """

    what: str
    steps: tuple[str, ...] = ()
    mend: str = UP
    change: Literal["", "rebind", "remake", "outlast", "delete pod"] = ""
    name: str = ""
    comes: bool = False


def find(seen: Snapshot) -> list[Drift]:
    """Everything that differs from what the stack's outputs say."""
    if seen.error:
        what = f"the API server on {seen.made.master} does not answer: {seen.error}"
        return [Drift(what, (CONTROL_PLANE,), comes=True)]
    # a namespace that is gone took the targets and the pods along
    parts = (nodes, volumes, targets, cpus, videos, wall) if seen.namespace == "Active" else (nodes, volumes, namespace)
    return [drift for part in parts for drift in part(seen)]


def steps(name: str, made: view.Outputs, *, prepared: bool) -> tuple[str, ...]:
    """Those that make a machine a node again: a VM boots first. prepared: containerd, kubelet and CNI are as they were
    made; to look at them costs an emulated CPU many seconds."""
    machine = (f"{name}-vm",) if name in made.vms else ()
    prepare = () if prepared else (f"cluster-{name}-node",)
    if name == next(iter(made.nodes)):
        return (*prepare, CONTROL_PLANE)
    return (*machine, *prepare, f"cluster-{name}-join", f"cluster-{name}-ready")


def change_steps(vm: str) -> tuple[str, ...]:
    """Those that make a VM boot anew where its definition differs."""
    return f"{vm}-drained", f"{vm}-vm", f"cluster-{vm}-ready"


def nodes(seen: Snapshot) -> Iterator[Drift]:
    for name in seen.made.nodes:
        node = seen.nodes.get(name)
        if node is None:
            yield Drift(f"node {name} is not in the cluster", steps(name, seen.made, prepared=True), comes=True)
            continue
        if not view.is_ready(node):
            condition = view.ready_condition(node)
            what = f"node {name} is not Ready: {condition.message if condition else 'it never was'}"
            yield Drift(what, steps(name, seen.made, prepared=False), comes=True)
        if (node.metadata.labels or {}).get("type1") != name:
            yield Drift(f"node {name} lacks its label type1={name}", steps(name, seen.made, prepared=True)[-1:])
        if view.changing(node):
            what = f"node {name} is drained, because its VM is being changed"
            yield Drift(what, (f"{name}-vm", f"cluster-{name}-ready"))
        elif view.cordoned(node):
            held = sorted(str(pod.metadata.name) for pod in seen.pods if is_held(pod, seen))
            what = f"node {name} is cordoned" + (f", so {', '.join(held)} cannot start" if held else "")
            yield Drift(what, mend=f"kubectl uncordon {name}")


def namespace(seen: Snapshot) -> Iterator[Drift]:
    if seen.namespace:
        yield Drift(f"namespace {NAMESPACE} is being deleted", change="outlast", name=NAMESPACE)
    else:
        yield Drift(f"namespace {NAMESPACE} is missing")


def wall(seen: Snapshot) -> Iterator[Drift]:
    if seen.no_wall:
        yield Drift(seen.no_wall, comes=True)


def is_held(pod: view.Pod, seen: Snapshot) -> bool:
    """Whether a cordon keeps it from its node: then nothing else is wrong with it."""
    if pod.spec.node_name or pod.metadata.deletion_timestamp:
        return False
    i = view.ordinal(pod)
    node = seen.made.disks[i].node if i is not None and i < len(seen.made.disks) else view.home(pod)
    return node in seen.cordoned


def targets(seen: Snapshot) -> Iterator[Drift]:
    for app, ordinals in seen.made.targets.items():
        selector = f"-l app={app}"
        if app not in seen.targets:
            pods = seen.of(app)
            if not any(is_held(pod, seen) for pod in pods):
                yield Drift(
                    f"the vhost target {app} is not ready{_because(seen, pods)}", mend=_look(selector), comes=True
                )
            continue
        said = seen.targets[app]
        if said.error:
            yield Drift(f"the vhost target {app} cannot be asked: {said.error}", mend=_look(selector), comes=True)
            continue
        host = next((view.home(pod) for pod in seen.of(app)), "?")
        for vm in said.outdated:
            what = f"spdk-k8s-{vm} on {host} runs with an earlier definition than the config's (vm.vcpus, memoryMib, …)"
            # those of the other VMs change nothing
            yield Drift(what, tuple(step for name in seen.made.vms for step in change_steps(name)))
        for vm, why in said.sick.items():
            what = f"the VM spdk-k8s-{vm} on {host} hangs or boots: {why}"
            yield Drift(what, mend="wait: it is started anew by itself", comes=True)
        # its list of disks is an object of Kubernetes; the disk agent follows it
        logs = f"{UP}; if it stays, its reason: kubectl -n {NAMESPACE} logs deploy/{app}"
        for i in ordinals:
            node, disk = seen.made.disks[i].node, said.disks.get(f"vhost.{i}")
            if disk is None:
                what = f"the vhost target {app} does not serve disk vhost.{i}: the agent does not know it"
                yield Drift(what, mend=logs, comes=True)
            elif disk.state in ("missing", "refused"):
                yield Drift(f"the vhost target {app} does not serve disk vhost.{i}: {disk.why}", mend=logs, comes=True)
            elif disk.state != "plugged":
                what = f"disk vhost.{i} is not plugged into {node}: {disk.state}: {disk.why}"
                yield Drift(what, (f"{node}-disks",), comes=True)
            elif disk.unlimited:
                yield Drift(f"disk vhost.{i} {disk.unlimited}", mend=logs, comes=True)
        for name in sorted(set(said.disks) - {f"vhost.{i}" for i in ordinals}):
            what = f"the vhost target {app} has {name}, which nobody asked for: {said.disks[name].why}"
            yield Drift(what, tuple(f"{vm}-disks-released" for vm in seen.made.vms), mend=logs, comes=True)


STALE = 30  # seconds: a host reports every 2 s


def cpus(seen: Snapshot) -> Iterator[Drift]:
    """Where the CPU plan is not in force."""
    plan = {role: seen.made.cpus.get(role) or "" for role in ("target", "emulator", "system")}
    for app, said in seen.targets.items() if seen.made.planned else ():
        if said.error:
            continue  # `targets` tells it
        host = next((view.home(pod) for pod in seen.of(app)), "?")
        steps = (f"cluster-{host}-cpus",)
        report = said.cpus
        if report is None or report.age > STALE:
            since = "" if report is None else f" for {report.age:.0f} s"
            yield Drift(f"nobody keeps the CPU plan of {host}{since}: spdk-k8s-cpus does not run", steps, comes=True)
            continue
        for role, wanted in plan.items():
            has = report.roles.get(role, ("", 0))[0]
            if wanted and set(numbers(has)) != set(numbers(wanted)):
                yield Drift(f"the cores of cpus.{role} on {host} are {has or 'none'}, not {wanted}", steps)
        for what in report.astray:
            yield Drift(f"{host}: {what}", steps, comes=True)
        for role, (of_role, threads) in report.roles.items():
            expected = 0 if role in ("emulator", "system") else 1 if role == "target" else len(numbers(of_role))
            if of_role and threads < expected:
                name = "the vhost target" if role == "target" else f"vCPUs of spdk-k8s-{role}"
                what = f"{name} on {host}: {threads} threads are on cores {of_role}, not {expected}"
                yield Drift(what, steps, comes=True)


def volumes(seen: Snapshot) -> Iterator[Drift]:
    for i, disk in enumerate(seen.made.disks):
        name = f"vhost-{i}"
        volume = seen.volumes.get(name)
        if volume is None:
            yield Drift(f"PersistentVolume {name} is missing")
            continue
        path, owner = volume.spec.local and volume.spec.local.path, view.owner(volume)
        of_ours = owner == (NAMESPACE, view.claim(f"{VIDEO}-{i}"))
        phase = volume.status.phase
        if owner and not of_ours and phase == "Bound":  # somebody else's pod may be writing to it
            mend = f"kubectl -n {owner[0]} delete pvc {owner[1]} && {UP}: nothing on the disk is deleted"
            yield Drift(f"PersistentVolume {name} is bound to claim {owner[1]} of namespace {owner[0]}", mend=mend)
        elif path != disk.path:
            yield Drift(f"PersistentVolume {name} is {path}, not {disk.path}", change="remake", name=name)
        elif not of_ours:
            yield Drift(f"PersistentVolume {name} is for {owner and owner[1]}", change="rebind", name=name)
        elif phase in ("Released", "Failed"):
            yield Drift(f"PersistentVolume {name} is {phase}, not Bound", change="rebind", name=name, comes=True)
        elif phase != "Bound" and not any(is_held(pod, seen) for pod in seen.of(VIDEO) if view.ordinal(pod) == i):
            yield Drift(f"PersistentVolume {name} is {phase}, not Bound", comes=True)


def videos(seen: Snapshot) -> Iterator[Drift]:
    made, pods = seen.made, seen.videos
    for i, (page, answer, marker) in enumerate(zip(made.pages, seen.pages, seen.markers, strict=True)):
        name, node = f"{VIDEO}-{i}", made.disks[i].node
        if name not in pods:
            yield Drift(f"pod {name} is missing", comes=True)
            continue
        pod = pods[name]
        if is_held(pod, seen):
            continue
        # a machine that is there at least refuses; the cluster takes a minute to say that one has gone
        silent = not marker.status.isdigit() and "refused" not in marker.status
        again = (f"{node}-vm",) if silent and node in made.vms else ()
        if not view.well(pod):
            yield Drift(f"pod {name} is not ready{_because(seen, [pod])}", again, mend=_look(name), comes=True)
        elif seen.revision and view.revision(pod) not in ("", seen.revision):
            yield Drift(f"pod {name} is still of an earlier definition", mend=_look(name), comes=True)
        elif marker.marker is None:
            what = f"{page}marker answers {marker.status} {marker.text[:60]!r}, not the marker of disk {i}"
            yield Drift(what, again, mend=_look(name), comes=True)
        elif marker.marker.get("ordinal") != i:
            what = f"pod {name} serves disk {marker.marker.get('ordinal')}"
            yield Drift(what, change="delete pod", name=name)
        elif answer.status != "200":
            yield Drift(f"{page} answers {answer.status}", again, mend=_look(name), comes=True)
    for name in sorted(set(pods) - {f"{VIDEO}-{i}" for i in range(made.numinst)}):
        what = f"pod {name} is there, which nobody asked for"
        if pods[name].metadata.owner_references:  # it goes when the StatefulSet is as it was
            yield Drift(what, comes=True)
        else:
            yield Drift(what, change="delete pod", name=name)


def _look(selector: str) -> str:
    """The remedy where something may have a reason of its own."""
    return f"{UP}; if it stays, its reason: kubectl -n {NAMESPACE} describe pod {selector}"


def _because(seen: Snapshot, pods: Sequence[view.Pod]) -> str:
    said = [why for pod in pods if (why := view.reason(pod, seen.warnings))]
    return f": {said[0]}" if said else ""


def report(drifts: Sequence[Drift]) -> None:
    """Every difference and its remedy, to stderr."""
    for drift in drifts:
        print(f"drift: {drift.what}{'' if drift.mend == UP else f'; mend: {drift.mend}'}", file=sys.stderr)
    if any(drift.mend == UP for drift in drifts):
        print(f"mend it: {UP}", file=sys.stderr)


def main() -> int:
    try:
        made = view.outputs()
    except view.StackError as error:
        sys.exit(str(error))
    drifts = find(view.look(view.connect(made), made))
    report(drifts)
    if not drifts:
        print(f"no drift: {len(made.nodes)} nodes, {made.numinst} disks, volumes, pods and pages as configured")
    return 1 if drifts else 0


if __name__ == "__main__":
    sys.exit(main())
