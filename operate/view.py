"""One view of the running stack, for status, check and mending: its outputs, and one look at the cluster and the pages.

Importing this changes nothing and asks nobody. `outputs` asks Pulumi, `look` asks the cluster and the pages, at once.
"""

# the client's models call every field optional, also those that the API server always fills
# pyright: reportOptionalMemberAccess=false, reportUnknownMemberType=false
from __future__ import annotations

import http.client
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import urllib3
import yaml
from kubernetes import client, config

from settings.names import AGENT_PORT, CHANGING, CLAIM, NAMESPACE, VIDEO
from settings.qos import in_words

TIMEOUT = 10  # seconds for each answer of the API server
AT_ONCE = 16  # questions

Node = client.V1Node
Pod = client.V1Pod
Volume = client.V1PersistentVolume
NO_ANSWER = (client.ApiException, urllib3.exceptions.HTTPError, OSError)


class StackError(Exception):
    """The stack's outputs cannot be had; the message has the remedy."""


class NotUp(StackError):
    """There is no stack of that name, or it was never brought up."""


@dataclass(frozen=True)
class Disk:
    """A disk of a worker VM: the node that has it, and its block device there."""

    node: str
    path: str


@dataclass(frozen=True)
class Outputs:
    """The stack's outputs.

    nodes: name -> address, the control plane's machine first. vms: names of the nodes that are VMs.
    targets: app label of a vhost target -> ordinals of the disks that it serves. disks, pages, streams: by ordinal.
    cpus: the config's CPU plan, as JSON values. wall: URL of the page with all videos; empty: without monitoring.
    """

    numinst: int
    kubeconfig: str = field(repr=False)
    backend: str
    reason: str
    nodes: Mapping[str, str]
    vms: Sequence[str]
    targets: Mapping[str, Sequence[int]]
    disks: Sequence[Disk]
    pages: Sequence[str]
    streams: Sequence[str]
    cpus: Mapping[str, Any] = field(default_factory=dict[str, Any])
    wall: str = ""

    @property
    def planned(self) -> bool:
        """Whether there is a CPU plan."""
        return any(self.cpus.values())

    @property
    def master(self) -> str:
        """Address of the control plane's machine."""
        return next(iter(self.nodes.values()))

    @classmethod
    def parse(cls, made: Mapping[str, Any]) -> Outputs:
        """From what `pulumi stack output --json --show-secrets` prints."""
        return cls(
            numinst=int(made["numinst"]),
            kubeconfig=made["kubeconfig"],
            backend=made["vhost"]["backend"],
            reason=made["vhost"]["reason"],
            nodes=made["nodes"],
            vms=made["vms"],
            targets={app: [int(i) for i in ordinals] for app, ordinals in made["targets"].items()},
            disks=[Disk(disk["node"], disk["path"]) for disk in made["disks"]],
            pages=made["pages"],
            streams=made["streams"],
            # an earlier version's `up` knew neither
            cpus=made.get("config", {}).get("cpus", {}),
            wall=made.get("wall", ""),
        )


def outputs(stack: str | None = None) -> Outputs:
    """The outputs of `stack`, or of the selected one; raises StackError."""
    chosen = ["--stack", stack] if stack else []
    command = ["pulumi", "stack", "output", "--json", "--show-secrets", *chosen]
    try:
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise StackError(f"pulumi cannot be started: {error.strerror}; remedy: make setup") from None
    said = run.stderr.strip()
    if run.returncode != 0 and "no stack" not in said:
        last = said.splitlines()[-1].removeprefix("error: ") if said else f"pulumi ended with {run.returncode}"
        raise StackError(
            f"the stack's state cannot be read: {last}; "
            "remedy: look at HOME, PULUMI_BACKEND_URL and PULUMI_CONFIG_PASSPHRASE in the environment"
        )
    try:
        return Outputs.parse(json.loads(run.stdout or "{}"))
    except (KeyError, ValueError, TypeError):  # none yet, or those of an `up` that did not end
        raise NotUp("the stack is not up; remedy: make up") from None


@dataclass(frozen=True)
class Cluster:
    """The way to the API server."""

    core: client.CoreV1Api
    apps: client.AppsV1Api


def connect(made: Outputs) -> Cluster:
    """The way to the cluster of a stack with these outputs: never through a proxy, whatever the environment names."""
    chosen = client.Configuration()
    config.load_kube_config_from_dict(yaml.safe_load(made.kubeconfig), client_configuration=chosen)
    chosen.no_proxy = "*"
    chosen.retries = 1  # a silent one is given up after one more try
    chosen.connection_pool_maxsize = AT_ONCE
    api = client.ApiClient(chosen)
    return Cluster(client.CoreV1Api(api), client.AppsV1Api(api))


