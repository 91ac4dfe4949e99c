"""The disk agent's own tests, in its own environment; and what its image installs is what its lock says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from components.images import NOT_BUILT

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "images/vhost/agent"
SHELL = ["scripts/vm_disks.sh"]


def uv(*words: str) -> subprocess.CompletedProcess[str]:
    cached = sorted(Path("~/.cache/spdk-k8s").expanduser().glob("uv-*/bin/uv"))
    found = shutil.which("uv") or (str(cached[-1]) if cached else None)
    if found is None:
        pytest.skip("no uv: make setup")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE", "PYTEST", "VIRTUAL_ENV"))
    }
    environment |= {"UV_PROJECT_ENVIRONMENT": str(AGENT / ".venv")}
    return subprocess.run([found, *words], cwd=AGENT, env=environment, capture_output=True, text=True, timeout=300)


def test_its_own_tests_run_nearly_all_of_its_lines() -> None:
    done = uv("run", "--frozen", "--quiet", "pytest", "-q", "-p", "no:cacheprovider", "--cov")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_its_types_are_strict() -> None:
    assert uv("sync", "--frozen", "--quiet").returncode == 0  # its own environment has the libraries
    done = subprocess.run(["basedpyright"], cwd=AGENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_the_image_installs_what_the_lock_says() -> None:
    wanted = uv("export", "--frozen", "--quiet", "--no-dev", "--no-emit-project", "--no-header", "--no-annotate")
    assert wanted.returncode == 0, wanted.stderr
    assert (AGENT / "requirements.txt").read_text() == wanted.stdout


def test_what_a_developer_leaves_beside_the_sources_is_not_in_the_image() -> None:
    ignored = (ROOT / "images/vhost/.dockerignore").read_text().split()
    assert ignored == ["**/__pycache__", "agent/.*", "agent/tests"]
    assert {name for name in NOT_BUILT if not name.startswith(".")} == {"__pycache__", "tests"}


def test_little_shell_is_left_for_the_disks() -> None:
    """412 lines before, beside the target and on worker1."""
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in SHELL)
    assert lines < 60
