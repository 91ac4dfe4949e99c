"""The loop around the state machine: looks at the ConfigMap, target and VMs, and takes each disk's next step."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from disk_agent import config as configs
from disk_agent.config import NO_LIMITS, BadConfig, Config, Disk, Kind, Limits
from disk_agent.machine import SCRAP, Device, Do, Seen, State, Step, step
from disk_agent.monitor import Refused, Silent
from disk_agent.supervise import Supervisor
from disk_agent.target import Served, Target
from disk_agent.vm import Qemu, Vm

LOOK_AROUND = 30  # seconds: what was changed by hand in QEMU's monitor or the target is put right in time
LOOK_AT_CONFIG = 0.5
LOOK_WITHIN = 1.0  # seconds, at a file or device
FIRST_RETRY, LAST_RETRY = 0.1, 10.0  # seconds
SETTLED = (State.PLUGGED, State.SERVED, State.SWAPPING, State.REFUSED)  # as far as the target goes


@dataclass
class Notes:
    """What must outlive the agent: disks that nobody wants any more while a VM has them, and those that their users let
    go of. In a file beside the sockets, which is gone when the VMs are: after a boot."""

    file: Path
    disks: dict[int, Disk] = field(default_factory=dict[int, Disk])
    released: set[int] = field(default_factory=set[int])

    def load(self) -> None:
        try:
            data = json.loads(self.file.read_text())
            for disk in data["disks"]:
                disk["limits"] = Limits(**disk.get("limits", {}))  # an earlier version's has none
            self.disks = {int(disk["ordinal"]): Disk(**disk) for disk in data["disks"]}
            self.released = {int(i) for i in data["released"]}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            # without them nothing is taken from a VM that nobody let go of: the safe side
            print(f"{self.file} cannot be read ({error}): starting without", file=sys.stderr, flush=True)

    def save(self) -> None:
        data = {"disks": [asdict(d) for d in self.disks.values()], "released": sorted(self.released)}
        new = self.file.with_name(f".{self.file.name}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as writing:
            json.dump(data, writing)
        new.replace(self.file)


@dataclass(frozen=True)
class Failure:
    """An action that did not work, and when it is tried again. It holds up no other action."""

    do: Do
    why: str
    pause: float
    until: float


class Agent:
    """kind: what this pod was made for; the ConfigMap may be ahead of it, then its pod is about to be replaced."""

    def __init__(self, file: Path, kind: Kind, sockets: Path, target: Target, supervisor: Supervisor) -> None:
        self.file, self.kind, self.sockets = file, kind, sockets
        self.target, self.supervisor = target, supervisor
        self.config: Config | None = None
        self.problem = "the config was not read yet"
        self.notes = Notes(sockets / "agent.json")
        self.notes.load()
        self.vms: dict[str, Vm] = {}
        self.steps: dict[int, Step] = {}
        self.actions: Counter[tuple[str, str]] = Counter()
        self.last_pass = time.monotonic()
        self._served: dict[int, Served] = {}
        self._paths: dict[int, str] = {}  # of what this agent has the target serve
        self._life_of_target = 0
        self._failures: dict[int, Failure] = {}
        self._looks: dict[int, asyncio.Task[str | None]] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._read: tuple[int, int] | None = None
        self._wake = asyncio.Event()
        self._said = ""
        self._due = 0.0  # when to look around next

    # --- what is wanted --------------------------------------------------------------------------------------------

    def read_config(self) -> None:
        """The last good one stays where a new one cannot be read, or is for another pod."""
        try:
            found = self.file.stat()
            version = (found.st_ino, found.st_mtime_ns)
            if version == self._read:
                return
            config = configs.load(self.file)
        except (OSError, BadConfig) as error:
            self.problem = str(error)
            return
        self._read = version
        self.look_again()
        if config.kind != self.kind:
            self.problem = (
                f"the config is for disks of another kind ({config.kind}, this pod serves {self.kind}):"
                " the pod is about to be replaced"
            )
            return
        before = set(self.config.disks) if self.config else set[int]()
        self.config, self.problem = config, ""
        self.notes.released -= set(config.disks) - before  # they have users again
        self._remember()

    def _remember(self) -> None:
        config = self.config
        assert config
        had = {i for vm in self.vms.values() for i in vm.ordinals}
        unsure = not self.vms or any(vm.devices is None for vm in self.vms.values())
        disks = {i: d for i, d in self.notes.disks.items() if unsure or i in had or i in self._served}
        known, released = disks | config.disks, {i for i in self.notes.released if unsure or i in had}
        if (known, released) != (self.notes.disks, self.notes.released) or not self.notes.file.exists():
            self.notes.disks, self.notes.released = known, released
            self.notes.save()

    def release(self, vm: str, keep: set[int]) -> set[int]:
        """The disks of `vm` that are not in `keep` have no user any more; returns them."""
        has = self.vms[vm].ordinals if vm in self.vms else set[int]()
        self.notes.released = (self.notes.released - keep) | (has - keep)
        self.notes.save()
        self.look_again()
        return has - keep

    # --- what is seen ----------------------------------------------------------------------------------------------

    def look_again(self) -> None:
        self._due = 0.0
        self._wake.set()

    async def connect_vms(self) -> None:
        """Of the config, and whatever else runs on this host. A silent one holds up nobody."""
        names = {p.name.removesuffix(".qmp") for p in self.sockets.glob("*.qmp") if not p.name.endswith(".end.qmp")}
        for name in names | set(self.config.vms if self.config else ()):
            if name not in self.vms:
                self.vms[name] = Vm(name, self.sockets, self.look_again)
        for name, vm in self.vms.items():
            if vm.connected or name in self._connecting:
                continue
            self._connecting[name] = asyncio.create_task(self._connect(vm))
        if self._connecting:
            await asyncio.wait(self._connecting.values(), timeout=0.3)

    async def _connect(self, vm: Vm) -> None:
        before = (vm.qemu, vm.devices)
        try:
            await vm.connect()
        finally:
            del self._connecting[vm.name]
        if (vm.qemu, vm.devices) != before:
            self.look_again()

    async def watch_boots(self) -> None:
        for vm in self.vms.values():
            if why := await vm.watch_boot():
                print(f"{vm.name}: reset ({why})", file=sys.stderr, flush=True)

    async def refresh(self) -> dict[int, Seen]:
        """All disks that are wanted, remembered, served, or in a VM."""
        assert self.config
        for vm in self.vms.values():
            if vm.connected:
                await vm.look()
        self._served = await self.target.served() if self.supervisor.up else {}
        if self.supervisor.starts != self._life_of_target:
            self._life_of_target = self.supervisor.starts
            self._paths.clear()
            self._failures.clear()
        disks = self.disks()
        lives = await self._lives(disks)
        return {i: self._seen(i, lives.get(i)) for i in disks}

    def disks(self) -> dict[int, Disk]:
        assert self.config
        found = {i for vm in self.vms.values() for i in vm.ordinals} | set(self._served)
        strange = {i: Disk(i, "", -1, "") for i in found}
        return strange | self.notes.disks | self.config.disks

    async def _lives(self, disks: dict[int, Disk]) -> dict[int, str | Refused | None]:
        lives: dict[int, str | Refused | None] = {}
        for i, disk in disks.items():
            served = self._served.get(i)
            if served and served.life != SCRAP and self._paths.get(i) == disk.path:
                lives[i] = served.life
            elif disk.vm and self.supervisor.up and i not in self._looks:
                self._looks[i] = asyncio.create_task(self.target.look(disk))
        if self._looks:
            _, waiting = await asyncio.wait(self._looks.values(), timeout=LOOK_WITHIN)
            for i, task in list(self._looks.items()):
                if task in waiting:
                    lives[i] = Refused(f"{disks[i].path if i in disks else i} does not answer")
                    task.add_done_callback(lambda _: self.look_again())
                    continue
                del self._looks[i]
                error = task.exception()
                lives[i] = error if isinstance(error, Refused) else None if error else task.result()
                if error and not isinstance(error, Refused):
                    lives[i] = Refused(str(error) or type(error).__name__)
        return lives

    def _seen(self, ordinal: int, life: str | Refused | None) -> Seen:
        vms, served = self.vms.values(), self._served.get(ordinal)
        return Seen(
            life=None if isinstance(life, Refused) else life,
            refusal=str(life) if isinstance(life, Refused) else "",
            served=served.life if served else None,
            limits=served.limits if served else NO_LIMITS,
            devices=tuple(device for vm in vms for device in vm.has(ordinal)),
            silent=frozenset(vm.name for vm in vms if vm.devices is None),
            absent=frozenset(vm.name for vm in vms if vm.qemu is Qemu.ABSENT),
            released=ordinal in self.notes.released,
        )

    # --- what is done ----------------------------------------------------------------------------------------------

    async def sweep(self, limit: int | None = None) -> int:
        """One step of each disk; returns how many actions it took. limit: at most so many."""
        if self.config is None or not self.supervisor.up:
            self._say_why_nothing_is_done()
            return 0
        seen = await self.refresh()
        taken = 0
        self._due = time.monotonic() + LOOK_AROUND
        disks = self.disks()
        for i in sorted(seen):
            wanted = i in self.config.disks
            next_step = step(disks[i], seen[i], wanted=wanted, in_memory=self.kind.in_memory)
            failure = self._failures.get(i)
            if failure and failure.do is next_step.do and failure.until > time.monotonic():
                self._due = min(self._due, failure.until)
                self.steps[i] = Step(next_step.state, None, failure.why)
                continue
            self.steps[i] = next_step
            if next_step.do and (limit is None or taken < limit):
                taken += await self._take(disks[i], seen[i], next_step)
        self.steps = {i: s for i, s in self.steps.items() if i in seen and s.state is not State.GONE}
        self._remember()
        return taken

    def _say_why_nothing_is_done(self) -> None:
        if self.config:
            for i in self.config.disks:
                device = next((d for vm in self.vms.values() for d in vm.has(i)), None)
                self.steps[i] = Step(State.MISSING, None, self.supervisor.said, device)

    async def _take(self, disk: Disk, seen: Seen, step: Step) -> int:
        assert step.do
        if self.supervisor.starts != self._life_of_target:
            return 0  # the target died meanwhile: what was seen of it is no more
        try:
            waits = await self._do(disk, seen, step)
        except (Refused, Silent) as error:
            before = self._failures.get(disk.ordinal)
            pause = min(LAST_RETRY, before.pause * 2) if before and before.do is step.do else FIRST_RETRY
            self._failures[disk.ordinal] = Failure(step.do, str(error), pause, time.monotonic() + pause)
            self._due = min(self._due, time.monotonic() + pause)
            self.steps[disk.ordinal] = Step(step.state, None, str(error), step.device)
            self.actions[step.do, "failed"] += 1
            if pause in (FIRST_RETRY * 4, LAST_RETRY):  # what passes by itself is not said
                print(f"{disk.name}: {error}", file=sys.stderr, flush=True)
            return 1
        self._failures.pop(disk.ordinal, None)
        if waits:
            self._due = min(self._due, time.monotonic() + 1)
            self.steps[disk.ordinal] = Step(step.state, step.do, waits, step.device)
            return 0
        self.actions[step.do, "done"] += 1
        print(f"{disk.name}: {step.do} ({step.why})", flush=True)
        return 1

    async def _do(self, disk: Disk, seen: Seen, step: Step) -> str:
        """Returns what there is to wait for."""
        match step.do:
            case Do.SERVE:
                await self.target.serve(disk, seen.life)
                self._paths[disk.ordinal] = disk.path
            case Do.SERVE_SCRAP:
                await self.target.serve_scrap(disk.ordinal)
            case Do.STOP:
                await self.target.stop(disk.ordinal)
                self._paths.pop(disk.ordinal, None)
            case Do.FREE:
                await self.target.free(disk)
            case Do.LIMIT:
                await self.target.limit(disk)
            case Do.PLUG:
                assert seen.served
                await self.vms[disk.vm].plug(disk.ordinal, disk.port, seen.served, self.kind.queues)
            case Do.UNPLUG:
                return await self._vm(step.device).unplug(self._device(step))
            case _:
                await self._vm(step.device).forget(self._device(step))
        return ""

    def _vm(self, device: Device | None) -> Vm:
        assert device
        return self.vms[device.vm]

    @staticmethod
    def _device(step: Step) -> Device:
        assert step.device
        return step.device

    async def tick(self) -> None:
        """What there is to do now, all of it."""
        self.read_config()
        await self.connect_vms()
        await self.watch_boots()
        self.last_pass = time.monotonic()
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LOOK_AROUND
        try:
            while await self.sweep():
                self.last_pass = time.monotonic()
        except (Silent, Refused) as error:  # the target, as a whole
            self._due = time.monotonic() + 0.2
            self._say_why_nothing_is_done()
            if str(error) != self._said:
                print(f"the target: {error}", file=sys.stderr, flush=True)
            self._said = str(error)

    async def run(self) -> None:
        """For ever."""
        while True:
            self._wake.clear()
            await self.tick()
            pause = max(0.01, min(LOOK_AT_CONFIG, self._due - time.monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def close(self) -> None:
        for task in [*self._looks.values(), *self._connecting.values()]:
            task.cancel()
        for vm in self.vms.values():
            await vm.close()

    # --- what is told ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """The target serves every disk that can be served, and says why of the others."""
        if not self.config or self.problem or not self.supervisor.up:
            return False
        return all(self.state(i) in SETTLED for i in self.config.disks)

    def state(self, ordinal: int) -> State:
        known = self.steps.get(ordinal)
        return known.state if known else State.MISSING

    def vm_of(self, ordinal: int) -> str:
        known = self.config.disks.get(ordinal) if self.config else None
        return known.vm if known else ""

    def why(self, ordinal: int) -> str:
        if self.problem:
            return self.problem
        if self.config and ordinal not in self.config.disks and ordinal not in self.steps:
            return "the config does not list it"
        known = self.steps.get(ordinal)
        return known.why if known else self.supervisor.said

    def cpus(self) -> dict[str, Any]:
        """The last report of the host's scripts/host/cpus, and its age in seconds; {}: the host has no CPU plan."""
        report = self.sockets / "cpus.json"
        try:
            return {"age": time.time() - report.stat().st_mtime, **json.loads(report.read_text())}
        except (OSError, ValueError):
            return {}

    def report(self) -> dict[str, Any]:
        """What GET /disks answers."""
        config = self.config
        wanted = config.disks if config else {}
        known = self.disks() if config else {}
        return {
            "kind": str(self.kind),
            "problem": self.problem,
            "target": {
                "up": self.supervisor.up,
                "starts": self.supervisor.starts,
                "why": "" if self.supervisor.up else self.supervisor.said,
            },
            "vms": {
                name: {
                    "qemu": str(vm.qemu),
                    "why": vm.why,
                    "booting": vm.boot.why(time.monotonic()) if vm.boot and vm.connected else "",
                    "resets": vm.boot.resets if vm.boot else 0,
                    "outdated": bool(config and vm.definition and config.vms.get(name, vm.definition) != vm.definition),
                }
                for name, vm in self.vms.items()
            },
            "disks": [
                {
                    "ordinal": i,
                    "name": f"vhost.{i}",
                    "wanted": i in wanted,
                    "vm": known[i].vm if i in known else "",
                    "state": str(self.state(i)),
                    "why": self.why(i),
                    "limits": known[i].limits.set if i in known else {},
                    "limitsInForce": self._served[i].limits.set if i in self._served else {},
                }
                for i in sorted(wanted.keys() | self.steps.keys())
            ],
        }
