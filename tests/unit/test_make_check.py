"""`make check`: each drift is named, with the steps that mend it or what helps instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import urllib3
from kubernetes import client

from operate import check, mend, view
from settings.names import CHANGING, VHOST, VIDEO
from tests.unit.fake_cluster import FakeCluster, made, node, pending, pod, volume
from tests.unit.recorder import run_program

pytestmark = pytest.mark.unit

Checked = Callable[[], tuple[int, list[str], list[str]]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Checked:
    def run() -> tuple[int, list[str], list[str]]:
        """Exit code, lines of stdout, lines of stderr."""
        code = check.main()
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def again(cluster: FakeCluster) -> list[str]:
    """The steps that `make up` runs again."""
    return mend.steps(check.find(view.look(cluster.cluster, cluster.made)))


def test_no_drift(cluster: FakeCluster, checked: Checked) -> None:
    well = "no drift: 3 nodes, 2 disks, volumes, pods and pages as configured"
    assert checked() == (0, [well], [])
    assert again(cluster) == []


def lose(cluster: FakeCluster, name: str) -> None:
    del cluster.nodes[name]


def sick(cluster: FakeCluster, name: str) -> None:
    cluster.nodes[name] = node(name, ready=False)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("master", ["cluster-control-plane"]),
        ("worker1", ["cluster-worker1-join", "cluster-worker1-ready"]),
        ("worker2", ["cluster-worker2-join", "cluster-worker2-ready", "worker2-vm"]),
    ],
)
def test_a_lost_node_comes_back_by_its_steps(
    cluster: FakeCluster, checked: Checked, name: str, steps: list[str]
) -> None:
    lose(cluster, name)
    assert checked() == (1, [], [f"drift: node {name} is not in the cluster", "mend it: make up"])
    assert again(cluster) == steps
    # one that is there and not Ready may lack what it was prepared with
    sick(cluster, name)
    assert checked() == (1, [], [f"drift: node {name} is not Ready: kubelet has stopped posting", "mend it: make up"])
    assert again(cluster) == sorted([*steps, f"cluster-{name}-node"])


def test_labels_and_disks_that_are_not_plugged_in(cluster: FakeCluster, checked: Checked) -> None:
    cluster.nodes["master"] = node("master", labels={})
    cluster.nodes["worker1"] = node("worker1", labels={"type1": "other"})
    cluster.served["vhost.1"] = "served"
    code, _, said = checked()
    assert code == 1
    assert said == [
        "drift: node master lacks its label type1=master",
        "drift: node worker1 lacks its label type1=worker1",
        "drift: disk vhost.1 is not plugged into worker2: served: a reason",
        "mend it: make up",
    ]
    assert again(cluster) == ["cluster-control-plane", "cluster-worker1-ready", "worker2-disks"]


def test_a_wall_that_does_not_answer(cluster: FakeCluster, checked: Checked) -> None:
    cluster.wall = view.Answer("Connection refused")
    assert checked() == (1, [], ["drift: the wall does not answer: Connection refused", "mend it: make up"])


def test_limits_that_are_not_in_force(cluster: FakeCluster, checked: Checked) -> None:
    cluster.limits["vhost.0"] = {"limits": {"iops": 5000}, "limitsInForce": {"iops": 5000}}
    assert checked()[0] == 0
    cluster.limits["vhost.1"] = {"limits": {"iops": 5000}, "limitsInForce": {"mibPerSecond": 10}}
    code, _, (said,) = checked()
    assert code == 1
    assert "disk vhost.1 has 10 MiB/s, and should have 5000 IOPS: a reason; mend: make up; if it stays, its" in said
    assert again(cluster) == [], "the disk agent tries it again by itself"


REFUSED = urllib3.exceptions.NewConnectionError(None, "Failed to establish a new connection: [Errno 111] Refused")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib3.exceptions.MaxRetryError(None, "/api/v1/nodes", REFUSED), "[Errno 111] Refused"),  # type: ignore[arg-type]
        (client.ApiException(status=401, reason="Unauthorized"), "401 Unauthorized"),
    ],
)
def test_the_api_server_does_not_answer(cluster: FakeCluster, checked: Checked, error: Exception, said: str) -> None:
    cluster.error = error
    drift = f"drift: the API server on 192.0.2.2 does not answer: {said}"
    assert checked() == (1, [], [drift, "mend it: make up"])
    assert again(cluster) == ["cluster-control-plane"]


def remedies(said: list[str]) -> dict[str, str]:
    """Drift -> what helps, of those that another `make up` alone might not."""
    return dict(line.removeprefix("drift: ").split("; mend: ") for line in said if "; mend: " in line)


def test_a_target_that_is_not_ready_is_to_be_looked_at(cluster: FakeCluster, checked: Checked) -> None:
    cluster.pods[0] = pod(f"{VHOST}-x", VHOST, "worker1", ready=False, last_words="no hugepages")
    code, _, said = checked()
    assert code == 1
    ((what, remedy),) = remedies(said).items()
    assert what == f"the vhost target {VHOST} is not ready: {VHOST} ended: no hugepages"
    assert remedy.endswith(f"kubectl -n spdk-k8s describe pod -l app={VHOST}")
    assert not any(line.startswith("mend it") for line in said)


def test_a_target_that_cannot_be_asked_does_not_end_the_check(cluster: FakeCluster, checked: Checked) -> None:
    cluster.silent = {"worker1"}
    del cluster.volumes[1]
    code, _, said = checked()
    assert code == 1
    assert f"the vhost target {VHOST} cannot be asked: 503 Service Unavailable" in remedies(said)
    assert "drift: PersistentVolume vhost-1 is missing" in said


def test_what_the_target_serves(cluster: FakeCluster, checked: Checked) -> None:
    cluster.served = {"vhost.0": "plugged", "vhost.7": "leaving"}
    _, _, said = checked()
    logs = f"make up; if it stays, its reason: kubectl -n spdk-k8s logs deploy/{VHOST}"
    assert remedies(said) == {
        f"the vhost target {VHOST} does not serve disk vhost.1: the agent does not know it": logs,
        f"the vhost target {VHOST} has vhost.7, which nobody asked for: a reason": logs,
    }


@pytest.mark.parametrize("phase", ["Released", "Failed", "Available"])
def test_a_volume_that_is_not_bound(cluster: FakeCluster, checked: Checked, phase: str) -> None:
    cluster.volumes[1] = volume(1, phase)
    assert checked() == (1, [], [f"drift: PersistentVolume vhost-1 is {phase}, not Bound", "mend it: make up"])


def test_volumes_that_are_others(cluster: FakeCluster, checked: Checked) -> None:
    cluster.volumes[0].spec.claim_ref = None
    cluster.volumes[1] = volume(1, path="/dev/sda")
    assert checked()[2] == [
        "drift: PersistentVolume vhost-0 is for None",
        "drift: PersistentVolume vhost-1 is /dev/sda, not /dev/disk/1",
        "mend it: make up",
    ]


def test_a_volume_that_somebody_elses_claim_has_is_left_to_them(cluster: FakeCluster, checked: Checked) -> None:
    cluster.volumes[0].spec.claim_ref = client.V1ObjectReference(namespace="theirs", name="mine")
    _, _, said = checked()
    assert remedies(said) == {
        "PersistentVolume vhost-0 is bound to claim mine of namespace theirs": (
            "kubectl -n theirs delete pvc mine && make up: nothing on the disk is deleted"
        )
    }


def test_a_drained_node_is_the_only_thing_that_is_wrong(cluster: FakeCluster, checked: Checked) -> None:
    """Its pods cannot start, and another `make up` would not help."""
    cluster.nodes["worker2"] = node("worker2", cordoned=True)
    cluster.pods[1:] = [pending(f"{VIDEO}-{i}", VIDEO) for i in range(2)]
    cluster.volumes[0] = volume(0, "Available")
    cluster.markers = dict.fromkeys(range(2), view.Answer("Connection refused"))
    what = f"node worker2 is cordoned, so {VIDEO}-0, {VIDEO}-1 cannot start"
    assert checked() == (1, [], [f"drift: {what}; mend: kubectl uncordon worker2"])


def test_a_storage_host_that_is_cordoned_holds_its_target(cluster: FakeCluster, checked: Checked) -> None:
    cluster.nodes["worker1"] = node("worker1", cordoned=True)
    cluster.pods[0] = pending(f"{VHOST}-x", VHOST, only_on="worker1")
    what = f"node worker1 is cordoned, so {VHOST}-x cannot start"
    assert checked() == (1, [], [f"drift: {what}; mend: kubectl uncordon worker1"])


def test_a_cordoned_node_whose_pods_run_keeps_them(cluster: FakeCluster, checked: Checked) -> None:
    cluster.nodes["worker2"] = node("worker2", cordoned=True)
    assert checked()[2] == ["drift: node worker2 is cordoned; mend: kubectl uncordon worker2"]


def test_pods_and_their_pages(cluster: FakeCluster, checked: Checked) -> None:
    cluster.pods.append(pod(f"{VIDEO}-2", VIDEO, "worker2"))
    cluster.made = view.Outputs.parse(made(3))
    cluster.volumes.append(volume(2))
    cluster.served["vhost.2"] = "plugged"
    cluster.pods[3] = pod(f"{VIDEO}-2", VIDEO, "worker2", ready=False)
    cluster.markers = {
        0: view.Answer("200", b"{half"),
        2: view.Answer("500"),
        1: view.Answer("200", json.dumps({"ordinal": 0}).encode()),
    }
    cluster.pods.append(pod(f"{VIDEO}-x", VIDEO, "worker2"))
    _, _, said = checked()
    look = f"make up; if it stays, its reason: kubectl -n spdk-k8s describe pod {VIDEO}-"
    assert remedies(said) == {
        "http://192.0.2.4:8080/marker answers 200 '{half', not the marker of disk 0": f"{look}0",
        f"pod {VIDEO}-2 is not ready": f"{look}2",
    }
    assert [line for line in said if "; mend: " not in line] == [
        f"drift: pod {VIDEO}-1 serves disk 0",
        f"drift: pod {VIDEO}-x is there, which nobody asked for",
        "mend it: make up",
    ]


def test_a_pod_that_is_missing_or_going(cluster: FakeCluster, checked: Checked) -> None:
    cluster.pods = [p for p in cluster.pods if p.metadata.name != f"{VIDEO}-1"]
    cluster.pods[1].metadata.deletion_timestamp = datetime(2026, 1, 1, tzinfo=UTC)
    _, _, said = checked()
    assert f"drift: pod {VIDEO}-1 is missing" in said
    assert f"pod {VIDEO}-0 is not ready: it is being deleted" in remedies(said)


def test_a_pod_of_an_earlier_template(cluster: FakeCluster, checked: Checked) -> None:
    for p, revision in zip(cluster.pods[1:], ("new", "old"), strict=True):
        p.metadata.labels["controller-revision-hash"] = revision
    cluster.revision = "new"
    assert list(remedies(checked()[2])) == [f"pod {VIDEO}-1 is still of an earlier definition"]


def test_a_page_that_does_not_answer_though_its_disk_does(cluster: FakeCluster, checked: Checked) -> None:
    cluster.pages = {1: view.Answer("500")}
    assert list(remedies(checked()[2])) == ["http://192.0.2.4:8081/ answers 500"]


@pytest.mark.parametrize(
    ("answer", "steps"),
    [("timed out", ["worker2-vm"]), ("No route to host", ["worker2-vm"]), ("Connection refused", [])],
)
def test_a_vm_that_stopped_is_started_before_its_node_counts_as_gone(
    cluster: FakeCluster, answer: str, steps: list[str]
) -> None:
    cluster.markers = dict.fromkeys(range(2), view.Answer(answer))
    assert again(cluster) == steps


def test_a_pod_too_many_goes_with_the_stateful_sets_change(cluster: FakeCluster, checked: Checked) -> None:
    extra = pod(f"{VIDEO}-2", VIDEO, "worker2")
    extra.metadata.owner_references = [
        client.V1OwnerReference(api_version="apps/v1", kind="StatefulSet", name=VIDEO, uid="1")
    ]
    cluster.pods = [p for p in cluster.pods if p.metadata.name != f"{VIDEO}-1"] + [extra]
    assert checked()[2] == [
        f"drift: pod {VIDEO}-1 is missing",
        f"drift: pod {VIDEO}-2 is there, which nobody asked for",
        "mend it: make up",
    ]


def test_every_step_is_one_of_the_programs(cluster: FakeCluster) -> None:
    """What check names must be there for `make up` to run again."""
    names = {registered.path.rpartition("/")[2] for registered in run_program(numinst=2).values()}
    cluster.served = dict.fromkeys(cluster.served, "unused")
    for name in made()["nodes"]:
        sick(cluster, name)
    steps = again(cluster)
    assert len(steps) == 10
    assert set(steps) <= names


def test_a_vm_of_an_earlier_definition_is_changed_by_up(cluster: FakeCluster, checked: Checked) -> None:
    cluster.outdated = True
    code, _, (what, remedy) = checked()
    assert code == 1
    assert what.startswith("drift: spdk-k8s-vm on worker1 runs with an earlier definition")
    assert remedy == "mend it: make up"
    steps = again(cluster)
    assert steps == ["cluster-worker2-ready", "worker2-drained", "worker2-vm"]
    assert set(steps) <= {registered.name for registered in run_program(numinst=2).values()}


def test_a_change_of_a_vm_that_was_cut_off_goes_on(cluster: FakeCluster, checked: Checked) -> None:
    """Also where the config is the old one again by now, so that Pulumi sees no difference."""
    mark = {CHANGING: f"schedulable {VIDEO}-0"}
    cluster.nodes["worker2"] = node("worker2", cordoned=True, annotations=mark)
    cluster.pods[1:] = [pending(f"{VIDEO}-{i}", VIDEO, only_on="worker2") for i in range(2)]
    drift = "drift: node worker2 is drained, because its VM is being changed"
    assert checked() == (1, [], [drift, "mend it: make up"])
    assert again(cluster) == ["cluster-worker2-ready", "worker2-vm"]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("booting", "the guest has not read its root disk 40 s after its start, and is reset after 60 s"),
        ("silence", "/run/spdk-k8s/vm.qmp does not greet: TimeoutError"),
    ],
)
def test_a_vm_that_hangs_is_named_and_heals_by_itself(
    cluster: FakeCluster, checked: Checked, what: str, why: str
) -> None:
    setattr(cluster, what, why)
    (drift,) = check.find(view.look(cluster.cluster, cluster.made))
    assert drift.comes
    _, _, said = checked()
    assert said == [
        f"drift: the VM spdk-k8s-vm on worker1 hangs or boots: {why}; mend: wait: it is started anew by itself"
    ]
    assert again(cluster) == []
