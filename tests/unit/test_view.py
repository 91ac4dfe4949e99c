"""How operate/ gets at a running stack: its outputs, the way to its API server, and what answers what."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from operate import check, status, view
from tests.unit.fake_cluster import made

pytestmark = pytest.mark.unit


def kubeconfig(server: str) -> str:
    cluster = {"name": "c", "cluster": {"server": server}}
    user = {"name": "u", "user": {"token": "secret"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    return str({"current-context": "x", "clusters": [cluster], "users": [user], "contexts": [context]})


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers like an API server that cannot reach a kubelet, and like a page."""

    def do_GET(self) -> None:
        page = self.path.startswith("/page")
        status = {"kind": "Status", "message": "dial tcp 192.0.2.4:10250: no route to host", "code": 503}
        body = b'{"ordinal": 3}\0\n' if page else json.dumps(status).encode()
        self.send_response(200 if page else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a company's network, where nobody listens."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def outputs(server: str) -> view.Outputs:
    return view.Outputs.parse(made() | {"kubeconfig": kubeconfig(server)})


@pytest.mark.usefixtures("proxy")
def test_a_kubelet_that_does_not_answer_is_the_api_servers_error(server: str) -> None:
    usage = view.usage(view.connect(outputs(server)), ["worker2"])
    assert usage.silent == {"worker2": "503 Service Unavailable: dial tcp 192.0.2.4:10250: no route to host"}


@pytest.mark.usefixtures("proxy")
def test_pages_are_never_asked_through_a_proxy(server: str) -> None:
    assert view.fetch(f"{server}/page").marker == {"ordinal": 3}
    assert view.fetch(f"{server}/else").status == "503"
    assert "refused" in view.fetch("http://127.0.0.1:9/").status


@pytest.mark.usefixtures("proxy")
def test_a_command_in_a_pod_is_never_run_through_a_proxy(server: str) -> None:
    """The handshake reaches the server itself, which has no WebSocket."""
    assert "503" in view.ask(view.connect(outputs(server)).core, "pod").error


@pytest.mark.parametrize("status", ["404", "200"])
def test_only_an_object_is_a_marker(status: str) -> None:
    assert view.Answer(status, b"[1]").marker is None
    assert view.Answer(status, b"{half").marker is None
    assert (view.Answer(status, b'{"ordinal": 1}\0\n').marker is None) == (status == "404")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the Pulumi CLI answers."""
    answer: dict[str, Any] = {"returncode": 0, "stdout": "{}\n", "stderr": ""}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if error := answer.get("error"):
            raise error
        return subprocess.CompletedProcess(command, answer["returncode"], answer["stdout"], answer["stderr"])

    monkeypatch.setattr(subprocess, "run", run)
    return answer


def test_the_outputs(cli: dict[str, Any]) -> None:
    cli["stdout"] = json.dumps(made())
    found = view.outputs("dev")
    assert found.master == "192.0.2.2"
    assert found.disks[1] == view.Disk("worker2", "/dev/disk/1")
    assert "kubeconfig" not in repr(found), "it holds the admin's key"


@pytest.mark.parametrize("main", [check.main, status.main])
@pytest.mark.parametrize(
    "answer",
    [
        {"stdout": "{}\n"},
        {"stdout": ""},
        {"returncode": 255, "stderr": "error: no stack named 'dev' found"},
        {"stdout": json.dumps({"numinst": 3})},
    ],
)
def test_a_stack_that_is_not_up(cli: dict[str, Any], answer: dict[str, Any], main: Any) -> None:
    cli |= answer
    with pytest.raises(SystemExit, match="the stack is not up; remedy: make up"):
        main()


@pytest.mark.parametrize("main", [check.main, status.main])
def test_a_state_that_cannot_be_read_is_named_with_a_remedy(cli: dict[str, Any], main: Any) -> None:
    cli |= {"returncode": 255, "stderr": "warning: x\nerror: getting stack configuration: incorrect passphrase\n"}
    with pytest.raises(SystemExit, match=r"cannot be read: .*incorrect passphrase; remedy: .*PULUMI_CONFIG_PASSPHRASE"):
        main()


def test_no_pulumi(cli: dict[str, Any]) -> None:
    cli["error"] = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(view.StackError, match=r"pulumi cannot be started: No such file.*; remedy: make setup"):
        view.outputs()


def test_what_the_api_server_says_is_put_in_a_line() -> None:
    assert view.why(client.ApiException(status=401, reason="Unauthorized")) == "401 Unauthorized"
    assert view.why(TimeoutError()) == "TimeoutError"
