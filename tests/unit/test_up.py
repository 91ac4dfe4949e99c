"""The order in which `make up` recovers, mends, updates, waits and shows."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operate import check, cli, leftovers, mend, outcome, pages, preview, progress, recover, running, settle, status, up
from operate import view as views
from operate.check import Drift
from operate.difference import Step
from operate.impact import Away, Cause, Impact
from operate.leftovers import Leftover
from operate.preview import Preview
from operate.running import MARK, Running
from settings.changes import exported as exported_config
from settings.load import load
from tests.unit.fake_cluster import made

pytestmark = pytest.mark.unit

STACK = "urn:pulumi:dev::spdk-k8s::pulumi:pulumi:Stack::spdk-k8s-dev"
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
        {"urn": STACK, "type": "pulumi:pulumi:Stack", "outputs": made()},
        machine("master", "192.0.2.2"),
        machine("worker1", "192.0.2.3"),
        step("cluster-control-plane", "192.0.2.2"),
        step("cluster-worker1-join"),
    )


class World:
    """A stack, its engine and its cluster, and what is done to them in order."""

    name = "dev"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.done: list[str] = []
        self.config = folder / "Pulumi.dev.yaml"
        self.plan = Preview(steps={"urn::a": Step("update", {}, {"type": "command:remote:Command"})})
        self.exported: cli.Exported | None = dev()
        self.looks: list[list[Drift] | None] = [[]]  # what each look finds; None: it is not up
        self.codes: list[int] = []
        self.left: list[Leftover] = []
        self.machines = {"spdk-k8s-dev-master": "running", "spdk-k8s-dev-worker1": "running"}
        self.settled: list[Drift] = []
        self.shown = 0
        self.differences: list[str] = []
        monkeypatch.setattr(Running, "look", lambda _: self.look())
        monkeypatch.setattr(leftovers, "find", lambda _: self.left)
        monkeypatch.setattr(recover, "refuse_second_run", lambda name: self.done.append(f"locks of {name}"))
        monkeypatch.setattr(progress, "show", self.show)
        monkeypatch.setattr(mend, "mend", lambda _, drifts: self.done.append(f"mend {len(drifts)}"))
        monkeypatch.setattr(mend, "forget_node", lambda _, name: self.done.append(f"forget {name}"))
        monkeypatch.setattr(settle, "wait", self.settle)
        monkeypatch.setattr(preview, "begun", self.preview)
        monkeypatch.setattr(outcome, "unsaid", lambda *_: self.differences)
        monkeypatch.setattr(outcome, "undone", lambda *_: [])
        monkeypatch.setattr(cli, "STATE", folder)
        monkeypatch.setattr(status, "show", lambda *_: self.done.append("status") or self.shown)
        monkeypatch.setattr(subprocess, "run", self.docker)

    def look(self) -> Running | None:
        drifts = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        seen: Any = SimpleNamespace(made=views.Outputs.parse(made()), nodes={"master": None, "worker1": None})
        cluster: Any = "cluster"
        return None if drifts is None else Running(cluster, seen, drifts)

    def settle(self, cluster: Any, made: Any, before: Any, due: Any) -> Any:
        self.done.append("settle" if before else "settle first")
        return SimpleNamespace(seen="seen", drifts=self.settled)

    def show(self, _: Any, *command: str) -> int:
        self.done.append(" ".join(command).replace(" --stack dev", "").replace(" --yes --skip-preview", ""))
        return self.codes.pop(0) if self.codes else 0

    @contextmanager
    def preview(self, _: Any, options: list[str]) -> Iterator[Any]:
        self.done.append(" ".join(["preview", *options]))
        yield lambda: self.plan

    def docker(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        out = "".join(f"{name} {condition}\n" for name, condition in self.machines.items())
        if command[1] != "ps":
            self.done.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0, out, "")

    def exporting(self) -> Any:
        return lambda: self.exported

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

    def up(self, numinst: str = "", *words: str, forget: str = "") -> int:
        stack: Any = self
        return up.up(stack, numinst, words, forget)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    for name in ("VHOST_BACKEND", "SPDK_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    return World(monkeypatch, tmp_path)


UP = "up --policy-pack policy/__main__.py"


def test_with_nothing_to_do_nothing_is_done(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.plan = Preview(steps={"urn::a": Step("same", {}, {})})
    assert world.up() == 0
    assert world.done == ["locks of dev", "preview", "status"]
    assert "Impact: none\n" in capsys.readouterr().out


def test_a_change_is_previewed_while_the_cluster_is_looked_at_and_made_then(world: World) -> None:
    assert world.up() == 0
    assert world.done == ["locks of dev", "preview", UP, "settle", "status"]


def test_a_config_that_alone_differs_is_kept_in_the_state(world: World) -> None:
    """A key that concerns no resource: the next `up` would find it again."""
    world.plan = Preview(before={"config": {"a": 1}}, after={"config": {"a": 2}})
    world.plan.keys = ()
    assert world.up() == 0
    assert UP in world.done


def test_a_new_stack(world: World) -> None:
    world.exported, world.looks = None, [None, []]
    assert world.up("5") == 0
    assert world.done == [
        "locks of dev",
        "init",
        "config set --stack dev -- numinst 5",
        UP,
        "settle first",
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
    assert world.done[:4] == ["locks of dev", "put", "mend 0", "preview"]
    assert "pending_operations" not in world.exported["deployment"]


def test_drift_is_named_its_steps_run_again_and_kubernetes_is_refreshed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    drifts = [Drift("node worker1 is not Ready", ("cluster-worker1-join", "unknown"))]
    world.looks = [drifts, drifts, []]
    assert world.up() == 0
    assert world.done == [
        "locks of dev",
        "preview",
        "put cluster-worker1-join",
        "mend 1",
        "preview --refresh",  # of what is to be made after that
        f"{UP} --refresh",
        "settle",
        "status",
    ]
    assert "drift: node worker1 is not Ready\n" in capsys.readouterr().out
    assert world.exported
    # the policies see the command while it waits: it is still what it was
    assert cli.resources(world.exported)[4]["inputs"]["update"] == "timeout 60 bash -s up # drifted"


def test_what_make_up_does_not_mend_is_named_with_its_remedy_and_nothing_is_refreshed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cordoned = Drift("node worker2 is cordoned", mend="kubectl uncordon worker2")
    world.looks, world.settled = [[cordoned]], [cordoned]
    assert world.up() == 1
    assert world.done == ["locks of dev", "preview", "mend 1", "preview", UP, "settle", "status"]
    assert "drift: node worker2 is cordoned; mend: kubectl uncordon worker2\n" in capsys.readouterr().out


def test_the_control_plane_comes_before_the_cluster_is_asked(world: World) -> None:
    """A refresh fails without an API server."""
    silent = Drift("the API server does not answer", (check.CONTROL_PLANE,))
    world.looks = [
        [silent],
        [silent],
        [Drift("node worker1 is not Ready", ("cluster-worker1-join",))],
        [],
    ]
    assert world.up() == 0
    assert world.done == [
        "locks of dev",
        "preview",
        "put cluster-control-plane",
        f"{UP} --target **::cluster-control-plane",
        "put cluster-control-plane cluster-worker1-join",  # of this fake state, which no engine wrote anew
        "mend 1",
        "preview --refresh",
        f"{UP} --refresh",
        "settle",
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
    assert world.done[:4] == ["locks of dev", "preview", "docker start spdk-k8s-dev-worker1", "mend 0"]


def test_a_deleted_machine_is_made_anew_with_the_steps_that_ran_on_it(world: World) -> None:
    del world.machines["spdk-k8s-dev-worker1"]
    assert world.up() == 0
    urn = f"urn:pulumi:dev::spdk-k8s::{CONTAINER}::dev-worker1"
    assert world.done[2:6] == [
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
    monkeypatch.setattr(running, "POLL", 0.01)
    monkeypatch.setattr(mend, "rebind_released", lambda cluster: asked.set() if cluster == "c" else None)
    found: Any = SimpleNamespace(cluster="c")
    with running.volumes_kept_bound(found):
        assert asked.wait(5)
    time.sleep(0.05)
    asked.clear()
    time.sleep(0.05)
    assert not asked.is_set()
    with running.volumes_kept_bound(None):
        pass


def test_a_look_needs_the_outputs_of_a_whole_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = {"type": "pulumi:pulumi:Stack", "outputs": {"numinst": 3}}
    assert Running.look(state(stack)) is None
    outputs = {
        "numinst": 1, "kubeconfig": "k", "vhost": {"backend": "b", "reason": "r"}, "nodes": {}, "vms": [],
        "targets": {}, "disks": [], "pages": [], "streams": [],
    }  # fmt: skip
    stack["outputs"] = outputs
    monkeypatch.setattr(views, "connect", lambda found: f"cluster with {found.kubeconfig}")
    monkeypatch.setattr(views, "look", lambda cluster, _: f"seen in {cluster}")
    monkeypatch.setattr(check, "find", lambda seen: [Drift(seen)])
    looked = Running.look(state(stack))
    assert looked is not None
    assert looked.drifts == [Drift("seen in cluster with k")]


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["up", "lab", "--numinst", "7", "--forget", "worker3"])
    monkeypatch.setenv("ALLOW", "blank")
    expected = ("lab", "7", {"blank"}, "worker3")
    monkeypatch.setattr(up, "up", lambda stack, *more: 3 if (stack.name, *more) == expected else 0)
    assert up.main() == 3


def test_an_instance_that_moves_leaves_its_vm_before_pulumi_makes_its_volume_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulumi would wait until no pod uses the volume, and none ever stops."""
    monkeypatch.setattr(mend, "remake", lambda _, name: world.done.append(f"remake {name}"))
    costs = Impact(pages={1: Away(Cause.SWAP)}, moved={1: "worker4 → worker2"}, blank={1: True})
    assert costing(world, costs).up() == up.NOT_ALLOWED
    assert not any(done.startswith("remake") for done in world.done)
    world.done.clear()
    assert world.up("", "interrupt", "blank") == 0
    assert world.done[1:4] == ["preview", "remake vhost-1", f"{UP} --refresh"]

    def stays(*_: object) -> None:
        raise TimeoutError("it is still there after 120 s")

    monkeypatch.setattr(mend, "remake", stays)
    with pytest.raises(SystemExit, match=r"instance 1 does not leave its VM: .*still there.*; remedy: make up"):
        world.up("", "interrupt", "blank")
    assert world.done[-1] == "preview"


