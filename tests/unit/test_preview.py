"""The text of `make preview`, from what the engine says."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import operate
import settings
from operate import preview
from operate.cli import ROOT
from operate.difference import UNKNOWN
from operate.preview import Preview, report

pytestmark = pytest.mark.unit

STACK = "urn:pulumi:dev::p::pulumi:pulumi:Stack::p-dev"


def urn(token: str, name: str) -> str:
    return f"urn:pulumi:dev::p::{token}::{name}"


def step(
    op: str, token: str, name: str, parent: str = STACK, old: Any = None, new: Any = None, differs: Any = None
) -> dict[str, Any]:
    def state(inputs: Any) -> Any:
        return inputs if inputs is None else {"type": token, "parent": parent, "inputs": inputs}

    whole = {"op": op, "urn": urn(token, name), "old": state(old), "new": state(new), "diffs": differs}
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
        "Impact:\n"
        "  steps run  1 on master\n\n"
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
        "Impact: none",
        "",
        "  video                               Video",
        "~   set                               kubernetes StatefulSet",
        "        spec.args[1]: (none) → b",
        f"        spec.long: …{'x' * 20}1 → …{'x' * 20}2",
        "        spec.replicas: 3 → 24",
        "        spec.text:",
        "          -two",
        "          +2",
        "Known at up: 1 value of 1 resource",
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
    assert [line[:3] for line in shown.splitlines()[4:8]] == ["~ b", "   ", "- c", "+ d"]

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
        found.code = code
        shown = report("dev", found, against=False)
        assert "nothing changes" not in shown
        assert "make up" not in shown
        assert shown.startswith("Preview of stack dev: it failed before its end")


class Checkout:
    """In the place of a Stack, with a CLI on PATH that says `lines`."""

    name = "dev"

    def __init__(self, folder: Path, *lines: str, code: int = 0, errors: str = "") -> None:
        self.put_back, self.asked = False, folder / "asked"
        self.exported: Any = {"deployment": {"pending_operations": [{"type": "updating", "resource": {"type": "x"}}]}}
        (folder / "lines").write_text("".join(lines))
        (folder / "errors").write_text(errors)
        cli = folder / "pulumi"
        cli.write_text(f'#!/bin/sh\ncd {folder} || exit\necho "$*" >asked\ncat lines\ncat errors >&2\nexit {code}\n')
        cli.chmod(0o755)

    def open(self) -> Any:
        return self.exported

    def put(self, _: Any) -> None:
        self.put_back = True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(preview.pages, "record", lambda _: {})
    return tmp_path


def previewed(monkeypatch: pytest.MonkeyPatch, checkout: Checkout, *options: str, locked: bool = False) -> int:
    monkeypatch.setattr(preview, "session", lambda _: nullcontext(checkout))
    monkeypatch.setattr(preview, "set_for_this_run", lambda _: ["--config-file", "f"])
    monkeypatch.setattr(preview.recover, "running", lambda _: ["a lock"] if locked else [])
    monkeypatch.setattr(sys, "argv", ["preview", "dev", *options])
    return preview.main()


def test_a_preview_recovers_first_but_not_while_another_run_works(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is unfinished then is that run's own."""
    for locked in (False, True):
        checkout = Checkout(folder, "not an event\n", "\n")
        assert previewed(monkeypatch, checkout, "--diff", locked=locked) == 0
        assert checkout.put_back != locked
        assert checkout.asked.read_text().endswith(" --json --config-file f --diff\n")
        shown = capsys.readouterr()
        assert shown.out.startswith("Preview of stack dev: nothing changes\n")
        assert "not an event" in shown.err