def why(error: BaseException) -> str:
    """One of NO_ANSWER, in a line."""
    if isinstance(error, client.ApiException):
        text = f"{error.status or ''} {error.reason}"
        body = cast(str, error.body)
        with suppress(TypeError, ValueError, KeyError):  # where it says no more
            text += f": {json.loads(body)['message']}"
    else:  # urllib3 puts the cause into its last words
        text = str(getattr(error, "reason", error)).rpartition(": ")[2] or type(error).__name__
    return " ".join(text.split())[:200]


@dataclass(frozen=True)
class Answer:
    """A page's: the HTTP status and the body; where nobody answers, status says why."""

    status: str
    body: bytes = b""

    @property
    def marker(self) -> dict[str, Any] | None:
        """What the disk says of itself, where this is the answer to a question for it."""
        with suppress(ValueError):
            found: Any = json.loads(self.text) if self.status == "200" else None
            if isinstance(found, dict):
                return cast(dict[str, Any], found)
        return None

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace").strip("\0 \n")


def fetch(url: str, timeout: float = 5) -> Answer:
    try:
        # the nodes are in networks of the stack's own: never through a proxy
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=timeout) as response:
            return Answer(str(response.status), response.read())
    except urllib.error.HTTPError as error:
        return Answer(str(error.code), error.read())
    except (OSError, http.client.HTTPException) as error:
        return Answer(str(getattr(error, "reason", error)) if str(error) else type(error).__name__)


@dataclass(frozen=True)
class Served:
    """A disk, as the disk agent sees it. state: plugged, served, missing, refused, … why: the reason, if any.
    limits: those that it should have. in_force: those that the target holds it to."""

    state: str
    why: str = ""
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    in_force: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def unlimited(self) -> str:
        """What there is to say of limits that are not in force; empty: they are."""
        if self.limits == self.in_force or self.state not in ("plugged", "served"):
            return ""
        why = f": {self.why}" if self.why else ""
        return f"has {in_words(self.in_force)}, and should have {in_words(self.limits)}{why}"


@dataclass(frozen=True)
class Target:
    """What the disk agent of a vhost target says. disks: by name. outdated: VMs that run by an earlier definition.
    sick: VM whose QEMU does not answer, or whose guest's kernel is not up -> what there is to say of it.
    cpus: what the host reports of its CPU plan. error: why it could not be asked."""

    disks: Mapping[str, Served] = field(default_factory=dict[str, Served])
    outdated: Sequence[str] = ()
    sick: Mapping[str, str] = field(default_factory=dict[str, str])
    cpus: Cpus | None = None
    error: str = ""


@dataclass(frozen=True)
class Cpus:
    """What a storage host reports of its CPU plan. age: of the report, in seconds. roles: target, emulator, system and
    each VM -> its cores, and how many threads are on them. astray: threads that may run elsewhere, in words."""

    age: float
    roles: Mapping[str, tuple[str, int]]
    astray: Sequence[str] = ()


def ask(core: client.CoreV1Api, pod: str, *, planned: bool = False) -> Target:
    """The disk agent in `pod`, by GET /disks and, where there is a CPU plan, /cpus through the API server."""

    def answer(path: str) -> Any:
        # the client says that it returns text; unread it is urllib3's response
        got: Any = core.connect_get_namespaced_pod_proxy_with_path(
            f"{pod}:{AGENT_PORT}", NAMESPACE, path, _preload_content=False, _request_timeout=TIMEOUT
        )
        return json.loads(got.data)

    try:
        said = answer("disks")
        return Target(
            # an earlier version's agent knows no limits
            disks={
                disk["name"]: Served(disk["state"], disk["why"], disk.get("limits", {}), disk.get("limitsInForce", {}))
                for disk in said["disks"]
            },
            outdated=[name for name, vm in said["vms"].items() if vm["outdated"]],
            sick={name: words for name, vm in said["vms"].items() if (words := _sickness(vm))},
            cpus=_cpus(answer("cpus")) if planned else None,
        )
    except NO_ANSWER as error:
        return Target(error=why(error))
    except (ValueError, KeyError, TypeError):
        return Target(error="its answer is not that of a disk agent")


def _cpus(said: Any) -> Cpus | None:
    if not said:
        return None
    roles = {role: (found["cores"], int(found["threads"])) for role, found in said["roles"].items()}
    return Cpus(float(said["age"]), roles, said["astray"])


