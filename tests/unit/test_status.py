"""`make status` of a stack that is well, and of one that is not: then above all it must say what it can."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import urllib3
from kubernetes import client

from operate import status, view
from settings.names import CHANGING, VHOST, VIDEO
from tests.unit.fake_cluster import FakeCluster, node, pending, pod

pytestmark = pytest.mark.unit

ROW_OF_0 = ["0", "app-vs-p2-0", "worker2", "1/1", "0", "/dev/disk/0", "128.0", "MiB", "1.0", "MiB",
            "http://192.0.2.4:8080/", "200", "rtmp://192.0.2.4:1935/vod2"]  # fmt: skip

Show = Callable[[], tuple[int, dict[str, list[str]], str, str]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Show:
    def show() -> tuple[int, dict[str, list[str]], str, str]:
        """Exit code, rows by their first word, all of stdout, all of stderr."""
        code = status.main()
        out, err = capsys.readouterr()
        return code, {words[0]: words for line in out.splitlines() if (words := line.split())}, out, err

    return show


def test_a_stack_that_is_well(cluster: FakeCluster, shown: Show) -> None:
    code, rows, out, err = shown()
    assert (code, err) == (0, "")
    assert rows["worker2"] == ["worker2", "Ready", "worker2", "192.0.2.4", "v1", "6.12"]
    assert rows[f"{VHOST}-x"] == [f"{VHOST}-x", "worker1", "1/1", "0", "Running"]
    assert rows["0"] == ROW_OF_0
    assert "vhost backend: qemu-storage-daemon, because it is configured\n" in out
    assert out.endswith("\nwall: http://192.0.2.2:9090/user/\n"), "last of all"


def test_a_wall_that_does_not_answer_and_a_stack_without_one(cluster: FakeCluster, shown: Show) -> None:
    cluster.wall = view.Answer("Connection refused")
    assert shown()[3] == "\nthe wall does not answer: Connection refused\n"
    cluster.made = replace(cluster.made, wall="")
    code, _, out, err = shown()
    assert (code, err) == (0, "")
    assert "wall" not in out


def test_it_is_shown_again_and_again_until_somebody_ends_it(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([None, None])

    def pause(_: float) -> None:
        if next(looks, "end"):
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", pause)
    assert status.main(watched=True) == 0
    assert capsys.readouterr().out.count("vhost backend") == 3


def test_limits_are_shown_where_there_are_some(cluster: FakeCluster, shown: Show) -> None:
    cluster.limits["vhost.0"] = {"limits": {"iops": 5000}, "limitsInForce": {"iops": 5000}}
    code, _, out, err = shown()
    assert (code, err) == (0, "")
    heads, first, second = (re.split("  +", line) for line in out.splitlines()[-5:-2])
    at = heads.index("LIMITS")
    assert (first[at], second[at]) == ("5000 IOPS", "no limit")
    cluster.limits["vhost.0"]["limitsInForce"] = {}
    code, _, out, err = shown()
    assert (code, err) == (1, "\ndisk vhost.0 has no limit, and should have 5000 IOPS: a reason\n")


def test_a_pod_that_only_looks_like_a_video_is_shown_as_another(cluster: FakeCluster, shown: Show) -> None:
    cluster.pods.append(pod(f"{VIDEO}-x", VIDEO, "worker2"))
    code, rows, _, _ = shown()
    assert code == 0
    assert rows[f"{VIDEO}-x"][:3] == [f"{VIDEO}-x", "worker2", "1/1"]
    assert rows["0"] == ROW_OF_0


def test_the_vm_is_stopped(cluster: FakeCluster, shown: Show) -> None:
    cluster.pages = dict.fromkeys(range(2), view.Answer("No route to host"))
    cluster.nodes["worker2"] = node("worker2", ready=False)
    cluster.silent = {"worker2"}
    code, rows, out, err = shown()
    assert code == 1
    assert rows["worker2"][1] == "NotReady"
    assert rows["1"] == ["1", f"{VIDEO}-1", "worker2", "1/1", "0", "/dev/disk/1", "-", "-", "http://192.0.2.4:8081/",
                         "No", "route", "to", "host", "rtmp://192.0.2.4:1936/vod2"]  # fmt: skip
    assert err.split("\n")[1:-1] == [
        "node worker2 is not Ready: kubelet has stopped posting",
        "how full the disks on worker2 are is not known: 503 Service Unavailable",
    ]
    assert "vhost backend: qemu-storage-daemon" in out


REFUSED = urllib3.exceptions.NewConnectionError(None, "Failed to establish a new connection: [Errno 111] Refused")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib3.exceptions.MaxRetryError(None, "/api/v1/nodes", REFUSED), "[Errno 111] Refused"),  # type: ignore[arg-type]
        (urllib3.exceptions.ProtocolError("Connection aborted."), "Connection aborted."),
        (client.ApiException(status=401, reason="Unauthorized"), "401 Unauthorized"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_api_server_does_not_answer(cluster: FakeCluster, shown: Show, error: Exception, said: str) -> None:
    cluster.error = error
    code, rows, out, err = shown()
    assert code == 1
    assert err.strip() == f"the API server on 192.0.2.2 does not answer: {said}"
    assert rows["worker1"] == ["worker1", "-", "-", "192.0.2.3", "-", "-"]
    assert rows["0"][0:5] == ["0", f"{VIDEO}-0", "-", "-", "-"]
    assert rows["0"][-2] == "200", "the pages can be asked all the same"
    assert "vhost backend: qemu-storage-daemon, because it is configured\n" in out


def test_what_is_missing_has_its_row(cluster: FakeCluster, shown: Show) -> None:
    del cluster.nodes["worker1"]
    cluster.pods = [p for p in cluster.pods if p.metadata.name != f"{VIDEO}-1"]
    cluster.pods.append(pod("mine", None, "worker1"))  # without a label
    code, rows, _, err = shown()
    assert code == 1
    assert rows["worker1"] == ["worker1", "-", "-", "192.0.2.3", "-", "-"]
    assert rows["0"] == ROW_OF_0
    assert rows["1"][:6] == ["1", f"{VIDEO}-1", "-", "-", "-", "/dev/disk/1"]
    assert "mine" in rows
    assert "1 of 2 video pods exist" in err


def test_a_target_that_died_says_why(cluster: FakeCluster, shown: Show) -> None:
    cluster.pods[0] = pod(f"{VHOST}-x", VHOST, "worker1", ready=False, last_words="no hugepages\n")
    code, rows, _, err = shown()
    assert code == 1
    assert rows[f"{VHOST}-x"][2] == "0/1"
    assert f"pod {VHOST}-x is not ready: {VHOST} ended: no hugepages" in err


def test_a_vm_that_is_changed_or_hangs_says_so(cluster: FakeCluster, shown: Show) -> None:
    cluster.nodes["worker2"] = node("worker2", cordoned=True, annotations={CHANGING: "schedulable"})
    cluster.booting = "the guest has not read its root disk"
    code, _, _, said = shown()
    assert code == 1
    assert "node worker2 is drained, because its VM is being changed; if no up works on it: make up" in said
    assert "VM spdk-k8s-vm: the guest has not read its root disk" in said


def test_a_cordoned_node_and_its_pods_say_so(cluster: FakeCluster, shown: Show) -> None:
    cluster.nodes["worker2"] = node("worker2", cordoned=True)
    cluster.pods[1] = pending(f"{VIDEO}-0", VIDEO)
    code, rows, _, err = shown()
    assert code == 1
    assert rows["worker2"][1] == "Ready,cordoned"
    assert err.split("\n")[1:-1] == [
        "node worker2 is cordoned: kubectl uncordon worker2",
        f"pod {VIDEO}-0 is not ready: 0/3 nodes are available",
    ]


def test_a_pod_that_waits_names_what_kubernetes_says_of_it(cluster: FakeCluster, shown: Show) -> None:
    cluster.pods[1] = pod(f"{VIDEO}-0", VIDEO, "worker2", ready=False)
    cluster.events = [
        client.CoreV1Event(
            metadata=client.V1ObjectMeta(name=str(i)), reason="FailedMount", message=said, last_timestamp=when,
            involved_object=client.V1ObjectReference(kind="Pod", name=f"{VIDEO}-0", uid=uid),
        )
        for i, (uid, said, when) in enumerate([
            (f"uid-{VIDEO}-0", "path /dev/disk/0\n does not exist", datetime(2026, 1, 2, tzinfo=UTC)),
            (f"uid-{VIDEO}-0", "earlier", datetime(2026, 1, 1, tzinfo=UTC)),
            ("uid of an earlier pod", "another", datetime(2026, 1, 3, tzinfo=UTC)),
        ])
    ]  # fmt: skip
    code, _, _, err = shown()
    assert code == 1
    assert f"pod {VIDEO}-0 is not ready: FailedMount: path /dev/disk/0 does not exist" in err
