"""Is what runs what the program says? `make check`: config, target, VM, volumes, pods and pages compared, live.

Nothing is changed; exits 1 with every difference and its remedy. `--steps` prints the names of the program's steps that
must run again to mend them: `make up` reads it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kubernetes import client  # type: ignore[import-untyped]

from operate import disks
from operate.status import NO_ANSWER, TIMEOUT, claim, connect, fetch_all, last_words, outputs, ready, why
from settings.names import NAMESPACE, VIDEO

UP = "make up"
CONTROL_PLANE = "cluster-control-plane"


@dataclass(frozen=True)
class Drift:
    """What differs. step: the steps (remote commands' names in the program, blanks between) that mend it when they run
    again. mend: `make up`, which runs them and makes Kubernetes' objects as they were, or what helps instead."""

    what: str
    step: str | None = None
    mend: str = UP


def look(selector: str) -> str:
    """The remedy where something may have been changed by hand, or may have a reason of its own."""
    return f"{UP}; if it stays, its reason: kubectl -n {NAMESPACE} describe pod {selector}"


def nodes(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    found = {node.metadata.name: node for node in core.list_node(_request_timeout=TIMEOUT).items}
    for name in made["nodes"]:
        machine = [f"{name}-vm"] if name in made["vms"] else []
        joined = [CONTROL_PLANE] if name == "master" else [f"cluster-{name}-join", f"cluster-{name}-ready"]
        again = " ".join(machine + joined)
        if name not in found:
            yield Drift(f"node {name} is not in the cluster", again)
            continue
        condition = next((c for c in found[name].status.conditions or [] if c.type == "Ready"), None)
        if condition is None or condition.status != "True":
            yield Drift(f"node {name} is not Ready: {condition.message if condition else 'it never was'}", again)
        if (found[name].metadata.labels or {}).get("type1") != name:
            yield Drift(f"node {name} lacks its label type1={name}", joined[-1])


def targets(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    for app, ordinals in made["targets"].items():
        selector = f"app={app}"
        # its config is an object of Kubernetes; the disk agent follows it
        logs = f"{UP}; if it stays, its reason: kubectl -n {NAMESPACE} logs deploy/{app}"
        pods = core.list_namespaced_pod(NAMESPACE, label_selector=selector, _request_timeout=TIMEOUT).items
        running = [p for p in pods if ready(p) == f"{len(p.spec.containers)}/{len(p.spec.containers)}"]
        if not running:
            said = "".join(f"; {name} ended: {message}" for p in pods for name, message in last_words(p))
            yield Drift(f"the vhost target {app} is not ready{said}", mend=look(f"-l {selector}"))
            continue
        try:
            said = disks.report(core, running[0].metadata.name, TIMEOUT)
        except client.ApiException as error:
            yield Drift(f"the vhost target {app} cannot be asked: {why(error)}", mend=look(f"-l {selector}"))
            continue
        known = {disk["name"]: disk for disk in said["disks"]}
        for vm in (name for name, vm in said["vms"].items() if vm["outdated"]):
            host = running[0].spec.node_name
            what = f"spdk-k8s-{vm} on {host} runs with an earlier definition than the config's (vm.vcpus, memoryMib, …)"
            yield Drift(what, mend=f"systemctl restart spdk-k8s-{vm}, on {host}: its guest boots anew")
        for i in map(int, ordinals):
            node = made["disks"][i]["node"]
            disk = known.get(f"vhost.{i}", {"state": "missing", "why": "the agent does not know it"})
            if disk["state"] in ("missing", "refused"):
                yield Drift(f"the vhost target {app} does not serve disk vhost.{i}: {disk['why']}", mend=logs)
            elif disk["state"] != "plugged":
                what = f"disk vhost.{i} is not plugged into {node}: {disk['state']}: {disk['why']}"
                yield Drift(what, f"{node}-disks")
        for name in sorted(set(known) - {f"vhost.{int(i)}" for i in ordinals}):
            what = f"the vhost target {app} has {name}, which nobody asked for: {known[name]['why']}"
            yield Drift(what, " ".join(f"{vm}-disks-released" for vm in made["vms"]), mend=logs)


def volumes(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    found = {v.metadata.name: v for v in core.list_persistent_volume(_request_timeout=TIMEOUT).items}
    for i, disk in enumerate(made["disks"]):
        name = f"vhost-{i}"
        if name not in found:
            yield Drift(f"PersistentVolume {name} is missing")
            continue
        spec, phase = found[name].spec, found[name].status.phase
        path, owner = spec.local and spec.local.path, spec.claim_ref and spec.claim_ref.name
        # what a volume is cannot be changed, and one whose claim was deleted takes no other
        anew = f"kubectl delete pv {name} && {UP}: nothing on the disk is deleted"
        if (path, owner) != (disk["path"], claim(f"{VIDEO}-{i}")):
            yield Drift(f"PersistentVolume {name} is {path} for {owner}", mend=anew)
        elif phase in ("Released", "Failed"):
            yield Drift(f"PersistentVolume {name} is {phase}, not Bound", mend=anew)
        elif phase != "Bound":
            yield Drift(f"PersistentVolume {name} is {phase}, not Bound")


def videos(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    found = core.list_namespaced_pod(NAMESPACE, label_selector=f"app={VIDEO}", _request_timeout=TIMEOUT).items
    pods = {p.metadata.name: p for p in found}
    markers = fetch_all([f"{page}marker" for page in made["pages"]])
    for i, (page, (status, body)) in enumerate(zip(made["pages"], markers, strict=True)):
        name = f"{VIDEO}-{i}"
        if name not in pods:
            yield Drift(f"pod {name} is missing")
            continue
        if ready(pods[name]) != "1/1":
            yield Drift(f"pod {name} is not ready", mend=look(name))
        text = body.decode(errors="replace").strip("\0 \n")
        marker: Any = None
        with suppress(ValueError):
            marker = json.loads(text) if status == "200" else None
        if not isinstance(marker, dict):
            what = f"{page}marker answers {status} {text[:60]!r}, not the marker of disk {i}"
            # a machine that is there at least refuses; the cluster takes a minute to say that one has gone
            silent = not status.isdigit() and "refused" not in status
            yield Drift(what, f"{made['disks'][i]['node']}-vm" if silent else None, mend=look(name))
        elif marker.get("ordinal") != i:
            anew = f"kubectl -n {NAMESPACE} delete pod {name}: the next one mounts its own disk"
            yield Drift(f"pod {name} serves disk {marker.get('ordinal')}", mend=anew)
    for name in sorted(set(pods) - {f"{VIDEO}-{i}" for i in range(made["numinst"])}):
        owned = pods[name].metadata.owner_references  # then it goes when the StatefulSet is as it was
        mend = UP if owned else f"kubectl -n {NAMESPACE} delete pod {name}"
        yield Drift(f"pod {name} is there, which nobody asked for", mend=mend)


def main() -> int:
    made = outputs()
    core = connect(made)
    drifts: list[Drift] = []
    try:
        for part in (nodes, targets, volumes, videos):
            drifts += part(core, made)
    except NO_ANSWER as error:
        drifts.append(
            Drift(f"the API server on {made['nodes']['master']} does not answer: {why(error)}", CONTROL_PLANE)
        )
    for drift in drifts:
        print(f"drift: {drift.what}{'' if drift.mend == UP else f'; mend: {drift.mend}'}", file=sys.stderr)
    if "--steps" in sys.argv:
        print("\n".join(sorted({step for d in drifts for step in (d.step or "").split()})))
    elif any(drift.mend == UP for drift in drifts):
        print(f"mend it: {UP}", file=sys.stderr)
    elif not drifts:
        print(f"no drift: {len(made['nodes'])} nodes, {made['numinst']} disks, volumes, pods and pages as configured")
    return 1 if drifts else 0


if __name__ == "__main__":
    sys.exit(main())
