"""The preview held against what happened, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from operate import outcome, view
from operate.impact import Away, Cause, Impact
from operate.view import Snapshot
from settings.names import VHOST
from tests.unit.fake_cluster import FakeCluster, node, pod

pytestmark = pytest.mark.unit


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster(monkeypatch)
    for i in range(2):
        mark(made, i, "first life")
    boot(made, "first boot")
    return made


def mark(cluster: FakeCluster, i: int, life: str) -> None:
    cluster.markers[i] = view.Answer("200", json.dumps({"ordinal": i, "life": life}).encode())


def boot(cluster: FakeCluster, boot_id: str) -> None:
    """The VM has booted anew: all nodes are other objects than in an earlier look."""
    for name in cluster.nodes:
        cluster.nodes[name] = node(name)
        info = cluster.nodes[name].status.node_info
        info.boot_id = boot_id if name == "worker2" else "the machine's"


def restart(cluster: FakeCluster, name: str) -> None:
    """The pod is another one of the same name."""
    app, on = next((view.label(p), p.spec.node_name) for p in cluster.pods if p.metadata.name == name)
    new = pod(name, app, on)
    new.metadata.uid = "another"
    cluster.pods = [new if p.metadata.name == name else p for p in cluster.pods]


def lose(cluster: FakeCluster) -> None:
    mark(cluster, 1, "second life")
    restart(cluster, "app-vs-p2-1")


def wrong(said: Impact, before: Snapshot, after: Snapshot) -> list[str]:
    return [*outcome.unsaid(said, before, after), *outcome.undone(said, before, after)]


def look(cluster: FakeCluster) -> Snapshot:
    return view.look(cluster.cluster, cluster.made)


EVENTS: dict[str, tuple[Callable[[FakeCluster], None], Impact, str, str]] = {
    "a pod restarts": (
        lambda c: restart(c, "app-vs-p2-1"),
        Impact(pages={1: Away(Cause.ROLLING)}),
        "pod app-vs-p2-1 restarted",
        "pod app-vs-p2-1 has not restarted",
    ),
    "a disk goes blank": (
        lose,
        Impact(pages={1: Away(Cause.SWAP)}, blank={1: True}),
        "pod app-vs-p2-1 restarted disk 1 lost what was on it",
        "pod app-vs-p2-1 has not restarted disk 1 still has what was on it",
    ),
    "a target restarts": (
        lambda c: restart(c, f"{VHOST}-x"),
        Impact(pages={0: Away(Cause.TARGET)}, targets={VHOST: True}),
        f"the vhost target {VHOST} restarted",
        f"the vhost target {VHOST} has not restarted",
    ),
    "a VM boots": (
        lambda c: boot(c, "second boot"),
        Impact(vms={"worker2": True}),
        "VM worker2 booted anew",
        "VM worker2 has not booted anew",
    ),
}


@pytest.mark.parametrize(("event", "said", "unsaid", "undone"), EVENTS.values(), ids=EVENTS)
def test_what_was_not_said_and_what_was_not_done(
    cluster: FakeCluster, event: Callable[[FakeCluster], None], said: Impact, unsaid: str, undone: str
) -> None:
    before = look(cluster)
    assert wrong(Impact(), before, look(cluster)) == []
    assert " ".join(wrong(said, before, look(cluster))) == undone
    event(cluster)
    after = look(cluster)
    assert " ".join(wrong(Impact(), before, after)) == unsaid
    assert wrong(said, before, after) == []


def test_what_only_up_knew_may_go_either_way(cluster: FakeCluster) -> None:
    said = Impact(pages={1: Away(Cause.SWAP, sure=False)}, blank={1: False}, targets={VHOST: False})
    before = look(cluster)
    assert wrong(said, before, look(cluster)) == []
    mark(cluster, 1, "second life")
    restart(cluster, "app-vs-p2-1")
    restart(cluster, f"{VHOST}-x")
    assert wrong(said, before, look(cluster)) == []


def test_a_container_that_died_restarted_its_pod(cluster: FakeCluster) -> None:
    before = look(cluster)
    died = pod("app-vs-p2-0", "app-vs-p2", "worker2")
    died.status.container_statuses[0].restart_count = 1
    cluster.pods = [died if p.metadata.name == "app-vs-p2-0" else p for p in cluster.pods]
    assert wrong(Impact(), before, look(cluster)) == ["pod app-vs-p2-0 restarted"]


def test_instances_that_come_or_go_and_pages_that_do_not_answer_are_not_compared(cluster: FakeCluster) -> None:
    before = look(cluster)
    cluster.pods = [p for p in cluster.pods if p.metadata.name != "app-vs-p2-1"]
    cluster.pods.append(pod("app-vs-p2-2", "app-vs-p2", "worker2"))
    cluster.markers[0] = view.Answer("refused")
    assert wrong(Impact(), before, look(cluster)) == []
