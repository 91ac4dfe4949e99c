"""The text of `make preview`, from what the engine says."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from operate import preview
from operate.cli import ROOT
from operate.preview import UNKNOWN, Preview, report

pytestmark = pytest.mark.unit

STACK = "urn:pulumi:dev::p::pulumi:pulumi:Stack::p-dev"


def urn(token: str, name: str) -> str:
    return f"urn:pulumi:dev::p::{token}::{name}"


def step(op: str, token: str, name: str, parent: str = STACK, old: Any = None, new: Any = None) -> dict[str, Any]:
    def state(inputs: Any) -> Any:
        return inputs if inputs is None else {"type": token, "parent": parent, "inputs": inputs}

    whole = {"op": op, "urn": urn(token, name), "old": state(old), "new": state(new)}
    return {"resourcePreEvent": {"metadata": whole}}


def said(severity: str, message: str) -> dict[str, Any]:
    return {"diagnosticEvent": {"severity": severity, "message": message}}


def made(*events: dict[str, Any]) -> Preview:
    whole = Preview()
    root = {"type": "pulumi:pulumi:Stack", "parent": "", "inputs": {}}
    whole.add({"resourcePreEvent": {"metadata": {"op": "create", "urn": STACK, "old": None, "new": root}}})
    for event in events:
        whole.add(event)
    return whole


COMPONENT = urn("spdk-k8s:index:Video", "video")
COMPONENT_STEP = step("same", "spdk-k8s:index:Video", "video", old={}, new={})


def test_a_first_preview() -> None:
    shown = report(
        "dev",
        made(
            said("info", "budget of worker1: 1 GiB\n"),
            said("info", "budget of worker1: 1 GiB\n"),
            said("info", "\n"),
            said("debug", "registering resource"),
            said("warning", "using pulumi-resource-docker from $PATH at /somewhere"),
            step("create", "spdk-k8s:index:Video", "video", new={}),
            step("create", "kubernetes:core/v1:PersistentVolume", "disk-10", COMPONENT, new={"spec": {"a": 1}}),
            step("create", "kubernetes:core/v1:PersistentVolume", "disk-9", COMPONENT, new={"spec": {"a": 1}}),
            step("create", "command:remote:Command", "step", new={}),
            step("create", "pulumi:providers:docker", "engine", new={}),
            {"policyAnalyzeSummaryEvent": {"passed": ["host-access"]}},
            {"policyAnalyzeSummaryEvent": {"passed": ["host-access", "private-images"]}},
        ),
        against=False,
    )
    assert shown == (
        "Preview of stack dev: 5 to be created\n\n"
        "budget of worker1: 1 GiB\n\n"
        "+ step                                remote Command\n"
        "+ engine                              docker provider\n"
        "+ video                               Video\n"
        "+   disk-9                            kubernetes PersistentVolume\n"
        "+   disk-10                           kubernetes PersistentVolume\n\n"
        "Policies that hold: host-access, private-images\n\n"
        "Nothing was changed. make up STACK=dev does what this shows."
    )


def test_changes_are_shown_where_they_are() -> None:
    old = {"spec": {"replicas": 3, "args": ["a"], "text": "one\ntwo\n", "long": "x" * 100 + "1", "image": "i@sha256:0"}}
    new = {"spec": {"replicas": 24, "args": ["a", "b"], "text": "one\n2\n", "long": "x" * 100 + "2", "image": UNKNOWN}}
    shown = report(
        "dev",
        made(COMPONENT_STEP, step("update", "kubernetes:apps/v1:StatefulSet", "set", COMPONENT, old, new)),
        against=False,
    ).splitlines()
    assert shown[0] == "Preview of stack dev: 1 to be changed"
    assert shown[2:] == [
        "  video                               Video",
        "~   set                               kubernetes StatefulSet",
        "        spec.args[1]: (none) → b",
        "        spec.image: i@sha256:0 → (known at up)",
        f"        spec.long: …{'x' * 20}1 → …{'x' * 20}2",
        "        spec.replicas: 3 → 24",
        "        spec.text:",
        "          @@ -2 +2 @@",
        "          -two",
        "          +2",
        "",
        "Nothing was changed. make up STACK=dev does what this shows.",
    ]


def test_against_a_kept_preview_only_the_difference_is_left() -> None:
    volume = "kubernetes:core/v1:PersistentVolume"
    before = made(
        step("create", volume, "a", new={"mib": 128}),
        step("create", volume, "b", new={"mib": 128}),
        step("create", volume, "c", new={"mib": 128}),
    )
    after = made(
        step("create", volume, "a", new={"mib": 128}),
        step("create", volume, "b", new={"mib": 256}),
        step("create", volume, "d", new={"mib": 128}),
    )
    after.against(before.kept())
    shown = report("dev", after, against=True)
    assert shown.startswith(
        "Preview of stack dev, compared with the one before: 1 to be created, 1 to be changed or replaced, 1 to"
    )
    assert [line[:3] for line in shown.splitlines()[2:6]] == ["~ b", "   ", "- c", "+ d"]

    before, after = (
        made(
            *(step("create", volume, name, new={"mib": 128}) for name in "abc"),
            step("create", "command:remote:Command", "look", new={"create": f"env NOW={time} timeout -k 10 60 bash"}),
        )
        for time in (1795580471, 1795580497)
    )
    after.against(before.kept())
    assert "compared with the one before: nothing changes" in report("dev", after, against=True)


def test_a_violation_is_named_and_what_the_interrupted_program_says_is_not() -> None:
    shown = report(
        "dev",
        made(
            step("create", "kubernetes:apps/v1:Deployment", "web", new={}),
            {
                "policyEvent": {
                    "policyName": "host-access",
                    "resourceUrn": urn("kubernetes:apps/v1:Deployment", "web"),
                    "message": "Only what the design names.\nDeployment web has no grant for hostNetwork (pod)\n",
                }
            },
            {"policyAnalyzeSummaryEvent": {"passed": ["private-images"]}},
            said("error", "preview failed\n"),
            said("info#err", "KeyboardInterrupt\n"),
        ),
        against=False,
    )
    assert (
        "Policies that do not hold:\n"
        "✗ host-access: web: Only what the design names. Deployment web has no grant for hostNetwork (pod)" in shown
    )
    assert "KeyboardInterrupt" not in shown
    assert "make up" not in shown


def test_an_error_is_shown_whole() -> None:
    shown = report(
        "dev", made(said("error", "spdk-k8s:numinst = 0: must be 1 to 128\nnothing was started")), against=False
    )
    assert shown.endswith("Errors:\nspdk-k8s:numinst = 0: must be 1 to 128\nnothing was started")


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("spdk-k8s:index:Cluster", "Cluster"),
        ("docker:index/image:Image", "docker Image"),
        ("command:local:Command", "local Command"),
        ("pulumi:providers:kubernetes", "kubernetes provider"),
    ],
)
def test_kinds_are_short(token: str, shown: str) -> None:
    assert preview.kind(token) == shown


def test_after_an_error_nothing_is_said_to_be_unchanged() -> None:
    """Whatever it was that failed: the engine may have had no word for it."""
    for found, code in ((made(), 255), (made(said("error", "incorrect passphrase")), 255), (made(), 1)):
        shown = report("dev", found, against=False, code=code)
        assert "nothing changes" not in shown
        assert "make up" not in shown
        assert shown.startswith("Preview of stack dev: it failed before its end")


class Checkout:
    """In the place of a Stack, with an engine that says `lines`."""

    name = "dev"

    def __init__(self, *lines: str, code: int = 0) -> None:
        self.lines, self.code, self.put_back, self.command = lines, code, False, ()
        self.exported: Any = {"deployment": {"pending_operations": [{"type": "updating", "resource": {"type": "x"}}]}}

    def open(self) -> Any:
        return self.exported

    def put(self, _: Any) -> None:
        self.put_back = True

    def watch(self, *command: str, each_line: Any, beat: Any) -> int:
        self.command = command
        for line in self.lines:
            each_line(line)
        beat()
        return self.code


def previewed(monkeypatch: pytest.MonkeyPatch, checkout: Checkout, *options: str, locked: bool = False) -> int:
    monkeypatch.setattr(preview, "session", lambda _: nullcontext(checkout))
    monkeypatch.setattr(preview, "set_for_this_run", lambda _: ["--config-file", "f"])
    monkeypatch.setattr(preview.recover, "running", lambda _: ["a lock"] if locked else [])
    monkeypatch.setattr(sys, "argv", ["preview", "dev", *options])
    return preview.main()


def test_a_preview_recovers_first_but_not_while_another_run_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is unfinished then is that run's own."""
    for locked in (False, True):
        checkout = Checkout("not an event\n", "\n")
        assert previewed(monkeypatch, checkout, "--diff", locked=locked) == 0
        assert checkout.put_back != locked
        assert checkout.command[-3:] == ("--config-file", "f", "--diff")
        shown = capsys.readouterr()
        assert shown.out.startswith("Preview of stack dev: nothing changes\n")
        assert "not an event" in shown.err


def test_a_kept_preview_knows_nothing_of_the_checkouts_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = str(tmp_path / "kept")
    line = json.dumps(step("create", "docker:index/network:Network", "n", new={"label": f"{preview.ROOT}"}))
    assert previewed(monkeypatch, Checkout(line), "--save", kept) == 0
    assert str(preview.ROOT) not in Path(kept).read_text()
    monkeypatch.setattr(preview, "ROOT", Path("/another/checkout"))
    moved = line.replace(str(ROOT), "/another/checkout")
    assert previewed(monkeypatch, Checkout(moved), "--against", kept) == 0
    assert "compared with the one before: nothing changes" in capsys.readouterr().out


def test_a_preview_that_failed_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("{}")
    assert previewed(monkeypatch, Checkout(code=255), "--against", str(kept)) == 255
    assert "compared" not in capsys.readouterr().out