def test_the_node_of_a_vm_that_is_removed_does_not_stay_listed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter([("master", "worker1", "worker2", "worker3"), ("master", "worker1", "worker2")])

    def look() -> Running:
        seen: Any = SimpleNamespace(made=SimpleNamespace(nodes=dict.fromkeys(next(names), "192.0.2.9"), pages=[]))
        cluster: Any = "cluster"
        return Running(cluster, seen, [])

    monkeypatch.setattr(world, "look", look)
    assert world.up() == 0
    assert world.done == ["locks of dev", "preview", UP, "forget worker3", "settle", "status"]


SERVER = {"hostKey": "ssh-ed25519 AAAA"}
RACK: dict[str, Any] = {
    "kind": "ssh",
    "master": {"address": "192.0.2.2", **SERVER},
    "storage": [
        {
            **{"name": "worker1", "address": "192.0.2.3", "hostKey": "ssh-ed25519 AAAAB"},
            "vms": [{"name": "worker2", "address": "192.0.2.4", "gateway": "192.0.2.1"}],
        },
        {
            **{"name": "worker3", "address": "192.0.2.5", "hostKey": "ssh-ed25519 AAAAC"},
            "vms": [{"name": "worker4", "address": "192.0.2.6"}],
        },
    ],
}


def lab(world: World, storage: int) -> World:
    """A stack of two storage hosts; its config file still has the first `storage` of them."""
    raw = {"spdk-k8s:machines": json.dumps(RACK)}
    there = {**made(), "config": exported_config(load(raw, preview=True))}
    gone = {"dependencies": [f"urn:pulumi:dev::spdk-k8s::command:remote:Command::{n}" for n in ("worker4-vm", "other")]}
    world.exported = state(
        {"urn": STACK, "type": "pulumi:pulumi:Stack", "outputs": there},
        step("lab-worker1-ready"),
        step("lab-worker3-ready", "192.0.2.5") | {"protect": True},
        resource("worker4", "spdk-k8s:index:WorkerVm"),
        step("worker4-vm", "192.0.2.5"),
        resource("vhost-worker3", "kubernetes:apps/v1:Deployment"),
        resource("app-vs-p2", "kubernetes:apps/v1:StatefulSet", **gone),
    )
    config = {"config": {"spdk-k8s:machines": {**RACK, "storage": RACK["storage"][:storage]}}}
    world.config.write_text(json.dumps(config))
    return world


