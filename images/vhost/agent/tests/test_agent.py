"""The agent's loop, its VMs and its HTTP server against fakes: bad input of every kind, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from disk_agent import agent as agents
from disk_agent import monitor, web
from disk_agent import vm as vms
from disk_agent.agent import Agent
from disk_agent.config import NO_LIMITS, BadConfig, Config, Disk, Kind, Limits, parse
from disk_agent.monitor import Refused, Silent
from disk_agent.qsd import StorageDaemon
from disk_agent.target import Counts, Direction, Reactor
from disk_agent.vm import accepts
from fakes import FakeQemu, FakeQsd, Supervised, VhostSocket, World, write_config

KIND = Kind("aio", 1, 4096, 2)


class Host:
    """A pod with qemu-storage-daemon, and a VM."""

    def __init__(self, folder: Path) -> None:
        for name in ("run", "s", "d"):
            (folder / name).mkdir(exist_ok=True)
        self.folder, self.sockets, self.world = folder, folder / "s", World()
        self.fake = FakeQsd(folder / "run", self.world)
        self.qemu = FakeQemu("vm", self.sockets, self.world)
        self.agent = self.another()

    def another(self) -> Agent:
        target = StorageDaemon(KIND, self.sockets, self.folder / "run")
        return Agent(self.folder / "vhost.json", KIND, self.sockets, target, Supervised(target))

    def want(self, count: int, vm: str = "vm", limits: Mapping[int, Limits] | None = None, **other: Any) -> None:
        paths = {i: str(self.folder / "d" / f"vhost.{i}") for i in range(count)}
        disks = {i: Disk(i, vm, i, path, (limits or {}).get(i, NO_LIMITS)) for i, path in paths.items()}
        write_config(self.folder / "vhost.json", Config(replace(KIND, **other), {vm: "vm-1"}, disks))

    async def up(self, count: int = 2) -> None:
        self.want(count)
        await self.fake.start()
        await self.qemu.start()
        await self.agent.supervisor.rise()  # type: ignore[attr-defined]
        await self.pass_time()

    async def pass_time(self, times: int = 6) -> None:
        for _ in range(times):
            self.agent.look_again()
            await self.agent.tick()
            await asyncio.sleep(0.003)

    async def down(self) -> None:
        await self.agent.close()
        await self.agent.supervisor.fall()  # type: ignore[attr-defined]
        await self.fake.stop()
        for qemu in self.world.qemus:
            await qemu.stop()
        await asyncio.sleep(0)
        self.world.check()

    @property
    def states(self) -> dict[int, str]:
        return {d["ordinal"]: d["state"] for d in self.agent.report()["disks"]}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(work)


def test_n_grows_and_shrinks_with_nothing_else_touched(host: Host) -> None:
    async def work() -> None:
        await host.up(3)
        assert host.states == dict.fromkeys(range(3), "plugged")
        assert host.agent.ready
        (add,) = [a for c, a in host.qemu.told if c == "device_add" and a["id"].startswith("disk-2-")]
        assert (add["bus"], add["num-queues"]) == ("port-2", 2)
        told = len(host.qemu.told)
        host.want(24)
        await host.pass_time()
        assert host.states == dict.fromkeys(range(24), "plugged")
        host.want(3)
        await host.pass_time()
        assert host.states == dict.fromkeys(range(3), "plugged") | dict.fromkeys(range(3, 24), "leaving")
        assert "its user has not let go of it yet" in host.agent.why(5)
        assert host.agent.release("vm", {0, 1, 2}) == set(range(3, 24))
        await host.pass_time()
        assert host.states == dict.fromkeys(range(3), "plugged")
        assert not [
            a for c, a in host.qemu.told[told:] if c == "device_del" and a["id"].startswith(("disk-0-", "disk-1-"))
        ]
        assert (host.folder / "d/vhost.20").exists(), "a file outlives its disk"
        await host.down()

    run(work())


def test_a_disk_that_left_and_is_wanted_again_has_a_user_again(host: Host) -> None:
    async def work() -> None:
        await host.up(2)
        host.agent.release("vm", {0})
        host.want(1)
        host.qemu.obedient = False
        await host.pass_time()
        host.want(2)
        await host.pass_time()
        assert not host.agent.notes.released
        host.want(1)
        await host.pass_time()
        assert host.states[1] == "leaving"
        await host.down()

    run(work())


def test_notes_outlive_the_agent(host: Host) -> None:
    """N was made smaller, the pod is still there, and agent and target die: its disk goes on."""

    async def work() -> None:
        await host.up(2)
        host.want(2, limits={1: Limits(iops=2000)})
        await host.pass_time()
        host.want(1)
        await host.pass_time()
        await host.agent.close()
        await host.agent.supervisor.fall()  # type: ignore[attr-defined]
        await host.fake.stop()
        host.agent = host.another()
        await host.fake.start()
        await host.agent.supervisor.rise()  # type: ignore[attr-defined]
        await host.pass_time()
        assert host.states == {0: "plugged", 1: "leaving"}
        assert len(host.world.contents) == 2
        assert (host.sockets / "agent.json").stat().st_mode & 0o777 == 0o600
        assert host.another().notes.disks[1].limits == Limits(iops=2000)
        await host.down()
        (host.sockets / "agent.json").write_text("{")
        assert host.another().notes.disks == {}

    run(work())


def test_one_bad_disk_harms_no_other(host: Host) -> None:
    """D7"""

    async def work() -> None:
        (host.folder / "d/vhost.7").write_bytes(b"somebody's data")
        await host.up(24)
        assert host.states == dict.fromkeys(range(24), "plugged") | {7: "refused"}
        assert "/vhost.7 has 15 bytes, and vhost.diskMib says 1048576: nothing is changed on it" in host.agent.why(7)
        assert host.agent.ready, "all that can be served is"
        (host.folder / "d/vhost.7").unlink()
        await host.pass_time()
        assert host.states[7] == "plugged"
        await host.down()

    run(work())


def test_a_device_that_does_not_answer_holds_up_no_other(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    never = asyncio.Event()
    look = StorageDaemon.look

    async def slow(self: StorageDaemon, disk: Disk) -> str | None:
        if disk.ordinal == 1:
            await never.wait()
        return await look(self, disk)

    monkeypatch.setattr(StorageDaemon, "look", slow)
    monkeypatch.setattr(agents, "LOOK_WITHIN", 0.01)

    async def work() -> None:
        await host.up(3)
        assert host.states == {0: "plugged", 1: "refused", 2: "plugged"}
        assert host.agent.why(1).endswith("/vhost.1 does not answer")
        never.set()
        await host.pass_time()
        assert host.states[1] == "plugged"
        await host.down()

    run(work())


def test_a_target_that_refuses_is_told_in_its_own_words(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        host.fake.fails["blockdev-add"] = "Permission denied"
        await host.up(1)
        assert host.agent.why(0) == "blockdev-add: Permission denied"
        assert not host.agent.ready
        assert "vhost.0: blockdev-add: Permission denied" in capsys.readouterr().err
        assert host.agent.actions["serve", "failed"] > 2
        host.fake.fails.clear()
        await host.pass_time()
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


def test_a_target_that_goes_away_is_waited_for(host: Host) -> None:
    async def work() -> None:
        await host.up(1)
        await host.fake.stop()
        host.agent.supervisor.said = "the target ended with signal 9: "
        await host.pass_time(1)
        await host.agent.supervisor.fall()  # type: ignore[attr-defined]
        await host.pass_time(1)
        assert host.agent.why(0) == "the target ended with signal 9: "
        assert not host.agent.ready
        await host.fake.start()
        await host.agent.supervisor.rise()  # type: ignore[attr-defined]
        await host.pass_time()
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


def test_a_guest_that_does_not_let_go_is_named_and_asked_again(host: Host) -> None:
    async def work() -> None:
        await host.up(1)
        host.qemu.obedient = False
        host.want(0)
        host.agent.release("vm", set())
        await host.pass_time()
        assert "the guest of vm was asked" in host.agent.why(0)
        assert len([c for c, _ in host.qemu.told if c == "device_del"]) > 1
        host.qemu.obedient = True
        await host.pass_time()
        assert host.states == {}
        await host.down()

    run(work())


def test_a_guest_that_reboots_while_its_disks_change(host: Host) -> None:
    """QEMU goes on; what was asked of the guest is lost, and asked again."""

    async def work() -> None:
        await host.up(2)
        host.qemu.obedient = False
        host.want(3)
        host.agent.release("vm", {0})
        await host.pass_time(2)
        host.qemu.leaving.clear()
        host.qemu.event("RESET")
        host.qemu.obedient = True
        await host.pass_time()
        assert host.states == dict.fromkeys(range(3), "plugged")
        await host.down()

    run(work())


# --- limits --------------------------------------------------------------------------------------------------------


def test_limits_come_change_and_go_while_the_disks_are_used(host: Host) -> None:
    async def work() -> None:
        await host.up(3)
        told, asked = len(host.fake.told), len(host.qemu.told)
        for limits in (Limits(iops=2000), Limits(readMibPerSecond=5, writeMibPerSecond=1), Limits(mibPerSecond=7)):
            host.want(3, limits={1: limits})
            await host.pass_time(2)
            assert host.fake.limits(1) == limits
            assert host.agent.report()["disks"][1]["limitsInForce"] == limits.set
        host.want(3)
        await host.pass_time(2)
        assert [host.fake.limits(i) for i in range(3)] == [Limits()] * 3
        changed = [(c, a.get("path")) for c, a in host.fake.told[told:] if not c.startswith(("query-", "qom-get"))]
        assert changed == [("qom-set", "/objects/vhost.1")] * 4
        assert not [c for c, _ in host.qemu.told[asked:] if c in ("device_add", "device_del")]
        await host.down()

    run(work())


def test_limits_hold_before_a_vm_can_reach_a_target_that_was_killed(host: Host) -> None:
    async def work() -> None:
        await host.up(1)
        host.want(1, limits={0: Limits(iops=2000)})
        await host.pass_time(2)
        await host.agent.supervisor.fall()  # type: ignore[attr-defined]
        await host.fake.stop()
        await host.fake.start()
        told = len(host.fake.told)
        await host.agent.supervisor.rise()  # type: ignore[attr-defined]
        await host.pass_time(2)
        assert host.fake.limits(0) == Limits(iops=2000)
        after = [command for command, _ in host.fake.told[told:]]
        assert after.index("qom-set") < after.index("block-export-add")
        await host.down()

    run(work())


def test_limits_that_the_target_refuses_keep_no_disk_away(host: Host) -> None:
    async def work() -> None:
        host.fake.fails["qom-set"] = "no"
        host.want(2, limits={0: Limits(iops=2000)})
        await host.fake.start()
        await host.qemu.start()
        await host.agent.supervisor.rise()  # type: ignore[attr-defined]
        await host.pass_time()
        assert host.states == {0: "plugged", 1: "plugged"}
        assert host.agent.ready
        assert (host.agent.why(0), host.agent.why(1)) == ("qom-set: no", "")
        refused, other = host.agent.report()["disks"]
        assert (refused["limits"], refused["limitsInForce"]) == ({"iops": 2000}, {})
        assert (other["limits"], other["limitsInForce"]) == ({}, {})
        host.fake.fails.clear()
        await host.pass_time(8)
        assert (host.agent.why(0), host.fake.limits(0)) == ("", Limits(iops=2000))
        await host.down()

    run(work())


def test_limits_that_are_refused_hold_up_no_other_action(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPDK refuses other limits until a VM has the disk: the VM must get it."""
    monkeypatch.setattr(agents, "FIRST_RETRY", 60)

    async def work() -> None:
        await host.fake.start()
        host.want(1)
        await host.agent.supervisor.rise()  # type: ignore[attr-defined]
        await host.pass_time()
        host.fake.fails["qom-set"] = "not now"
        host.want(1, limits={0: Limits(iops=2000)})
        await host.pass_time()
        assert (host.states, host.agent.why(0)) == ({0: "served"}, "qom-set: not now")
        host.fake.fails.clear()
        await host.qemu.start()
        await host.pass_time()
        assert (host.states, host.fake.limits(0)) == ({0: "plugged"}, Limits(iops=2000))
        await host.down()

    run(work())


