"""join.sh and control_plane.sh on a node that is set up already, whose object in the cluster was deleted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit

LISTED = '[ -e "$DIR/listed" ]'
TOOLS = {
    # the API server lists the node from when kubelet has started anew
    "kubectl": f'case "$*" in *"get node"*) {LISTED} ;; *"get --raw"*) [ -e "$DIR/answers" ] ;; esac',
    "systemctl": """case "$*" in *restart*) touch "$DIR/listed" ;; *start*) touch "$DIR/answers" ;; esac""",
    "kubeadm": ":",
    "jq": "echo '{}'",
    "openssl": ":",
}
VALUES = {
    "join": {"CONFIG": "", "KUBECONFIG_TEXT": "", "NODE": "worker1"},
    "control_plane": {"CONFIG": "", "NODE": "n"},
}


def called(step: str, tmp_path: Path, *, listed: bool, answers: bool = True) -> list[str]:
    """What the step calls of TOOLS but for questions, in this order."""
    for name, body in TOOLS.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/bash\nDIR={tmp_path}\necho "{name} $*" >>"$DIR/log"\n{body}\n')
        tool.chmod(0o755)
    for folder in ("state", "kubernetes", "root"):
        (tmp_path / folder).mkdir()
    for file in ("state/joined", "state/control-plane", "kubernetes/kubelet.conf", "kubernetes/admin.conf"):
        (tmp_path / file).touch()
    for file, there in (("listed", listed), ("answers", answers)):
        if there:
            (tmp_path / file).touch()
    text = script(step, VALUES[step])
    for path, here in (("/var/lib/spdk-k8s", "state"), ("/etc/kubernetes", "kubernetes"), ("/root", "root")):
        text = text.replace(path, str(tmp_path / here))
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-s", "up"], input=text, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    return [call.replace(str(tmp_path), "") for call in calls if call.startswith(("systemctl", "kubeadm"))]


START, RESTART = "systemctl start containerd kubelet", "systemctl restart kubelet"


def test_a_node_that_is_listed_is_left_alone(tmp_path: Path) -> None:
    assert called("join", tmp_path, listed=True) == [START]


def test_a_deleted_node_is_registered_again(tmp_path: Path) -> None:
    assert called("join", tmp_path, listed=False) == [START, RESTART]


def test_a_control_plane_that_is_listed_is_left_alone(tmp_path: Path) -> None:
    assert called("control_plane", tmp_path, listed=True) == [START]


def test_a_control_planes_deleted_node_is_registered_again_with_its_taint(tmp_path: Path) -> None:
    mark = "kubeadm init phase mark-control-plane --config /kubernetes/kubeadm.yaml"
    assert called("control_plane", tmp_path, listed=False) == [START, RESTART, mark]


def test_a_stopped_control_plane_is_started_and_not_made_anew(tmp_path: Path) -> None:
    assert called("control_plane", tmp_path, listed=True, answers=False) == [START]
