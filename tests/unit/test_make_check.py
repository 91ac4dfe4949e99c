"""`make check`: each drift is named, with the steps that mend it or what helps instead."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
import urllib3
from kubernetes import client  # type: ignore[import-untyped]

from operate import check
from settings.names import VHOST, VIDEO
from tests.unit.fake_cluster import FakeCluster, made, node, pod, volume
from tests.unit.recorder import run_program

pytestmark = pytest.mark.unit

Checked = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(check, "outputs", made)
    monkeypatch.setattr(check, "connect", lambda _: fake)
    monkeypatch.setattr(check, "fetch_all", lambda urls: [("200", fake.marker(i)) for i, _ in enumerate(urls)])
    return fake


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Checked:
    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        """Exit code, lines of stdout, lines of stderr."""
        monkeypatch.setattr(sys, "argv", ["check.py", *arguments])
        code = check.main()
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def test_no_drift(cluster: FakeCluster, checked: Checked) -> None:
    well = "no drift: 3 nodes, 2 disks, volumes, pods and pages as configured"
    assert checked() == (0, [well], [])
    assert checked("--steps") == (0, [""], [])


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
@pytest.mark.parametrize(
    ("happen", "what"),
    [(lose, "is not in the cluster"), (sick, "is not Ready: kubelet has stopped posting")],
)
def test_a_lost_node_comes_back_by_its_steps(
    cluster: FakeCluster,
    checked: Checked,
    happen: Callable[[FakeCluster, str], None],
    what: str,
    name: str,
    steps: list[str],
) -> None:
    happen(cluster, name)
    assert checked() == (1, [], [f"drift: node {name} {what}", "mend it: make up"])
    assert checked("--steps")[:2] == (1, steps)


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
    assert checked("--steps")[1] == ["cluster-control-plane", "cluster-worker1-ready", "worker2-disks"]


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
    assert checked("--steps")[:2] == (1, ["cluster-control-plane"])


def remedies(said: list[str]) -> dict[str, str]:
    """Drift -> what helps, of those that another `make up` alone might not."""
    return dict(line.removeprefix("drift: ").split("; mend: ") for line in said if "; mend: " in line)


def test_a_target_that_is_not_ready_is_to_be_looked_at(cluster: FakeCluster, checked: Checked) -> None:
    cluster.pods[0] = pod(f"{VHOST}-x", VHOST, "worker1", ready=False, last_words="no hugepages")
    code, _, said = checked()
    assert code == 1
    ((what, remedy),) = remedies(said).items()
    assert what == f"the vhost target {VHOST} is not ready; {VHOST} ended: no hugepages"
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


@pytest.mark.parametrize("phase", ["Released", "Failed"])
def test_a_volume_that_takes_no_claim_is_made_anew(cluster: FakeCluster, checked: Checked, phase: str) -> None:
    cluster.volumes[1] = volume(1, phase)
    _, _, said = checked()
    remedy = "kubectl delete pv vhost-1 && make up: nothing on the disk is deleted"
    assert remedies(said) == {f"PersistentVolume vhost-1 is {phase}, not Bound": remedy}


def test_volumes_of_others(cluster: FakeCluster, checked: Checked) -> None:
    cluster.volumes[0].spec.claim_ref = None
    cluster.volumes[1] = volume(1, "Available")
    _, _, said = checked()
    assert list(remedies(said)) == ["PersistentVolume vhost-0 is /dev/disk/0 for None"]
    assert "drift: PersistentVolume vhost-1 is Available, not Bound" in said
    assert "mend it: make up" in said


def test_pods_and_their_pages(cluster: FakeCluster, checked: Checked) -> None:
    cluster.pods[1] = pod(f"{VIDEO}-0", VIDEO, "worker2", ready=False)
    cluster.markers = {0: b"{half", 1: json.dumps({"ordinal": 0}).encode()}
    cluster.pods.append(pod(f"{VIDEO}-x", VIDEO, "worker2"))
    _, _, said = checked()
    look = f"make up; if it stays, its reason: kubectl -n spdk-k8s describe pod {VIDEO}-0"
    assert remedies(said) == {
        f"pod {VIDEO}-0 is not ready": look,
        "http://192.0.2.4:8080/marker answers 200 '{half', not the marker of disk 0": look,
        f"pod {VIDEO}-1 serves disk 0": f"kubectl -n spdk-k8s delete pod {VIDEO}-1: the next one mounts its own disk",
        f"pod {VIDEO}-x is there, which nobody asked for": f"kubectl -n spdk-k8s delete pod {VIDEO}-x",
    }


@pytest.mark.parametrize(
    ("answer", "steps"),
    [("timed out", ["worker2-vm"]), ("No route to host", ["worker2-vm"]), ("Connection refused", [""])],
)
def test_a_vm_that_stopped_is_started_before_its_node_counts_as_gone(
    cluster: FakeCluster, checked: Checked, monkeypatch: pytest.MonkeyPatch, answer: str, steps: list[str]
) -> None:
    monkeypatch.setattr(check, "fetch_all", lambda urls: [(answer, b"")] * len(urls))
    assert checked("--steps")[:2] == (1, steps)


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


def test_every_step_is_one_of_the_programs(cluster: FakeCluster, checked: Checked) -> None:
    """What check names must be there for `make up` to run again."""
    names = {registered.path.rpartition("/")[2] for registered in run_program(numinst=2).values()}
    cluster.served = dict.fromkeys(cluster.served, "unused")
    for name in made()["nodes"]:
        sick(cluster, name)
    steps = checked("--steps")[1]
    assert len(steps) == 7
    assert set(steps) <= names


def test_a_vm_of_an_earlier_definition_is_to_be_restarted(cluster: FakeCluster, checked: Checked) -> None:
    cluster.outdated = True
    _, _, said = checked()
    ((what, remedy),) = remedies(said).items()
    assert what.startswith("spdk-k8s-vm on worker1 runs with an earlier definition")
    assert remedy == "systemctl restart spdk-k8s-vm, on worker1: its guest boots anew"
    assert checked("--steps")[1] == [""], "no step of the program restarts it"