def test_a_storage_host_that_is_gone_for_good_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(views, "connect", lambda _: "cluster")
    assert lab(world, 1).up(forget="worker3") == 0
    assert world.done[:6] == ["locks of dev", "forget worker3", "forget worker4", "put", "mend 0", "preview"]
    assert world.exported
    left = cli.resources(world.exported)
    assert [r["urn"].rpartition("::")[2] for r in left] == [
        "spdk-k8s-dev", "lab-worker1-ready", "vhost-worker3", "app-vs-p2"
    ]  # fmt: skip
    assert [urn.rpartition("::")[2] for urn in left[-1]["dependencies"]] == ["other"]
    assert "forgot 3 steps of worker3 and worker4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "storage", "rule"),
    [
        ("worker3", 2, "the config still names worker3 or worker4"),
        ("worker9", 1, "no such storage host; nothing was changed; remedy: FORGET= one of worker1, worker3"),
        ("worker1", 0, "the config still names worker1 or worker2, or cannot be used"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(world: World, host: str, storage: int, rule: str) -> None:
    with pytest.raises(SystemExit, match=rule):
        lab(world, storage).up(forget=host)
    assert world.done == ["locks of dev"]


def test_a_host_that_is_away_holds_nobody_up_and_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] == "192.0.2.5":
            raise TimeoutError
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", dial)
    steps = ("worker4-vm", "cluster-worker4-join", "cluster-worker3-join")
    away = [Drift("node worker3 is not Ready", steps), Drift("node worker1 is not Ready", ("lab-worker1-ready",))]
    lab(world, 2).looks = [away, away, []]
    world.settled = away[:1]
    assert world.up() == 1, "not all is as configured"
    assert world.done[2] == "put lab-worker1-ready"
    assert f"{UP} --refresh --continue-on-error" in world.done
    said = capsys.readouterr().err
    assert "away: worker3 (192.0.2.5) does not answer at port 22: worker3 and worker4 are left as they are" in said
    assert "make up FORGET=worker3" in said


BOOTS = Impact(pages={0: Away(Cause.GUEST), 1: Away(Cause.GUEST)}, vms={"worker2": True}, blank={1: True})


def costing(world: World, costs: Impact = BOOTS) -> World:
    world.plan.impact = lambda seconds: costs  # type: ignore[method-assign]
    return world


def test_what_takes_pages_or_data_away_needs_a_word_and_nothing_was_changed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.config.write_text("config: {}\n")
    assert costing(world).up("5", "interrupt") == 3
    assert world.done == ["locks of dev", f"preview --config-file {cli.STATE}/dev.yaml"]  # which has numinst 5
    assert world.config.read_text() == "config: {}\n"
    said = capsys.readouterr()
    assert "  VMs that boot anew   worker2\n" in said.out
    assert "This change needs your consent:\n  blank: disks 1 go blank; on them: playlist mp4-2" in said.out
    assert "  interrupt:" not in said.out
    assert said.err == "the change was not made; remedy: make up STACK=dev NUMINST=5 ALLOW=interrupt,blank\n"


def test_with_the_words_it_is_done(world: World) -> None:
    assert costing(world).up("", "interrupt", "blank") == 0
    assert world.done == ["locks of dev", "preview", UP, "settle", "status"]


def test_what_differs_is_mended_before_the_change_is_asked_for(world: World) -> None:
    """As where a key is changed while a node is away: its steps run again with the `up` that follows."""
    world.looks = [[Drift("node worker1 is not Ready", ("cluster-worker1-join",))]]
    assert costing(world).up() == 3
    assert world.done[1:] == ["preview", "put cluster-worker1-join", "mend 1", "preview --refresh"]


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 3), ("n", 3), (None, 3)])
def test_a_terminal_is_asked(world: World, monkeypatch: pytest.MonkeyPatch, answer: str | None, code: int) -> None:
    def typed(_: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", typed)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert costing(world).up() == code
    assert (UP in world.done) == (code == 0)


@pytest.mark.parametrize(
    ("text", "words"), [("", set()), ("blank", {"blank"}), ("interrupt, blank,", {"interrupt", "blank"})]
)
def test_words(text: str, words: set[str]) -> None:
    assert up.allowed(text) == words


def test_a_word_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"ALLOW = 'blanc': 'blanc' is none of interrupt, blank; nothing was changed"):
        up.allowed("blanc")


