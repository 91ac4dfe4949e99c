"""qemu-storage-daemon, asked by QMP. The life of what it serves is in the block node's name: vhost.3-0123456789ab."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from disk_agent.backing import Backing, sparse
from disk_agent.config import NO_LIMITS, Disk, Kind, Limits
from disk_agent.machine import SCRAP
from disk_agent.monitor import Monitor, Refused
from disk_agent.target import RUN, Counts, Served

MOST_QUEUES = 64
GONE_WITHIN = 5.0  # seconds, of an export


class StorageDaemon:
    def __init__(self, kind: Kind, sockets: Path, run: Path = RUN, backing: Backing | None = None) -> None:
        self.kind, self.sockets, self.run = kind, sockets, run
        self.backing = backing or Backing(kind)
        self._monitor = Monitor(run / "qmp")

    def command(self) -> Sequence[str]:
        chardev = f"socket,id=qmp,path={self.run / 'qmp'},server=on,wait=off"
        return ["qemu-storage-daemon", "--chardev", chardev, "--monitor", "chardev=qmp"]

    async def connect(self) -> None:
        self._monitor = Monitor(self.run / "qmp")
        await self._monitor.open()

    async def close(self) -> None:
        await self._monitor.close()

    async def ping(self) -> None:
        await self._monitor.ask("query-version")

    async def served(self) -> dict[int, Served]:
        exports = await self._monitor.ask("query-block-exports")
        nodes = {str(e["id"]): str(e["node-name"]) for e in exports if not e["shutting-down"]}
        limits = await asyncio.gather(*map(self._limits, nodes))
        return {
            int(name.partition(".")[2]): Served(node.rpartition("-")[2], its)
            for (name, node), its in zip(nodes.items(), limits, strict=True)
        }

    async def _limits(self, name: str) -> Limits:
        found = await self._monitor.ask("qom-get", {"path": f"/objects/{name}", "property": "limits"})
        bps = [int(found[f"bps-{which}"]) for which in ("total", "read", "write")]
        return Limits(int(found["iops-total"]), *(-(-each >> 20) for each in bps))

    async def counts(self) -> Counts:
        """Nothing: QEMU's block statistics do not include what a vhost-user-blk export does."""
        return Counts()

    async def look(self, disk: Disk) -> str | None:
        return await asyncio.to_thread(self.backing.look, disk)  # a dead device may take its time

    async def serve(self, disk: Disk, life: str | None) -> None:
        path, found = await asyncio.to_thread(self.backing.ready, disk, life)
        await self._export(disk.ordinal, found, path, disk.limits)

    async def serve_scrap(self, ordinal: int) -> None:
        file = self.run / f"scrap.{ordinal}"
        sparse(file, self.kind.bytes)
        # QEMU connects to no target with fewer queues than its device has, which may be of another kind
        await self._export(ordinal, SCRAP, str(file), NO_LIMITS, queues=MOST_QUEUES)

    async def limit(self, disk: Disk) -> None:
        await self._limit(disk.name, disk.limits)

    async def _limit(self, name: str, limits: Limits) -> None:
        """All values: QEMU keeps those that it is not told."""
        bps = {"total": limits.mibPerSecond, "read": limits.readMibPerSecond, "write": limits.writeMibPerSecond}
        value = {"iops-total": limits.iops, **{f"bps-{which}": mib << 20 for which, mib in bps.items()}}
        await self._monitor.ask("qom-set", {"path": f"/objects/{name}", "property": "limits", "value": value})

    async def _export(self, ordinal: int, life: str, path: str, limits: Limits, queues: int = 0) -> None:
        """Through a throttle filter, which is there for a disk without limits too: it may get some while it is used."""
        await self._drop_nodes(ordinal)
        name = f"vhost.{ordinal}"
        node = f"{name}-{life}"
        await self._monitor.ask("object-add", {"qom-type": "throttle-group", "id": name})
        with suppress(Refused):  # the disk is served all the same; `served` tells what is in force
            await self._limit(name, limits)
        # disks of every kind can discard: a guest that has negotiated it cannot go on with a disk that lacks it
        discard = {"discard": "unmap"}
        driver = "host_device" if path.startswith("/dev/") else "file"
        file = {"driver": driver, "node-name": f"file.{ordinal}", "filename": path, **discard}
        throttle = {"driver": "throttle", "node-name": node, "throttle-group": name, "file": file, **discard}
        await self._monitor.ask("blockdev-add", throttle)
        export = {
            "type": "vhost-user-blk",
            "id": name,
            "node-name": node,
            "addr": {"type": "unix", "path": str(self.sockets / name)},
            "writable": True,
            "logical-block-size": self.kind.block_size,
            "num-queues": queues or self.kind.queues,
        }
        try:
            await self._monitor.ask("block-export-add", export)
        except Refused:
            await self._drop_nodes(ordinal)
            raise

    async def stop(self, ordinal: int) -> None:
        name = f"vhost.{ordinal}"
        await self._monitor.ask("block-export-del", {"id": name, "mode": "hard"})
        end = time.monotonic() + GONE_WITHIN
        while any(e["id"] == name for e in await self._monitor.ask("query-block-exports")):
            if time.monotonic() > end:
                raise Refused(f"block-export-del: {name} is still there after {GONE_WITHIN} s")
            await asyncio.sleep(0.02)
        await self._drop_nodes(ordinal)
        (self.run / f"scrap.{ordinal}").unlink(missing_ok=True)

    async def free(self, disk: Disk) -> None:
        self.backing.free(disk)

    async def _drop_nodes(self, ordinal: int) -> None:
        """What an earlier try left."""
        nodes = {str(n["node-name"]): n for n in await self._monitor.ask("query-named-block-nodes", {"flat": True})}
        for name in nodes:
            if name.startswith(f"vhost.{ordinal}-"):
                await self._monitor.ask("blockdev-del", {"node-name": name})
        if file := nodes.get(f"file.{ordinal}"):  # it went with the filter above it
            self.backing.let_go(str(file["file"]))
        with suppress(Refused):  # there is none
            await self._monitor.ask("object-del", {"id": f"vhost.{ordinal}"})
