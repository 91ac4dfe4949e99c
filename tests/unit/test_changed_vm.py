"""drained.sh and node_ready.sh change VMs one after the other: with a stand-in for kubectl that keeps a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit

KUBECTL = r"""
import fcntl, json, os, signal, sys
from pathlib import Path
root = Path(os.environ["DIR"])
alone = (root / "alone").open("w")  # until this process ends: the steps of two VMs ask at once
fcntl.flock(alone, fcntl.LOCK_EX)
words = [w for w in sys.argv[1:] if w not in ("-n", "spdk-k8s", "--overwrite")]
flags, words = [w for w in words if w.startswith("--")], [w for w in words if not w.startswith("--")]
words = [w for i, w in enumerate(words) if w != "10s"]
verb, rest = words[0], words[1:]
cluster = json.loads((root / "cluster").read_text())
nodes, pods = cluster["nodes"], cluster["pods"]
with (root / "log").open("a") as log:
    log.write(" ".join([verb, *rest]) + "\n")


def node(name):
    of = nodes[name]
    ready = {"type": "Ready", "status": "True" if of["ready"] else "Unknown"}
    spec = {"unschedulable": True} if of.get("cordoned") else {}
    metadata = {"name": name, "annotations": of["annotations"]}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": [ready]}}


def pod(name):
    of = pods[name]
    ready = {"type": "Ready", "status": str(of["ready"])}
    owner = [{"kind": of.get("owner", "StatefulSet")}]
    return {"metadata": {"name": name, "ownerReferences": owner}, "status": {"conditions": [ready]}}


def end(code=0):
    new = root / ".cluster"
    new.write_text(json.dumps(cluster))
    new.replace(root / "cluster")
    if verb == (root / "cut").read_text():
        (root / "cut").write_text("")
        os.kill(0, signal.SIGKILL)
    sys.exit(code)


if verb == "get" and "--raw" in flags:
    end(1 if cluster.get("down") else 0)
if verb == "get" and rest[0] == "node":
    if rest[1] not in nodes:
        end(0 if "--ignore-not-found" in flags else 1)
    print(json.dumps(node(rest[1])))
if verb == "get" and rest[0] == "nodes":
    print(json.dumps({"items": [node(name) for name in nodes]}))
if verb == "get" and rest[0] == "pods":
    names = [name for name in rest[1:] if name in pods]
    if rest[-1] == "name":
        print("\n".join(f"pod/{name}" for name in names))
    else:
        (on,) = [w.partition("=")[2] for w in rest if w.startswith("spec.nodeName=")]
        print(json.dumps({"items": [pod(name) for name in pods if pods[name]["node"] == on]}))
if verb == "get" and rest[0] == "configmaps":
    disks = [{"ordinal": i} for i in cluster["disks"]]
    print(json.dumps({"items": [{"data": {"ca.crt": "text"}}, {"data": {"vhost.json": json.dumps({"disks": disks})}}]}))
if verb == "annotate":
    for word in rest[2:]:
        key, _, value = word.partition("=")
        if word.endswith("-"):
            nodes[rest[1]]["annotations"].pop(word[:-1], None)
        else:
            nodes[rest[1]]["annotations"][key] = value
if verb in ("cordon", "uncordon"):
    nodes[rest[0]]["cordoned"] = verb == "cordon"
if verb == "drain":
    assert nodes[rest[0]]["ready"], "nobody would end its pods"
    if cluster.get("stuck"):
        end(1)
    for of in pods.values():
        if of["node"] == rest[0]:
            of.update(node="", ready=False)
if verb == "wait" and rest[0].startswith("pod/"):
    waiting = [name for name in (word.removeprefix("pod/") for word in rest) if not pods[name]["ready"]]
    home = {name for name, of in nodes.items() if not of.get("cordoned")}
    for name in waiting:
        if pods[name]["home"] in home and not cluster.get("sick"):
            pods[name].update(ready=True, node=pods[name]["home"])
    end(1 if waiting else 0)
