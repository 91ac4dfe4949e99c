"""qemu-storage-daemon, asked by QMP. The life of what it serves is in the block node's name: vhost.3-0123456789ab."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from disk_agent.backing import Backing, sparse
from disk_agent.config import Disk, Kind
from disk_agent.machine import SCRAP
from disk_agent.monitor import Monitor, Refused
from disk_agent.target import RUN

MOST_QUEUES = 64
GONE_WITHIN = 5.0  # seconds, of an export


class StorageDaemon:
    """Disks in memory are files in the pod's own memory: they outlive the daemon, not the pod. Their life is in the
    file's name, drawn when it is made."""

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

    async def served(self) -> dict[int, str]:
        exports = await self._monitor.ask("query-block-exports")
        nodes = {str(e["id"]): str(e["node-name"]) for e in exports if not e["shutting-down"]}
        return {int(name.partition(".")[2]): node.rpartition("-")[2] for name, node in nodes.items()}

    async def look(self, disk: Disk) -> str | None:
        if self.kind.in_memory:
            made = sorted(Path(disk.path).parent.glob(f"{disk.name}-*"))
            return made[0].name.rpartition("-")[2] if made else None
        return await asyncio.to_thread(self.backing.look, disk.path)  # a dead device may take its time

    async def serve(self, disk: Disk, life: str | None) -> None:
        path = disk.path
        if self.kind.in_memory:
            life = life or secrets.token_hex(6)
            path = f"{disk.path}-{life}"
            if not Path(path).exists():
                sparse(Path(path), self.kind.bytes)
        else:
            if life is None:
                self.backing.make(path)
            self.backing.hold(path)
            life = await self._same(disk, life)
        await self._export(disk.ordinal, life, path)

    async def _same(self, disk: Disk, life: str | None) -> str:
        found = await self.look(disk)
        if found is None or life not in (None, found):
            raise Refused(f"{disk.path} is another disk than a moment ago")
        return found

    async def serve_scrap(self, ordinal: int) -> None:
        file = self.run / f"scrap.{ordinal}"
        sparse(file, self.kind.bytes)
        # QEMU connects to no target with fewer queues than its device has, which may be of another kind
        await self._export(ordinal, SCRAP, str(file), queues=MOST_QUEUES)

    async def _export(self, ordinal: int, life: str, path: str, queues: int = 0) -> None:
        await self._drop_nodes(ordinal)
        node = f"vhost.{ordinal}-{life}"
        block = {
            "driver": "host_device" if path.startswith("/dev/") else "file",
            "node-name": node,
            "filename": path,
            # disks of every kind can discard: a guest that has negotiated it cannot go on with a disk that lacks it
            "discard": "unmap",
        }
        await self._monitor.ask("blockdev-add", block)
        export = {
            "type": "vhost-user-blk",
            "id": f"vhost.{ordinal}",
            "node-name": node,
            "addr": {"type": "unix", "path": str(self.sockets / f"vhost.{ordinal}")},
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
        for file in Path(disk.path).parent.glob(f"{disk.name}-*"):
            file.unlink()

    async def _drop_nodes(self, ordinal: int) -> None:
        """What an earlier try left."""
        for node in await self._monitor.ask("query-named-block-nodes", {"flat": True}):
            if str(node["node-name"]).startswith(f"vhost.{ordinal}-"):
                await self._monitor.ask("blockdev-del", {"node-name": node["node-name"]})
                self.backing.let_go(str(node["file"]))