def _sickness(vm: Mapping[str, Any]) -> str:
    return vm["why"] if vm["qemu"] == "silent" else vm.get("booting", "")  # an earlier version's agent has no such word


@dataclass(frozen=True)
class Snapshot:
    """The stack at one moment. error: why the API server did not answer; then nothing of the cluster is known.

    namespace: phase of the stack's own, empty where there is none.
    targets: app label -> what a ready pod of it says. pages, markers: answers, by ordinal. wall: its answer; None:
    there is to be none. warnings: uid of a pod -> the newest event of that type about it. revision: of the
    StatefulSet's template, which its pods are to follow.
    """

    made: Outputs
    error: str = ""
    nodes: Mapping[str, Node] = field(default_factory=dict[str, Node])
    namespace: str = ""
    pods: Sequence[Pod] = ()
    volumes: Mapping[str, Volume] = field(default_factory=dict[str, Volume])
    revision: str = ""
    warnings: Mapping[str, str] = field(default_factory=dict[str, str])
    targets: Mapping[str, Target] = field(default_factory=dict[str, Target])
    pages: Sequence[Answer] = ()
    markers: Sequence[Answer] = ()
    wall: Answer | None = None

    def of(self, app: str) -> list[Pod]:
        return [pod for pod in self.pods if (pod.metadata.labels or {}).get("app") == app]

    @property
    def no_wall(self) -> str:
        """Why there is no wall where there should be one; empty: there is."""
        if self.wall is None or self.wall.status == "200":
            return ""
        return f"the wall does not answer: {self.wall.status}"

    @property
    def videos(self) -> dict[str, Pod]:
        """By name, those that nobody asked for as well."""
        return {str(pod.metadata.name): pod for pod in self.of(VIDEO)}

    @property
    def cordoned(self) -> set[str]:
        return {name for name, node in self.nodes.items() if cordoned(node)}


def look(cluster: Cluster, made: Outputs) -> Snapshot:
    """Ask everybody at once."""
    core = cluster.core
    with ThreadPoolExecutor(AT_ONCE) as each:
        pods = each.submit(core.list_namespaced_pod, NAMESPACE, _request_timeout=TIMEOUT)
        nodes = each.submit(core.list_node, _request_timeout=TIMEOUT)
        namespaces = each.submit(core.list_namespace, _request_timeout=TIMEOUT)
        volumes = each.submit(core.list_persistent_volume, _request_timeout=TIMEOUT)
        sets = each.submit(cluster.apps.list_namespaced_stateful_set, NAMESPACE, _request_timeout=TIMEOUT)
        warnings = each.submit(
            core.list_namespaced_event, NAMESPACE, field_selector="type=Warning", _request_timeout=TIMEOUT
        )
        pages = [each.submit(fetch, page) for page in made.pages]
        markers = [each.submit(fetch, f"{page}marker") for page in made.pages]
        wall = each.submit(fetch, made.wall) if made.wall else None
        try:
            serving = {label(pod): str(pod.metadata.name) for pod in pods.result().items if well(pod)}
            targets = {
                app: each.submit(ask, core, serving[app], planned=made.planned)
                for app in made.targets
                if app in serving
            }
            known = Snapshot(
                made,
                nodes={str(node.metadata.name): node for node in nodes.result().items},
                namespace=next(
                    (n.status.phase or "" for n in namespaces.result().items if n.metadata.name == NAMESPACE), ""
                ),
                pods=pods.result().items,
                volumes={str(volume.metadata.name): volume for volume in volumes.result().items},
                revision="".join(
                    s.status.update_revision or "" for s in sets.result().items if s.metadata.name == VIDEO
                ),
                warnings=_newest(warnings.result().items),
                targets={app: answer.result() for app, answer in targets.items()},
            )
        except NO_ANSWER as error:
            known = Snapshot(made, error=why(error))
        return replace(
            known,
            pages=[a.result() for a in pages],
            markers=[a.result() for a in markers],
            wall=wall.result() if wall else None,
        )


def _newest(events: Iterable[client.CoreV1Event]) -> dict[str, str]:
    """uid of a pod -> what its newest event says."""
    about = [event for event in events if event.involved_object.kind == "Pod"]
    about.sort(key=lambda event: str(event.last_timestamp or event.event_time or ""))
    return {str(event.involved_object.uid): f"{event.reason}: {event.message or ''}" for event in about}


