"""The workflows of the hosted CI: what they call exists here, they may do little, and forks learn nothing from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)


def workflow(file: Path) -> dict[str, Any]:
    parsed = yaml.safe_load(file.read_text())
    parsed["on"] = parsed.pop(True)  # YAML 1.1 reads the key so
    return parsed


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(file)["jobs"].values() for step in job["steps"]]


@each_workflow
def test_only_entry_points_that_exist_are_called(file: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = [line.strip() for step in steps(file) for line in step.get("run", "").splitlines()]
    for target in re.findall(r"\bmake (?:-C \S+ )?(\S+)", "\n".join(called)):
        assert target in targets, target
    for script in re.findall(r"^(\.\w+/\S+)", "\n".join(called), re.MULTILINE):
        assert os.access(ROOT / script, os.X_OK), script


@each_workflow
def test_actions_are_pinned_by_commit_and_rights_are_named(file: Path) -> None:
    assert workflow(file)["permissions"]
    assert "write" not in json.dumps(workflow(file)["permissions"]) or file.stem == "comment"
    for step in steps(file):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        # what others choose, a branch's name say, reaches a shell only as a variable
        assert "${{" not in step.get("run", "")


def test_what_runs_a_pull_requests_code_has_no_secret() -> None:
    for file in FILES:
        if "pull_request" in json.dumps(workflow(file)["on"]):
            assert "secrets." not in file.read_text()
            assert "pull_request_target" not in file.read_text()
            assert workflow(file)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["preview", "deploy"])
def test_every_stack_is_previewed_and_deployed(name: str) -> None:
    (job,) = workflow(ROOT / f".github/workflows/{name}.yml")["jobs"].values()
    tracked = subprocess.run(
        ["git", "ls-files", "Pulumi.*.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {file.split(".")[1] for file in tracked} <= set(job["strategy"]["matrix"]["stack"])


def test_a_deployment_waits_for_its_environment_and_for_the_one_before() -> None:
    deploy = workflow(ROOT / ".github/workflows/deploy.yml")
    (job,) = deploy["jobs"].values()
    assert deploy["concurrency"] == {"group": "deploy"}
    assert job["strategy"]["max-parallel"] == 1
    assert job["environment"] == "${{ matrix.stack }}"


def test_a_config_without_its_secrets(tmp_path: Path) -> None:
    config = tmp_path / "Pulumi.lab.yaml"
    config.write_text("""\
encryptionsalt: v1:abc
config:
  spdk-k8s:numinst: "24"
  spdk-k8s:machines:
    kind: ssh
    master:
      privateKey:
        secure: v1:def
      address: 10.0.0.1
    worker1:
      address: 10.0.0.2
      privateKey:
        secure: v1:ghi
  spdk-k8s:token:
    secure: v1:jkl
""")
    subprocess.run([ROOT / ".github/without-secrets", config], check=True)
    assert yaml.safe_load(config.read_text()) == {
        "config": {
            "spdk-k8s:numinst": "24",
            "spdk-k8s:machines": {
                "kind": "ssh",
                "master": {"address": "10.0.0.1"},
                "worker1": {"address": "10.0.0.2"},
            },
        }
    }
    subprocess.run([ROOT / ".github/without-secrets", tmp_path / "Pulumi.none.yaml"], check=True)


GH = """#!/usr/bin/env bash
# stands for GitHub: pull requests and comments from files, a run's artifacts from a folder; notes what is written
set -euo pipefail
cd "$(dirname "$0")"
case "$*" in
  *"repos/o/r/pulls "*) cat pulls.json ;;
  "run download"*) mkdir -p "$7/preview-dev" && cp preview-dev.json "$7/preview-dev/" ;;
  *"--paginate repos/o/r/issues/7/comments") cat comments.json ;;
  *"body=@"*) echo "$3 $4" >>written; cp "${6#body=@}" body ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def github(tmp_path: Path) -> Path:
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "pulls.json").write_text(json.dumps([{"number": 7, "head": {"sha": "a" * 40}}]))
    (tmp_path / "comments.json").write_text("[]")
    previewed(tmp_path, "Preview of stack dev: 1 to be created\n\n+ dev  DevMachines\n", ["pods restarted", "0 to 2"])
    return tmp_path


def previewed(github: Path, text: str, *rows: list[str]) -> None:
    """What the workflow run kept, as `make preview ARGS=--json` prints it."""
    found = {"whole": True, "impact": {"rows": rows}, "text": text}
    (github / "preview-dev.json").write_text(json.dumps(found))


def comment(github: Path) -> str:
    environment = {"REPOSITORY": "o/r", "RUN": "1", "RUN_URL": "https://run", "HEAD": "fork:it's $(x)", "SHA": "a" * 40}
    done = subprocess.run(
        [ROOT / ".github/comment"],
        env={**os.environ, **environment, "PATH": f"{github}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (github / "written").read_text() if (github / "written").exists() else ""


def test_a_first_preview_is_a_new_comment(github: Path) -> None:
    people = [{"id": 3, "user": {"type": "User"}, "body": "<!-- preview --> I say"}]
    (github / "comments.json").write_text(json.dumps(people))
    assert comment(github) == "POST repos/o/r/issues/7/comments\n"
    body = (github / "body").read_text()
    assert body.startswith("<!-- preview -->\n")
    assert "\n### dev\n\n| impact | |\n| --- | --- |\n| pods restarted | 0 to 2 |\n" in body
    assert "\n~~~~~~diff\nPreview of stack dev: 1 to be created\n\n+ dev  DevMachines\n" in body
    assert "https://run" in body


def test_the_next_one_changes_that_comment(github: Path) -> None:
    ours = [{"id": i, "user": {"type": "Bot"}, "body": body} for i, body in [(4, "x"), (5, "<!-- preview -->\nold")]]
    (github / "comments.json").write_text(json.dumps(ours))
    assert comment(github) == "PATCH repos/o/r/issues/comments/5\n"


def test_a_run_that_a_newer_one_follows_says_nothing(github: Path) -> None:
    (github / "pulls.json").write_text(json.dumps([{"number": 7, "head": {"sha": "b" * 40}}]))
    assert comment(github) == ""


def test_text_of_a_preview_stays_within_its_fence_and_size(github: Path) -> None:
    previewed(github, "~~~~~~\n@everyone\n" + "x" * 70000)
    comment(github)
    body = (github / "body").read_text()
    assert len(body) < 65536
    assert re.findall(r"^~~~.*", body, re.MULTILINE) == ["~~~~~~diff", "~~~~~~"]
    assert "Impact: none" in body


def test_a_row_of_the_table_stays_a_row(github: Path) -> None:
    previewed(github, "", ["config", "a | b\n\n@everyone <img src=x> [x](https://x) `x` **x** → y" + "z" * 9000])
    comment(github)
    (row,) = [line for line in (github / "body").read_text().splitlines() if "everyone" in line]
    assert row.count("|") == 3
    assert not set(row) & set("@<>[]`*")
    assert "//" not in row
    assert len(row) < 600


def test_a_preview_that_is_no_json_is_shown_as_it_is(github: Path) -> None:
    """As where the run's own code wrote something else."""
    (github / "preview-dev.json").write_text("make: *** [preview] Error 2\n~~~~~~\n")
    comment(github)
    body = (github / "body").read_text()
    assert "~~~~~~diff\nmake: *** [preview] Error 2\n~ ~ ~~ ~ ~\n" in body
    assert "| impact" not in body
