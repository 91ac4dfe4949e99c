"""Run small programs with the real engine and a chosen set of provider plugins, and read what the engine saw."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pulumi import automation
from pulumi.automation.events import EngineEvent

from tests.pulumi_cli import ROOT

NAME = "spdk-k8s-conformance"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # the engine's mark for a value that is not known yet
SECRET = "4dabf18193072939515e22adb298388d"  # the engine's key for an encrypted value
CREATE, UPDATE, DELETE = ["create"], ["update"], ["delete"]
REPLACE = ["create-replacement", "replace", "delete-replaced"]
DELETE_FIRST = ["delete-replaced", "replace", "create-replacement"]


@cache
def offline_plugins() -> Path:
    """Folder of the programs of offline/plugins. Builds them if set-up has not, because it found the released ones."""
    script = 'for part in lib pulumi; do . "setup/$part.sh"; done; exec 3>&2; mkdir -p "$CACHE"'
    script += '; cached "$(plugins)" plugins_offline >&2; echo "$CACHE/$(plugins)/bin"'
    made = subprocess.run(
        ["bash", "-euc", script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "ROOT": str(ROOT)},
    )
    return Path(made.stdout.strip())


def released_plugin(name: str) -> Path | None:
    """The released plugin: in the folder that SPDK_K8S_REAL_PLUGINS names, on PATH or in PULUMI_HOME."""
    version = re.search(rf'"pulumi-{name}==([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert version
    home = os.environ.get("PULUMI_HOME", str(Path.home() / ".pulumi"))
    installed = Path(home, f"plugins/resource-{name}-v{version[1]}")
    folders = [os.environ.get("SPDK_K8S_REAL_PLUGINS", ""), *os.environ["PATH"].split(":")]
    if not (installed / "offline").exists():  # else it is one of offline_plugins()
        folders.append(str(installed))
    found = shutil.which(f"pulumi-resource-{name}", path=":".join(filter(None, folders)))
    return Path(found) if found else None


@dataclass(repr=False)
class Seen:
    """What the engine saw of one command, by resource name.

    steps: operations in order, without those that change nothing; one that failed is followed by "failed".
    diffs: property path -> kind of change. inputs, outputs: of the new state. state: what the stack holds afterwards.
    errors, said: all that was shown, as an error and otherwise.
    """

    steps: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    diffs: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    inputs: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    outputs: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    state: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    errors: str = ""
    said: str = ""

    def add(self, event: EngineEvent) -> None:
        if (message := event.diagnostic_event) and message.severity != "debug":
            if message.severity == "error":
                self.errors += message.message
            else:
                self.said += message.message
        started, done, failed = event.resource_pre_event, event.res_outputs_event, event.res_op_failed_event
        about = started or done or failed
        if about is None or about.metadata.type.startswith("pulumi:"):
            return
        metadata = about.metadata
        name, op = metadata.urn.split("::")[-1], str(metadata.op.value)
        steps = self.steps.setdefault(name, [])
        if done and steps == ["refresh"]:
            steps[:] = [op]  # a refresh reports its finding at its end
        elif started and op != "same":
            steps.append(op)
        if failed:
            steps.append("failed")
        if metadata.detailed_diff:
            self.diffs[name] = {path: str(d.diff_kind.value) for path, d in metadata.detailed_diff.items()}
        if metadata.new and not started:
            self.inputs[name], self.outputs[name] = metadata.new.inputs or {}, metadata.new.outputs or {}

    def __repr__(self) -> str:
        return f"steps {self.steps}\ndiffs {self.diffs}\nerrors {self.errors}\nsaid {self.said}"


class Engine:
    """A stack of the test's own, whose programs are functions. plugin: the provider plugin that it must use."""

    def __init__(self, folder: Path, plugin: Path) -> None:
        self.folder, self.plugin = folder, plugin
        state = folder / "state"
        state.mkdir()
        self.stack = automation.create_stack(
            "test",
            project_name=NAME,
            program=lambda: None,
            opts=automation.LocalWorkspaceOptions(
                work_dir=str(folder),
                env_vars={
                    "PATH": f"{plugin.parent}:{os.environ['PATH']}",
                    "PULUMI_BACKEND_URL": f"file://{state}",
                    "PULUMI_CONFIG_PASSPHRASE": "a test's",
                    "PULUMI_SKIP_UPDATE_CHECK": "true",
                },
                project_settings=automation.ProjectSettings(NAME, "python"),
            ),
        )

    def run(self, command: str, program: Callable[[], object] | None = None) -> Seen:
        """Run `command`: preview, up, refresh or destroy. The result tells whether it failed."""
        seen = Seen()
        if program:
            self.stack.workspace.program = program
        try:
            getattr(self.stack, command)(on_event=seen.add)
        except automation.CommandError as error:
            seen.errors = seen.errors or str(error)
        seen.steps = {name: steps for name, steps in seen.steps.items() if steps not in ([], ["same"])}
        seen.state = {resource["urn"].split("::")[-1]: resource for resource in self.resources()}
        if (used := re.search(r"from \$PATH at (\S+)", seen.said)) is not None:
            assert Path(used[1]) == self.plugin, "the engine took another plugin"
        return seen

    def preview(self, program: Callable[[], object]) -> Seen:
        return self.run("preview", program)

    def up(self, program: Callable[[], object] | None = None) -> Seen:
        return self.run("up", program)

    def refresh(self) -> Seen:
        return self.run("refresh")

    def destroy(self) -> Seen:
        return self.run("destroy")

    @property
    def state_file(self) -> Path:
        return self.folder / "state/.pulumi/stacks" / NAME / "test.json"

    def resources(self) -> list[dict[str, Any]]:
        """The stack's state."""
        latest = json.loads(self.state_file.read_text())["checkpoint"].get("latest") or {}
        return latest.get("resources") or []

    def holds(self, text: str) -> bool:
        """Whether the stack's state holds the text anywhere, not encrypted."""
        return text in self.state_file.read_text()