# --- two VMs -------------------------------------------------------------------------------------------------------


def test_a_disk_that_goes_to_another_vm_waits_until_the_first_lets_go(host: Host) -> None:
    """U22: QEMU would wait for its socket for ever."""

    async def work() -> None:
        await host.up(1)
        second = FakeQemu("vm-2", host.sockets, host.world)
        await second.start()
        host.want(1, vm="vm-2")
        await host.pass_time()
        assert host.agent.why(0) == "vm has it at root port 0, and its user has not let go of it yet"
        assert not second.devices
        host.agent.release("vm", set())
        await host.pass_time()
        assert host.states == {0: "plugged"}
        assert not host.qemu.devices
        assert len(second.devices) == 1
        await host.down()

    run(work())


def test_a_vm_that_does_not_say_what_it_has_keeps_what_it_may_have(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "GREETS_WITHIN", 0.1)

    async def work() -> None:
        host.qemu.temper = "mute"
        await host.up(1)
        assert host.agent.why(0) == "vm may have it and does not answer"
        assert host.world.contents == {}, "it may have an earlier life, which must not reach this one"
        assert not host.agent.ready
        assert "does not greet" in host.agent.report()["vms"]["vm"]["why"]
        host.qemu.temper = ""
        await host.pass_time()
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


@pytest.mark.parametrize("temper", ["garbage", "half a line", "mute"])
def test_a_monitor_that_goes_away_in_the_middle_of_an_answer(
    host: Host, temper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = monitor.Monitor.ask

    async def ask(self: monitor.Monitor, command: str, arguments: Any = None, seconds: float = 10) -> Any:
        return await patient(self, command, arguments, 0.1 if self.path.name == "vm.qmp" else seconds)

    monkeypatch.setattr(monitor.Monitor, "ask", ask)
    monkeypatch.setattr(monitor, "GREETS_WITHIN", 0.1)

    async def work() -> None:
        await host.up(2)
        host.qemu.temper = temper
        await host.pass_time(2)
        assert host.agent.report()["vms"]["vm"]["qemu"] == "silent"
        assert host.states == {0: "plugged", 1: "plugged"}, "what it had it is taken to have"
        host.qemu.temper = ""
        await host.pass_time()
        assert host.agent.report()["vms"]["vm"]["qemu"] == "answers"
        assert host.states == {0: "plugged", 1: "plugged"}
        await host.down()

    run(work())


def test_qemu_that_answers_nonsense(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        await host.up(1)
        monkeypatch.setattr(host.qemu, "query_chardev", lambda: [{"strange": 1}])
        await host.pass_time(1)
        assert host.agent.report()["vms"]["vm"]["why"] == "QEMU of vm answers garbage"
        monkeypatch.undo()
        await host.pass_time(1)
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


def test_an_older_qemu_counts_seconds(host: Host) -> None:
    async def work() -> None:
        host.qemu.old = True
        await host.up(1)
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


def test_a_plug_that_fails_leaves_no_chardev(host: Host) -> None:
    async def work() -> None:
        host.qemu.fails["device_add"] = "slot 0 function 0 already occupied"
        await host.up(1)
        assert host.agent.why(0) == "device_add: slot 0 function 0 already occupied"
        assert not host.qemu.chardevs
        host.qemu.fails = {"chardev-add": "no"}
        await host.pass_time()
        assert host.agent.why(0) == "chardev-add: no"
        await host.down()

    run(work())


def test_a_plug_that_does_not_return_counts_as_done(host: Host) -> None:
    """The target died in this moment: QEMU waits for it, so it must serve what QEMU was told of."""

    async def work() -> None:
        await host.up(0)
        vm = host.agent.vms["vm"]
        made = VhostSocket(host.sockets / "vhost.0", host.world)
        await made.start()
        ask = vm.ask

        async def silent(command: str, arguments: dict[str, object] | None = None, seconds: float = 10) -> object:
            if command == "device_add":
                raise monitor.Silent("nothing")
            return await ask(command, arguments, seconds)

        vm.ask = silent  # type: ignore[method-assign]
        with pytest.raises(monitor.Silent):
            await vm.plug(0, 0, "0" * 12, 1)
        assert [d.life for d in vm.has(0)] == ["0" * 12]
        await made.stop()
        await host.down()

    run(work())


def test_a_socket_that_nobody_answers_at_is_not_given_to_qemu(tmp_path: Path) -> None:
    async def work() -> None:
        world = World()
        path = tmp_path / "vhost.0"
        with pytest.raises(Refused, match=r"cannot be used yet: .*No such file"):
            await accepts(path)
        made = VhostSocket(path, world)
        await made.start()
        await accepts(path)
        made.temper = "rude"
        with pytest.raises(Refused, match="does not speak vhost-user"):
            await accepts(path)
        await made.stop()
        with socket.socket(socket.AF_UNIX) as held:  # as by a target that is stopped
            path.unlink()
            held.bind(str(path))
            held.listen()
            with pytest.raises(Refused, match="another client holds it, or the target hangs"):
                await accepts(path, 0.05)

    run(work())


def test_a_device_by_hand_is_put_right(host: Host) -> None:
    async def work() -> None:
        await host.up(1)
        host.qemu.chardevs["disk-0"] = str(host.sockets / "nowhere")
        await host.pass_time()
        assert host.qemu.chardevs.keys() == host.qemu.devices.keys()
        (device,) = host.qemu.devices
        host.qemu.device_del(device)
        await host.pass_time()
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


def test_a_vm_of_an_earlier_definition_is_told(host: Host) -> None:
    async def work() -> None:
        host.qemu.definition = "vm-0"
        await host.up(1)
        assert host.agent.report()["vms"]["vm"]["outdated"]
        host.qemu.definition = "vm-1"
        await host.pass_time(1)
        assert not host.agent.report()["vms"]["vm"]["outdated"]
        await host.qemu.stop()
        await host.pass_time(2)
        assert host.agent.report()["vms"]["vm"] == {
            "qemu": "absent",
            "why": "QEMU of vm does not run",
            "booting": "",
            "resets": 0,
            "outdated": False,
        }
        await host.down()

    run(work())


# --- a guest that hangs as it boots --------------------------------------------------------------------------------


def resets(host: Host) -> int:
    return len([c for c, _ in host.qemu.told if c == "system_reset"])


async def later(host: Host, seconds: float) -> None:
    """As if the guest had started `seconds` earlier."""
    vm = host.agent.vms["vm"]
    assert vm.boot
    vm.boot = replace(vm.boot, since=vm.boot.since - seconds)
    await host.pass_time(3)


def test_a_guest_that_reads_nothing_is_reset_and_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """U26: its kernel hung before it had a root disk, for ever."""
    monkeypatch.setattr(vms, "LOOK_AT_BOOT", 0)

    async def work() -> None:
        host.qemu.reads = 0
        await host.up(1)
        assert resets(host) == 0
        assert "has not read its root disk" in host.agent.report()["vms"]["vm"]["booting"]
        await later(host, 29)
        assert resets(host) == 0
        await later(host, 2)
        assert resets(host) == 1
        assert "vm: reset (the guest has not read its root disk" in capsys.readouterr().err
        await later(host, 50)
        assert resets(host) == 1, "the second time it has twice as long"
        await later(host, 11)
        assert resets(host) == 2
        host.qemu.reads, host.qemu.card_open = 7, False
        await host.pass_time(2)
        assert "has not opened its network card" in host.agent.report()["vms"]["vm"]["booting"]
        host.qemu.card_open = True
        await host.pass_time(2)
        await later(host, 500)
        assert host.agent.report()["vms"]["vm"]["booting"] == ""
        assert host.agent.report()["vms"]["vm"]["resets"] == resets(host) == 2
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


def test_a_guest_that_somebody_else_resets_is_watched_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vms, "LOOK_AT_BOOT", 0)

    async def work() -> None:
        host.qemu.reads = 1000
        await host.up(1)
        host.qemu.system_reset()
        await host.pass_time(3)
        assert host.agent.report()["vms"]["vm"]["booting"]
        await later(host, 31)
        assert resets(host) == 1
        await host.down()

    run(work())


@pytest.mark.parametrize("broken", ["paused", "refuses", "garbage", "another"])
def test_only_a_guest_that_runs_and_hangs_is_reset(host: Host, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(vms, "LOOK_AT_BOOT", 0)

    async def work() -> None:
        host.qemu.reads = 0
        match broken:
            case "paused":
                host.qemu.running = False
            case "refuses":
                host.qemu.fails["query-blockstats"] = "no"
            case "garbage":
                monkeypatch.setattr(host.qemu, "query_blockstats", lambda: [{"device": "root"}], raising=False)
            case _:
                monkeypatch.setattr(host.qemu, "query_blockstats", list, raising=False)
        await host.up(1)
        await later(host, 1000)
        assert resets(host) == 0
        assert host.states == {0: "plugged"}
        await host.down()

    run(work())


# --- the config ----------------------------------------------------------------------------------------------------


def test_a_config_for_another_pod_is_left_to_that(host: Host) -> None:
    """D9: the ConfigMap changes before the pod does; nothing of the new kind is mixed into this one."""

    async def work() -> None:
        await host.up(2)
        host.want(1, block_size=512)
        await host.pass_time()
        assert host.states == {0: "plugged", 1: "plugged"}
        assert "disks of another kind (aio 1 512 2, this pod serves aio 1 4096 2)" in host.agent.why(0)
        assert not host.agent.ready
        await host.down()

    run(work())


def test_a_config_that_is_replaced_all_the_time_and_broken_at_times(host: Host) -> None:
    async def work() -> None:
        await host.up(2)
        for n in range(30):
            host.want(1 + n % 3)
            if n % 4 == 0:
                (host.folder / "vhost.json").write_text('{"bdev": "ai')
            if n % 7 == 0:
                (host.folder / "vhost.json").unlink()
            host.agent.look_again()
            await host.agent.tick()
        (host.folder / "vhost.json").unlink(missing_ok=True)
        await host.pass_time(1)
        assert "vhost.json" in host.agent.why(0)
        host.want(3)
        await host.pass_time()
        assert host.states == dict.fromkeys(range(3), "plugged")
        await host.down()

    run(work())


@pytest.mark.parametrize("text", ["[]", "{}", '{"bdev": 1}', "null", '{"bdev":"aio","mib":1,"blockSize":1,"queues":1}'])
def test_a_config_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadConfig):
        parse(json.loads(text))


# --- what it tells ---------------------------------------------------------------------------------------------------


async def get(address: Any, request: str) -> tuple[int, str]:
    reader, writer = (
        await asyncio.open_unix_connection(address)
        if isinstance(address, Path)
        else await asyncio.open_connection("127.0.0.1", address)
    )
    writer.write(f"{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_http(host: Host) -> None:
    async def work() -> None:
        port, local = free_port(), host.sockets / "agent.sock"
        serving = asyncio.create_task(web.serve(host.agent, port, local))
        while not local.exists():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert await get(port, "GET /started") == (503, "it was not started yet\n")
        assert (await get(port, "GET /ready"))[0] == 503
        assert (await get(port, "GET /disks"))[0] == 200
        assert await get(port, "GET /cpus") == (200, "{}"), "the host has no CPU plan"
        roles = {"target": {"cores": "0-1", "threads": 3}}
        (host.sockets / "cpus.json").write_text(json.dumps({"roles": roles, "astray": ["a thread"]}))
        told = json.loads((await get(port, "GET /cpus"))[1])
        assert 0 <= told.pop("age") < 60
        assert told == {"roles": roles, "astray": ["a thread"]}
        unread = (504, "the config was not read yet\n")
        assert await get(local, "GET /wait?vm=vm&disks=0&seconds=0") == unread
        assert await get(local, "POST /release?vm=vm&keep=0&seconds=0") == unread
        host.want(2, limits={0: Limits(iops=2000)})
        await host.fake.start()
        await host.qemu.start()
        await host.agent.supervisor.rise()  # type: ignore[attr-defined]
        running = asyncio.create_task(host.agent.run())
        assert await get(local, "GET /wait?vm=vm&disks=0,1&seconds=3") == (200, "")
        for probe in ("started", "ready", "alive"):
            assert await get(port, f"GET /{probe}") == (200, "yes\n"), probe
        code, said = await get(local, "GET /wait?vm=vm&disks=0,5&seconds=0")
        assert (code, said) == (504, "disk 5 is not in vm: missing: the config does not list it\n")
        code, said = await get(local, "GET /wait?vm=vm&disks=0&seconds=0&config=0123456789ab")
        assert (code, said) == (504, "kubelet has not passed on the changed config yet\n")
        assert host.agent.config
        assert (await get(local, f"GET /wait?vm=vm&disks=0&config={host.agent.config.digest}"))[0] == 200
        code, said = await get(local, "POST /release?vm=vm&keep=0&seconds=0")
        assert (code, said) == (504, "disk 1 is still in vm: the config lists it\n")
        host.want(1, limits={0: Limits(iops=3000)})
        assert await get(local, "POST /release?vm=vm&keep=0&seconds=3") == (200, "")
        told = json.loads((await get(port, "GET /disks"))[1])
        disk = {"ordinal": 0, "name": "vhost.0", "wanted": True, "vm": "vm", "state": "plugged", "why": ""}
        assert told["disks"] == [{**disk, "limits": {"iops": 3000}, "limitsInForce": {"iops": 3000}}]
        metrics = (await get(port, "GET /metrics"))[1]
        assert 'disk_agent_disk_state{disk="vhost.0",state="plugged"} 1.0' in metrics
        assert 'disk_agent_disk_limit{disk="vhost.0",limit="iops"} 3000.0' in metrics
        assert 'disk_agent_disk_limit_wanted{disk="vhost.0",limit="iops"} 3000.0' in metrics
        assert 'disk_agent_role_threads{cores="0-1",role="target"} 3.0' in metrics
        assert "disk_agent_target_up 1.0" in metrics
        assert "disk_agent_disk_requests_total{" not in metrics, "this target counts nothing"

        async def counts() -> Counts:
            return Counts({0: {"read": Direction(3, 12288, 0.5)}}, {2: Reactor(busy=1.5, idle=8.5)})

        async def silent() -> Counts:
            raise Silent("no answer")

        host.agent.target.counts = counts  # type: ignore[method-assign]
        counted = (await get(port, "GET /metrics"))[1]
        assert 'disk_agent_disk_request_seconds_total{direction="read",disk="vhost.0"} 0.5' in counted
        assert 'disk_agent_reactor_seconds_total{cpu="2",state="busy"} 1.5' in counted
        host.agent.target.counts = silent  # type: ignore[method-assign]
        assert (await get(port, "GET /metrics"))[1] == metrics
        assert 'disk_agent_actions_total{action="plug in",result="done"} 2.0' in metrics
        for request in ("GET /wait?vm=vm&disks=0", "POST /release?vm=vm&keep="):
            assert (await get(port, request))[0] == 404, "only on the host"
        host.agent.last_pass -= 61
        code, said = await get(port, "GET /alive")
        assert (code, said) == (503, "the agent has looked at no disk for 61 s\n")
        for task in (running, serving):
            task.cancel()
        await asyncio.gather(running, serving, return_exceptions=True)
        await host.down()

    run(work())
