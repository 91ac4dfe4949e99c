"""`make up` and `make down` with the real engine, on a checkout whose program is one slow resource."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from settings.pins import PINS
from tests.engine.test_setup import ROOT, Tree, tree

pytestmark = pytest.mark.engine

__all__ = ["tree"]  # a fixture

PROGRAM = """
import pulumi_command.local as local
slow = "echo begun >&2; mktemp -d; touch started; while [ ! -e go ]; do sleep 0.1; done; test ! -e bad"
local.Command("slow", create=slow, logging=local.Logging.STDERR, dir="{root}")
"""


@pytest.fixture
def checkout(tree: Tree) -> Path:
    """A checkout with a program of one slow resource, and this machine's tools; set-up only says that it ran."""
    for name in (".venv", "operate", "policy", "settings"):
        (tree.root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Makefile", tree.root)
    for tool in Path(os.environ.get("SPDK_K8S_CACHE", Path.home() / ".cache/spdk-k8s")).iterdir():
        if tool.name != "engine":  # the one that runs here is not for this checkout's `down` to stop
            (tree.cache / tool.name).symlink_to(tool)
    Tree.program(tree.root / "setup/setup", 'echo "set-up $*"')
    (tree.root / "Pulumi.yaml").write_text("name: tiny\nruntime: {name: python, options: {virtualenv: .venv}}\n")
    (tree.root / "Pulumi.dev.yaml").write_text('config:\n  tiny:numinst: "3"\n')
    (tree.root / "__main__.py").write_text(PROGRAM.format(root=tree.root))
    return tree.root


MINE = ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE", "PULUMI_HOME", "MAKEFLAGS")


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "-C", checkout, *arguments],
        env={k: v for k, v in os.environ.items() if k not in MINE}
        | {"SPDK_K8S_CACHE": str(checkout.parent / "cache")}
        | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(run: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = run.communicate(timeout=180)
    assert run.returncode == code, output
    return output


def under_way(checkout: Path, run: subprocess.Popen[str]) -> None:
    """Wait until the resource is being made."""
    deadline = time.monotonic() + 120
    while not (checkout / "started").exists():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def tree_of(checkout: Path) -> dict[str, str]:
    shutil.rmtree(checkout / "__pycache__", ignore_errors=True)
    return {str(p): p.read_text() if p.is_file() else "" for p in checkout.iterdir()}


def test_up_after_a_kill_then_down_twice_leaves_nothing(checkout: Path) -> None:
    before = tree_of(checkout)
    assert "stack dev is not up" in finished(make(checkout, "down"))
    assert tree_of(checkout) == before

    killed = make(checkout, "up")
    under_way(checkout, killed)
    (run,) = (checkout / ".state/tmp").iterdir()
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert list(run.glob("tmp.*")), "the CLI's children make their temporary files somewhere else"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    (checkout / "go").touch()
    again = finished(make(checkout, "up", "NUMINST=5"))
    assert "lock of a killed run" in again
    assert "left unfinished" in again
    assert re.search(r"^\+ slow +local Command: created in \d+ s$", again, re.MULTILINE), again
    assert 'numinst: "5"' in (checkout / "Pulumi.dev.yaml").read_text()
    assert (checkout / ".state/passphrase").stat().st_mode & 0o777 == 0o600
    assert not (checkout / ".state/tmp").exists()

    assert "stack dev is down" in finished(make(checkout, "down"))
    assert "stack dev is not up" in finished(make(checkout, "down"))
    for made in ("started", "go"):
        (checkout / made).unlink()
    (checkout / "Pulumi.dev.yaml").write_text((checkout / "Pulumi.dev.yaml").read_text().replace('"5"', '"3"'))
    assert tree_of(checkout) == before


def test_in_a_terminal_the_display_is_the_clis(checkout: Path) -> None:
    (checkout / "go").touch()
    environment = {k: v for k, v in os.environ.items() if k not in MINE} | {"TERM": "xterm"}
    run = subprocess.run(
        ["script", "--quiet", "--return", "--command", f"make -C {checkout} up", "/dev/null"],
        env=environment | {"SPDK_K8S_CACHE": str(checkout.parent / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stdout
    assert "Resources:" in run.stdout
    assert "\x1b[" in run.stdout, "no colours"
    finished(make(checkout, "down"))


def test_a_second_run_is_told_which_one_is_under_way(checkout: Path) -> None:
    first = make(checkout, "up")
    under_way(checkout, first)
    second = finished(make(checkout, "up"), 2)
    assert re.search(r"^  process \d+ of \w+ on \S+, since 20\S+ UTC: pulumi up --stack dev", second, re.MULTILINE), (
        second
    )
    assert "remedy: wait until it ends, or end it with Ctrl-C" in second
    assert "pulumi cancel" not in second
    assert "nothing to be" not in finished(make(checkout, "preview"))  # which needs no lock
    (checkout / "go").touch()
    finished(first)
    finished(make(checkout, "down"))


def test_ctrl_c_ends_the_step_and_empties_the_temporary_folder(checkout: Path) -> None:
    run = make(checkout, "up")
    under_way(checkout, run)
    os.killpg(run.pid, signal.SIGINT)
    (checkout / "go").touch()
    output, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "Traceback" not in output
    assert not (checkout / ".state/tmp").exists()
    finished(make(checkout, "down"))


def test_a_step_that_fails_is_shown_in_full(checkout: Path) -> None:
    for name in ("go", "bad"):
        (checkout / name).touch()
    output = finished(make(checkout, "up"), 2)
    assert "error: slow: " in output
    assert "begun" in output
    assert re.search(r"^✗ slow +local Command: failed after \d+ s$", output, re.MULTILINE), output
    assert re.search(r"^failed after \d+ s", output, re.MULTILINE), output
    finished(make(checkout, "down"))


def test_another_passphrase_is_named_and_nothing_is_said_to_be_unchanged(checkout: Path) -> None:
    (checkout / "go").touch()
    finished(make(checkout, "up", PULUMI_CONFIG_PASSPHRASE="first"))
    for command in ("up", "preview", "down"):
        said = finished(make(checkout, command, PULUMI_CONFIG_PASSPHRASE="second"), 2)
        assert "PULUMI_CONFIG_PASSPHRASE holds another passphrase than the one that this stack was made with" in said
        assert "remedy: set PULUMI_CONFIG_PASSPHRASE to the passphrase that the stack was made with" in said
        assert "nothing changes" not in said
        assert "Traceback" not in said
    finished(make(checkout, "down", PULUMI_CONFIG_PASSPHRASE="first"))


def test_down_without_the_cache_and_venv_gets_its_tools_again(checkout: Path) -> None:
    """It must not say that nothing is up where all of it runs on."""
    (checkout / "go").touch()
    finished(make(checkout, "up"))
    kept = checkout.parent / "cache" / f"pulumi-{PINS['PULUMI']}"
    cli = kept.readlink()
    kept.unlink()
    (checkout / ".venv").unlink()
    Tree.program(checkout / "setup/setup", f'echo "set-up $*"; ln -s {cli} {kept}; ln -s {ROOT}/.venv {checkout}/.venv')
    here = (ROOT / ".venv/bin", cli / "bin")
    path = [f for f in os.environ["PATH"].split(":") if Path(f) not in here and not Path(f, "pulumi").exists()]
    said = finished(make(checkout, "down", PATH=":".join(path)))
    assert "set-up --tools" in said
    assert "stack dev is down" in said
    assert not (checkout / ".state").exists()


def test_settings_for_one_run_with_a_backend_of_the_users_own(checkout: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    mine = {"PULUMI_BACKEND_URL": f"file://{own}", "PULUMI_CONFIG_PASSPHRASE": "mine", "VHOST_BACKEND": "spdk"}
    (checkout / "go").touch()
    before = (checkout / "Pulumi.dev.yaml").read_text()
    finished(make(checkout, "up", **mine))
    assert "backend: spdk" in (checkout / ".state/dev.yaml").read_text()
    after = (checkout / "Pulumi.dev.yaml").read_text()
    assert [line for line in after.splitlines() if "salt" not in line] == before.splitlines()
    finished(make(checkout, "down", **mine))
    assert not (checkout / ".state").exists()
    assert (checkout / "Pulumi.dev.yaml").read_text() == before
