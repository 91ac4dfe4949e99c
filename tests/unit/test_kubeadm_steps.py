"""control_plane.sh and join.sh with stand-ins for kubeadm, kubectl and systemctl that keep a cluster in a folder.

After a cut at any point, on a node that is set up already, and on one whose object or whose cluster is another one.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit

# As `kubeadm init --help` lists them.
PHASES = [
    "preflight", "certs", "kubeconfig", "etcd", "control-plane", "kubelet-start", "wait-control-plane", "upload-config",
    "upload-certs", "mark-control-plane", "bootstrap-token", "kubelet-finalize", "coredns", "kube-proxy",
]  # fmt: skip
SERVING = PHASES.index("wait-control-plane")  # from here on the API server answers

KUBEADM = f"""
cut() {{
  [ "$1" = "$(cat "$DIR/cut" 2>/dev/null)" ] || return 0
  rm "$DIR/cut"
  [ -e "$DIR/kills" ] || exit 1
  kill -9 0
}}
case "$1 $2" in
init\\ phase) ;;
init*)
  for phase in {" ".join(PHASES)}; do
    [[ ",${{*: -1}}," != *",$phase,"* ]] || continue
    if [ $phase = preflight ]; then
      [ -z "$(ls "$DIR/made")" ] || exit 1
      [[ "$*" == *DirAvailable--var-lib-etcd* || ! -e "$DIR/etcd" ]] || exit 1
      continue
    fi
    touch "$DIR/made/$phase"
    [ $phase != etcd ] || mkdir -p "$DIR/etcd/member"
    [ $phase != control-plane ] || touch "$DIR/kubernetes/manifests/kube-apiserver.yaml"
    [ $phase != kubeconfig ] || touch "$DIR/kubernetes/admin.conf"
    [ $phase != kubelet-start ] || touch "$DIR/listed"
    cut $phase
  done ;;
reset*)
  rm -rf "$DIR"/made/* "$DIR"/kubernetes/*.conf "$DIR"/kubernetes/{{pki,manifests/*}} "$DIR"/listed
  [[ "$*" == *"--skip-phases remove-etcd-member"* ]] || rm -rf "$DIR"/etcd/* ;;
token*) echo a.token ;;
join*)
  [ ! -e "$DIR/kubernetes/pki/ca.crt" ] && [ ! -e "$DIR/listed" ] || exit 1
  mkdir -p "$DIR/kubernetes/pki"
  cp "$DIR/ca.crt" "$DIR/kubernetes/pki/ca.crt"; touch "$DIR/kubernetes/bootstrap-kubelet.conf"; cut discovery
  touch "$DIR/listed"; cut registered
  mv "$DIR/kubernetes/bootstrap-kubelet.conf" "$DIR/kubernetes/kubelet.conf"; cut joined ;;
esac
"""
TOOLS = {
    "kubeadm": KUBEADM,
    "kubectl": """case "$*" in
*raw*/readyz*) [ -e "$DIR/answers" ] && [ -e "$DIR/made/wait-control-plane" ] ;;
*"get node"*) [ -e "$DIR/listed" ] ;;
*"delete node"*) rm -f "$DIR/listed" ;;
*coredns*kube-proxy*)
  [ -e "$DIR/made/wait-control-plane" ] || exit 1
  [ -e "$DIR/etcd/member/objects" ] || { [ -e "$DIR/made/coredns" ] && [ -e "$DIR/made/kube-proxy" ]; } ;;
esac""",
    # the API server lists the node from when kubelet has started anew
    "systemctl": """case "$*" in
