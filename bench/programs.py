"""The cost of the Pulumi program itself: the CLI's time for it beside its time for an empty program."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from tests.pulumi_cli import ROOT

ROUNDS = 5


@dataclass(frozen=True)
class Took:
    """seconds: by the clock. processors: CPU seconds of all processes, which a busy machine changes less."""

    seconds: float
    processors: float


class Runs(Protocol):
    def run(self, *arguments: str) -> Took: ...


@dataclass(frozen=True)
class Project:
    """A folder with a Pulumi program, and its stack. environment: of the CLI; it says where the state is."""

    folder: Path
    stack: str
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> Took:
        """Run the CLI with `arguments`. Raises RuntimeError with the end of its output if it fails."""
        command = ["pulumi", "-C", str(self.folder), "--non-interactive", *arguments, "--stack", self.stack]
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
        return Took(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def project(folder: Path, count: int = 0) -> Project:
    """A project in a new `folder`, with a state of its own: the program with `count` instances, or an empty one (0)."""
    folder.mkdir()
    for name in ("Pulumi.yaml", "settings", "render", "components", "images", "scripts", "versions.env", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    if count:
        (folder / "__main__.py").symlink_to(ROOT / "__main__.py")
    else:
        (folder / "__main__.py").touch()
    (folder / "state").mkdir()
    own = {"PULUMI_BACKEND_URL": f"file://{folder / 'state'}", "PULUMI_CONFIG_PASSPHRASE": "bench"}
    made = Project(folder, "bench", {**os.environ, **own, "PULUMI_SKIP_UPDATE_CHECK": "true"})
    made.run("stack", "init")
    if count:
        made.run("config", "set", "numinst", str(count))
    return made


def in_turns(projects: Sequence[Runs], *arguments: str, rounds: int = ROUNDS) -> list[Took]:
    """The median of each project, from alternating runs, so that other load affects all alike.

    A first round, which is not counted, fills the caches.
    """
    runs = [[project.run(*arguments) for project in projects] for _ in range(1 + rounds)][1:]
    return [
        Took(median(took.seconds for took in each), median(took.processors for took in each))
        for each in zip(*runs, strict=True)
    ]
