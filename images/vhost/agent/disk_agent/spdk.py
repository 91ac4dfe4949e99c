"""SPDK's vhost target, asked by JSON-RPC with SPDK's own client. The life of what it serves is the bdev's UUID."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from spdk.rpc.client import JSONRPCClient, JSONRPCException

from disk_agent.backing import Backing, sparse
from disk_agent.config import Disk, Kind, Limits
from disk_agent.machine import SCRAP
from disk_agent.monitor import Refused, Silent
from disk_agent.target import RUN, Counts, Direction, Reactor, Served, life

LIMITS = {  # as SPDK calls them
    "rw_ios_per_sec": "iops",
    "rw_mbytes_per_sec": "mibPerSecond",
    "r_mbytes_per_sec": "readMibPerSecond",
    "w_mbytes_per_sec": "writeMibPerSecond",
}


class Spdk:
    """Bdevs are Aio3, Nvme3n1, or Scrap3. A disk in memory is an aio bdev too, on a file in the pod's memory: a malloc
    bdev would end with SPDK's process, and does not work in interrupt mode. An NVMe namespace is known when it is
    attached, before a controller shows it to a VM."""

    def __init__(
        self,
        kind: Kind,
        sockets: Path,
        arguments: Sequence[str] = (),
        run: Path = RUN,
        backing: Backing | None = None,
    ) -> None:
        self.kind, self.sockets, self.run, self.arguments = kind, sockets, run, arguments
        self.backing = backing or Backing(kind)
        self._client: JSONRPCClient | None = None
        self._turn = asyncio.Lock()

    def command(self) -> Sequence[str]:
        rpc = str(self.run / "rpc.sock")
        return ["spdk-vhost", "-r", rpc, "-S", str(self.sockets), "--num-trace-entries", "0", *self.arguments]

    async def connect(self) -> None:
        path = self.run / "rpc.sock"
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            async with asyncio.timeout(5):
                self._client = await asyncio.to_thread(JSONRPCClient, str(path), timeout=10)
        except (JSONRPCException, TimeoutError) as error:
            raise ConnectionRefusedError(str(error)) from None
        await self.ping()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client and client.sock:
            client.sock.close()

    async def ping(self) -> None:
        await self.ask("spdk_get_version")

    async def ask(self, method: str, params: Mapping[str, object] | None = None, seconds: float = 10) -> Any:
        """The client serves one caller at a time, and waits in a thread of its own."""
        async with self._turn:
            client = self._client
            if client is None or client.sock is None:
                raise Silent(f"SPDK does not answer {method}: not connected")
            try:
                call: Callable[..., Any] = client.call
                async with asyncio.timeout(seconds):
                    return await asyncio.to_thread(call, method, dict(params or {}))
            except JSONRPCException as error:
                message = str(error.args[0])
                if (said := _error(message)) is not None:
                    raise Refused(f"{method}: {said}") from None
                reason = message.strip() or "connection lost"
            except (OSError, TimeoutError, AttributeError, TypeError, KeyError) as error:
                reason = str(error) or type(error).__name__
            await self.close()  # an answer that comes later must not be taken for the next one's; its thread ends
            raise Silent(f"SPDK does not answer {method}: {reason}")

    async def served(self) -> dict[int, Served]:
        controllers = await self.ask("vhost_get_controllers")
        bdevs = {str(b["name"]): b for b in await self.ask("bdev_get_bdevs")}
        found: dict[int, Served] = {}
        for controller in controllers:
            name = str(controller["backend_specific"]["block"]["bdev"])
            # a bdev that was taken from under its controller answers with errors, as good as a scrap disk
            scrap = name.startswith("Scrap") or name not in bdevs
            served = Served(SCRAP) if scrap else Served(self._life(bdevs[name]), _limits(bdevs[name]))
            found[int(controller["ctrlr"].partition(".")[2])] = served
        return found

    async def counts(self) -> Counts:
        stat, cores = await self.ask("bdev_get_iostat"), await self.ask("framework_get_reactors")
        disks = {int(found[1]): _directions(bdev, stat["tick_rate"]) for bdev in stat["bdevs"]
                 if (found := re.fullmatch(r"(?:Aio|Nvme)(\d+)(?:n1)?", bdev["name"]))}  # fmt: skip
        rate = cores["tick_rate"]
        return Counts(disks, {int(c["lcore"]): Reactor(c["busy"] / rate, c["idle"] / rate) for c in cores["reactors"]})

    def _life(self, bdev: Mapping[str, Any]) -> str:
        if str(bdev["name"]).startswith("Nvme"):
            nvme = bdev["driver_specific"]["nvme"][0]
            data = nvme["ctrlr_data"]
            known = (data["serial_number"], data["model_number"], nvme["ns_data"]["id"], bdev["uuid"])
            return life(self.kind, "nvme", *known)

        return str(bdev["uuid"]).replace("-", "")[:12]

    async def look(self, disk: Disk) -> str | None:
        if self.kind.bdev == "nvme":
            return self._life(await self._attached(disk))
        return await asyncio.to_thread(self.backing.look, disk)

    async def _bdev(self, name: str) -> Mapping[str, Any] | None:
        try:
            return (await self.ask("bdev_get_bdevs", {"name": name}))[0]
        except Refused:
            return None

    async def _attached(self, disk: Disk) -> Mapping[str, Any]:
        name = f"Nvme{disk.ordinal}"
        bdev = await self._bdev(f"{name}n1")
        moved = bdev is not None and bdev["driver_specific"]["nvme"][0]["pci_address"] != disk.path
        if moved and not await self._shown(f"{name}n1"):
            await self._delete(f"{name}n1")
            bdev = None
        if bdev is None:
            await self.ask(
                "bdev_nvme_attach_controller", {"name": name, "trtype": "PCIe", "traddr": disk.path}, seconds=30
            )
            bdev = await self._bdev(f"{name}n1")
        if bdev is None:
            raise Refused(f"{disk.path} has no namespace 1")
        size = int(bdev["num_blocks"]) * int(bdev["block_size"])
        if size < self.kind.bytes:
            raise Refused(f"{disk.path} has {size >> 20} MiB, and vhost.diskMib says {self.kind.mib}")
        return bdev

    async def _shown(self, bdev: str) -> bool:
        controllers = await self.ask("vhost_get_controllers")
        return any(c["backend_specific"]["block"]["bdev"] == bdev for c in controllers)

    def _name(self, ordinal: int) -> str:
        """Of a disk's bdev."""
        return f"Nvme{ordinal}n1" if self.kind.bdev == "nvme" else f"Aio{ordinal}"

    async def serve(self, disk: Disk, life: str | None) -> None:
        name = self._name(disk.ordinal)
        if self.kind.bdev == "nvme":
            if await self.look(disk) != life:
                raise Refused(f"{disk.path} is another disk than a moment ago")
        else:
            path, found = await asyncio.to_thread(self.backing.ready, disk, life)
            await self._delete(name)
            await self._aio(name, path, found)
        with suppress(Refused):  # the disk is served all the same; `served` tells what is in force
            await self._limit(name, disk.limits)
        await self._controller(disk.ordinal, name)

    async def limit(self, disk: Disk) -> None:
        await self._limit(self._name(disk.ordinal), disk.limits)

    async def _limit(self, bdev: str, limits: Limits) -> None:
        """A bdev with limits that no VM has used yet takes no others. No thread of SPDK counts its I/O so far. To open
        the bdev for this request starts that, and SPDK turns the request away meanwhile (SPDK issue 3768)."""
        found = await self._bdev(bdev)
        if found is not None and _limits(found) == limits:
            return
        values = {theirs: getattr(limits, ours) for theirs, ours in LIMITS.items()}
        try:
            await self.ask("bdev_set_qos_limit", {"name": bdev, **values})
        except Refused as error:
            if "temporarily unavailable" not in str(error):
                raise
            raise Refused(f"{error}: SPDK takes no other limits until a VM has used the disk") from None

    async def _aio(self, name: str, path: str, life: str) -> None:
        # with discard, as all disks: a guest that has negotiated it cannot go on with a disk that lacks it
        bdev = {"name": name, "filename": path, "block_size": self.kind.block_size, "fallocate": True}
        await self.ask("bdev_aio_create", {**bdev, "uuid": str(uuid.UUID(f"{life:0<32}"))})

    async def _controller(self, ordinal: int, bdev: str) -> None:
        await self.ask("vhost_create_blk_controller", {"ctrlr": f"vhost.{ordinal}", "dev_name": bdev})

    async def serve_scrap(self, ordinal: int) -> None:
        file, name = self.run / f"scrap.{ordinal}", f"Scrap{ordinal}"
        await self._delete(name)
        sparse(file, self.kind.bytes)
        await self._aio(name, str(file), f"5c4a9{ordinal:07x}")  # SPDK refuses two bdevs of one UUID
        await self._controller(ordinal, name)

    async def stop(self, ordinal: int) -> None:
        ctrlr = f"vhost.{ordinal}"
        controllers = await self.ask("vhost_get_controllers")
        bdev = next((str(c["backend_specific"]["block"]["bdev"]) for c in controllers if c["ctrlr"] == ctrlr), "")
        try:
            await self.ask("vhost_delete_controller", {"ctrlr": ctrlr})
        except Refused:  # a VM is connected, which is not to have this disk: it gets errors from here on
            await self._delete(bdev)
            return
        await self._delete(bdev)
        (self.run / f"scrap.{ordinal}").unlink(missing_ok=True)

    async def _delete(self, bdev: str) -> None:
        """Where it is there."""
        found = await self._bdev(bdev) if bdev else None
        if found is None:
            return
        if bdev.startswith("Nvme"):
            await self.ask("bdev_nvme_detach_controller", {"name": bdev.removesuffix("n1")})
        else:
            await self.ask("bdev_aio_delete", {"name": bdev})
            self.backing.let_go(str(found.get("driver_specific", {}).get("aio", {}).get("filename", "")))

    async def free(self, disk: Disk) -> None:
        self.backing.free(disk)


def _limits(bdev: Mapping[str, Any]) -> Limits:
    assigned = bdev["assigned_rate_limits"]
    return Limits(**{ours: int(assigned[theirs]) for theirs, ours in LIMITS.items()})


def _directions(bdev: Mapping[str, Any], ticks: int) -> dict[str, Direction]:
    read = Direction(bdev["num_read_ops"], bdev["bytes_read"], bdev["read_latency_ticks"] / ticks)
    write = Direction(bdev["num_write_ops"], bdev["bytes_written"], bdev["write_latency_ticks"] / ticks)
    return {"read": read, "write": write}


def _error(message: str) -> str | None:
    """SPDK's own words in what its client makes of an error; None: it was no answer of SPDK's."""
    _, found, answer = str(message).partition("Got JSON-RPC error response\nresponse:\n")
    if not found:
        return None
    try:
        said = json.loads(answer)
        return f"{said['message']} ({said['code']})"
    except (ValueError, KeyError, TypeError):
        return re.sub(r"\s+", " ", answer)