def test_a_kept_preview_knows_nothing_of_the_checkouts_folder(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = str(folder / "kept")
    line = json.dumps(step("create", "docker:index/network:Network", "n", new={"label": f"{preview.ROOT}"}))
    assert previewed(monkeypatch, Checkout(folder, line), "--save", kept) == 0
    assert str(preview.ROOT) not in Path(kept).read_text()
    another = folder / "another"
    another.mkdir()
    monkeypatch.setattr(preview, "ROOT", another)
    moved = line.replace(str(ROOT), str(another))
    assert previewed(monkeypatch, Checkout(folder, moved), "--against", kept) == 0
    assert "compared with the one before: nothing changes" in capsys.readouterr().out


def test_a_preview_that_failed_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = folder / "kept"
    kept.write_text("{}")
    assert previewed(monkeypatch, Checkout(folder, code=255), "--against", str(kept)) == 255
    assert "compared" not in capsys.readouterr().out


VOLUME, COMMAND = "kubernetes:core/v1:PersistentVolume", "command:remote:Command"


def test_resources_that_are_numbered_on_are_one_line() -> None:
    shown = report(
        "dev", made(*(step("create", VOLUME, f"video-disk-{i}", new={}) for i in range(3, 24))), against=False
    )
    assert re.findall(r"^\+.*", shown, re.MULTILINE) == [
        "+ video-disk-3 to 23                  kubernetes PersistentVolume, 21 of them"
    ]
    few = report("dev", made(*(step("create", VOLUME, f"video-disk-{i}", new={}) for i in range(3))), against=False)
    assert len(re.findall(r"^\+", few, re.MULTILINE)) == 3


def test_resources_in_which_the_same_values_differ_are_one_line_after_the_first() -> None:
    image = "docker:index/image:Image"
    steps = (
        step("update", image, f"images-{name}", old={"tag": f"a/{name}"}, new={"tag": f"b/{name}"}) for name in "abcd"
    )
    other = step("update", image, "images-e", old={"build": 1}, new={"build": 2})
    shown = report("dev", made(*steps, other), against=False).splitlines()
    assert shown[0] == "Preview of stack dev: 5 to be changed"
    assert shown[4:9] == [
        "~ images-a                            docker Image",
        "      tag: a/a → b/a",
        "~ images-b, …                         docker Image, 3 more: the same values differ",
        "~ images-e                            docker Image",
        "      build: 1 → 2",
    ]


def test_what_only_up_will_know_is_said_once() -> None:
    """As where a new key makes the connection of every step unknown."""
    old, new = {"connection": "c", "stdin": "s"}, {"connection": UNKNOWN, "stdin": UNKNOWN}
    found = made(
        *(step("update", COMMAND, f"step-{i}", old=old, new=new) for i in range(29)),
        step("update", "kubernetes:apps/v1:StatefulSet", "set", old={"a": 1, "b": 1}, new={"a": 2, "b": UNKNOWN}),
    )
    shown = report("dev", found, against=False).splitlines()
    assert shown[0] == "Preview of stack dev: 1 to be changed, 29 perhaps"
    assert shown[4:7] == [
        "~ set                                 kubernetes StatefulSet",
        "      a: 1 → 2",
        "Known at up: 59 values of 30 resources; nothing else differs in step-0, step-1, step-10, step-11 and 25 more",
    ]
    assert not found.idle  # it may be more than nothing


def test_a_change_of_many_values_fits_a_screen() -> None:
    before, after = ({f"key{i}": value for i in range(100)} for value in (1, 2))
    shown = report("dev", made(step("update", COMMAND, "a", old=before, new=after)), against=False).splitlines()
    assert len(shown) < 24
    assert "      … and 88 more lines" in shown


def test_a_secret_that_differs_is_named() -> None:
    mask = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "ciphertext": "[secret]"}
    found = made(step("update", COMMAND, "a", old={"stdin": mask}, new={"stdin": mask}, differs=["stdin"]))
    assert "      stdin: changed (secret)" in report("dev", found, against=False)


def outputs(old: Any, new: Any) -> dict[str, Any]:
    states = {"old": {"outputs": old}, "new": {"outputs": new}}
    return {"resOutputsEvent": {"metadata": {"op": "same", "urn": STACK, **states}}}


CONFIG = {"registry": {"tls": True}}


