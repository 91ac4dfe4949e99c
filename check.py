"""Is what runs what the program says? `make check`: config, target, VM, volumes, pods and pages compared, live.

Nothing is changed; exits 1 with every difference and its remedy. `--steps` prints the names of the program's steps that
must run again to mend them: `make up` reads it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
import yaml
from kubernetes import client, config, stream  # type: ignore[import-untyped]

from components.render import CLAIM, NAMESPACE, VIDEO
from status import fetch, outputs, ready


@dataclass(frozen=True)
class Drift:
    """What differs, and the step (a remote command's name in the program) that mends it when it runs again."""

    what: str
    step: str | None = None
    mend: str = "make up"


def nodes(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    found = {node.metadata.name: node for node in core.list_node().items}
    for name in made["nodes"]:
        if name not in found:
            yield Drift(f"node {name} is not in the cluster", f"{name}-join")
            continue
        conditions = {c.type: c.status for c in found[name].status.conditions}
        if conditions.get("Ready") != "True":
            yield Drift(f"node {name} is not Ready", f"{name}-vm" if name in made["vms"] else None)
        if found[name].metadata.labels.get("type1") != name:
            yield Drift(f"node {name} lacks its label type1={name}", f"{name}-ready")


def targets(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    for app, ordinals in made["targets"].items():
        pods = core.list_namespaced_pod(NAMESPACE, label_selector=f"app={app}").items
        running = [p for p in pods if ready(p) == f"{len(p.spec.containers)}/{len(p.spec.containers)}"]
        if not running:
            yield Drift(f"the vhost target {app} is not ready; see: make status")
            continue
        listed = stream.stream(
            core.connect_get_namespaced_pod_exec, running[0].metadata.name, NAMESPACE, container="reconcile",
            command=["/usr/local/bin/probe", "list"], stdout=True, stderr=True, stdin=False, tty=False,
        )  # fmt: skip
        served = dict(line.split() for line in listed.splitlines() if line.startswith("vhost."))
        for vm in (line.split()[0] for line in listed.splitlines() if line.endswith(" outdated")):
            host = running[0].spec.node_name
            what = f"spdk-k8s-{vm} on {host} runs with an earlier definition than the config's (vm.vcpus, memoryMib, …)"
            yield Drift(what, mend=f"systemctl restart spdk-k8s-{vm}, on {host}: its guest boots anew")
        for i in map(int, ordinals):
            node = made["disks"][i]["node"]
            if f"vhost.{i}" not in served:
                yield Drift(f"the vhost target {app} does not serve disk vhost.{i}")
            elif served[f"vhost.{i}"] != "used":
                yield Drift(f"disk vhost.{i} is not plugged into {node}", f"{node}-disk-{i}")
        for name in sorted(set(served) - {f"vhost.{int(i)}" for i in ordinals}):
            yield Drift(f"the vhost target {app} serves {name}, which nobody asked for")


def volumes(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    found = {v.metadata.name: v for v in core.list_persistent_volume().items}
    for i, disk in enumerate(made["disks"]):
        volume = found.get(f"vhost-{i}")
        claim = f"{CLAIM}-{VIDEO}-{i}"
        if volume is None:
            yield Drift(f"PersistentVolume vhost-{i} is missing")
        elif volume.spec.local.path != disk["path"] or volume.spec.claim_ref.name != claim:
            yield Drift(f"PersistentVolume vhost-{i} is {volume.spec.local.path} for {volume.spec.claim_ref.name}")
        elif volume.status.phase != "Bound":
            yield Drift(f"PersistentVolume vhost-{i} is {volume.status.phase}, not Bound")


def videos(core: client.CoreV1Api, made: dict[str, Any]) -> Iterator[Drift]:
    pods = {p.metadata.name: p for p in core.list_namespaced_pod(NAMESPACE, label_selector=f"app={VIDEO}").items}
    for i, page in enumerate(made["pages"]):
        name = f"{VIDEO}-{i}"
        if name not in pods:
            yield Drift(f"pod {name} is missing")
            continue
        if ready(pods[name]) != "1/1":
            yield Drift(f"pod {name} is not ready")
        status, body = fetch(f"{page}marker")
        text = body.decode(errors="replace").strip("\0 \n")
        if status != "200" or not text.startswith("{"):
            yield Drift(f"{page}marker answers {status} {text[:60]!r}, not the marker of disk {i}")
        elif (ordinal := json.loads(text)["ordinal"]) != i:
            yield Drift(f"pod {name} serves disk {ordinal}")
    for name in sorted(set(pods) - {f"{VIDEO}-{i}" for i in range(made["numinst"])}):
        yield Drift(f"pod {name} is there, which nobody asked for")


def main() -> int:
    made = outputs()
    config.load_kube_config_from_dict(yaml.safe_load(made["kubeconfig"]))
    core = client.CoreV1Api()
    drifts: list[Drift] = []
    try:
        for part in (nodes, targets, volumes, videos):
            drifts += part(core, made)
    except (urllib3.exceptions.HTTPError, OSError):
        drifts.append(Drift(f"the API server on {made['nodes']['master']} does not answer", "cluster-control-plane"))
    for drift in drifts:
        print(f"drift: {drift.what}", file=sys.stderr)
    if "--steps" in sys.argv:
        print("\n".join(sorted({d.step for d in drifts if d.step})))
    elif drifts:
        for mend in dict.fromkeys(d.mend for d in drifts):
            print(f"mend it: {mend}", file=sys.stderr)
    else:
        print(f"no drift: {len(made['nodes'])} nodes, {made['numinst']} disks, volumes, pods and pages as configured")
    return 1 if drifts else 0


if __name__ == "__main__":
    sys.exit(main())
