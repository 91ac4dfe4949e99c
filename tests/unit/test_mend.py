"""What `make up` mends in the cluster, and how it ends: when what it changed is so."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from kubernetes import client

from operate import check, mend, settle, view
from settings.names import NAMESPACE, VHOST, VIDEO
from tests.unit.fake_cluster import DOWN, FakeCluster, node, pending, pod, volume

pytestmark = pytest.mark.unit


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


def look(cluster: FakeCluster) -> view.Snapshot:
    return view.look(cluster.cluster, cluster.made)


def mended(cluster: FakeCluster) -> list[str]:
    """What mending says; afterwards nothing of it is left."""
    said: list[str] = []
    mend.mend(cluster.cluster, check.find(look(cluster)), said.append)
    return said


class Clock:
    """Time that passes only while somebody waits; `then`: what happens at which second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.then: dict[float, list[object]] = {}
        monkeypatch.setattr(settle, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for happen in self.then.pop(self.now, []):
            happen()  # type: ignore[operator]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("phase", ["Released", "Failed"])
def test_a_volume_whose_claim_was_deleted_takes_the_next_one(cluster: FakeCluster, phase: str) -> None:
    cluster.volumes[1] = volume(1, phase, uid="of the claim that was deleted")
    assert mended(cluster) == [f"mended: PersistentVolume vhost-1 is {phase}, not Bound"]
    assert cluster.done == [f"vhost-1 is for disk-{VIDEO}-1"]
    assert check.find(look(cluster)) == []


def test_volumes_released_while_pulumi_works_take_their_claims_too(cluster: FakeCluster) -> None:
    cluster.volumes = [volume(0, "Released"), volume(1), volume(7, "Released"), volume(8, "Released")]
    cluster.volumes[3].spec.claim_ref.name = "somebody-elses"
    other = volume(9, "Released")
    other.metadata.name = "another"
    cluster.volumes.append(other)
    assert mend.rebind_released(cluster.cluster) == ["vhost-0", "vhost-7"], (
        "also of one that the outputs do not have yet"
    )
    assert mend.rebind_released(cluster.cluster) == []
    cluster.error = DOWN
    assert mend.rebind_released(cluster.cluster) == []


def test_a_volume_for_nobody_is_bound_again(cluster: FakeCluster) -> None:
    cluster.volumes[0].spec.claim_ref = None
    assert mended(cluster) == ["mended: PersistentVolume vhost-0 is for None"]
    assert check.find(look(cluster)) == []


def test_a_volume_of_another_path_goes_with_its_claim_and_pod(cluster: FakeCluster) -> None:
    cluster.volumes[0] = volume(0, path="/dev/sda")
    assert mended(cluster) == ["mended: PersistentVolume vhost-0 is /dev/sda, not /dev/disk/0"]
    assert cluster.done == ["deleted vhost-0", f"deleted disk-{VIDEO}-0", f"deleted {VIDEO}-0"]


def test_a_volume_that_does_not_go_is_said(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.volumes[0] = volume(0, path="/dev/sda")
    monkeypatch.setattr(cluster, "delete_persistent_volume", lambda *_, **__: None)
    monkeypatch.setattr(mend, "GONE", -1)
    assert mended(cluster) == [
        "not mended: PersistentVolume vhost-0 is /dev/sda, not /dev/disk/0: it is still there after -1 s"
    ]


def test_a_namespace_that_is_being_deleted_is_outlasted_before_it_is_made_anew(
    cluster: FakeCluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "time", clock)
    cluster.namespaces[NAMESPACE] = "Terminating"
    cluster.volumes[0] = volume(0, "Released")
    clock.then[20.0] = [lambda: cluster.namespaces.pop(NAMESPACE)]
    assert mended(cluster) == [
        "mended: PersistentVolume vhost-0 is Released, not Bound",
        f"mended: namespace {NAMESPACE} is being deleted",
    ]
    assert [drift.what for drift in check.find(look(cluster))] == [f"namespace {NAMESPACE} is missing"]
    assert clock.now == 20


def test_a_namespace_does_not_wait_for_pods_whose_target_went_first(
    cluster: FakeCluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing kills a process that waits for a disk, and no target comes into a namespace that is going."""
    monkeypatch.setattr(mend, "time", clock)
    cluster.namespaces[NAMESPACE] = "Terminating"
    cluster.pods = [p for p in cluster.pods if p.metadata.name in (f"{VIDEO}-0", f"{VIDEO}-1")]
    cluster.pods[0].metadata.deletion_timestamp = datetime.now(UTC)
    delete_at_once = cluster.delete_namespaced_pod

    def delete(name: str, namespace: str, **options: object) -> None:
        assert clock.now >= mend.HELD, "its own time to end"
        assert options["grace_period_seconds"] == 0
        delete_at_once(name, namespace)
        clock.then[clock.now + 5] = [lambda: cluster.namespaces.pop(NAMESPACE)]

    monkeypatch.setattr(cluster, "delete_namespaced_pod", delete)
    mend.outlast(cluster.cluster, NAMESPACE)
    assert cluster.done == [f"deleted {VIDEO}-0"], "one that nobody deleted stays"


def test_pods_that_are_wrong_are_deleted(cluster: FakeCluster) -> None:
    cluster.markers = {1: view.Answer("200", json.dumps({"ordinal": 0}).encode())}
    cluster.pods.append(pod(f"{VIDEO}-x", VIDEO, "worker2"))
    mended(cluster)
    assert cluster.done == [f"deleted {VIDEO}-1", f"deleted {VIDEO}-x"]


def test_what_is_gone_already_is_no_error_and_what_fails_is_said(cluster: FakeCluster) -> None:
    mend.delete_pod(cluster.cluster, "not-there")
    mend.forget_node(cluster.cluster, "not-there")
    mend.forget_node(cluster.cluster, "worker1")
    drift = check.Drift("it is wrong", change="delete pod", name=f"{VIDEO}-0")
    cluster.error = DOWN
    said: list[str] = []
    mend.mend(cluster.cluster, [drift], said.append)
    assert said == ["not mended: it is wrong: 503 Service Unavailable"]


def test_a_cordon_is_left_to_who_made_it(cluster: FakeCluster) -> None:
    cluster.nodes["worker2"] = node("worker2", cordoned=True)
    assert mended(cluster) == []
    assert cluster.done == []


def container(name: str, address: str) -> dict[str, object]:
    urn = f"urn:pulumi:dev::spdk-k8s::spdk-k8s:index:DevMachines$docker:index/container:Container::dev-{name}"
    made = {"name": f"spdk-k8s-dev-{name}", "hostname": name, "networksAdvanced": [{"ipv4Address": address}]}
    return {"urn": urn, "type": "docker:index/container:Container", "id": "1", "outputs": made}


def step(name: str, address: str) -> dict[str, object]:
    urn = f"urn:pulumi:dev::spdk-k8s::command:remote:Command::{name}"
    connection = {"a secret's mark": "", "plaintext": json.dumps({"host": address})}
    return {"urn": urn, "type": "command:remote:Command", "inputs": {"connection": connection}}


def test_the_steps_of_a_deleted_machine_run_again() -> None:
    resources = [
        container("master", "192.0.2.2"),
        container("worker1", "192.0.2.3"),
        step("registry", "192.0.2.2"),
        step("cluster-worker1-ready", "192.0.2.2"),
        step("cluster-worker1-node", "192.0.2.3"),
        step("worker2-vm", "192.0.2.3"),
        step("cluster-worker2-node", "192.0.2.4"),
    ]
    assert mend.lost_machines(resources, {"spdk-k8s-dev-master", "spdk-k8s-dev-worker1"}) == mend.Lost()
    lost = mend.lost_machines(resources, {"spdk-k8s-dev-master"})
    assert lost.machines == ("worker1",)
    assert [urn.rpartition("::")[2] for urn in lost.urns] == ["dev-worker1"]
    assert lost.steps == {"cluster-worker1-ready", "cluster-worker1-node", "worker2-vm"}


def settled(cluster: FakeCluster, before: view.Snapshot | None = None) -> tuple[settle.Settled, list[str]]:
    said: list[str] = []
    return settle.wait(cluster.cluster, cluster.made, before, said.append), said


def test_where_nothing_changed_one_look_is_enough(cluster: FakeCluster, clock: Clock) -> None:
    for before in (None, look(cluster)):
        found, said = settled(cluster, before)
        assert (found.drifts, said, clock.now) == ([], [], 0)


def test_a_pod_that_is_being_made_anew_is_waited_for(cluster: FakeCluster, clock: Clock) -> None:
    cluster.pods[1] = pod(f"{VIDEO}-0", VIDEO, "worker2", ready=False)
    cluster.markers = {0: view.Answer("Connection refused")}
    clock.then[20.0] = [
        lambda: cluster.pods.__setitem__(1, pod(f"{VIDEO}-0", VIDEO, "worker2")),
        cluster.markers.clear,
    ]
    found, said = settled(cluster)
    assert found.drifts == []
    assert clock.now == 20 + settle.HOLD
    assert said == [f"waiting: pod {VIDEO}-0 is not ready"]


def test_old_disks_that_still_answer_are_not_taken_for_the_new_ones(cluster: FakeCluster, clock: Clock) -> None:
    """A new target's first second: the pages answer from disks that are about to be swapped."""
    before = look(cluster)
    cluster.pods[0] = pod(f"{VHOST}-y", VHOST, "worker1")
    clock.then[3.0] = [lambda: cluster.markers.update({1: view.Answer("500")})]
    clock.then[30.0] = [cluster.markers.clear]
    found, said = settled(cluster, before)
    assert found.drifts == []
    assert clock.now == 30 + settle.HOLD
    assert len(said) == 1


def test_what_the_preview_said_is_waited_for_though_all_pages_answer(cluster: FakeCluster, clock: Clock) -> None:
    """A swap of disks that begins late: until then the old ones answer."""
    happens = {"in time": 40.0, "never": 1e9}
    for when, at in happens.items():
        clock.now, said = 0.0, list[str]()
        found = settle.wait(
            cluster.cluster, cluster.made, look(cluster), said.append,
            due=lambda _, at=at: ["pod x has not restarted"] if clock.now < at else [],
        )  # fmt: skip
        assert found.drifts == []
        assert said == ["waiting: pod x has not restarted"]
        assert clock.now == (40 if when == "in time" else settle.DUE) + settle.HOLD


def test_volumes_that_are_released_meanwhile_take_their_claims(cluster: FakeCluster, clock: Clock) -> None:
    cluster.volumes[0] = volume(0, "Released")
    found, _ = settled(cluster)
    assert found.drifts == []
    assert clock.now == settle.PAUSE + settle.HOLD


def test_what_never_comes_is_given_up_in_time(cluster: FakeCluster, clock: Clock) -> None:
    cluster.pods.pop()
    found, said = settled(cluster)
    assert [drift.what for drift in found.drifts] == [f"pod {VIDEO}-1 is missing"]
    assert settle.limit(2) < clock.now < settle.limit(2) + 5
    assert said[-1] == f"waited {clock.now:.0f} s: it is still so"
    assert settle.limit(24) > settle.limit(3)


def test_nobody_waits_for_the_pods_of_a_cordoned_node(cluster: FakeCluster, clock: Clock) -> None:
    cluster.nodes["worker2"] = node("worker2", cordoned=True)
    cluster.pods[1:] = [pending(f"{VIDEO}-{i}", VIDEO) for i in range(2)]
    found, said = settled(cluster)
    assert len(found.drifts) == 1
    assert (clock.now, said) == (0, [])


def test_an_api_server_that_pauses_is_waited_for(cluster: FakeCluster, clock: Clock) -> None:
    cluster.error = client.ApiException(status=503, reason="Service Unavailable")
    clock.then[2.0] = [lambda: setattr(cluster, "error", None)]
    found, _ = settled(cluster)
    assert found.drifts == []


def test_a_claim_of_somebody_elses_is_never_taken_away(cluster: FakeCluster) -> None:
    cluster.volumes[0].spec.claim_ref = client.V1ObjectReference(namespace="theirs", name="mine")
    assert mended(cluster) == []