end()
"""


@dataclass(frozen=True)
class Master:
    root: Path

    def __post_init__(self) -> None:
        (self.root / "bin").mkdir()
        for name, text in {"kubectl": f"#!{sys.executable} -IS{KUBECTL}", "kubeadm": "#!/bin/sh\n"}.items():
            (self.root / "bin" / name).write_text(text)
            (self.root / "bin" / name).chmod(0o755)
        (self.root / "state").mkdir()
        (self.root / "state/control-plane").touch()
        (self.root / "cut").touch()
        nodes = {name: {"annotations": {}, "ready": True} for name in ("master", "worker2", "worker3")}
        pods = {
            f"app-{i}": {"node": f"worker{2 + i % 2}", "home": f"worker{2 + i % 2}", "ready": True} for i in range(4)
        }
        pods["coredns"] = {"node": "worker2", "home": "master", "ready": True, "owner": "ReplicaSet"}
        self.write({"nodes": nodes, "pods": pods, "disks": [0, 1, 2, 3]})

    def write(self, cluster: dict[str, Any]) -> None:
        (self.root / "cluster").write_text(json.dumps(cluster))

    @property
    def cluster(self) -> dict[str, Any]:
        return json.loads((self.root / "cluster").read_text())

    def set(self, **values: object) -> None:
        self.write(self.cluster | values)

    def node(self, name: str, **values: object) -> None:
        cluster = self.cluster
        cluster["nodes"][name] |= values
        self.write(cluster)

    def start(self, step: str, name: str = "worker2", definition: str = "vm-2") -> subprocess.Popen[str]:
        text = script(step, {"NODE": name, "DEFINITION": definition, "LABELS": "a=b"})
        # so that a test which waits for nothing does not take minutes
        text = text.replace("/var/lib/spdk-k8s", str(self.root / "state")).replace("sleep 0.3", "sleep 0.05")
        text = text.replace("wait_for 180", "wait_for 2").replace("((300 + 10 * ", "((2 + 0 * ")
        environment = os.environ | {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "DIR": str(self.root)}
        started = subprocess.Popen(
            ["bash", "-s", "up"], env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert started.stdin
        started.stdin.write(text)
        started.stdin.close()
        return started

    def run(self, step: str, name: str = "worker2", definition: str = "vm-2") -> tuple[int, str]:
        started = self.start(step, name, definition)
        assert started.stdout
        said = started.stdout.read()
        return started.wait(30), said

    def runs(self, step: str, name: str = "worker2", definition: str = "vm-2") -> None:
        code, said = self.run(step, name, definition)
        assert code == 0, said

    def mark(self, name: str = "worker2") -> str | None:
        return self.cluster["nodes"][name]["annotations"].get("spdk-k8s/changing")

    def on(self, name: str) -> set[str]:
        return {pod for pod, of in self.cluster["pods"].items() if of["node"] == name and of["ready"]}

    def drains(self) -> int:
        log = self.root / "log"
        return log.read_text().count("drain ") if log.exists() else 0

    def is_back(self, name: str = "worker2", definition: str = "vm-2") -> None:
        of = self.cluster["nodes"][name]
        assert of["annotations"] == {"spdk-k8s/definition": definition}
        assert not of.get("cordoned")
        assert self.on(name) >= {"app-0", "app-2"}


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


def test_a_vm_that_changes_is_drained_and_gets_its_pods_back(master: Master) -> None:
    master.runs("drained")
    assert master.on("worker2") == set()
    assert master.on("worker3") == {"app-1", "app-3"}, "no other node is touched"
    assert master.mark() == "schedulable app-0 app-2"
    assert master.cluster["nodes"]["worker2"]["cordoned"]
    master.runs("node_ready")
    master.is_back()
    master.runs("drained")  # as after a change of the script's text
    assert master.drains() == 1
    master.runs("drained", definition="vm-3")
    assert master.drains() == 2


def test_a_first_bring_up_is_not_held_up(master: Master) -> None:
    """No cluster, or one without this node; nobody waits for an API server that is about to come."""
    cluster = master.cluster
    del cluster["nodes"]["worker2"]
    master.write(cluster)
    master.runs("drained")
    (master.root / "state/control-plane").unlink()
    master.set(down=True)
    began = time.monotonic()
    master.runs("drained")
    assert time.monotonic() - began < 1.5
    assert master.drains() == 0


def test_nothing_is_drained_while_the_api_server_does_not_answer(master: Master) -> None:
    master.set(down=True)
    code, said = master.run("drained")
    assert code == 1
    assert "the API server" in said


def test_one_vm_at_a_time(master: Master) -> None:
    master.runs("drained")
    second = master.start("drained", "worker3")
    time.sleep(0.7)
    assert second.poll() is None
    assert master.on("worker3") == {"app-1", "app-3"}
    assert master.mark("worker3") is None
    master.runs("node_ready")
    assert second.wait(20) == 0
    assert master.mark("worker3") == "schedulable app-1 app-3"
    master.is_back()


def test_two_that_come_at_once_do_not_both_go(master: Master) -> None:
    both = [master.start("drained", name) for name in ("worker2", "worker3")]
    end = time.monotonic() + 10
    while not any(each.poll() is not None for each in both) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.7)
    assert sorted(each.poll() is None for each in both) == [False, True]
    first = "worker2" if both[0].poll() is not None else "worker3"
    master.runs("node_ready", first)
    assert [each.wait(20) for each in both] == [0, 0]


@pytest.mark.parametrize("verb", ["annotate", "cordon", "drain"])
def test_a_drain_that_was_cut_off_goes_on(master: Master, verb: str) -> None:
    (master.root / "cut").write_text(verb)
    assert master.run("drained")[0] == -signal.SIGKILL
    master.runs("drained")
    assert master.mark() == "schedulable app-0 app-2"
    assert master.on("worker2") == set()
    master.runs("node_ready")
    master.is_back()


@pytest.mark.parametrize("verb", ["label", "uncordon", "wait", "annotate"])
def test_a_return_that_was_cut_off_goes_on(master: Master, verb: str) -> None:
    master.runs("drained")
    (master.root / "cut").write_text(verb)
    assert master.run("node_ready")[0] == -signal.SIGKILL
    master.runs("node_ready")
    master.is_back()


def test_a_change_that_is_taken_back_half_way_gives_the_pods_back(master: Master) -> None:
    """worker_vm.sh failed with the new definition; the next `up` has the old one again."""
    master.runs("drained", definition="vm-2")
    master.runs("node_ready", definition="vm-1")
    master.is_back(definition="vm-1")


def test_a_node_that_its_owner_cordoned_stays_cordoned(master: Master) -> None:
    master.node("worker2", cordoned=True)
    master.runs("drained")
    master.runs("drained")
    master.runs("node_ready")  # its pods cannot come back, and nobody waits for them
    assert master.cluster["nodes"]["worker2"]["cordoned"]
    assert master.mark() is None


def test_a_node_that_cannot_be_drained_keeps_its_vm(master: Master) -> None:
    master.set(stuck=True)
    code, said = master.run("drained")
    assert code == 1
    assert "its VM was not touched" in said
    master.set(stuck=False)
    master.runs("node_ready", definition="vm-1")  # the change is taken back
    master.is_back(definition="vm-1")


def test_a_node_whose_kubelet_is_silent_is_not_waited_for(master: Master) -> None:
    master.node("worker2", ready=False)
    master.runs("drained")
    assert master.drains() == 0
    assert master.mark() is not None


def test_pods_that_stay_away_are_an_error_and_the_next_vm_is_not_touched(master: Master) -> None:
    master.runs("drained")
    master.set(sick=True)
    code, said = master.run("node_ready")
    assert code == 1
    assert "waited 2 s for the pods of node worker2 to be ready again" in said
    assert master.mark() is not None
    master.set(sick=False)
    master.runs("node_ready")
    master.is_back()


def test_pods_that_nobody_wants_any_more_are_not_waited_for(master: Master) -> None:
    master.runs("drained")
    cluster = master.cluster
    del cluster["pods"]["app-2"]
    master.write(cluster)
    master.runs("node_ready")
    assert master.mark() is None


def test_pods_that_a_smaller_n_is_about_to_end_are_not_waited_for(master: Master) -> None:
    """numinst and vm.diskSlots are reduced at once: the pod's root port is gone, the StatefulSet changes last."""
    master.runs("drained")
    cluster = master.cluster
    cluster["pods"]["app-2"]["home"] = "nowhere"
    master.write(cluster | {"disks": [0, 1, 3]})
    master.runs("node_ready")
    assert master.mark() is None
    assert "app-0" in master.on("worker2")