def test_it_changes_nothing_where_all_is_the_same() -> None:
    same = made(step("same", COMMAND, "a", old={}, new={}), outputs({"config": CONFIG}, {"config": CONFIG}))
    same.steps[STACK] = dataclasses.replace(same.steps[STACK], op="same")
    assert same.idle
    for event in (
        outputs({"config": CONFIG}, {"config": CONFIG | {"a": 1}}),
        step("update", COMMAND, "b", old={"a": 1}, new={"a": UNKNOWN}),
        said("error", "no"),
        {"policyEvent": {"policyName": "host-access", "message": ""}},
    ):
        other = copy.deepcopy(same)
        other.add(event)
        assert not other.idle


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """settings.changes, for configs of one key."""
    found = SimpleNamespace(
        compare=lambda old, new: [SimpleNamespace(key="vm.vcpus", old=2, new=new["vm"], way="guest")],
        refusals=lambda old, new: ["machines.subnet: only a new stack has another"] if new["vm"] == 9 else [],
    )
    monkeypatch.setitem(sys.modules, "settings.changes", found)  # type: ignore[arg-type]
    monkeypatch.setattr(settings, "changes", found, raising=False)


@pytest.mark.usefixtures("changes")
def test_json_has_all_of_it_and_a_refusal_has_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for vcpus, code in ((3, 0), (9, 1)):
        events = (
            step("update", COMMAND, "worker2-vm", old={"a": 1}, new={"a": 2}),
            outputs({"config": CONFIG | {"vm": 2}}, {"config": CONFIG | {"vm": vcpus}}),
        )
        lines = (f"{json.dumps(event)}\n" for event in events)
        assert previewed(monkeypatch, Checkout(folder, *lines), "--json") == code
        found = json.loads(capsys.readouterr().out)
        assert found["impact"]["config"] == [{"key": "vm.vcpus", "old": 2, "new": vcpus, "way": "guest"}]
        assert found["impact"]["rows"] == [["config", f"vm.vcpus 2 → {vcpus} (guest)"], ["steps run", "1 on worker2"]]
        assert [(s["op"], s["changes"]) for s in found["steps"]] == [("update", ["a: 1 → 2"])]
        assert found["refusals"] == (["machines.subnet: only a new stack has another"] if code else [])
        assert ("make up refuses this:\n✗ machines.subnet" in found["text"]) == bool(code)
        assert ("make up STACK=dev does what" in found["text"]) != bool(code)


@pytest.mark.usefixtures("changes")
def test_two_kept_configs_are_compared(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pull request no stack is up whose outputs would have the old one."""
    root = {"op": "create", "urn": STACK, "old": None, "new": {"type": "pulumi:pulumi:Stack", "inputs": {}}}
    kept = str(folder / "kept")
    for vcpus, option in ((2, "--save"), (3, "--against")):
        events = ({"resourcePreEvent": {"metadata": root}}, outputs({}, {"config": CONFIG | {"vm": vcpus}}))
        lines = (f"{json.dumps(event)}\n" for event in events)
        assert previewed(monkeypatch, Checkout(folder, *lines), option, kept) == 0
    assert "Impact:\n  config  vm.vcpus 2 → 3 (guest)\n" in capsys.readouterr().out


def test_plain_http_is_refused_where_the_engine_will_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise SystemExit("the Docker engine does not list it")

    monkeypatch.setitem(sys.modules, "operate.engine", SimpleNamespace(refuse_unable_to_push=refuse))  # type: ignore[arg-type]
    monkeypatch.setattr(operate, "engine", SimpleNamespace(refuse_unable_to_push=refuse), raising=False)
    found = made(outputs({}, {"config": {"registry": {"tls": False}}}))
    found.judge()
    assert found.refusals == ["the Docker engine does not list it"]


def test_a_preview_that_nobody_needs_is_ended(folder: Path) -> None:
    checkout: Any = Checkout(folder)
    (folder / "pulumi").write_text("#!/bin/sh\nexec sleep 600\n")
    began = time.monotonic()
    with preview.begun(checkout, []):
        pass
    assert time.monotonic() - began < 60
