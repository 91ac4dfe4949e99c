"""The running stack at a glance, live: `make status`. Nothing is changed; exits 1 when something is not well.

What does not answer leaves a dash, and a line that says why; the rest is shown as ever.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import urllib3
import yaml
from kubernetes import client, config  # type: ignore[import-untyped]

from settings.names import CLAIM, NAMESPACE, VIDEO

TIMEOUT = 10  # seconds for each of the API server's answers
NO_ANSWER = (client.ApiException, urllib3.exceptions.HTTPError, OSError)


def outputs() -> dict[str, Any]:
    """The stack's outputs; exits with a remedy where there are none."""
    run = subprocess.run(["pulumi", "stack", "output", "--json", "--show-secrets"], capture_output=True, text=True)
    made: dict[str, Any] = json.loads(run.stdout) if run.returncode == 0 and run.stdout.strip() else {}
    if "kubeconfig" not in made:
        sys.exit("the stack is not up; remedy: make up")
    return made


def connect(made: dict[str, Any]) -> client.CoreV1Api:
    """The way to the cluster of a stack with these outputs; a silent one is given up after one more try."""
    chosen = client.Configuration()
    config.load_kube_config_from_dict(yaml.safe_load(made["kubeconfig"]), client_configuration=chosen)
    chosen.retries = 1
    return client.CoreV1Api(client.ApiClient(chosen))


def why(error: BaseException) -> str:
    """One of NO_ANSWER, in a line."""
    if isinstance(error, client.ApiException):
        text = f"{error.status or ''} {error.reason}"
        with suppress(TypeError, ValueError, KeyError):  # where it says no more
            text += f": {json.loads(error.body)['message']}"
    else:  # what it comes from is in the last words of urllib3's
        text = str(getattr(error, "reason", error)).rpartition(": ")[2] or type(error).__name__
    return " ".join(text.split())[:200]


def fetch(url: str) -> tuple[str, bytes]:
    """HTTP status and body; where nobody answers, why."""
    try:
        # the nodes are on this machine's own networks: never through a proxy
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            return str(response.status), response.read()
    except urllib.error.HTTPError as error:
        return str(error.code), error.read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__ if not str(error) else str(getattr(error, "reason", error)), b""


def fetch_all(urls: list[str]) -> list[tuple[str, bytes]]:
    """`fetch` of each, at once: one that does not answer takes seconds."""
    with ThreadPoolExecutor(16) as each:
        return list(each.map(fetch, urls))


def mib(size: str | int | None) -> str:
    return "-" if size is None else f"{int(size) / 2**20:.1f} MiB"


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def volume_usage(core: client.CoreV1Api, node: str) -> dict[str, dict[str, int]]:
    """Claim name -> kubelet's own figures for its filesystem, bytes."""
    text = core.connect_get_node_proxy_with_path(
        node, "stats/summary", _preload_content=False, _request_timeout=TIMEOUT
    ).data
    return {
        volume["pvcRef"]["name"]: volume
        for pod in json.loads(text)["pods"]
        for volume in pod.get("volume", [])
        if "pvcRef" in volume
    }


def settled_usage(core: client.CoreV1Api, pods: list[client.V1Pod], wrong: list[str]) -> dict[str, dict[str, int]]:
    """Of all ready `pods`' disks; kubelet needs some seconds to know a new one's, so this waits for it, bounded.
    A kubelet that does not answer is named in `wrong`."""
    usage: dict[str, dict[str, int]] = {}
    silent: set[str] = set()
    end = time.monotonic() + 20
    while True:
        for node in {p.spec.node_name for p in pods if p.spec.node_name} - silent:
            try:
                usage |= volume_usage(core, node)
            except NO_ANSWER as error:
                silent.add(node)
                wrong.append(f"how full the disks on {node} are is not known: {why(error)}")
        settling = [p for p in pods if ready(p) == "1/1" and claim(p.metadata.name) not in usage]
        if all(p.spec.node_name in silent for p in settling) or time.monotonic() > end:
            return usage
        time.sleep(0.5)


def claim(pod: str) -> str:
    return f"{CLAIM}-{pod}"


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


def is_video(pod: client.V1Pod) -> bool:
    """One of the StatefulSet's, or named like one."""
    return (pod.metadata.labels or {}).get("app") == VIDEO and pod.metadata.name.rpartition("-")[2].isdigit()


