"""The real engine with the policy pack: the program passes; preview and up stop what violates a policy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pulumi_cli import ROOT, Stack

pytestmark = pytest.mark.engine

POLICIES = "host-access, private-images, remote-commands, secret-inputs, secret-keys, secret-outputs"

BAD = """
import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_command import local, remote

later = local.Command("later", create="echo made >made", logging=local.Logging.NONE)
cluster = kubernetes.Provider("cluster", kubeconfig=later.stdout)  # not known in a preview
kubernetes.apps.v1.Deployment(
    "web",
    metadata={"name": "web"},
    spec={
        "selector": {"match_labels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"host_network": True, "containers": [{"name": "web", "image": "nginx:1.27"}]},
        },
    },
    opts=pulumi.ResourceOptions(provider=cluster),
)
remote.Command("step", connection=remote.ConnectionArgs(host="192.0.2.1", password="p4ss"), create="true")
local.Command("plain", create="cat >made", stdin="-----BEGIN PRIVATE KEY-----")
"""


@pytest.fixture
def policed(tmp_path: Path) -> Iterator[Stack]:
    made = Stack("policytest", tmp_path / "state")
    made.init(**{"machines.kind": "containers", "machines.subnet": "172.30.89.0/24"})
    yield made
    made.remove()


def preview(stack: Stack, *options: str | Path) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in stack.environment.items() if not key.startswith("PYTHON")}  # a bare shell's
    return subprocess.run(
        [sys.executable, "-m", "operate.preview", stack.name, *options],
        cwd=ROOT, env=plain, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_program_holds_to_every_policy_and_its_preview_can_be_pasted(policed: Stack, tmp_path: Path) -> None:
    first = preview(policed, "--save", tmp_path / "before.json")
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.match(
        r"Preview of stack policytest: \d+ to be created\n\nImpact:\n  instances added +0 to 2\n", first.stdout
    )
    assert f"\n\nPolicies that hold: {POLICIES}\n" in first.stdout
    assert not re.search(r"\x1b|\r|PRIVATE KEY|warning|urn:pulumi|[0-9a-f]{8}-[0-9a-f]{4}-", first.stdout)
    assert first.stderr == ""

    policed.run("config", "set", "numinst", "4")
    more = preview(policed, "--against", tmp_path / "before.json")
    assert more.stdout.startswith("Preview of stack policytest, compared with the one before: 1 to be created, ")
    assert re.findall(r"^\+ +(\S+)", more.stdout, re.MULTILINE) == ["video-disk-3"]
    assert "spec.replicas: 3 → 4" in more.stdout
    assert "\n  instances added  3\n" in more.stdout
    assert "\n  stays as it is   pods and pages 0 to 2; what is on disks 0 to 2\n" in more.stdout

    policed.run("config", "set", "numinst", "0")
    refused = preview(policed)
    assert refused.returncode != 0
    assert "must be a whole number from 1 to 128" in refused.stdout


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    (tmp_path / "Pulumi.yaml").write_text(
        f"name: bad\nruntime: {{name: python, options: {{virtualenv: {ROOT}/.venv}}}}\n"
    )
    (tmp_path / "__main__.py").write_text(BAD)
    return tmp_path


@pytest.mark.parametrize("command", [["preview"], ["up", "--skip-preview", "--yes"]], ids=["preview", "up"])
def test_what_breaks_a_policy_is_stopped(bad: Path, command: list[str]) -> None:
    environment = Stack("policytest", bad / "state").environment

    def pulumi(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["pulumi", "--non-interactive", "--color", "never", *args],
            cwd=bad, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    assert pulumi("stack", "init", "policytest").returncode == 0
    done = pulumi(*command, "--policy-pack", str(ROOT / "policy/__main__.py"))
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "[mandatory]" in shown
    if command[0] == "preview":
        for problem in (
            "Deployment default/web has no grant for hostNetwork (pod)",
            "container web: nginx:1.27 is not from this stack's registry (it has pushed to none)",
            "container web: nginx:1.27 can change; mend: name it by digest",
            "connection has no hostKey, so any server would be trusted",
            "create has no time limit",
            "stdin would be in the state in plain text; mend: pulumi.Output.secret",
        ):
            assert problem in shown
        # pulumi-command's SDK makes a connection a secret by itself
        assert "connection.password" not in shown
    else:
        state = (bad / "state/.pulumi/stacks/bad/policytest.json").read_text()
        assert "command:remote:Command" not in state
        assert "BEGIN PRIVATE KEY" not in state
    assert "p4ss" not in shown
