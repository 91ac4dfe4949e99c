"""The running stack at a glance, live: `make status`. Nothing is changed; exits 1 when something is not well."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import yaml
from kubernetes import client, config  # type: ignore[import-untyped]

from components.render import CLAIM, NAMESPACE, VIDEO


def outputs() -> dict[str, Any]:
    """The stack's outputs; exits with a remedy where there are none."""
    run = subprocess.run(["pulumi", "stack", "output", "--json", "--show-secrets"], capture_output=True, text=True)
    made: dict[str, Any] = json.loads(run.stdout) if run.returncode == 0 and run.stdout.strip() else {}
    if "kubeconfig" not in made:
        sys.exit("the stack is not up; remedy: make up")
    return made


def fetch(url: str) -> tuple[str, bytes]:
    """HTTP status and body; where nobody answers, why."""
    try:
        # the nodes are on this machine's own networks: never through a proxy
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            return str(response.status), response.read()
    except urllib.error.HTTPError as error:
        return str(error.code), error.read()
    except OSError as error:
        return type(error).__name__ if not str(error) else str(getattr(error, "reason", error)), b""


def mib(size: str | int | None) -> str:
    return "-" if size is None else f"{int(size) / 2**20:.1f} MiB"


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def volume_usage(core: client.CoreV1Api, node: str) -> dict[str, dict[str, int]]:
    """Claim name -> kubelet's own figures for its filesystem, bytes."""
    text = core.connect_get_node_proxy_with_path(node, "stats/summary", _preload_content=False).data
    return {
        volume["pvcRef"]["name"]: volume
        for pod in json.loads(text)["pods"]
        for volume in pod.get("volume", [])
        if "pvcRef" in volume
    }


def settled_usage(core: client.CoreV1Api, pods: list[client.V1Pod]) -> dict[str, dict[str, int]]:
    """Of all `pods`' disks; kubelet needs some seconds to know a new one's, so this waits for it, bounded."""
    usage: dict[str, dict[str, int]] = {}
    end = time.monotonic() + 20
    while len(usage) < len(pods) and time.monotonic() < end:
        for node in {p.spec.node_name for p in pods if p.spec.node_name}:
            usage |= volume_usage(core, node)
        if all(ready(p) != "1/1" for p in pods):
            break
        time.sleep(0.5)
    return usage


def ordinal(pod: client.V1Pod) -> int:
    return int(pod.metadata.name.rpartition("-")[2])


def restarts(pod: client.V1Pod) -> int:
    return sum(c.restart_count for c in pod.status.container_statuses or [])


def ready(pod: client.V1Pod) -> str:
    states = pod.status.container_statuses or []
    return f"{sum(bool(c.ready) for c in states)}/{len(pod.spec.containers)}"


def last_words(pod: client.V1Pod) -> list[tuple[str, str]]:
    """Of each container that is not well: its name, and what it said as it ended."""
    return [
        (c.name, c.last_state.terminated.message.strip())
        for c in pod.status.container_statuses or []
        if not c.ready and c.last_state.terminated and c.last_state.terminated.message
    ]


def main() -> int:
    made = outputs()
    config.load_kube_config_from_dict(yaml.safe_load(made["kubeconfig"]))
    core = client.CoreV1Api()
    well = True

    rows = [["NODE", "STATUS", "TYPE1", "ADDRESS", "VERSION", "KERNEL"]]
    for node in core.list_node().items:
        conditions = {c.type: c.status for c in node.status.conditions}
        fine = conditions.get("Ready") == "True"
        well &= fine
        address = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "-")
        info = node.status.node_info
        rows.append([node.metadata.name, "Ready" if fine else "NotReady", node.metadata.labels.get("type1", "-"),
                     address, info.kubelet_version, info.kernel_version])  # fmt: skip
    print(table(rows), end="\n\n")

    pods = core.list_namespaced_pod(NAMESPACE).items
    rows = [["POD", "NODE", "READY", "RESTARTS", "STATE"]]
    for pod in (p for p in pods if p.metadata.labels.get("app") != VIDEO):
        states = pod.status.container_statuses or []
        well &= bool(states) and all(c.ready for c in states)
        rows.append(
            [pod.metadata.name, pod.spec.node_name or "-", ready(pod), str(restarts(pod)), pod.status.phase or "-"]
        )
    print(table(rows), end="\n\n")
    for pod in pods:
        for name, message in last_words(pod):
            print(f"{pod.metadata.name}: {name} ended: {message}\n", file=sys.stderr)
    print(f"vhost backend: {made['vhost']['backend']}, because {made['vhost']['reason']}\n")

    volumes = {v.spec.claim_ref.name: v for v in core.list_persistent_volume().items if v.spec.claim_ref}
    videos = sorted((p for p in pods if p.metadata.labels.get("app") == VIDEO), key=ordinal)
    usage = settled_usage(core, videos)
    rows = [["#", "POD", "NODE", "READY", "RESTARTS", "DISK", "SIZE", "USED", "PAGE", "ANSWER", "RTMP"]]
    for pod in videos:
        i = ordinal(pod)
        claim = f"{CLAIM}-{pod.metadata.name}"
        volume, used = volumes.get(claim), usage.get(claim, {})
        page = made["pages"][i] if i < len(made["pages"]) else "-"
        stream = made["streams"][i] if i < len(made["streams"]) else "-"
        got = fetch(page)[0] if page != "-" else "-"
        well &= got == "200" and ready(pod) == "1/1"
        rows.append([str(i), pod.metadata.name, pod.spec.node_name or "-", ready(pod), str(restarts(pod)),
                     volume.spec.local.path if volume else "-", mib(used.get("capacityBytes")),
                     mib(used.get("usedBytes")), page, got, stream])  # fmt: skip
    print(table(rows))
    if len(videos) != made["numinst"]:
        print(f"\n{len(videos)} of {made['numinst']} video pods exist", file=sys.stderr)
        well = False
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
