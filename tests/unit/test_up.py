"""The order in which `make up` recovers, mends, updates, waits and shows."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from operate import check, cli, leftovers, mend, progress, recover, settle, status, up, view
from operate.check import Drift
from operate.leftovers import Leftover
from operate.up import MARK, Running

pytestmark = pytest.mark.unit

CONTAINER = "docker:index/container:Container"


def resource(name: str, kind: str = "command:remote:Command", **more: Any) -> dict[str, Any]:
    return {"urn": f"urn:pulumi:dev::spdk-k8s::{kind}::{name}", "type": kind, **more}


def step(name: str, host: str = "192.0.2.3") -> dict[str, Any]:
    secret = {cli.SPECIAL: "1b47061264138c4ac30d75fd1eb44270", "plaintext": json.dumps({"host": host})}
    return resource(name, inputs={"update": "timeout 60 bash -s up", "connection": secret})


def machine(name: str, address: str) -> dict[str, Any]:
    made = {"name": f"spdk-k8s-dev-{name}", "hostname": name, "networksAdvanced": [{"ipv4Address": address}]}
    return resource(f"dev-{name}", CONTAINER, id="1", outputs=made)


def state(*resources: dict[str, Any]) -> cli.Exported:
    return {"version": 3, "deployment": {"resources": list(resources)}}


def dev() -> cli.Exported:
    return state(
        machine("master", "192.0.2.2"),
        machine("worker1", "192.0.2.3"),
        step("cluster-control-plane", "192.0.2.2"),
        step("cluster-worker1-join"),
    )


class World:
    """A stack, its engine and its cluster, and what is done to them in order."""

    name = "dev"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.exported: cli.Exported | None = dev()
        self.looks: list[list[Drift] | None] = [[]]  # what each look finds; None: it is not up
        self.codes: list[int] = []
        self.left: list[Leftover] = []
        self.machines = {"spdk-k8s-dev-master": "running", "spdk-k8s-dev-worker1": "running"}
        self.settled: list[Drift] = []
        self.shown = 0
        monkeypatch.setattr(Running, "look", lambda _: self.look())
        monkeypatch.setattr(leftovers, "find", lambda _: self.left)
        monkeypatch.setattr(recover, "refuse_second_run", lambda name: self.done.append(f"locks of {name}"))
        monkeypatch.setattr(progress, "show", self.show)
        monkeypatch.setattr(mend, "mend", lambda _, drifts: self.done.append(f"mend {len(drifts)}"))
        monkeypatch.setattr(mend, "forget_node", lambda _, name: self.done.append(f"forget {name}"))
        monkeypatch.setattr(settle, "wait", self.settle)
        monkeypatch.setattr(status, "show", lambda *_: self.done.append("status") or self.shown)
        monkeypatch.setattr(subprocess, "run", self.docker)

    def look(self) -> Running | None:
        drifts = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        seen: Any = SimpleNamespace(made="made", nodes={"master": None, "worker1": None})
        cluster: Any = "cluster"
        return None if drifts is None else Running(cluster, seen, drifts)

    def settle(self, cluster: Any, made: Any, before: Any) -> Any:
        self.done.append(f"settle {'' if before else 'first '}{made}")
        return SimpleNamespace(seen="seen", drifts=self.settled)

    def show(self, _: Any, *command: str) -> int:
        self.done.append(" ".join(command).replace(" --stack dev", "").replace(" --yes --skip-preview", ""))
        return self.codes.pop(0) if self.codes else 0

    def docker(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        out = "".join(f"{name} {condition}\n" for name, condition in self.machines.items())
        if command[1] != "ps":
            self.done.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0, out, "")

    def export(self) -> cli.Exported | None:
        return self.exported

    def open(self) -> cli.Exported:
        return self.exported or self.init()

    def init(self) -> cli.Exported:
        self.done.append("init")
        self.exported = state()
        return self.exported

    def put(self, exported: cli.Exported) -> None:
        marked = [r["urn"].rpartition("::")[2] for r in cli.resources(exported) if MARK in str(r.get("inputs"))]
        self.done.append(f"put {' '.join(marked)}".strip())

    def run(self, *arguments: str) -> str:
        self.done.append(" ".join(arguments))
        return ""

    def select(self) -> Any:
        return SimpleNamespace(wait=lambda: 0)

    def up(self, numinst: str = "") -> int:
        stack: Any = self
        return up.up(stack, numinst)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("VHOST_BACKEND", "SPDK_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    return World(monkeypatch)


UP = "up --policy-pack policy/__main__.py"


def test_with_nothing_to_do_the_state_is_not_written(world: World) -> None:
    assert world.up() == 0
    assert world.done == ["locks of dev", "mend 0", UP, "settle made", "status"]


def test_a_new_stack(world: World) -> None:
    world.exported, world.looks = None, [None, []]
    assert world.up("5") == 0
    assert world.done == [
        "locks of dev",
        "init",
        "config set --stack dev -- numinst 5",
        UP,
        "settle first made",
        "status",
    ]


def test_what_a_lost_state_left_is_refused_before_anything_starts(world: World) -> None:
    world.exported, world.left = None, [Leftover("network", "spdk-k8s-dev")]
    with pytest.raises(SystemExit, match="network spdk-k8s-dev\nremedy: make down STACK=dev"):
        world.up()
    assert world.done == ["locks of dev"]


def test_a_killed_runs_operations_are_cleared_in_the_state_that_goes_back(world: World) -> None:
    assert world.exported
    world.exported["deployment"]["pending_operations"] = [{"type": "creating", "resource": resource("x")}]
    assert world.up() == 0
    assert world.done[:2] == ["locks of dev", "put"]
    assert "pending_operations" not in world.exported["deployment"]


def test_drift_is_named_its_steps_run_again_and_kubernetes_is_refreshed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.looks = [[Drift("node worker1 is not Ready", ("cluster-worker1-join", "unknown"))], []]
    assert world.up() == 0
    assert world.done == [
        "locks of dev",
        "put cluster-worker1-join",
        "mend 1",
        f"{UP} --refresh",
        "settle made",
        "status",
    ]
    assert "drift: node worker1 is not Ready\n" in capsys.readouterr().out
    assert world.exported
    # the policies see the command while it waits: it is still what it was
    assert cli.resources(world.exported)[3]["inputs"]["update"] == "timeout 60 bash -s up # drifted"


def test_what_make_up_does_not_mend_is_named_with_its_remedy_and_nothing_is_refreshed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cordoned = Drift("node worker2 is cordoned", mend="kubectl uncordon worker2")
    world.looks, world.settled = [[cordoned]], [cordoned]
    assert world.up() == 1
    assert world.done == ["locks of dev", "mend 1", UP, "settle made", "status"]
    assert "drift: node worker2 is cordoned; mend: kubectl uncordon worker2\n" in capsys.readouterr().out


def test_the_control_plane_comes_before_the_cluster_is_asked(world: World) -> None:
    """A refresh fails without an API server."""
    world.looks = [
        [Drift("the API server does not answer", (check.CONTROL_PLANE,))],
        [Drift("node worker1 is not Ready", ("cluster-worker1-join",))],
        [],
    ]
    assert world.up() == 0
    assert world.done == [
        "locks of dev",
        "put cluster-control-plane",
        f"{UP} --target **::cluster-control-plane",
        "put cluster-control-plane cluster-worker1-join",  # of this fake state, which no engine wrote anew
        "mend 1",
        f"{UP} --refresh",
        "settle made",
        "status",
    ]


def test_a_control_plane_that_does_not_come_ends_it(world: World) -> None:
    world.looks, world.codes = [[Drift("no answer", (check.CONTROL_PLANE,))]], [255]
    with pytest.raises(SystemExit) as ended:
        world.up()
    assert ended.value.code == 255
    assert world.done[-1].endswith("cluster-control-plane")


def test_a_stopped_machine_is_started_before_anybody_asks_the_cluster(world: World) -> None:
    world.machines["spdk-k8s-dev-worker1"] = "exited"
    assert world.up() == 0
    assert world.done[:3] == ["locks of dev", "docker start spdk-k8s-dev-worker1", "mend 0"]


def test_a_deleted_machine_is_made_anew_with_the_steps_that_ran_on_it(world: World) -> None:
    del world.machines["spdk-k8s-dev-worker1"]
    assert world.up() == 0
    urn = f"urn:pulumi:dev::spdk-k8s::{CONTAINER}::dev-worker1"
    assert world.done[1:5] == [
        "put cluster-worker1-join",
        "forget worker1",
        f"refresh --target {urn}",
        f"{UP} --target {urn} --target **::cluster-worker1-join",
    ]
    world.codes = [1]
    with pytest.raises(SystemExit):
        world.up()


def test_without_an_engine_there_is_a_remedy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, "", "Cannot connect\n"))
    with pytest.raises(SystemExit, match="Cannot connect\nremedy: make setup"):
        world.up()


def test_an_up_that_fails_shows_how_it_stands_and_ends_with_the_engines_code(world: World) -> None:
    world.codes = [255]
    assert world.up() == 255
    assert world.done[-2:] == [UP, "status"]
    world.looks, world.codes = [None], [7]
    assert world.up() == 7


def test_the_exit_code_says_how_it_stands(world: World) -> None:
    world.shown = 1
    assert world.up() == 1
    world.shown, world.settled = 0, [Drift("pod is not ready")]
    assert world.up() == 1


def test_volumes_take_their_claims_again_while_pulumi_works(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    monkeypatch.setattr(up, "POLL", 0.01)
    monkeypatch.setattr(mend, "rebind_released", lambda cluster: asked.set() if cluster == "c" else None)
    running: Any = SimpleNamespace(cluster="c")
    with up.volumes_kept_bound(running):
        assert asked.wait(5)
    time.sleep(0.05)
    asked.clear()
    time.sleep(0.05)
    assert not asked.is_set()
    with up.volumes_kept_bound(None):
        pass


def test_a_look_needs_the_outputs_of_a_whole_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = {"type": "pulumi:pulumi:Stack", "outputs": {"numinst": 3}}
    assert Running.look(state(stack)) is None
    made = {
        "numinst": 1, "kubeconfig": "k", "vhost": {"backend": "b", "reason": "r"}, "nodes": {}, "vms": [],
        "targets": {}, "disks": [], "pages": [], "streams": [],
    }  # fmt: skip
    stack["outputs"] = made
    monkeypatch.setattr(view, "connect", lambda outputs: f"cluster with {outputs.kubeconfig}")
    monkeypatch.setattr(view, "look", lambda cluster, _: f"seen in {cluster}")
    monkeypatch.setattr(check, "find", lambda seen: [Drift(seen)])
    looked = Running.look(state(stack))
    assert looked is not None
    assert looked.drifts == [Drift("seen in cluster with k")]


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["up", "lab", "--numinst", "7"])
    monkeypatch.setattr(up, "up", lambda stack, numinst: 3 if (stack.name, numinst) == ("lab", "7") else 0)
    assert up.main() == 3
