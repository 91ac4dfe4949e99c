"""One worker VM's end: QEMU, asked by QMP. The id of a device says which disk it is, at which root port, and the life
that it was plugged in with: disk-3-0-0123456789ab is disk 3 at port 0."""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from disk_agent.boot import FIRST_LIMIT, Boot
from disk_agent.machine import Device
from disk_agent.monitor import Monitor, Refused, Silent

ID = re.compile(r"disk-(\d+)(?:-(\d+)-([0-9a-f]{12}))?$")
ASK_AGAIN = 10  # seconds: a guest that is busy or boots may miss a request to let go of a device
LOOK_AT_BOOT = 1.0  # seconds


class Qemu(StrEnum):
    ABSENT = "absent"
    SILENT = "silent"
    ANSWERS = "answers"


class Vm:
    """What QEMU of one VM has, kept up to date by its events. devices: None until it was seen once; what was seen last
    while it is silent."""

    def __init__(self, name: str, sockets: Path, changed: Callable[[], None] = lambda: None) -> None:
        self.name, self.sockets = name, sockets
        self.qemu = Qemu.SILENT
        self.why = "it was not asked yet"
        self.devices: tuple[Device, ...] | None = None
        self.definition = ""
        self.boot: Boot | None = None
        self._looked_at_boot = 0.0
        self._changed = changed
        self._monitor: Monitor | None = None
        self._asked: dict[str, float] = {}  # device -> when its removal was asked for first
        self._last: dict[str, float] = {}  # … and last
        self._events: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._monitor is not None

    async def connect(self) -> None:
        """Where it is not connected: try once."""
        if self._monitor:
            return
        monitor = Monitor(self.sockets / f"{self.name}.qmp")
        try:
            if not monitor.path.exists():
                raise FileNotFoundError
            await monitor.open()
        except (ConnectionRefusedError, FileNotFoundError):
            self.qemu, self.why, self.devices = Qemu.ABSENT, f"QEMU of {self.name} does not run", ()
            return
        except Silent as error:
            self.qemu, self.why = Qemu.SILENT, str(error)
            return
        self._monitor = monitor
        self._asked.clear()
        self._last.clear()
        self._events = asyncio.create_task(self._follow(monitor))
        self._started(monitor)
        await self.look()

    def _started(self, monitor: Monitor) -> None:
        """Maybe a while before the agent: QEMU makes its socket as it starts. How often it was reset, and how long its
        guest may take, is known from the QEMU before it."""
        with suppress(FileNotFoundError):
            age = max(0.0, time.time() - monitor.path.stat().st_mtime)
            fresh = Boot(time.monotonic() - age, from_start=age < FIRST_LIMIT)
            self.boot = replace(fresh, limit=self.boot.limit, resets=self.boot.resets) if self.boot else fresh

    async def _follow(self, monitor: Monitor) -> None:
        def tell(event: str) -> None:
            if event == "RESET" and self.boot:
                self.boot = self.boot.restarted(time.monotonic())
            if event in ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "RESET"):
                self._changed()

        await monitor.follow(tell)
        if self._monitor is monitor:
            await self._lost(f"QEMU of {self.name} went away")

    async def _lost(self, why: str) -> None:
        self.qemu, self.why = Qemu.SILENT, why
        monitor, self._monitor = self._monitor, None
        if monitor:
            await monitor.close()
        self._changed()

    async def close(self) -> None:
        if self._events:
            self._events.cancel()
            with suppress(asyncio.CancelledError):
                await self._events
        if self._monitor:
            await self._monitor.close()
            self._monitor = None

    async def ask(self, command: str, arguments: dict[str, object] | None = None, seconds: float = 10) -> object:
        if self._monitor is None:
            raise Silent(self.why)
        try:
            return await self._monitor.ask(command, arguments, seconds)
        except Silent as error:
            await self._lost(str(error))
            raise

    async def look(self) -> None:
        """What it has now."""
        try:
            name = await self.ask("query-name")
            chardevs = await self.ask("query-chardev")
            devices = await self.ask("qom-list", {"path": "/machine/peripheral"})
        except (Silent, Refused) as error:
            self.qemu, self.why = Qemu.SILENT, str(error)
            return
        try:
            self.definition = str(name.get("name", ""))  # type: ignore[union-attr]
            whole = {str(d["name"]) for d in devices}  # type: ignore[union-attr]
            half = {str(c["label"]) for c in chardevs}  # type: ignore[union-attr]
        except (KeyError, TypeError, AttributeError):
            self.qemu, self.why = Qemu.SILENT, f"QEMU of {self.name} answers garbage"
            return
        self.devices = tuple(_device(self.name, i, i in whole) for i in sorted(whole | half) if ID.match(i))
        self.qemu, self.why = Qemu.ANSWERS, ""
        there = {d.id for d in self.devices}
        self._asked = {i: at for i, at in self._asked.items() if i in there}

    async def watch_boot(self) -> str:
        """Reset the guest if it hangs as it boots; returns the reason for a reset."""
        now = time.monotonic()
        if not self.connected or self.boot is None or self.boot.up or now - self._looked_at_boot < LOOK_AT_BOOT:
            return ""
        self._looked_at_boot = now
        try:
            stats = await self.ask("query-blockstats")
            reads = {str(s["device"]): int(s["stats"]["rd_operations"]) for s in stats}  # type: ignore[union-attr]
            if "root" not in reads:  # no VM of render/vm.py
                self.boot = replace(self.boot, up=True)
                return ""
            cards = await self.ask("query-rx-filter")
            # QEMU's card takes every packet until a guest's driver has said which ones it wants
            card_open = not any(card["promiscuous"] for card in cards)  # type: ignore[union-attr,index]
            self.boot = self.boot.seen(reads["root"], card_open=card_open)
            if not self.boot.hangs(now):
                return ""
            status = await self.ask("query-status")
            if not status["running"]:  # type: ignore[index]  # somebody has paused it
                return ""
            why = self.boot.why(now)
            await self.ask("system_reset")
        except (Silent, Refused, KeyError, TypeError, ValueError):
            return ""
        self.boot = self.boot.reset(now)
        return why

    def has(self, ordinal: int) -> tuple[Device, ...]:
        return tuple(d for d in self.devices or () if _ordinal(d) == ordinal)

    @property
    def ordinals(self) -> set[int]:
        return {_ordinal(d) for d in self.devices or ()}

    async def plug(self, ordinal: int, port: int, life: str, queues: int) -> None:
        """Raises Refused with the reason where it cannot be."""
        socket = self.sockets / f"vhost.{ordinal}"
        await accepts(socket)
        name = f"disk-{ordinal}-{port}-{life}"
        await self._add_chardev(name, socket)
        device = {"driver": "vhost-user-blk-pci", "id": name, "chardev": name, "bus": f"port-{port}"}
        try:
            await self.ask("device_add", {**device, "num-queues": queues}, seconds=6)
        except Silent:
            # the target went away in this moment, and QEMU waits for it: as if it had the disk
            self.devices = (*(self.devices or ()), Device(self.name, name, port, life, whole=True))
            raise
        except Refused:
            with suppress(Refused):
                await self.ask("chardev-remove", {"id": name})
            raise
        await self.look()

    async def _add_chardev(self, name: str, socket: Path) -> None:
        data: dict[str, object] = {"addr": {"type": "unix", "data": {"path": str(socket)}}, "server": False}
        backend = {"type": "socket", "data": data}
        try:
            data["reconnect-ms"] = 100
            await self.ask("chardev-add", {"id": name, "backend": backend})
        except Refused as error:
            if "reconnect-ms" not in str(error):
                raise
            del data["reconnect-ms"]  # QEMU before 9.2, Ubuntu 24.04's
            data["reconnect"] = 1
            await self.ask("chardev-add", {"id": name, "backend": backend})

    async def unplug(self, device: Device) -> str:
        """Asks the guest to let go of it, again and again; returns what there is to say of that."""
        now = time.monotonic()
        first = self._asked.setdefault(device.id, now)
        if now - self._last.get(device.id, -ASK_AGAIN) >= ASK_AGAIN:
            self._last[device.id] = now
            with suppress(Refused):  # it is being unplugged already
                await self.ask("device_del", {"id": device.id})
        return f"the guest of {self.name} was asked {now - first:.0f} s ago to let go of it"

    async def forget(self, device: Device) -> None:
        """Remove its chardev. A device is gone a moment before it lets go of that: Refused."""
        await self.ask("chardev-remove", {"id": device.id})
        await self.look()


def _device(vm: str, name: str, whole: bool) -> Device:
    found = ID.match(name)
    assert found
    return Device(vm, name, int(found[2] or -1), found[3] or "", whole)


def _ordinal(device: Device) -> int:
    found = ID.match(device.id)
    assert found
    return int(found[1])


async def accepts(socket: Path, seconds: float = 2) -> None:
    """Whoever listens at a vhost-user socket answers, and has no other client: only then may QEMU be told of it, which
    would wait for the answer and do nothing else, for ever. Refused: the reason."""
    get_features = struct.pack("<III", 1, 1, 0)  # request 1 of protocol version 1, no payload
    writer = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(get_features)
            request, _, size = struct.unpack("<III", await reader.readexactly(12))
            await reader.readexactly(size)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        reason = str(error) or "no answer: another client holds it, or the target hangs"
        raise Refused(f"{socket} cannot be used yet: {reason}") from None
    finally:
        if writer:
            writer.close()
    if (request, size) != (1, 8):
        raise Refused(f"{socket} does not speak vhost-user")
