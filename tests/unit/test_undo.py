"""An undo takes away what a step brought, and nothing that others have put beside it or use by now (D6)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit


def call(step: str, function: str, folder: Path, tools: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One function of a step, with the machine's folder of state here."""
    text = script(step, {"MEDIA_DIR": str(folder / "media"), "REGISTRY": "r", "VM": "vm"})
    text = text.replace('\nmain "$@" </dev/null', f"\nSTATE={folder}\n{function}")
    path = f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"]
    return subprocess.run(["bash", "-s"], input=text, env=os.environ | {"PATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize("theirs", [[], ["mp4-1/theirs.mp4", "notes"]])
def test_movies_that_were_put_beside_the_samples_stay(tmp_path: Path, theirs: list[str]) -> None:
    media = tmp_path / "media"
    (media / "mp4-1").mkdir(parents=True)
    (media / "mp4-2").mkdir()
    for name in ("mp4-1/sample.mp4", "mp4-2/sample.mp4", ".image", *theirs):
        (media / name).touch()
    (tmp_path / "media.list").write_text("./mp4-1/sample.mp4\n./mp4-1\n./mp4-2/sample.mp4\n./mp4-2\n")
    done = call("worker_vm", "media_down", tmp_path)
    assert done.returncode == 0, done.stderr
    left = sorted(str(p.relative_to(media)) for p in media.rglob("*") if p.is_file()) if media.exists() else []
    assert left == sorted(theirs)
    assert media.exists() == bool(theirs)
    assert ("stays: it holds files that are not the samples" in done.stderr) == bool(theirs)


@pytest.mark.parametrize(
    ("dpkg", "namespaces", "used"),
    [
        ("", "k8s.io", False),
        ("", "", False),
        ("dpkg: dependency problems prevent removal of containerd:", "k8s.io", True),
        ("", "k8s.io\nmoby", True),
    ],
)
def test_containerd_that_others_use_by_now_stays(tmp_path: Path, dpkg: str, namespaces: str, used: bool) -> None:
    for name, says in {"dpkg": dpkg, "ctr": namespaces}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{says}\\n'\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "packages").write_text("containerd\n")
    done = call("node", "if others_use_containerd; then echo used; fi", tmp_path, tools=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("used" if used else "")
