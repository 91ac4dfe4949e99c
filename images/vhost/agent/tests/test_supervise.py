"""The target as a child, with a real process in its place; and the agent as a program."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from disk_agent import __main__ as program
from disk_agent import monitor
from disk_agent.config import Kind
from disk_agent.qsd import StorageDaemon
from disk_agent.spdk import Spdk
from disk_agent.supervise import Supervisor

HERE = Path(__file__).parent
KIND = Kind("aio", 1, 4096, 1)


class Program(StorageDaemon):
    """qemu-storage-daemon's stand-in."""

    how = "live"

    def command(self) -> Sequence[str]:
        assert super().command()[0] == "qemu-storage-daemon"
        return [sys.executable, str(HERE / "target_program.py"), str(self.run), self.how]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parent}")
    return Program(KIND, tmp_path, tmp_path)


async def until(what: Callable[[], object], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def supervised(supervisor: Supervisor, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def both() -> None:
        running = asyncio.create_task(supervisor.run())
        try:
            await work()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(both())


def test_a_target_that_is_killed_starts_again_at_once(target: Program) -> None:
    supervisor = Supervisor(target)

    async def work() -> None:
        await until(lambda: supervisor.up)
        first = supervisor.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.starts == 2 and supervisor.up)
        assert supervisor.pid != first
        assert supervisor.said.startswith("the target ended with signal 9")

    supervised(supervisor, work)
    assert supervisor.pid
    with pytest.raises(ProcessLookupError):
        os.kill(supervisor.pid, 0)


def test_a_target_that_hangs_is_killed(target: Program) -> None:
    """As under SIGSTOP."""
    supervisor = Supervisor(target, hangs_after=0.3)

    async def work() -> None:
        await until(lambda: supervisor.up)
        assert supervisor.pid
        os.kill(supervisor.pid, signal.SIGSTOP)
        await until(lambda: supervisor.starts == 2 and supervisor.up, 8)

    supervised(supervisor, work)


def test_a_target_that_answers_no_more_is_killed(target: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    target.how = "hang"
    monkeypatch.setattr(monitor, "GREETS_WITHIN", 0.1)
    supervisor = Supervisor(target, hangs_after=0.3)

    async def work() -> None:
        await until(lambda: supervisor.starts == 2, 8)
        assert supervisor.said == "the target did not answer for 0.3 s, and was killed"

    supervised(supervisor, work)


def test_a_target_that_dies_at_once_is_started_less_and_less_often(target: Program) -> None:
    target.how = "die"
    supervisor = Supervisor(target)

    async def work() -> None:
        await until(lambda: supervisor.starts == 3)
        assert supervisor.said == "the target ended with code 3: starting, to die / no memory for this"
        assert not supervisor.ever_up

    began = time.monotonic()
    supervised(supervisor, work)
    assert time.monotonic() - began > 0.4


# --- the program ------------------------------------------------------------------------------------------------------


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: who could write there would be given the guests' memory."""
    tmp_path.chmod(0o755)
    program.own(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(program.CannotStart, match="delete it, and it is made anew"):
        program.own(tmp_path)


def test_a_second_agent_waits_for_the_first_and_for_its_target(tmp_path: Path) -> None:
    first = program.alone(tmp_path)
    with pytest.raises(program.CannotStart, match="another agent still serves"):
        program.alone(tmp_path, 0.1)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[first])  # the target has it too
    os.close(first)
    with pytest.raises(program.CannotStart):
        program.alone(tmp_path, 0.1)
    child.kill()
    child.wait()
    os.close(program.alone(tmp_path))
    with pytest.raises(program.CannotStart, match="cannot be written to"):
        program.alone(tmp_path / "missing")


def test_each_backend_has_its_arguments(tmp_path: Path) -> None:
    asked = program.arguments(["spdk", "--kind", "malloc 1 512 1", "--run", str(tmp_path), "--", "-m", "0x1"])
    target = program.target_of(asked, KIND)
    assert isinstance(target, Spdk)
    assert list(target.command())[:1] + list(target.command())[-2:] == ["spdk-vhost", "-m", "0x1"]
    assert isinstance(program.target_of(program.arguments(["qemu-storage-daemon", "--kind", "x"]), KIND), StorageDaemon)


AGENT = """
import os, sys
import test_supervise as t
from disk_agent import __main__ as program
class Target(t.Program):
    how = os.environ["HOW"]
program.StorageDaemon = Target
sys.exit(program.main())
"""


def agent(folder: Path, how: str) -> subprocess.Popen[str]:
    (folder / "vhost.json").write_text('{"bdev":"aio","mib":1,"blockSize":4096,"queues":1,"vms":{},"disks":[]}')
    words = ["qemu-storage-daemon", "--kind", "aio 1 4096 1", "--config", str(folder / "vhost.json"), "--sockets",
             str(folder), "--run", str(folder), "--port", "0"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}", "HOW": how}
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(folder: Path, what: str) -> str:
    done = subprocess.run(
        ["curl", "-s", "--unix-socket", folder / "agent.sock", f"http://agent/{what}"], capture_output=True, text=True
    )
    return done.stdout


def wait(what: Callable[[], object]) -> None:
    end = time.monotonic() + 8
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_agent_ends_with_its_target_when_it_is_told_to(tmp_path: Path) -> None:
    running = agent(tmp_path, "live")
    wait(lambda: ask(tmp_path, "ready") == "yes\n")
    running.terminate()
    _, said = running.communicate(timeout=8)
    assert running.returncode == 0, said
    os.close(program.alone(tmp_path, 1))  # and so has the target
    assert (tmp_path / "agent.lock").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o700


def test_the_target_ends_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    running = agent(tmp_path, "live")
    wait(lambda: ask(tmp_path, "started") == "yes\n")
    running.kill()
    running.communicate(timeout=8)
    os.close(program.alone(tmp_path, 2))


def test_the_last_words_are_the_targets_where_it_never_started(tmp_path: Path) -> None:
    """Kubernetes shows them as the container's."""
    running = agent(tmp_path, "die")
    wait(lambda: "no memory for this" in ask(tmp_path, "started"))
    running.terminate()
    _, said = running.communicate(timeout=8)
    assert running.returncode == 1
    assert said.splitlines()[-1] == "the target ended with code 3: starting, to die / no memory for this"


def test_an_agent_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = os.open(tmp_path / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(program.alone, "__defaults__", (0.0,))
    monkeypatch.setattr(sys, "argv", ["a", "qemu-storage-daemon", "--kind", str(KIND), "--sockets", str(tmp_path)])
    assert program.main() == 1
    assert "error: another agent still serves" in capsys.readouterr().err