@dataclass(frozen=True)
class Usage:
    """kubelet's figures for the filesystems on the disks. disks: claim -> bytes in all, and used. silent: node -> why
    its kubelet does not answer."""

    disks: Mapping[str, tuple[int, int]]
    silent: Mapping[str, str]


def usage(cluster: Cluster, nodes: Iterable[str]) -> Usage:
    """Of the disks that pods on `nodes` have mounted."""
    found: dict[str, tuple[int, int]] = {}
    silent: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as each:
        asked = {node: each.submit(_usage, cluster.core, node) for node in sorted(set(nodes))}
    for node, answer in asked.items():
        try:
            found |= answer.result()
        except NO_ANSWER as error:
            silent[node] = why(error)
    return Usage(found, silent)


def _usage(core: client.CoreV1Api, node: str) -> dict[str, tuple[int, int]]:
    # the client says that it returns text; unread it is urllib3's response
    answer: Any = core.connect_get_node_proxy_with_path(
        node, "stats/summary", _preload_content=False, _request_timeout=TIMEOUT
    )
    return {
        volume["pvcRef"]["name"]: (int(volume["capacityBytes"]), int(volume["usedBytes"]))
        for pod in json.loads(answer.data)["pods"]
        for volume in pod.get("volume", [])
        if "pvcRef" in volume
    }


# What a node or a pod is like.


def ready_condition(node: Node) -> client.V1NodeCondition | None:
    return next((c for c in node.status.conditions or [] if c.type == "Ready"), None)


def is_ready(node: Node) -> bool:
    condition = ready_condition(node)
    return condition is not None and condition.status == "True"


def cordoned(node: Node) -> bool:
    return bool(node.spec and node.spec.unschedulable)


def changing(node: Node) -> bool:
    """Whether it is drained, because its VM is being changed, or because that was cut off."""
    return CHANGING in (node.metadata.annotations or {})


def label(pod: Pod) -> str:
    """Of its app."""
    return (pod.metadata.labels or {}).get("app", "")


def ready(pod: Pod) -> str:
    """How many of its containers are, such as 1/2."""
    states = pod.status.container_statuses or []
    return f"{sum(bool(c.ready) for c in states)}/{len(pod.spec.containers)}"


def well(pod: Pod) -> bool:
    count = len(pod.spec.containers)
    return ready(pod) == f"{count}/{count}" and not pod.metadata.deletion_timestamp


def home(pod: Pod) -> str:
    """The node where it runs, or the only one where it may."""
    return pod.spec.node_name or (pod.spec.node_selector or {}).get("type1", "")


def reason(pod: Pod, warnings: Mapping[str, str]) -> str:
    """Why it is not well, as far as the cluster says, in a line."""
    return " ".join(_reason(pod, warnings).split())[:200]


def _reason(pod: Pod, warnings: Mapping[str, str]) -> str:
    if pod.metadata.deletion_timestamp:
        return "it is being deleted"
    for c in pod.status.container_statuses or []:
        if not c.ready and c.last_state and c.last_state.terminated and c.last_state.terminated.message:
            return f"{c.name} ended: {c.last_state.terminated.message}"
    scheduled = next((c for c in pod.status.conditions or [] if c.type == "PodScheduled"), None)
    if scheduled and scheduled.status != "True" and scheduled.message:
        return scheduled.message
    if said := warnings.get(str(pod.metadata.uid)):
        return said
    waiting = [c.state.waiting for c in pod.status.container_statuses or [] if c.state and c.state.waiting]
    return waiting[0].reason or "" if waiting else ""


def restarts(pod: Pod) -> int:
    return sum(c.restart_count for c in pod.status.container_statuses or [])


def life(pod: Pod) -> tuple[str, int]:
    """Another one after the pod was made anew, or its container restarted."""
    return str(pod.metadata.uid), restarts(pod)


def revision(pod: Pod) -> str:
    """Of the StatefulSet's template that it was made from."""
    return (pod.metadata.labels or {}).get("controller-revision-hash", "")


def ordinal(pod: Pod) -> int | None:
    """Of a video pod, or of one that is named like one."""
    number = str(pod.metadata.name).rpartition("-")[2]
    return int(number) if label(pod) == VIDEO and number.isdigit() else None


def owner(volume: Volume) -> tuple[str, str] | None:
    """Namespace and name of the claim that it is for."""
    ref = volume.spec.claim_ref
    return (ref.namespace or "", ref.name or "") if ref else None


def claim(pod: str) -> str:
    """Name of a video pod's claim."""
    return f"{CLAIM}-{pod}"
