"""What `make up` prints into a file, from the engine's events."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from operate import progress
from operate.cli import Stack
from operate.progress import Progress

pytestmark = pytest.mark.unit

COMMAND = "command:remote:Command"


class Run:
    """A run of the engine with a clock of its own."""

    def __init__(self) -> None:
        self.at, self.out = 0.0, io.StringIO()
        self.progress = Progress(self.out, lambda: self.at)

    def event(self, **event: Any) -> None:
        self.progress.line(json.dumps(event) + "\n")

    def begin(self, name: str, op: str = "create", kind: str = COMMAND, *, custom: bool = True) -> None:
        about = {"op": op, "urn": urn(name, kind), "type": kind, "old": None, "new": {"custom": custom}}
        self.event(resourcePreEvent={"metadata": about})

    def end(self, name: str, op: str = "create", kind: str = COMMAND, *, failed: bool = False) -> None:
        about = {"op": op, "urn": urn(name, kind), "type": kind, "old": None, "new": {"custom": True}}
        self.event(**{"resOpFailedEvent" if failed else "resOutputsEvent": {"metadata": about}})

    def said(self, message: str, severity: str = "info", name: str = "", *, ephemeral: bool = False) -> None:
        about = {"message": message, "severity": severity, "urn": urn(name) if name else "", "ephemeral": ephemeral}
        self.event(diagnosticEvent=about)

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def urn(name: str, kind: str = COMMAND) -> str:
    return f"urn:pulumi:dev::spdk-k8s::{kind}::{name}"


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_line_for_each_resource_that_changed_and_none_for_the_rest(run: Run) -> None:
    for name, op, token in (
        ("step", "create", "command:remote:Command"),
        ("set", "update", "kubernetes:apps/v1:StatefulSet"),
        ("old", "create-replacement", "docker:index/container:Container"),
        ("gone", "delete", "docker:index/volume:Volume"),
        ("still", "same", "docker:index/volume:Volume"),
        ("old", "delete-replaced", "docker:index/container:Container"),
    ):
        run.begin(name, op, token)
        run.at += 3
        run.end(name, op, token)
    run.begin("house", kind="spdk-k8s:index:Cluster", custom=False)
    run.end("house", kind="spdk-k8s:index:Cluster")
    run.event(summaryEvent={"resourceChanges": {"create": 1, "update": 1, "replace": 1, "delete": 1, "same": 90}})
    run.progress.finish(0)
    assert run.lines == [
        "+ step                                remote Command: created in 3 s",
        "~ set                                 kubernetes StatefulSet: changed in 3 s",
        "± old                                 docker Container: replaced in 3 s",
        "- gone                                docker Volume: deleted in 3 s",
        "done after 18 s: 1 created, 1 changed, 1 replaced, 1 deleted, 90 unchanged",
    ]


def test_what_the_program_says_is_shown_once_and_what_only_helps_to_debug_is_not(run: Run) -> None:
    for _ in range(2):
        run.said("budget of worker1: 1 GiB\n")
        run.said("registering resource", "debug")
        run.said("using pulumi-resource-docker from $PATH at /x", "warning")
        run.said("the clock is 3 s behind", "warning")
        run.said("\n")
        run.said("Waiting", ephemeral=True)
    assert run.lines == ["budget of worker1: 1 GiB", "warning: the clock is 3 s behind"]


def test_the_wait_is_said_every_20_s_and_no_more_often(run: Run) -> None:
    run.progress.tick()
    for name in ("cluster-control-plane", "guest", "vhost", "video", "media"):
        run.begin(name)
        run.at += 1
    run.said("pulling images\n", name="cluster-control-plane", ephemeral=True)
    for _ in range(300):
        run.at += 0.1
        run.progress.tick()
    assert run.lines == [
        "  … 20 s, waiting for cluster-control-plane (20 s), guest (19 s), vhost (18 s) and 2 more: pulling images"
    ]
    run.said("x" * 500, name="cluster-control-plane")
    run.at += 20
    run.progress.tick()
    assert len(run.lines) == 2
    assert len(run.lines[1]) == 160


def test_before_the_first_resource_the_engine_is_waited_for(run: Run) -> None:
    run.at = 21
    run.progress.tick()
    assert run.lines == ["  … 21 s, waiting for the engine"]


def test_a_step_that_fails_is_shown_with_all_that_it_wrote(run: Run) -> None:
    run.begin("well")
    run.said("fine\n", name="well")
    run.end("well")
    run.begin("bad")
    run.said("first\nsecond\n", name="bad", ephemeral=True)
    run.said("third\n", name="bad", ephemeral=True)
    run.at = 7
    run.said("exit status 3: third\n", "error", "bad")
    run.end("bad", failed=True)
    run.said("update failed\n", "error")
    run.said("Traceback: KeyboardInterrupt\n", "info#err")
    run.progress.finish(1)
    assert run.lines == [
        "+ well                                remote Command: created in 0 s",
        "first",
        "second",
        "error: bad: exit status 3: third",
        "✗ bad                                 remote Command: failed after 7 s",
        "failed after 7 s",
    ]


def test_where_nothing_else_says_why_it_failed_the_programs_own_words_are_shown(run: Run) -> None:
    run.said("Traceback\n", "info#err")
    run.said("ValueError: no\n", "info#err")
    run.progress.finish(1)
    assert run.lines == ["Traceback", "ValueError: no", "failed after 0 s"]


def test_a_policy_that_does_not_hold_is_named(run: Run) -> None:
    found = {"policyName": "host-access", "resourceUrn": urn("web"), "message": "Only\nwhat is named.\n"}
    run.event(policyEvent=found)
    run.said("the program was interrupted\n", "info#err")
    run.progress.finish(1)
    assert run.lines == ["✗ host-access: web: Only what is named.", "failed after 0 s"]


def test_an_error_of_no_step_and_what_is_no_event_are_passed_on(run: Run) -> None:
    run.said("spdk-k8s:numinst = 0: must be 1 to 128", "error")
    run.progress.line("something else\n")
    run.progress.line("\n")
    run.end("unheard", failed=True)
    assert run.lines[:2] == ["error: spdk-k8s:numinst = 0: must be 1 to 128", "something else"]
    assert run.lines[2].startswith("✗ unheard ")


def test_a_first_up_is_at_most_60_kb(run: Run) -> None:
    """150 resources, a build that writes 20000 lines, and 13 minutes."""
    run.begin("guest", kind="docker:index/image:Image")
    for i in range(20000):
        run.said(f"#{i} extracting sha256:{'0' * 64}\n", name="guest")
        run.said(f"#{i} pulling\n", name="other")  # of a resource that stays as it is
    for i in range(150):
        run.begin(f"resource-with-a-long-name-{i}")
        run.at += 5.2
        run.progress.tick()
        run.end(f"resource-with-a-long-name-{i}")
    run.progress.finish(0)
    assert len(run.out.getvalue().encode()) < 60_000


class Watched:
    """In the place of a Stack."""

    def __init__(self) -> None:
        self.command: tuple[str, ...] = ()

    def watch(self, *command: str, each_line: Any, beat: Any) -> int:
        self.command = command
        if each_line:
            each_line('{"diagnosticEvent": {"severity": "info", "message": "a note"}}')
        beat()
        return 4


@pytest.mark.parametrize("terminal", [True, False])
def test_in_a_terminal_the_clis_own_display_stays(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched()
    stack: Stack = watched  # type: ignore[assignment]
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: terminal, raising=False)
    assert progress.show(stack, "up", "--yes") == 4
    assert ("--json" in watched.command) != terminal
    assert capsys.readouterr().out == ("" if terminal else "a note\nfailed after 0 s\n")