def test_a_config_that_is_edited_after_the_preview_is_not_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.config.write_text("config: {}\n")
    monkeypatch.setattr("builtins.input", lambda _: world.config.write_text("config: {a: 1}\n") and "y")
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit, match=r"Pulumi.dev.yaml was edited after this run's preview; the change was not"):
        costing(world).up()
    assert UP not in world.done


def test_the_clis_own_salt_is_no_edit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.config.write_text("config: {}\n")
    monkeypatch.setattr(world, "select", lambda: world.config.write_text("encryptionsalt: v1\nconfig: {}\n") and Done)
    assert world.up() == 0


class Done:
    wait = staticmethod(lambda: 0)


@pytest.mark.parametrize(
    ("plan", "code", "said"),
    [
        (Preview(refusals=["machines.subnet: only a new stack"]), 1, "make up refuses this:\n✗ machines.subnet: only"),
        (Preview(violations=["host-access: web"], code=255), 255, "Policies that do not hold:\n✗ host-access: web"),
        (Preview(errors=["numinst = 0: must be"], code=255), 255, "Errors:\nnuminst = 0: must be"),
    ],
)
def test_what_the_preview_refuses_changes_nothing(
    world: World, capsys: pytest.CaptureFixture[str], plan: Preview, code: int, said: str
) -> None:
    world.plan = plan
    assert world.up("5", "interrupt", "blank") == code
    assert said in capsys.readouterr().out
    assert not any(UP in line or "config set" in line for line in world.done)


