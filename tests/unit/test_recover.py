"""What a killed run left in the way: its lock, and what it did not finish, on states as the engine writes them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operate import cli, recover

pytestmark = pytest.mark.unit


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path}?no_tmp_dir=true")
    return tmp_path


def lock(backend: Path, stack: str = "dev", **changed: object) -> Path:
    path = backend / f".pulumi/locks/organization/spdk-k8s/{stack}/1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "pid": os.getpid(),
        "username": "kim",
        "hostname": socket.gethostname(),
        "timestamp": "2026-11-28T18:13:58.08Z",
    }
    path.write_text(json.dumps(made | changed))
    return path


@pytest.fixture
def named_pulumi(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called as the CLI is."""
    program = tmp_path / "pulumi"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    while cli.program(process.pid) != "pulumi":  # Popen returns a moment before the process has its name
        assert process.poll() is None
    yield process
    process.kill()
    process.wait()


def test_the_lock_of_a_killed_run_goes(backend: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lock(backend)  # that process is no pulumi
    recover.refuse_second_run("dev")
    assert not path.exists()
    assert "removed the lock of a killed run" in capsys.readouterr().err


def test_the_lock_of_a_process_that_has_ended_but_is_still_listed_goes(backend: Path, tmp_path: Path) -> None:
    program = tmp_path / "pulumi"
    program.symlink_to("/bin/true")
    ended = subprocess.Popen([program])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked for its exit code
    path = lock(backend, pid=ended.pid)
    assert recover.running("dev") == []
    assert not path.exists()
    ended.wait()


def test_a_run_that_is_under_way_is_named(backend: Path, named_pulumi: subprocess.Popen[bytes]) -> None:
    path = lock(backend, pid=named_pulumi.pid)
    with pytest.raises(SystemExit) as ended:
        recover.refuse_second_run("dev")
    said = str(ended.value)
    host = socket.gethostname()
    assert "another run works on stack dev; nothing was changed:" in said
    assert f"process {named_pulumi.pid} of kim on {host}, since 2026-11-28T18:13:58 UTC: {backend}/pulumi 60" in said
    assert (
        f"remedy: wait until it ends, or end it with Ctrl-C where it runs, or here: kill -INT {named_pulumi.pid}"
        in said
    )
    assert path.exists()


def test_of_a_run_on_another_machine_nobody_here_can_tell(backend: Path) -> None:
    path = lock(backend, hostname="elsewhere", pid=2**22 + 1)
    with pytest.raises(SystemExit, match="of kim on elsewhere, since 2026-11-28T18:13:58 UTC\n"):
        recover.refuse_second_run("dev")
    assert path.exists()


def test_locks_of_other_stacks_and_half_written_ones_are_left(backend: Path) -> None:
    other = lock(backend, "other")
    half = lock(backend)
    half.write_text("{")
    recover.refuse_second_run("dev")
    assert other.exists()
    assert half.exists()


def test_a_backend_elsewhere_has_no_locks_to_look_at(backend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(backend, hostname="elsewhere")
    monkeypatch.setenv("PULUMI_BACKEND_URL", "https://api.pulumi.com")
    recover.refuse_second_run("dev")


def operation(kind: str, token: str, **inputs: str) -> dict[str, Any]:
    return {"type": kind, "resource": {"urn": f"urn:pulumi:dev::p::{token}::x", "type": token, "inputs": inputs}}


def test_what_a_killed_run_was_making_in_docker_is_removed_and_the_rest_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = [{"urn": "urn:pulumi:dev::p::docker:index/network:Network::kept"}]
    exported = {
        "version": 3,
        "deployment": {
            "resources": list(resources),
            "pending_operations": [
                operation("creating", "docker:index/container:Container", name="spdk-k8s-dev-master"),
                operation("creating", "docker:index/network:Network", name="spdk-k8s-dev"),
                operation("creating", "command:remote:Command", create="true"),
                operation("deleting", "docker:index/volume:Volume", name="spdk-k8s-dev-master-var"),
                operation("updating", "docker:index/container:Container", name="spdk-k8s-dev-worker1"),
            ],
        },
    }
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1 if "network" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert recover.clear(exported)
    assert ran == [
        ["docker", "container", "rm", "--force", "spdk-k8s-dev-master"],
        ["docker", "network", "rm", "spdk-k8s-dev"],
    ]
    assert exported == {"version": 3, "deployment": {"resources": resources}}
    said = capsys.readouterr().err
    assert "removed container spdk-k8s-dev-master, left by a killed run" in said
    assert "removed network" not in said
    assert "cleared the operations that a killed run left unfinished" in said
    assert not recover.clear(exported)
