"""`make status` of a stack that is well, and of one that is not: then above all it must say what it can."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Callable

import pytest
import urllib3
from kubernetes import client  # type: ignore[import-untyped]

from operate import status
from settings.names import VHOST, VIDEO
from tests.unit.fake_cluster import FakeCluster, made, node, pod

pytestmark = pytest.mark.unit

ROW_OF_0 = ["0", "app-vs-p2-0", "worker2", "1/1", "0", "/dev/disk/0", "128.0", "MiB", "1.0", "MiB",
            "http://192.0.2.4:8080/", "200", "rtmp://192.0.2.4:1935/vod2"]  # fmt: skip

Show = Callable[[], tuple[int, dict[str, list[str]], str, str]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(status, "outputs", made)
    monkeypatch.setattr(status, "connect", lambda _: fake)
    monkeypatch.setattr(status, "fetch", lambda _: ("200", b""))
    return fake


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


def test_a_pod_that_only_looks_like_a_video_is_shown_as_another(cluster: FakeCluster, shown: Show) -> None:
    cluster.pods.append(pod(f"{VIDEO}-x", VIDEO, "worker2"))
    code, rows, _, _ = shown()
    assert code == 0
    assert rows[f"{VIDEO}-x"][:3] == [f"{VIDEO}-x", "worker2", "1/1"]
    assert rows["0"] == ROW_OF_0


def test_the_vm_is_stopped(cluster: FakeCluster, shown: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "fetch", lambda _: ("No route to host", b""))
    cluster.nodes["worker2"] = node("worker2", ready=False)
    cluster.silent = {"worker2"}
    code, rows, out, err = shown()
    assert code == 1
    assert rows["worker2"][1] == "NotReady"
    assert rows["1"] == ["1", f"{VIDEO}-1", "worker2", "1/1", "0", "/dev/disk/1", "-", "-", "http://192.0.2.4:8081/",
                         "No", "route", "to", "host", "rtmp://192.0.2.4:1936/vod2"]  # fmt: skip
    assert err.strip() == "how full the disks on worker2 are is not known: 503 Service Unavailable"
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
    assert f"{VHOST}-x: {VHOST} ended: no hugepages" in err


def test_a_stack_that_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, "{}\n", "")

    monkeypatch.setattr(subprocess, "run", nothing)
    with pytest.raises(SystemExit, match="the stack is not up; remedy: make up"):
        status.main()


def kubeconfig(server: str) -> str:
    cluster = {"name": "c", "cluster": {"server": server}}
    user = {"name": "u", "user": {"token": "secret"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    return str({"current-context": "x", "clusters": [cluster], "users": [user], "contexts": [context]})


def test_a_kubelet_that_is_not_there_is_an_error_of_the_api_servers() -> None:
    """The client itself, against a server that answers as the API server does then."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"kind": "Status", "message": "dial tcp 192.0.2.4:10250: no route to host", "code": 503}'
            self.send_response(503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        core = status.connect({"kubeconfig": kubeconfig(f"http://127.0.0.1:{server.server_port}")})
        with pytest.raises(status.NO_ANSWER) as caught:
            status.volume_usage(core, "worker2")
        server.shutdown()
    assert status.why(caught.value) == "503 Service Unavailable: dial tcp 192.0.2.4:10250: no route to host"