class Stack:
    """The steps of one VM as Pulumi keeps them: one runs when its definition differs from that of its last good run, or
    when `make up` has found a drift (operate/check.py): a marked node, or a VM that runs an earlier definition."""

    STEPS = ("drained", "vm", "node_ready")

    def __init__(self, master: Master) -> None:
        self.master = master
        self.done = dict.fromkeys(self.STEPS, "vm-1")
        self.runs = "vm-1"  # QEMU

    def up(self, definition: str, *, cut: str = "") -> bool:
        """cut: "STEP" fails before it does anything, "STEP VERB" is killed by kubectl VERB."""
        again = {"vm", "node_ready"} if self.master.mark() is not None else set[str]()
        if self.runs != definition:
            again |= set(self.STEPS)
        step_to_cut, _, verb = cut.partition(" ")
        for step in self.STEPS:
            if self.done[step] == definition and step not in again:
                continue
            if step == step_to_cut:
                (self.master.root / "cut").write_text(verb)
                if not verb:
                    return False
            if step == "vm":
                assert self.runs == definition or self.master.on("worker2") == set(), "a VM with pods was stopped"
                self.runs = definition
            elif self.master.run(step, definition=definition)[0] != 0:
                return False
            self.done[step] = definition
        return True


@pytest.mark.parametrize("then", ["vm-2", "vm-1"])
@pytest.mark.parametrize("cut", ["drained annotate", "drained drain", "vm", "node_ready", "node_ready uncordon"])
def test_a_change_that_was_cut_off_is_completed_or_taken_back_by_the_next_up(
    master: Master, cut: str, then: str
) -> None:
    annotations = {"spdk-k8s/definition": "vm-1"}
    master.node("worker2", annotations=annotations)
    stack = Stack(master)
    assert not stack.up("vm-2", cut=cut)
    assert stack.up(then)
    assert stack.runs == then
    master.is_back(definition=then)
    drains = master.drains()
    assert stack.up(then)
    assert master.drains() == drains, "a further up changes nothing"


def test_a_machine_that_is_no_vm_is_only_made_ready(master: Master) -> None:
    master.runs("node_ready", "master", definition="")
    assert master.cluster["nodes"]["master"]["annotations"] == {}
