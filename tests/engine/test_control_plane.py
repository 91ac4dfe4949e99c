"""A real `kubeadm init` that is cut off on a dev machine: the next run of the step makes a whole control plane.

tests/unit/test_kubeadm_steps.py does the same after each phase, with a stand-in for kubeadm.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from components.cluster import Versions
from components.hosts import script
from render.cni import cni_config, routes
from render.kubeadm import kubeadm_init
from settings.pins import PINS
from tests.engine.test_scripts_twice import IMAGE, Machine, build_image, docker
from tests.pulumi_cli import ROOT

pytestmark = pytest.mark.engine

NAME = "spdk-k8s-control-plane"
PODS, SERVICES = IPv4Network("10.244.0.0/16"), IPv4Network("10.96.0.0/16")
VERSIONS = Versions(PINS["KUBERNETES"], etcd=PINS["ETCD"], coredns=PINS["COREDNS"], pause=PINS["PAUSE"])
# kubeadm for the step: ends at the first line of the phase in /run/cut, and the whole step with it if that says so
CUT = r"""#!/bin/bash
read -r phase whole </run/cut || exec /usr/local/bin/kubeadm "$@"
[ "$1" = init ] || exec /usr/local/bin/kubeadm "$@"
coproc real { exec /usr/local/bin/kubeadm "$@" 2>&1; }
pid=$real_PID
while read -r line <&"${real[0]}"; do
  printf '%s\n' "$line"
  [[ "$line" == "[$phase]"* ]] || continue
  rm /run/cut
  kill -9 "$pid"
  [ -z "$whole" ] || kill -9 0
  exit 1
done
wait "$pid"
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Ready for kubeadm, with all images in containerd."""
    build_image()
    docker("rm", "-fv", NAME)
    started = docker(
        "run", "-d", "--name", NAME, "--hostname", "master", "--privileged", "--cgroupns=private", "--tmpfs=/run",
        "--tmpfs=/tmp", "--volume=/var", "--env=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1", IMAGE,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    made = Machine(NAME)
    try:
        made.step("ready", "up", OWNER="test/control-plane")
        copy(f"spdk-k8s/kubernetes:v{PINS['KUBERNETES']}")
        unit = (ROOT / "images/bundle/kubelet.service").read_text()
        made.run("tee", "/etc/systemd/system/kubelet.service", text=unit)
        made.run("install", "-m", "0755", "/dev/stdin", "/usr/local/sbin/kubeadm", text=CUT)
        node = {
            "REGISTRY": "none", "PAUSE": VERSIONS.upstream()["pause"], "NODE_IP": address(), "SYNC": "1m",
            "CNI_CONFIG": cni_config(PODS, 0), "ROUTES": routes(PODS, {0: IPv4Address(address())}, 0),
        }  # fmt: skip
        steps = "\nrecord_kernel; kernel; containerd_config; kubelet_config; cni </dev/null"
        made.run("bash", "-s", "up", text=script("node", node).rpartition('\nmain "$@"')[0] + steps)
        images = " ".join(VERSIONS.upstream().values())
        load = f"docker save {images} | docker exec -i {NAME} ctr -n k8s.io images import -"
        subprocess.run(["bash", "-o", "pipefail", "-c", load], check=True, capture_output=True, timeout=300)
        yield made
    finally:
        docker("rm", "-fv", NAME)


def address() -> str:
    return docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", NAME).stdout.strip()


def copy(image: str) -> None:
    """An image's files onto the machine."""
    made = docker("create", image, "none").stdout.strip()
    pipe = f"docker export {made} | docker exec -i {NAME} tar -C / -x usr/local/bin opt/cni/bin"
    subprocess.run(["bash", "-o", "pipefail", "-c", pipe], check=True, capture_output=True, timeout=120)
    docker("rm", made)


def control_plane(machine: Machine) -> subprocess.CompletedProcess[str]:
    config = kubeadm_init(
        version=PINS["KUBERNETES"], repository="registry.k8s.io", address=IPv4Address(address()), pod_cidr=PODS,
        service_cidr=SERVICES, in_container=True,
    )  # fmt: skip
    text = script("control_plane", {"NODE": "master", "CONFIG": config})
    return docker("exec", "-i", machine.name, "setsid", "-w", "timeout", "300", "bash", "-s", "up", text=text)


def whole(machine: Machine) -> None:
    kubectl = ("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "-n", "kube-system")
    machine.run(*kubectl, "get", "deployment/coredns", "daemonset/kube-proxy", "configmap/kubeadm-config")
    tokens = machine.run("kubeadm", "token", "create", "--dry-run")
    assert tokens.strip()
    taints = machine.run(*kubectl, "get", "node", "master", "-o", "jsonpath={.spec.taints[*].key}")
    assert "node-role.kubernetes.io/control-plane" in taints


@pytest.mark.parametrize("phase", ["kubeconfig", "upload-config", "bootstrap-token"])
def test_a_control_plane_whose_making_was_killed_is_made_anew(machine: Machine, phase: str) -> None:
    machine.run("tee", "/run/cut", text=f"{phase} whole\n")
    assert control_plane(machine).returncode != 0
    assert machine.run("bash", "-c", "ls /run/cut /var/lib/spdk-k8s/control-plane 2>/dev/null || true") == ""
    made = control_plane(machine)
    assert made.returncode == 0, made.stderr
    assert set(json.loads(made.stdout)) == {"kubeconfig", "caHash"}
    whole(machine)
    machine.step("control_plane", "down", NODE="master", CONFIG="")


def test_a_call_of_kubeadm_that_failed_is_repeated(machine: Machine) -> None:
    """And objects outlive a machine whose container is made anew on its volume."""
    machine.run("tee", "/run/cut", text="upload-config\n")
    made = control_plane(machine)
    assert made.returncode == 0, made.stderr
    assert "attempt 1 of 3" in made.stderr
    whole(machine)
    again = control_plane(machine)
    assert again.returncode == 0, again.stderr
    assert "kubeadm init" not in again.stderr

    kubectl = ("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf")
    machine.run(*kubectl, "create", "configmap", "mine", "--from-literal=a=b")
    machine.run("bash", "-c", "rm -rf /etc/kubernetes/{manifests,pki,*.conf} /root/.kube")
    assert docker("restart", machine.name).returncode == 0
    machine.step("ready", "up", OWNER="test/control-plane")
    anew = control_plane(machine)
    assert anew.returncode == 0, anew.stderr
    whole(machine)
    assert machine.run(*kubectl, "get", "configmap", "mine", "-o", "jsonpath={.data.a}") == "b"
