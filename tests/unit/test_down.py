"""`make down`: all of it goes, also where the tools or the state are gone; nothing of anybody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from operate import cli, down, leftovers, progress, recover
from operate.leftovers import Leftover

pytestmark = pytest.mark.unit


class World:
    """A checkout, its Docker engine and its CLI, and what is done to them in order."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.done = root, list[str]()
        self.exported: cli.Exported | None = {"deployment": {"resources": [{"type": "a", "protect": True}]}}
        self.left: list[Leftover] = []
        self.code = 0
        self.tools = True
        for module in (cli, down):
            monkeypatch.setattr(module, "ROOT", root)
            monkeypatch.setattr(module, "STATE", root / ".state")
        monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{root}/.state")
        monkeypatch.setattr(down, "tools_are_there", lambda: self.tools)
        monkeypatch.setattr(down.shutil, "which", lambda _: "/usr/bin/pulumi" if self.tools else None)
        monkeypatch.setattr(subprocess, "run", self.ran)
        monkeypatch.setattr(os, "chdir", lambda _: None)
        monkeypatch.setattr(os, "execvp", self.exec)
        monkeypatch.setattr(progress, "show", self.show)
        monkeypatch.setattr(recover, "refuse_second_run", lambda _: None)
        monkeypatch.setattr(recover, "remove", lambda kind, name: self.done.append(f"remove {kind} {name}") or True)
        monkeypatch.setattr(leftovers, "find", lambda _: self.left)
        monkeypatch.setattr(cli.Stack, "export", lambda _: self.exported)
        monkeypatch.setattr(cli.Stack, "put", lambda _, exported: self.done.append(f"put {exported['deployment']}"))
        monkeypatch.setattr(cli.Stack, "run", lambda _, *arguments: self.done.append(" ".join(arguments)))
        state = root / ".state/.pulumi/stacks/spdk-k8s/dev.json"
        state.parent.mkdir(parents=True)
        state.touch()

    def ran(self, command: list[Any], **_: object) -> subprocess.CompletedProcess[str]:
        self.done.append(" ".join(command).removeprefix("bash setup/"))
        return subprocess.CompletedProcess(command, self.code, "", "")

    def exec(self, program: str, arguments: list[str]) -> None:
        self.done.append(" ".join(["exec", program, *arguments[4:]]))
        raise SystemExit(0)

    def show(self, _: cli.Stack, *command: str) -> int:
        assert os.environ["PULUMI_K8S_DELETE_UNREACHABLE"] == "true"
        self.done.append(" ".join(command))
        return self.code

    def down(self, *options: str) -> int:
        sys.argv = ["down", "dev", *options]
        return down.main()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sys, "argv", sys.argv)
    return World(tmp_path, monkeypatch)


DESTROY = "destroy --stack dev --yes --skip-preview --continue-on-error"


def test_everything_goes_protected_or_not(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.root / "Pulumi.dev.yaml").write_text("encryptionsalt: v1:x\nconfig: {}\n")
    world.left = [Leftover("container", "c")]
    (world.root / ".state/.pulumi/stacks/spdk-k8s/dev.json").unlink()  # as `stack rm` does
    assert world.down() == 0
    assert world.done == [
        "engine start",
        "put {'resources': [{'type': 'a'}]}",
        DESTROY,
        "stack rm --stack dev --yes --preserve-config",
        "remove container c",
        "engine stop",
    ]
    assert (world.root / "Pulumi.dev.yaml").read_text() == "config: {}\n"
    assert not (world.root / ".state").exists()
    assert "stack dev is down" in capsys.readouterr().out


def test_another_stack_of_the_checkout_keeps_the_state_folder(world: World) -> None:
    times = world.root / ".state/dev.times.json"
    times.touch()
    (world.root / "Pulumi.other.yaml").write_text("encryptionsalt: v1:x\nconfig: {}\n")
    (world.root / ".state/.pulumi/stacks/spdk-k8s/dev.json").unlink()
    assert world.down() == 0
    assert (world.root / ".state").exists()
    assert not times.exists(), "what was measured on the stack that is gone"


def test_without_a_state_what_carries_the_labels_goes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.exported = None
    world.left = [Leftover("container", "c"), Leftover("network", "n", str(cli.ROOT))]
    assert world.down() == 0
    assert world.done == ["remove container c", "remove network n", "engine stop"]
    said = capsys.readouterr().out
    assert "removed network n, which no state knew" in said
    assert "stack dev is down" in said


def test_what_a_checkout_elsewhere_made_is_left_to_it(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "Pulumi.yaml").touch()
    world.exported, world.left = None, [Leftover("container", "c", str(other))]
    with pytest.raises(SystemExit, match=f"remedy: make -C {other} down STACK=dev"):
        world.down()
    assert not [what for what in world.done if what.startswith("remove")]
    assert "is down" not in capsys.readouterr().out


def test_nothing_is_up(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.exported = None
    assert world.down() == 0
    assert "stack dev is not up" in capsys.readouterr().out


def test_where_the_tools_were_deleted_they_come_first(world: World) -> None:
    world.tools = False
    with pytest.raises(SystemExit):
        world.down()
    assert world.done == ["setup --tools", "exec bash dev --again"]
    world.done.clear()
    world.code = 5
    assert world.down() == 5


def test_without_tools_and_without_a_state_nothing_is_installed(world: World) -> None:
    world.tools = False
    (world.root / ".state/.pulumi/stacks/spdk-k8s/dev.json").unlink()
    assert world.down() == 0
    assert world.done == ["engine stop"]


def test_a_destroy_that_fails_is_tried_once_more_with_all_of_set_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "show", lambda *_: 255)
    with pytest.raises(SystemExit):
        world.down()
    assert world.done[-2:] == ["setup", "exec bash dev --again"]
    assert world.down("--again") == 255
    assert (world.root / ".state").exists()


def test_an_engine_that_does_not_start_ends_it(world: World) -> None:
    world.code = 1
    with pytest.raises(SystemExit) as ended:
        world.down()
    assert ended.value.code == 1


def test_the_tools_are_the_cli_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "pulumi").touch(mode=0o755)
    assert not down.tools_are_there()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    assert down.tools_are_there()
