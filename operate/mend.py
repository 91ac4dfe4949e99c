"""What `make up` changes in the running cluster to mend what operate/check.py found. No data is ever deleted.

The program's own steps and objects are mended by Pulumi: it runs the steps of `steps` again, and makes missing objects
anew in a refresh. Here is what Pulumi cannot do: it does not know of a claim's uid, and does not replace what it
believes is right.
"""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from operate import view
from operate.check import Drift
from operate.view import NO_ANSWER, TIMEOUT, Cluster
from settings.names import CLAIM, NAMESPACE, VIDEO

GONE = 120  # seconds that something deleted may take to go: its pods have some to end
HELD = 20  # seconds after which a pod that ends is held by a disk that does not answer: its own limit is 5

Say = Callable[[str], None]


def steps(drifts: Iterable[Drift]) -> list[str]:
    """Names of the program's steps that must run again."""
    return sorted({step for drift in drifts for step in drift.steps})


def mend(cluster: Cluster, drifts: Sequence[Drift], say: Say = print) -> None:
    """Make each change that `drifts` ask for; what cannot be done is said, and left."""
    changes = {"rebind": rebind, "remake": remake, "outlast": outlast, "delete pod": delete_pod}
    for drift in drifts:
        if drift.change:
            try:
                changes[drift.change](cluster, drift.name)
                say(f"mended: {drift.what}")
            except NO_ANSWER as error:
                say(f"not mended: {drift.what}: {view.why(error)}")


def rebind_released(cluster: Cluster) -> list[str]:
    """Let each volume of ours that is Released take its claim again; returns their names.

    `up` calls it again and again while Pulumi works: a StatefulSet that is replaced releases its volumes on the way.
    An API server that does not answer is no error here: Pulumi will say so.
    """
    try:
        found = cluster.core.list_persistent_volume(_request_timeout=TIMEOUT).items
        released = [str(v.metadata.name) for v in found if is_ours(v) and v.status.phase in ("Released", "Failed")]
        for name in released:
            rebind(cluster, name)
    except NO_ANSWER:
        return []
    return released


def is_ours(volume: view.Volume) -> bool:
    """Named for an ordinal, and for the claim of that ordinal's pod."""
    number = re.fullmatch(r"vhost-(\d+)", str(volume.metadata.name))
    return number is not None and view.owner(volume) == (NAMESPACE, f"{CLAIM}-{VIDEO}-{number[1]}")


def rebind(cluster: Cluster, name: str) -> None:
    """Volume `name` takes its claim, also one that was deleted and made again: safe, because the disk of an ordinal is
    only ever that ordinal's, and nothing on it is touched."""
    i = int(name.rpartition("-")[2])
    # the claim's uid is what binds a volume to a claim that is gone
    claim = {"namespace": NAMESPACE, "name": view.claim(f"{VIDEO}-{i}"), "uid": None, "resourceVersion": None}
    cluster.core.patch_persistent_volume(name, {"spec": {"claimRef": claim}}, _request_timeout=TIMEOUT)


def remake(cluster: Cluster, name: str) -> None:
    """Delete volume `name`, which names another disk, for Pulumi to make it anew: safe, because a local volume has no
    provisioner that could delete anything on a disk. Its claim and pod go with it, they would keep it for ever."""
    pod = f"{VIDEO}-{name.rpartition('-')[2]}"
    core = cluster.core
    _unless_missing(lambda: core.delete_persistent_volume(name, _request_timeout=TIMEOUT))
    _unless_missing(
        lambda: core.delete_namespaced_persistent_volume_claim(view.claim(pod), NAMESPACE, _request_timeout=TIMEOUT)
    )
    delete_pod(cluster, pod)
    _wait_until_gone(core.list_persistent_volume, name)


def outlast(cluster: Cluster, name: str) -> None:
    """Wait until namespace `name` is deleted: Pulumi cannot make anything in it before, nor make it anew.

    A video pod that reads its disk as the target goes never ends: nothing kills a process that waits for a disk, and
    no target comes back into a namespace that is going. After HELD seconds such a pod is no longer waited for; its
    process ends as soon as the next target answers.
    """
    held = time.monotonic() + HELD

    def let_go() -> None:
        if time.monotonic() < held:
            return
        for pod in cluster.core.list_namespaced_pod(NAMESPACE, _request_timeout=TIMEOUT).items:
            if pod.metadata.deletion_timestamp:
                delete_pod(cluster, str(pod.metadata.name), seconds=0)

    _wait_until_gone(cluster.core.list_namespace, name, let_go)


def _wait_until_gone(listed: Callable[..., Any], name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    end = time.monotonic() + GONE
    while any(found.metadata.name == name for found in listed(_request_timeout=TIMEOUT).items):
        if time.monotonic() > end:
            raise TimeoutError(f"it is still there after {GONE} s")
        meanwhile()
        time.sleep(0.5)


def delete_pod(cluster: Cluster, name: str, seconds: int | None = None) -> None:
    """Delete a video pod that serves another disk, or that nobody asked for: safe, because its disk keeps what it has,
    and the StatefulSet's next pod of that name mounts its own. seconds: that it has to end, instead of its own; 0: it
    is not waited for."""
    delete = cluster.core.delete_namespaced_pod
    _unless_missing(lambda: delete(name, NAMESPACE, grace_period_seconds=seconds, _request_timeout=TIMEOUT))


def forget_node(cluster: Cluster, name: str) -> None:
    """Delete the node of a machine that is gone: a new machine of its name may not join beside it."""
    _unless_missing(lambda: cluster.core.delete_node(name, _request_timeout=TIMEOUT))


def _unless_missing(delete: Callable[[], object]) -> None:
    try:
        delete()
    except NO_ANSWER as error:
        if getattr(error, "status", None) != 404:
            raise


@dataclass(frozen=True)
class Lost:
    """Machines of dev that somebody deleted. urns: of their containers, which a refresh of Pulumi's must forget.
    steps: those that ran on them, and must run again on new ones."""

    machines: tuple[str, ...] = ()
    urns: tuple[str, ...] = ()
    steps: frozenset[str] = frozenset()


def lost_machines(resources: Sequence[dict[str, Any]], present: Collection[str]) -> Lost:
    """Which containers in the `resources` of an exported state are not among `present`, the engine's names."""
    gone = [
        r
        for r in resources
        if r["type"].startswith("docker:index/container:") and r["outputs"]["name"] not in present and "id" in r
    ]
    addresses = {network["ipv4Address"] for r in gone for network in r["outputs"]["networksAdvanced"]}
    machines = tuple(r["outputs"]["hostname"] for r in gone)
    nodes = tuple(f"cluster-{machine}-ready" for machine in machines)  # these run on the control plane's machine
    remote = {
        r["urn"].rpartition("::")[2]: _host(r["inputs"]["connection"])
        for r in resources
        if r["type"] == "command:remote:Command"
    }
    steps = frozenset(name for name, host in remote.items() if host in addresses or name in nodes)
    return Lost(machines, tuple(r["urn"] for r in gone), steps)


def _host(connection: dict[str, Any]) -> str:
    """Of a remote step; the engine marks its whole connection as a secret, in plain text in a state that shows them."""
    return (json.loads(connection["plaintext"]) if "plaintext" in connection else connection)["host"]
