"""Both targets alone, over real sockets: what is refused, what is left by a broken step, what answers garbage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from disk_agent import monitor, qsd, spdk
from disk_agent.backing import Backing, sparse
from disk_agent.config import NO_LIMITS, Disk, Kind, Limits
from disk_agent.machine import SCRAP
from disk_agent.monitor import Refused, Silent
from disk_agent.qsd import StorageDaemon
from disk_agent.spdk import Spdk
from disk_agent.target import Direction, Reactor, Target
from fakes import FakeQemu, FakeQsd, FakeSpdk, PluggedIn, World

NONE, SLOW = NO_LIMITS, Limits(iops=2000)
AIO, MALLOC, NVME = (Kind(bdev, 1, 4096, 1) for bdev in ("aio", "malloc", "nvme"))


Make = Callable[..., Coroutine[Any, Any, tuple[Any, Any]]]
Work = Callable[[Any, Any], Coroutine[Any, Any, None]]


def run(work: Work, host: Path, make: Make, kind: Kind = AIO) -> None:
    """`work` with a fake and the target that `make` connects to it; both end with it."""

    async def whole() -> None:
        fake, target = await make(host, kind)
        await work(fake, target)
        await target.close()
        await fake.stop()

    asyncio.run(whole())


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for name in ("run", "s", "d"):
        (tmp_path / name).mkdir()
    return tmp_path


async def daemon(host: Path, kind: Kind = AIO) -> tuple[FakeQsd, StorageDaemon]:
    fake = FakeQsd(host / "run", World())
    await fake.start()
    target = StorageDaemon(kind, host / "s", host / "run")
    await target.connect()
    return fake, target


async def spdk_target(host: Path, kind: Kind = AIO) -> tuple[FakeSpdk, Spdk]:
    fake = FakeSpdk(host / "run", host / "s", World())
    await fake.start()
    target = Spdk(kind, host / "s", ["-m", "0x1"], host / "run")
    await target.connect()
    return fake, target


BOTH = pytest.mark.parametrize("make", [daemon, spdk_target])


def at(path: Path | str) -> Disk:
    return Disk(0, "vm", 0, str(path))


def disk(host: Path, i: int = 0, limits: Limits = NONE) -> Disk:
    return Disk(i, "vm", i, str(host / "d" / f"vhost.{i}"), limits)


async def lives(target: Target) -> dict[int, str]:
    return {i: served.life for i, served in (await target.served()).items()}


@BOTH
def test_a_file_is_made_privately_and_served_by_what_it_is(host: Path, make: Make) -> None:
    os.umask(0o022)

    async def work(_: Any, target: Any) -> None:
        assert await target.look(disk(host)) is None
        await target.serve(disk(host), None)
        life = await target.look(disk(host))
        assert await lives(target) == {0: life}
        file = host / "d/vhost.0"
        assert file.stat().st_size == 1 << 20
        assert (file.stat().st_mode & 0o777, (host / "d").stat().st_mode & 0o777) == (0o600, 0o700)
        await target.stop(0)
        assert await lives(target) == {}
        await target.serve(disk(host), life)
        assert await lives(target) == {0: life}
        await target.ping()

    run(work, host, make)


@BOTH
def test_limits_are_in_force_when_the_disk_is_served_and_change_under_a_vm(host: Path, make: Make) -> None:
    async def work(fake: Any, target: Any) -> None:
        slow, slower = disk(host, limits=SLOW), disk(host, limits=Limits(readMibPerSecond=3))
        await target.serve(slow, None)
        await target.serve(disk(host, 1), None)
        assert {i: served.limits for i, served in (await target.served()).items()} == {0: SLOW, 1: NONE}
        vm = FakeQemu("vm", host / "s", fake.world)
        await vm.start()
        path = str(host / "s/vhost.0")
        vm.devices["d"] = PluggedIn("d", path, fake.world.contents[path])
        for limited in (slower, disk(host), slow):
            await target.limit(limited)
            assert (await target.served())[0].limits == fake.limits(0) == limited.limits
        await vm.stop()
        await target.stop(0)
        life = await target.look(slow)
        await target.serve(slow, life)
        assert (await target.served())[0].limits == SLOW

    run(work, host, make)


@BOTH
def test_a_disk_whose_limits_are_refused_is_served_without(host: Path, make: Make) -> None:
    async def work(fake: Any, target: Any) -> None:
        fake.fails = {"qom-set": "no", "bdev_set_qos_limit": "no"}
        await target.serve(disk(host, limits=SLOW), None)
        assert {i: served.limits for i, served in (await target.served()).items()} == {0: NONE}
        with pytest.raises(Refused, match="no"):
            await target.limit(disk(host, limits=SLOW))

    run(work, host, make)


def test_spdk_counts_its_disks_and_cores(host: Path) -> None:
    async def work(_: FakeSpdk, target: Spdk) -> None:
        await target.serve(disk(host), await target.look(disk(host)))
        await target.serve_scrap(1)
        counts = await target.counts()
        assert counts.disks == {0: {"read": Direction(3, 12288, 0.5), "write": Direction(2, 8192, 0.25)}}
        assert counts.reactors == {2: Reactor(busy=1.5, idle=8.5)}

    run(work, host, spdk_target)


def test_spdk_takes_other_limits_only_once_a_vm_was_there(host: Path) -> None:
    async def work(fake: Any, target: Any) -> None:
        await target.serve(disk(host, limits=SLOW), None)
        await target.limit(disk(host, limits=SLOW))
        with pytest.raises(Refused, match=r"Resource temporarily unavailable.*until a VM has used the disk"):
            await target.limit(disk(host, limits=Limits(iops=3000)))
        assert fake.limits(0) == SLOW

    run(work, host, spdk_target, MALLOC)


@BOTH
def test_another_file_at_the_same_path_is_another_disk(host: Path, make: Make) -> None:
    """D1: also when it has the same name and size."""

    async def work(fake: Any, target: Any) -> None:
        sparse(host / "d/vhost.0", 1 << 20)
        before = await target.look(disk(host))
        (host / "d/vhost.0").rename(host / "d/kept")
        sparse(host / "d/vhost.0", 1 << 20)
        assert await target.look(disk(host)) not in (None, before)
        with pytest.raises(Refused, match="another disk than a moment ago"):
            await target.serve(disk(host), before)
        assert await lives(target) == {}

    run(work, host, make)


@BOTH
def test_a_file_of_another_size_is_refused_and_kept(host: Path, make: Make) -> None:
    async def work(fake: Any, target: Any) -> None:
        (host / "d/vhost.0").write_bytes(b"somebody's data")
        with pytest.raises(Refused, match=r"has 15 bytes, and vhost\.diskMib says 1048576: nothing is changed on it"):
            await target.look(disk(host))
        assert (host / "d/vhost.0").read_bytes() == b"somebody's data"

    run(work, host, make)


@BOTH
def test_a_scrap_disk_is_empty_and_leaves_nothing(host: Path, make: Make) -> None:
    async def work(fake: Any, target: Any) -> None:
        await target.serve_scrap(2)
        assert await lives(target) == {2: SCRAP}
        if make is daemon:  # a device of the kind before may have more queues
            assert fake.exports["vhost.2"]["num_queues"] >= 64
        await target.stop(2)
        assert await lives(target) == {}
        assert not [p for p in (host / "run").iterdir() if "scrap" in p.name]

    run(work, host, make)


@BOTH
@pytest.mark.parametrize("temper", ["mute", "garbage", "half a line"])
def test_a_target_that_answers_nothing_half_or_garbage_is_silent(
    host: Path, make: Make, temper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = monitor.Monitor.ask
    monkeypatch.setattr(monitor.Monitor, "ask", lambda self, c, a=None, seconds=10: patient(self, c, a, 0.1))
    asked = spdk.Spdk.ask
    monkeypatch.setattr(spdk.Spdk, "ask", lambda self, m, p=None, seconds=10: asked(self, m, p, 0.1))

    async def work(fake: Any, target: Any) -> None:
        fake.temper = temper
        with pytest.raises(Silent):
            await target.ping()
        with pytest.raises(Silent):
            await target.served()
        fake.temper = ""
        await target.close()
        await target.connect()
        assert await lives(target) == {}

    run(work, host, make)


def test_nobody_listens_yet(host: Path) -> None:
    async def work() -> None:
        for target in (StorageDaemon(AIO, host / "s", host / "run"), Spdk(AIO, host / "s", (), host / "run")):
            with pytest.raises(FileNotFoundError):
                await target.connect()
            with pytest.raises(Silent):
                await target.ping()
        (host / "run/rpc.sock").touch()
        with pytest.raises(ConnectionRefusedError):
            await Spdk(AIO, host / "s", (), host / "run").connect()

    asyncio.run(work())


def test_an_export_that_is_refused_leaves_no_node(host: Path) -> None:
    async def work(fake: Any, target: Any) -> None:
        fake.fails["block-export-add"] = "no"
        with pytest.raises(Refused, match="block-export-add: no"):
            await target.serve(disk(host), None)
        assert (fake.nodes, fake.groups) == ({}, {})
        fake.fails.clear()
        fake.object_add("throttle-group", "vhost.0")
        file = {"node-name": "file.0", "filename": str(host), "discard": "unmap"}
        fake.blockdev_add("throttle", "unmap", "vhost.0-000000000000", throttle_group="vhost.0", file=file)
        await target.serve(disk(host), None)
        assert len(fake.nodes) == 1

    run(work, host, daemon)


def test_an_export_that_does_not_go_is_said(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(fake: Any, target: Any) -> None:
        await target.serve(disk(host), None)
        monkeypatch.setattr(fake, "block_export_del", lambda id, mode: {}, raising=False)
        monkeypatch.setattr(qsd, "GONE_WITHIN", 0.05)
        with pytest.raises(Refused, match="still there"):
            await target.stop(0)
        monkeypatch.undo()

    run(work, host, daemon)


@BOTH
def test_memory_outlives_the_target_until_it_is_freed(host: Path, make: Make) -> None:
    async def work(fake: Any, target: Any) -> None:
        assert await target.look(disk(host)) is None
        await target.serve(disk(host), None)
        life = await target.look(disk(host))
        assert life
        assert await lives(target) == {0: life}
        await target.close()
        await fake.stop()
        await fake.start()
        await target.connect()
        assert await target.look(disk(host)) == life
        await target.serve(disk(host), life)
        assert await lives(target) == {0: life}
        await target.stop(0)
        await target.free(disk(host))
        assert await target.look(disk(host)) is None
        await target.serve(disk(host), None)
        assert life not in (await lives(target)).values()

    run(work, host, make, MALLOC)


def test_several_disks_are_swapped_at_the_same_time(host: Path) -> None:
    async def work(fake: Any, target: Any) -> None:
        for ordinal in range(3):
            await target.serve_scrap(ordinal)
        assert await lives(target) == dict.fromkeys(range(3), SCRAP)

    run(work, host, spdk_target, MALLOC)


def test_an_nvme_namespace_is_known_by_its_serial_number(host: Path) -> None:
    async def work(fake: Any, target: Any) -> None:
        uuid = "00000000-0000-0000-0000-00000000000a"
        fake.namespaces = {
            "0000:01:00.0": {"serial": "A", "uuid": uuid, "blocks": 4096},
            "0000:02:00.0": {"serial": "B", "uuid": uuid, "blocks": 4096},
            "0000:03:00.0": {"serial": "C", "uuid": uuid, "blocks": 1},
        }
        first, second, small = (Disk(0, "vm", 0, f"0000:0{n}:00.0") for n in (1, 2, 3))
        life = await target.look(first)
        assert await lives(target) == {}, "it is shown to no VM by a look"
        await target.serve(first, life)
        assert await lives(target) == {0: life}
        assert await target.look(second) == life, "what is served is not taken away by a look"
        await target.stop(0)
        other = await target.look(second)
        assert other not in (None, life)
        assert await target.look(second) == other
        with pytest.raises(Refused, match="another disk"):
            await target.serve(second, life)
        with pytest.raises(Refused, match=r"has 0 MiB, and vhost\.diskMib says 1"):
            await target.look(small)
        fake.bdevs.clear()
        with pytest.raises(Refused, match=r"bdev_nvme_attach_controller: No such device"):
            await target.look(Disk(0, "vm", 0, "0000:09:00.0"))

    run(work, host, spdk_target, NVME)


def test_a_controller_that_a_vm_holds_answers_with_errors_from_then_on(host: Path) -> None:
    """SPDK deletes no controller with a client; without its bdev it cannot do harm."""

    async def work(fake: Any, target: Any) -> None:
        await target.serve(disk(host), None)
        fake.fails["vhost_delete_controller"] = "Device or resource busy"
        await target.stop(0)
        assert await lives(target) == {0: SCRAP}

    run(work, host, spdk_target, MALLOC)


def test_spdks_own_words() -> None:
    frame = "request:\n{}\nGot JSON-RPC error response\nresponse:\n"
    assert spdk._error(frame + '{"code": -12, "message": "Cannot allocate memory"}') == "Cannot allocate memory (-12)"
    assert spdk._error(frame + "not\njson") == "not json"
    assert spdk._error("Timeout while waiting for response:\n\n") is None


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sys(tmp_path: Path) -> AsyncIterator[Path]:
    (tmp_path / "sys/devices/sda/sda1").mkdir(parents=True)
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/8:0").symlink_to("../../devices/sda")
    (tmp_path / "sys/dev/block/8:1").symlink_to("../../devices/sda/sda1")
    (tmp_path / "sys/devices/sda/sda1/partition").write_text("1\n")
    return tmp_path / "sys"  # type: ignore[return-value]


def test_a_device_is_known_by_what_it_is_not_by_its_name(sys: Path) -> None:
    """D3: /dev/sda is another device after a boot with disks in another order."""
    backing = Backing(AIO, sys)
    assert backing.identity(os.makedev(8, 0)) == ("diskseq", "8:0", "")
    (sys / "devices/sda/diskseq").write_text("7\n")
    assert backing.identity(os.makedev(8, 0)) == ("diskseq", "7", "")
    (sys / "devices/sda/wwid").write_text("naa.5000c500a1b2c3d4\n")
    assert backing.identity(os.makedev(8, 0)) == ("wwid", "naa.5000c500a1b2c3d4", "")
    assert backing.identity(os.makedev(8, 1)) == ("wwid", "naa.5000c500a1b2c3d4", "1")


def test_a_device_that_is_gone_or_none_is_not_made_up(host: Path) -> None:
    backing = Backing(AIO)
    with pytest.raises(Refused, match="/dev/gone0 does not exist"):
        backing.look(at("/dev/gone0"))
    with pytest.raises(Refused, match="neither a file nor a block device"):
        backing.look(at("/dev/null"))
    with pytest.raises(Refused, match="neither a file nor a block device"):
        backing.look(at(host))
    (host / "loop").symlink_to("loop")
    with pytest.raises(Refused, match="Too many levels of symbolic links"):
        backing.look(at(host / "loop"))


def test_a_device_in_use_is_refused(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: the kernel knows every use; with a file in the device's place, that says it is one."""
    file = host / "device"
    file.write_bytes(bytes(1 << 20))
    monkeypatch.setattr("disk_agent.backing.stat.S_ISBLK", lambda mode: True)
    monkeypatch.setattr(Backing, "identity", lambda self, rdev: ("wwid", "x", ""))
    backing = Backing(AIO)
    life = backing.look(at(file))
    assert life is not None
    with pytest.raises(Refused, match=r"has 1 MiB, and vhost\.diskMib says 2"):
        Backing(Kind("aio", 2, 4096, 1)).look(at(file))
    for _ in range(2):
        assert backing.ready(at(file), life) == (str(file), life)
    assert len(backing._held) == 1
    backing.let_go(str(file))
    backing.let_go(str(file))
    assert not backing._held
    real = os.open

    def busy(path: str, flags: int, *more: int) -> int:
        if flags & os.O_EXCL:
            raise OSError(16, "Device or resource busy")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(Refused, match=r"is in use \(Device or resource busy\): mounted, swap, or a part of RAID"):
        backing.ready(at(file), life)


def test_a_folder_with_other_things_in_it_keeps_its_mode(host: Path) -> None:
    (host / "d/theirs").touch()
    (host / "d").chmod(0o755)
    Backing(AIO).ready(disk(host), None)
    assert (host / "d").stat().st_mode & 0o777 == 0o755


def test_what_a_killed_maker_left_is_taken_away(host: Path) -> None:
    (host / "d/.vhost.0.aaaa").touch()
    sparse(host / "d/vhost.0", 1 << 20)
    assert [p.name for p in (host / "d").iterdir()] == ["vhost.0"]