def node_rows(made: dict[str, Any], nodes: list[client.V1Node]) -> list[list[str]]:
    """One for each node that there should be, and for each that there is."""
    found = {node.metadata.name: node for node in nodes}
    rows = [["NODE", "STATUS", "TYPE1", "ADDRESS", "VERSION", "KERNEL"]]
    for name in [*made["nodes"], *(found.keys() - made["nodes"].keys())]:
        if name not in found:
            rows.append([name, "-", "-", made["nodes"][name], "-", "-"])
            continue
        status = found[name].status
        fine = any(c.type == "Ready" and c.status == "True" for c in status.conditions or [])
        address = next((a.address for a in status.addresses or [] if a.type == "InternalIP"), "-")
        rows.append([name, "Ready" if fine else "NotReady", (found[name].metadata.labels or {}).get("type1", "-"),
                     address, status.node_info.kubelet_version, status.node_info.kernel_version])  # fmt: skip
    return rows


def pod_rows(pods: list[client.V1Pod]) -> list[list[str]]:
    return [["POD", "NODE", "READY", "RESTARTS", "STATE"]] + [
        [p.metadata.name, p.spec.node_name or "-", ready(p), str(restarts(p)), p.status.phase or "-"]
        for p in pods
        if not is_video(p)
    ]


def video_rows(
    made: dict[str, Any],
    pods: list[client.V1Pod],
    volumes: list[client.V1PersistentVolume],
    usage: dict[str, dict[str, int]],
) -> list[list[str]]:
    """One for each instance that there should be, and for each pod that there is."""
    paths = {v.spec.claim_ref.name: v.spec.local.path for v in volumes if v.spec.claim_ref and v.spec.local}
    found = {ordinal(p): p for p in pods}
    answers = [answer for answer, _ in fetch_all(made["pages"])]
    rows = [["#", "POD", "NODE", "READY", "RESTARTS", "DISK", "SIZE", "USED", "PAGE", "ANSWER", "RTMP"]]
    for i in sorted(found.keys() | set(range(len(answers)))):
        name, pod = f"{VIDEO}-{i}", found.get(i)
        used = usage.get(claim(name), {})
        state = [pod.spec.node_name or "-", ready(pod), str(restarts(pod))] if pod else ["-", "-", "-"]
        served = [made["pages"][i], answers[i], made["streams"][i]] if i < len(answers) else ["-", "-", "-"]
        rows.append([str(i), name, *state, paths.get(claim(name), "-"), mib(used.get("capacityBytes")),
                     mib(used.get("usedBytes")), *served])  # fmt: skip
    return rows


def main() -> int:
    made = outputs()
    core = connect(made)
    wrong: list[str] = []
    limit = {"_request_timeout": TIMEOUT}
    nodes: list[client.V1Node] = []
    pods: list[client.V1Pod] = []
    volumes: list[client.V1PersistentVolume] = []
    try:
        nodes = core.list_node(**limit).items
        pods = core.list_namespaced_pod(NAMESPACE, **limit).items
        volumes = core.list_persistent_volume(**limit).items
    except NO_ANSWER as error:
        wrong.append(f"the API server on {made['nodes']['master']} does not answer: {why(error)}")
    else:
        if (count := sum(map(is_video, pods))) != made["numinst"]:
            wrong.append(f"{count} of {made['numinst']} video pods exist")

    about_nodes = node_rows(made, nodes)
    print(table(about_nodes), end="\n\n")
    print(table(pod_rows(pods)), end="\n\n")
    for pod in pods:
        for name, message in last_words(pod):
            print(f"{pod.metadata.name}: {name} ended: {message}\n", file=sys.stderr)
    print(f"vhost backend: {made['vhost']['backend']}, because {made['vhost']['reason']}\n")
    videos = [p for p in pods if is_video(p)]
    instances = video_rows(made, videos, volumes, settled_usage(core, videos, wrong))
    print(table(instances))

    if wrong:
        print("", *wrong, sep="\n", file=sys.stderr)
    targets = [p for p in pods if not is_video(p)]
    well = (
        all(status == "Ready" for _, status, *_ in about_nodes[1:])
        and all(p.status.container_statuses and all(c.ready for c in p.status.container_statuses) for p in targets)
        and all((row[3], row[9]) == ("1/1", "200") for row in instances[1:])
    )
    return 0 if well and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
