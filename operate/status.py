"""The running stack at a glance, live: `make status`. Nothing is changed; exits 1 when something is not well.

What does not answer leaves a dash, and a line that says why; the rest is shown as ever.
"""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import sys
import time

from operate import view
from operate.view import Cluster, Snapshot, Usage
from settings.names import VIDEO
from settings.qos import in_words

EVERY = 2  # seconds between two looks of `make status WATCH=1`


def mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def settled_usage(cluster: Cluster, pods: list[view.Pod]) -> Usage:
    """Of the disks of all ready `pods`; kubelet needs some seconds to know a new one's, so this waits, bounded."""
    end = time.monotonic() + 20
    while True:
        usage = view.usage(cluster, {pod.spec.node_name for pod in pods if pod.spec.node_name})
        settling = [
            pod
            for pod in pods
            if view.well(pod) and pod.spec.node_name not in usage.silent
            and view.claim(str(pod.metadata.name)) not in usage.disks
        ]  # fmt: skip
        if not settling or time.monotonic() > end:
            return usage
        time.sleep(0.5)


def node_state(node: view.Node) -> str:
    return ("Ready" if view.is_ready(node) else "NotReady") + (",cordoned" if view.cordoned(node) else "")


def node_rows(seen: Snapshot) -> list[list[str]]:
    """One for each node that there should be, and for each that there is."""
    rows = [["NODE", "STATUS", "TYPE1", "ADDRESS", "VERSION", "KERNEL"]]
    for name in [*seen.made.nodes, *(seen.nodes.keys() - seen.made.nodes.keys())]:
        if name not in seen.nodes:
            rows.append([name, "-", "-", seen.made.nodes[name], "-", "-"])
            continue
        node = seen.nodes[name]
        address = next((a.address for a in node.status.addresses or [] if a.type == "InternalIP"), "-")
        info = node.status.node_info
        rows.append([name, node_state(node), (node.metadata.labels or {}).get("type1", "-"),
                     address, info.kubelet_version, info.kernel_version])  # fmt: skip
    return rows


def pod_rows(pods: list[view.Pod]) -> list[list[str]]:
    return [["POD", "NODE", "READY", "RESTARTS", "STATE"]] + [
        [str(p.metadata.name), p.spec.node_name or "-", view.ready(p), str(view.restarts(p)), p.status.phase or "-"]
        for p in pods
    ]


def video_rows(seen: Snapshot, usage: Usage) -> list[list[str]]:
    """One for each instance that there should be, and for each pod that there is."""
    made = seen.made
    paths = {
        v.spec.claim_ref.name: v.spec.local.path for v in seen.volumes.values() if v.spec.claim_ref and v.spec.local
    }
    found = {i: pod for pod in seen.pods if (i := view.ordinal(pod)) is not None}
    limits = {name: disk.in_force for target in seen.targets.values() for name, disk in target.disks.items()}
    shown = any(limits.values())
    heads = ["#", "POD", "NODE", "READY", "RESTARTS", "DISK", "SIZE", "USED", *(["LIMITS"] if shown else [])]
    rows = [[*heads, "PAGE", "ANSWER", "RTMP"]]
    for i in sorted(found.keys() | set(range(len(made.pages)))):
        name, pod = f"{VIDEO}-{i}", found.get(i)
        size, used = usage.disks.get(view.claim(name), (None, None))
        state = [pod.spec.node_name or "-", view.ready(pod), str(view.restarts(pod))] if pod else ["-", "-", "-"]
        served = [made.pages[i], seen.pages[i].status, made.streams[i]] if i < len(made.pages) else ["-", "-", "-"]
        its = [in_words(limits.get(f"vhost.{i}", {}))] if shown else []
        rows.append([str(i), name, *state, paths.get(view.claim(name), "-"), mib(size), mib(used), *its, *served])
    return rows


def cpu_rows(seen: Snapshot) -> list[list[str]]:
    """One for each role of the CPU plan on each storage host that reports."""
    rows = [["HOST", "ROLE", "CORES", "THREADS"]]
    for app, said in seen.targets.items():
        host = next((view.home(pod) for pod in seen.of(app)), "-")
        for role, (cores, threads) in said.cpus.roles.items() if said.cpus else ():
            name = role if role in ("target", "emulator", "system") else f"vCPUs of {role}"
            rows.append([host, name, cores or "-", str(threads)])
    return rows


def wrong(seen: Snapshot) -> list[str]:
    """Everything that is not well, with its reason."""
    made = seen.made
    if seen.error:
        return [f"the API server on {made.master} does not answer: {seen.error}"]
    said: list[str] = []
    for name in made.nodes:
        node = seen.nodes.get(name)
        if node is None:
            said.append(f"node {name} is not in the cluster")
            continue
        if not view.is_ready(node):
            condition = view.ready_condition(node)
            said.append(f"node {name} is not Ready: {condition.message if condition else 'it never was'}")
        if view.changing(node):
            said.append(f"node {name} is drained, because its VM is being changed; if no up works on it: make up")
        elif view.cordoned(node):
            said.append(f"node {name} is cordoned: kubectl uncordon {name}")
    for pod in seen.pods:
        if not view.well(pod):
            why = view.reason(pod, seen.warnings)
            said.append(f"pod {pod.metadata.name} is not ready{f': {why}' if why else ''}")
    said += [f"VM spdk-k8s-{vm}: {why}" for target in seen.targets.values() for vm, why in target.sick.items()]
    said += [
        f"disk {name} {disk.unlimited}"
        for target in seen.targets.values()
        for name, disk in target.disks.items()
        if disk.unlimited
    ]
    said += [f"there is no pod of the vhost target {app}" for app in made.targets if not seen.of(app)]
    if (count := sum(view.ordinal(pod) is not None for pod in seen.pods)) != made.numinst:
        said.append(f"{count} of {made.numinst} video pods exist")
    return [*said, seen.no_wall] if seen.no_wall else said


def show(cluster: Cluster, seen: Snapshot) -> int:
    """Print it; 1 when something is not well."""
    videos = [pod for pod in seen.pods if view.ordinal(pod) is not None]
    print(table(node_rows(seen)), end="\n\n")
    print(table(pod_rows([pod for pod in seen.pods if view.ordinal(pod) is None])), end="\n\n")
    print(f"vhost backend: {seen.made.backend}, because {seen.made.reason}\n")
    if seen.made.planned:
        print(table(cpu_rows(seen)), end="\n\n")
    usage = settled_usage(cluster, videos)
    print(table(video_rows(seen, usage)), flush=True)
    if seen.made.wall:
        print(f"\nwall: {seen.made.wall}", flush=True)
    said = wrong(seen) + [f"how full the disks on {node} are is not known: {why}" for node, why in usage.silent.items()]
    if said:
        print("", *said, sep="\n", file=sys.stderr)
    return 1 if said or any(answer.status != "200" for answer in seen.pages) else 0


def watch(cluster: Cluster, made: view.Outputs) -> int:
    """Show it again and again, on a terminal in one place, until Ctrl-C."""
    clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
    while True:
        try:
            seen = view.look(cluster, made)
            print(clear, end="")
            show(cluster, seen)
            time.sleep(EVERY)
        except KeyboardInterrupt:
            return 0


def main(*, watched: bool = False) -> int:
    try:
        made = view.outputs()
    except view.StackError as error:
        sys.exit(str(error))
    cluster = view.connect(made)
    return watch(cluster, made) if watched else show(cluster, view.look(cluster, made))


if __name__ == "__main__":
    sys.exit(main(watched="--watch" in sys.argv[1:]))