*restart\\ kubelet*) touch "$DIR/listed" ;;
*start*) touch "$DIR/answers" ;;
esac""",
    "jq": "echo '{}'",
}


@dataclass(frozen=True)
class Machine:
    root: Path
    ca: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        for name, body in TOOLS.items():
            tool = self.root / "bin" / name
            tool.parent.mkdir(exist_ok=True)
            tool.write_text(f'#!/bin/bash\nDIR={self.root}\necho "{name} $*" >>"$DIR/log"\n{body}\n')
            tool.chmod(0o755)
        for folder in ("state", "kubernetes/pki", "kubernetes/manifests", "root", "made", "log.d"):
            (self.root / folder).mkdir(parents=True)
        self.ca["sha256"] = self.certificate(self.root / "kubernetes/pki/ca.crt")

    @staticmethod
    def certificate(file: Path) -> str:
        """A CA's certificate in `file`; the checksum of its key, as kubeadm writes it."""
        key = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        subprocess.run([*key, "-subj", "/CN=ca", "-keyout", "/dev/null", "-out", file], check=True, capture_output=True)
        hashed = f"openssl x509 -pubkey -noout -in '{file}' | openssl pkey -pubin -outform der | sha256sum"
        return subprocess.run(hashed, shell=True, check=True, capture_output=True, text=True).stdout.split()[0]  # noqa: S602

    def touch(self, *files: str) -> None:
        for file in files:
            (self.root / file).touch()

    def has(self, file: str) -> bool:
        return (self.root / file).exists()

    def cut(self, point: str, how: str) -> None:
        (self.root / "cut").write_text(point)
        if how == "killed":
            self.touch("kills")

    def run(self, step: str) -> subprocess.CompletedProcess[str]:
        config = f"caCertHashes: ['sha256:{self.ca['sha256']}']\ntoken: '@TOKEN@'"
        text = script(step, {"CONFIG": config, "KUBECONFIG_TEXT": "", "NODE": "n"})
        for path, here in (("/var/lib/spdk-k8s", "state"), ("/etc/kubernetes", "kubernetes"), ("/root", "root"),
                           ("/var/lib/etcd", "etcd"), ("/var/log", "log.d")):  # fmt: skip
            text = text.replace(path, str(self.root / here))
        return subprocess.run(
            ["bash", "-s", "up"], input=text, env=os.environ | {"PATH": f"{self.root}/bin:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=60, start_new_session=True,
        )  # fmt: skip

    def called(self, step: str) -> list[str]:
        """What a step that succeeds changes by systemctl and kubeadm, in this order."""
        (self.root / "log").unlink(missing_ok=True)
        done = self.run(step)
        assert done.returncode == 0, done.stderr
        calls = (self.root / "log").read_text().replace(str(self.root), "").splitlines()
        return [call for call in calls if call.startswith(("systemctl start", "systemctl restart", "kubeadm"))]


START, RESTART = "systemctl start containerd kubelet", "systemctl restart kubelet"


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.touch("answers")
    (tmp_path / "kubernetes/pki/ca.crt").rename(tmp_path / "ca.crt")
    (tmp_path / "kubernetes/pki").rmdir()
    return machine


@pytest.fixture
def node(tmp_path: Path) -> Machine:
    """Joined, or with a control plane, and listed."""
    machine = Machine(tmp_path)
    machine.touch("state/joined", "state/control-plane", "kubernetes/kubelet.conf", "kubernetes/admin.conf", "answers")
    machine.touch("listed", "kubernetes/manifests/kube-apiserver.yaml", *(f"made/{phase}" for phase in PHASES))
    (tmp_path / "etcd/member").mkdir(parents=True)
    return machine


@pytest.mark.parametrize(
    ("phase", "how"),
    [(phase, "killed") for phase in PHASES[1:]]
    + [(phase, "failed") for phase in ("certs", "kubelet-start", "wait-control-plane", "upload-config", "coredns")],
)
def test_a_control_plane_that_was_cut_off_becomes_whole(bare: Machine, phase: str, how: str) -> None:
    bare.cut(phase, how)
    first = bare.run("control_plane")
    if how == "failed" and PHASES.index(phase) >= SERVING:
        assert first.returncode == 0, first.stderr  # the phases that can be repeated are
    else:
        assert first.returncode == (1 if how == "failed" else -signal.SIGKILL)
        assert not bare.has("state/control-plane")
        second = bare.run("control_plane")
        assert second.returncode == 0, second.stderr
    assert {file.name for file in (bare.root / "made").iterdir()} == set(PHASES[1:])
    assert bare.has("state/control-plane")


def test_half_a_control_plane_that_an_earlier_version_took_for_a_whole_one_is_completed(node: Machine) -> None:
    for phase in PHASES[SERVING + 1 :]:
        (node.root / "made" / phase).unlink()
    calls = node.called("control_plane")
    assert not any("reset" in call for call in calls)
    assert all(node.has(f"made/{phase}") for phase in PHASES)


def test_a_whole_control_plane_is_not_made_anew_when_its_mark_is_lost(node: Machine) -> None:
    (node.root / "state/control-plane").unlink()
    assert node.called("control_plane") == []
    assert node.has("state/control-plane")


@pytest.mark.parametrize("phase", PHASES[1:])
def test_the_clusters_objects_outlive_a_machine_that_is_made_anew_from_its_volume(node: Machine, phase: str) -> None:
    """And making it is cut off too."""
    (node.root / "etcd/member/objects").touch()
    for folder in ("kubernetes/manifests", "kubernetes/pki", "made"):
        for file in (node.root / folder).iterdir():
            file.unlink()
    (node.root / "kubernetes/admin.conf").unlink()
    (node.root / "listed").unlink()
    node.cut(phase, "killed")
    assert node.run("control_plane").returncode != 0
    done = node.run("control_plane")
    assert done.returncode == 0, done.stderr
    assert all(node.has(f"made/{phase}") for phase in PHASES[1:])
    assert node.has("etcd/member/objects")
    assert not node.has("state/control-plane.data")


@pytest.mark.parametrize("how", ["failed", "killed"])
@pytest.mark.parametrize("point", ["discovery", "registered", "joined"])
def test_a_join_that_was_cut_off_is_made_anew(bare: Machine, point: str, how: str) -> None:
    bare.cut(point, how)
    assert bare.run("join").returncode != 0
    assert not bare.has("state/joined")
    second = bare.run("join")
    assert second.returncode == 0, second.stderr
    assert bare.has("kubernetes/kubelet.conf")
    assert bare.has("state/joined")


def test_a_node_that_is_listed_is_left_alone(node: Machine) -> None:
    assert node.called("join") == [START]


def test_a_deleted_node_is_registered_again(node: Machine) -> None:
    (node.root / "listed").unlink()
    assert node.called("join") == [START, RESTART]


def test_a_node_joins_anew_when_the_control_plane_was_made_anew(node: Machine) -> None:
    """Its kubelet trusts a CA that is no more."""
    node.ca["sha256"] = node.certificate(node.root / "ca.crt")
    calls = node.called("join")
    assert [call.split()[1] for call in calls] == ["reset", "token", "join"]
    assert node.called("join") == [START]


def test_a_node_is_left_alone_where_its_ca_cannot_be_read(node: Machine) -> None:
    (node.root / "kubernetes/pki/ca.crt").write_text("garbage")
    assert node.called("join") == [START]


def test_a_control_plane_that_is_listed_is_left_alone(node: Machine) -> None:
    assert node.called("control_plane") == [START]


def test_a_control_planes_deleted_node_is_registered_again_with_its_taint(node: Machine) -> None:
    (node.root / "listed").unlink()
    mark = "kubeadm init phase mark-control-plane --config /kubernetes/kubeadm.yaml"
    assert node.called("control_plane") == [START, RESTART, mark]


def test_a_stopped_control_plane_is_started_and_not_made_anew(node: Machine) -> None:
    (node.root / "answers").unlink()
    assert node.called("control_plane") == [START]