def test_a_preview_that_was_wrong_is_told_by_a_code_of_its_own(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.differences = ["pod app-vs-p2-2 restarted"]
    assert world.up() == 4
    assert "the preview was wrong: pod app-vs-p2-2 restarted\n" in capsys.readouterr().err
    drift = Drift("pod app-vs-p2-2 is missing")
    world.looks = [[drift]]  # what was mended restarted it
    assert world.up() == 0
    world.looks, world.settled = [[]], [drift]  # how it stands counts more
    assert world.up() == 1


def test_how_long_pages_were_away_is_kept_for_the_next_preview(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = pages.Watch({}, lambda _: True)
    watch.longest = {0: 97.32, 1: 101.5}
    monkeypatch.setattr(running, "watched", lambda *_: watch)
    assert costing(world).up("", "interrupt", "blank") == 0
    assert "pages were away for at most 102 s (page 1)\n" in capsys.readouterr().out
    assert pages.record("dev") == {Cause.GUEST: 101.5}
    assert pages.file("dev").stat().st_mode & 0o777 == 0o600


def test_what_the_preview_said_is_due_unless_something_had_to_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "undone", lambda said, before, after: [f"{before} {after}"])
    seen: Any = "after"
    for drifts, expected in (([], ["before after"]), ([Drift("x")], [])):
        before: Any = SimpleNamespace(seen="before", drifts=drifts)
        assert running.due(before, BOOTS)(seen) == expected
    assert running.due(None, BOOTS)(seen) == running.due(before, None)(seen) == []


def test_only_pages_of_the_stack_are_watched() -> None:
    """At the old address and the new one: a change of a port moves them."""
    found: Any = SimpleNamespace(seen=SimpleNamespace(made=views.Outputs.parse(made())))
    after = {"pages": ["http://192.0.2.4:9080/", "http://198.51.100.1:9081/"]}
    watch = running.watched(found, BOOTS, after)
    assert watch.pages == {
        0: ["http://192.0.2.4:8080/", "http://192.0.2.4:9080/"],
        1: ["http://192.0.2.4:8081/"],
    }
    assert running.watched(None, BOOTS, {}).pages == {}
