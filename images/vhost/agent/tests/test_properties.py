"""What must hold whatever happens, in whatever order: no VM ever reaches another disk than it was plugged in with, none
is taken from it or blanked, QEMU is never made to wait for ever; no disk is served without the limits that the agent
knows of; and in the end every disk is where it is wanted, with its limits."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from disk_agent.agent import Agent
from disk_agent.config import NO_LIMITS, Config, Disk, Kind, Limits
from disk_agent.machine import Do, State
from disk_agent.qsd import StorageDaemon
from disk_agent.spdk import Spdk
from fakes import SCRAP, FakeQemu, FakeQsd, FakeSpdk, Supervised, World, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

MOST = 4
LIMITS = st.sampled_from([NO_LIMITS, Limits(iops=1000), Limits(mibPerSecond=5), Limits(writeMibPerSecond=1)])


class Host(RuleBasedStateMachine):
    """One storage host with two VMs. Every rule is one thing that happens between two steps of the agent."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="a"))
        for name in ("s", "run", "a", "b", "m"):
            (self.folder / name).mkdir()
        self.sockets, self.run_folder = self.folder / "s", self.folder / "run"
        self.world = World()
        self.count, self.files = 2, "a"
        self.refuses = False
        self.limits = dict.fromkeys(range(MOST), NO_LIMITS)
        self.agent: Agent | None = None

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(backend=st.sampled_from(["qsd", "spdk"]), bdev=st.sampled_from(["malloc", "aio"]))
    def begin(self, backend: str, bdev: str) -> None:
        self.backend = backend
        self.kind = Kind(bdev, 1, 4096, 1)
        self.fake: FakeQsd | FakeSpdk = (
            FakeQsd(self.run_folder, self.world)
            if backend == "qsd"
            else FakeSpdk(self.run_folder, self.sockets, self.world)
        )
        self.fake.opened = self.opened
        self.qemus = [FakeQemu(name, self.sockets, self.world) for name in ("vm", "vm-2")]
        self.configure()
        self.do(self.pod())
        for qemu in self.qemus:
            self.do(qemu.start())

    # --- the pod: agent and target, which end together --------------------------------------------------------------

    def path(self, i: int) -> str:
        if self.kind.bdev == "aio":
            return str(self.folder / self.files / f"vhost.{i}")
        return str(self.folder / "m" / f"vhost.{i}")

    def configure(self) -> None:
        disks = {i: Disk(i, ("vm", "vm-2")[i % 2], i // 2, self.path(i), self.limits[i]) for i in range(self.count)}
        config = Config(self.kind, {"vm": "vm", "vm-2": "vm-2"}, disks)
        write_config(self.folder / "vhost.json", config)

    async def pod(self) -> None:
        await self.end_pod()
        await self.fake.start()
        target: Any = (
            StorageDaemon(self.kind, self.sockets, self.run_folder)
            if self.backend == "qsd"
            else Spdk(self.kind, self.sockets, (), self.run_folder)
        )
        supervisor = Supervised(target)
        self.agent = Agent(self.folder / "vhost.json", self.kind, self.sockets, target, supervisor)
        await supervisor.rise()

    async def end_pod(self) -> None:
        if self.agent:
            await self.agent.close()
            await self.agent.supervisor.fall()  # type: ignore[attr-defined]
        await self.fake.stop()

    def opened(self, path: str, content: str) -> None:
        """A VM can reach it from this moment on."""
        assert self.agent
        i = int(path.rpartition(".")[2])
        if content != SCRAP and not self.refuses and self.fake.limits(i) != self.agent.disks()[i].limits:
            self.world.harm.append(f"{path} is served with limits {self.fake.limits(i)}")

    # --- what happens ----------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 3))
    def the_agent_takes_steps(self, steps: int) -> None:
        assert self.agent
        self.agent.read_config()
        self.do(self.agent.connect_vms())
        for _ in range(steps):
            self.do(self.agent.sweep(limit=1))

    @rule()
    def the_agent_has_time(self) -> None:
        assert self.agent
        self.agent.look_again()
        self.do(self.agent.tick())

    @rule()
    def the_target_is_killed(self) -> None:
        async def kill() -> None:
            assert self.agent
            await self.agent.supervisor.fall()  # type: ignore[attr-defined]
            await self.fake.stop()
            await self.fake.start()
            await self.agent.supervisor.rise()  # type: ignore[attr-defined]

        self.do(kill())

    @rule()
    def the_agent_is_killed(self) -> None:
        """Its container starts again; the pod's memory is the same."""
        self.do(self.pod())

    @rule()
    def the_pod_is_deleted(self) -> None:
        """Its successor has other memory."""

        async def renew() -> None:
            await self.end_pod()
            shutil.rmtree(self.folder / "m")
            (self.folder / "m").mkdir()
            await self.pod()

        self.do(renew())

    @rule(i=st.integers(0, 1))
    def a_qemu_is_killed(self, i: int) -> None:
        self.do(self.qemus[i].stop())

    @rule(i=st.integers(0, 1))
    def a_qemu_starts(self, i: int) -> None:
        if not self.qemus[i].listening:
            self.do(self.qemus[i].start())

    @rule(i=st.integers(0, 1), obedient=st.booleans())
    def a_guest_is_busy_or_not(self, i: int, obedient: bool) -> None:
        self.qemus[i].obedient = obedient
        self.qemus[i].let_go()

    @rule(count=st.integers(1, MOST))
    def n_changes(self, count: int) -> None:
        self.count = count
        self.configure()

    @rule(i=st.integers(0, MOST - 1), limits=LIMITS)
    def limits_change(self, i: int, limits: Limits) -> None:
        self.limits[i] = limits
        self.configure()

    @rule(refuses=st.booleans())
    def the_target_refuses_limits_or_not(self, refuses: bool) -> None:
        self.refuses = refuses
        self.fake.fails = dict.fromkeys(("qom-set", "bdev_set_qos_limit"), "no") if refuses else {}

    @rule()
    def the_pods_let_go_of_what_is_not_wanted(self) -> None:
        self.release()

    def release(self) -> None:
        assert self.agent
        self.agent.read_config()
        self.do(self.agent.connect_vms())
        for vm in ("vm", "vm-2"):
            self.agent.release(vm, set(range(self.count)))

    @rule()
    def the_folder_of_files_changes(self) -> None:
        """As by `config set vhost.files`: the pod is made anew."""
        self.files = "b" if self.files == "a" else "a"
        self.configure()
        self.do(self.pod())

    @rule(i=st.integers(0, MOST - 1))
    def a_chardev_is_left_by_a_broken_step(self, i: int) -> None:
        self.qemus[i % 2].chardevs.setdefault(f"disk-{i}-{i // 2}-0123456789ab", str(self.sockets / f"vhost.{i}"))

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def no_harm(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            if self.agent:
                self.converges()
        finally:
            self.do(self.end_pod()) if self.agent else None
            for qemu in self.world.qemus:
                self.do(qemu.stop())
            self.do(asyncio.sleep(0))
            self.loop.close()
            shutil.rmtree(self.folder)

    def converges(self) -> None:
        """Nothing else goes wrong for a while: everything is as it is wanted then."""
        assert self.agent
        for i, qemu in enumerate(self.qemus):
            self.a_qemu_starts(i)
            qemu.obedient = True
            qemu.let_go()
        self.the_target_refuses_limits_or_not(refuses=False)
        self.the_agent_has_time()
        self.release()
        for _ in range(60):
            self.the_agent_has_time()
            self.world.check()
            if self.settled():
                return
            self.do(asyncio.sleep(0.002))
        raise AssertionError((self.agent.report(), self.world.contents, [q.devices for q in self.qemus]))

    def settled(self) -> bool:
        assert self.agent
        wanted = set(range(self.count))
        has = {f"{q.path.stem} {d.path}": d for q in self.qemus for d in q.devices.values()}
        there = {f"{('vm', 'vm-2')[i % 2]} {self.sockets / f'vhost.{i}'}" for i in wanted}
        return (
            set(has) == there
            and {i for i, s in self.agent.steps.items() if s.state is State.PLUGGED} == wanted == set(self.agent.steps)
            and all(d.content == self.world.contents.get(d.path) != SCRAP for d in has.values())
            and len(self.world.contents) == self.count
            and all(self.fake.limits(i) == self.limits[i] for i in wanted)
        )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("backend", ["qsd", "spdk"])
@pytest.mark.parametrize("bdev", ["malloc", "aio"])
@given(changes=st.lists(st.tuples(st.integers(0, MOST - 1), LIMITS), max_size=12))
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_limits_change_and_nothing_else_does(backend: str, bdev: str, changes: list[tuple[int, Limits]]) -> None:
    host = Host()
    host.begin(backend, bdev)
    try:
        host.n_changes(MOST)
        host.converges()
        assert host.agent
        others = {key: n for key, n in host.agent.actions.items() if key[0] != Do.LIMIT}
        for i, limits in changes:
            host.limits_change(i, limits)
            host.the_agent_has_time()
            host.the_agent_has_time()
            assert host.settled()
            host.world.check()
        assert {key: n for key, n in host.agent.actions.items() if key[0] != Do.LIMIT} == others
    finally:
        host.teardown()


@pytest.mark.usefixtures("quick")
def test_whatever_happens_no_disk_is_harmed_and_all_come_to_rest() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    limits = settings(
        max_examples=20,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(Host, settings=limits)
