"""A host in small: a target that speaks QMP or SPDK's JSON-RPC, and VMs that speak QMP, over real Unix sockets.

What they hold in common is which content lies behind each vhost socket and which content each VM's device was plugged
in with. A device that reaches other content than its own is the harm that the agent must never do.
"""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from disk_agent.config import Config, Limits
from disk_agent.supervise import Supervisor

SCRAP = "scrap"


@dataclass
class PluggedIn:
    """A device in a fake QEMU."""

    id: str
    path: str
    content: str


@dataclass
class World:
    contents: dict[str, str] = field(default_factory=dict)  # vhost socket -> what the target serves there
    qemus: list[FakeQemu] = field(default_factory=list)
    harm: list[str] = field(default_factory=list)

    def users(self, path: str) -> list[PluggedIn]:
        return [d for q in self.qemus if q.listening for d in q.devices.values() if d.path == path]

    def check(self) -> None:
        for path, content in self.contents.items():
            for device in self.users(path):
                if content not in (SCRAP, device.content):
                    self.harm.append(f"{device.id} was plugged in with {device.content} and reaches {content}")
        assert not self.harm, self.harm


class Server:
    """A Unix socket with JSON answers. temper: "" answers; "mute", "garbage", "half a line" do not."""

    def __init__(self, path: Path) -> None:
        self.path, self.temper = path, ""
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.fails: dict[str, str] = {}  # command -> the error it answers
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """As by kill -9: the socket's file stays."""
        server, self._server = self._server, None
        if server:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self.talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def say(self, writer: asyncio.StreamWriter, answer: object) -> None:
        line = json.dumps(answer).encode() + b"\n"
        match self.temper:
            case "mute":
                pass
            case "garbage":
                writer.write(b"\xff{[garbage\n")
            case "half a line":
                writer.write(line[: len(line) // 2])
                writer.close()
            case _:
                writer.write(line)

    def event(self, name: str) -> None:
        for writer in self._writers:
            self.say(writer, {"event": name, "timestamp": {"seconds": 0, "microseconds": 0}, "data": {}})

    def do(self, command: str, arguments: dict[str, Any]) -> Any:
        self.told.append((command, arguments))
        if command in self.fails:
            raise RuntimeError(self.fails[command])
        doing: Callable[..., Any] | None = getattr(self, command.replace("-", "_"), None)
        if doing is None:
            raise RuntimeError(f"The command {command} has not been found")
        return doing(**{k.replace("-", "_"): v for k, v in arguments.items()})


async def objects(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """One JSON text after the other; clients send no line's end."""
    decoder, text = json.JSONDecoder(), ""
    while chunk := await reader.read(65536):
        text += chunk.decode()
        with suppress(ValueError):
            while text:
                found, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                yield found


class QmpServer(Server):
    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}
        self.say(writer, {"QMP": {"version": version, "capabilities": []}})
        async for asked in objects(reader):
            answer: dict[str, Any] = {"id": asked["id"]} if "id" in asked else {}
            try:
                if asked["execute"] == "qmp_capabilities":
                    answer["return"] = {}
                else:
                    answer["return"] = self.do(asked["execute"], asked.get("arguments", {}))
            except RuntimeError as error:
                answer["error"] = {"class": "GenericError", "desc": str(error)}
            self.say(writer, answer)

    def query_version(self) -> dict[str, Any]:
        return {}


class VhostSocket(Server):
    """The end of a vhost-user socket: one client at a time, and only QEMU's devices stay."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self.world = world

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(12)
        if self.temper == "rude":
            writer.write(struct.pack("<III", 9, 5, 0))
        elif not self.world.users(str(self.path)):
            writer.write(struct.pack("<IIIQ", struct.unpack("<III", request)[0], 5, 8, 0))
        await reader.read()


class Exports:
    """What both targets do with vhost sockets."""

    world: World

    def __init__(self) -> None:
        self.sockets: dict[str, VhostSocket] = {}
        self.opened: Callable[[str, str], None] = lambda path, content: None
        self._starting: set[asyncio.Future[None]] = set()

    def open(self, path: str, content: str) -> None:
        assert path not in self.world.contents, f"{path} is served twice"
        self.opened(path, content)
        self.world.contents[path] = content
        self.sockets[path] = made = VhostSocket(Path(path), self.world)
        task = asyncio.ensure_future(made.start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def shut(self, path: str) -> None:
        content = self.world.contents.pop(path)
        for device in self.world.users(path):
            if device.content == content:
                self.world.harm.append(f"{path} was taken from {device.id}, which has it")
        asyncio.ensure_future(self.sockets.pop(path).stop())  # noqa: RUF006

    async def gone(self) -> None:
        for path in list(self.sockets):
            self.world.contents.pop(path, None)
            await self.sockets.pop(path).stop()


class FakeQsd(QmpServer, Exports):
    """Content is the file's inode; what lies in the target's own folder is scrap."""

    def __init__(self, run: Path, world: World) -> None:
        QmpServer.__init__(self, run / "qmp")
        Exports.__init__(self)
        self.run, self.world = run, world
        self.nodes: dict[str, dict[str, Any]] = {}
        self.exports: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, dict[str, int]] = {}  # of throttling -> their limits

    async def stop(self) -> None:
        await super().stop()
        await self.gone()
        self.nodes.clear()
        self.exports.clear()
        self.groups.clear()

    def query_block_exports(self) -> list[dict[str, Any]]:
        return [
            {"id": name, "node-name": e["node_name"], "shutting-down": False, "type": "vhost-user-blk"}
            for name, e in self.exports.items()
        ]

    def query_named_block_nodes(self, flat: bool) -> list[dict[str, Any]]:
        assert flat
        filters = [{"node-name": name, "file": f"json:{node}"} for name, node in self.nodes.items()]
        files = [node["file"] for node in self.nodes.values()]
        return [*filters, *({"node-name": file["node-name"], "file": file["filename"]} for file in files)]

    def blockdev_add(self, driver: str, discard: str, node_name: str, **node: Any) -> dict[str, Any]:
        assert driver == "throttle"
        assert discard == node["file"]["discard"] == "unmap"
        known = [*self.nodes, *(each["file"]["node-name"] for each in self.nodes.values())]
        for name in (node_name, node["file"]["node-name"]):
            if name in known:
                raise RuntimeError(f"Duplicate nodes with node-name='{name}'")
        if not Path(node["file"]["filename"]).exists():
            raise RuntimeError(f"Could not open '{node['file']['filename']}': No such file or directory")
        if node["throttle_group"] not in self.groups:
            raise RuntimeError(f"Throttle group '{node['throttle_group']}' does not exist")
        self.nodes[node_name] = node
        return {}

    def blockdev_del(self, node_name: str) -> dict[str, Any]:
        del self.nodes[node_name]
        return {}

    def object_add(self, qom_type: str, id: str) -> dict[str, Any]:
        assert qom_type == "throttle-group"
        if id in self.groups:
            raise RuntimeError(f"attempt to add duplicate property '{id}' to object (type 'container')")
        self.groups[id] = {"iops-total": 0, "bps-total": 0, "bps-read": 0, "bps-write": 0}
        return {}

    def object_del(self, id: str) -> dict[str, Any]:
        if id not in self.groups:
            raise RuntimeError(f"object '{id}' not found")
        if any(node["throttle_group"] == id for node in self.nodes.values()):
            raise RuntimeError(f"object '{id}' is in use, can not be deleted")
        del self.groups[id]
        return {}

    def qom_get(self, path: str, property: str) -> dict[str, int]:
        assert property == "limits"
        return self.groups[path.removeprefix("/objects/")]

    def qom_set(self, path: str, property: str, value: dict[str, int]) -> dict[str, Any]:
        assert property == "limits"
        limits = self.groups[path.removeprefix("/objects/")]
        if {**limits, **value}["bps-total"] and ({**limits, **value}["bps-read"] or {**limits, **value}["bps-write"]):
            raise RuntimeError("bps/iops/max total values and read/write values cannot be used at the same time")
        limits |= value
        return {}

    def limits(self, ordinal: int) -> Limits:
        """Those that a disk is held to."""
        its = self.groups[f"vhost.{ordinal}"]
        return Limits(its["iops-total"], *(its[f"bps-{which}"] >> 20 for which in ("total", "read", "write")))

    def block_export_add(self, **export: Any) -> dict[str, Any]:
        file = self.nodes[export["node_name"]]["file"]["filename"]
        content = SCRAP if file.startswith(f"{self.run}/") else f"{file} {Path(file).stat().st_ino}"
        self.open(export["addr"]["path"], content)
        self.exports[export["id"]] = export
        return {}

    def block_export_del(self, id: str, mode: str) -> dict[str, Any]:
        if id not in self.exports:
            raise RuntimeError(f"Export '{id}' is not found")
        self.shut(self.exports.pop(id)["addr"]["path"])
        return {}


class FakeSpdk(Server, Exports):
    def __init__(self, run: Path, sockets: Path, world: World) -> None:
        Server.__init__(self, run / "rpc.sock")
        Exports.__init__(self)
        self.world, self.folder = world, sockets
        self.bdevs: dict[str, dict[str, Any]] = {}
        self.controllers: dict[str, str] = {}
        self.namespaces: dict[str, dict[str, Any]] = {}  # PCI address -> what lies there

    async def stop(self) -> None:
        await super().stop()
        await self.gone()
        self.bdevs.clear()
        self.controllers.clear()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for asked in objects(reader):
            answer = {"jsonrpc": "2.0", "id": asked["id"]}
            try:
                answer["result"] = self.do(asked["method"], asked.get("params", {}))
            except RuntimeError as error:
                answer["error"] = {"code": -32602, "message": str(error)}
            self.say(writer, answer)

    def spdk_get_version(self) -> dict[str, Any]:
        return {"version": "SPDK v26.05"}

    def vhost_get_controllers(self) -> list[dict[str, Any]]:
        return [{"ctrlr": c, "backend_specific": {"block": {"bdev": b}}} for c, b in self.controllers.items()]

    def bdev_get_bdevs(self, name: str | None = None) -> list[dict[str, Any]]:
        if name is not None and name not in self.bdevs:
            raise RuntimeError("No such device")
        return [b for n, b in self.bdevs.items() if name in (None, n)]

    def bdev_get_iostat(self) -> dict[str, Any]:
        read = {"num_read_ops": 3, "bytes_read": 12288, "read_latency_ticks": 500}
        write = {"num_write_ops": 2, "bytes_written": 8192, "write_latency_ticks": 250}
        return {"tick_rate": 1000, "bdevs": [{"name": name, **read, **write} for name in self.bdevs]}

    def framework_get_reactors(self) -> dict[str, Any]:
        return {"tick_rate": 1000, "reactors": [{"lcore": 2, "busy": 1500, "idle": 8500}]}

    def _add(self, name: str, **bdev: Any) -> str:
        limits = dict.fromkeys(("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec"), 0)
        made = {"name": name, "uuid": str(uuid.uuid4()), "assigned_rate_limits": limits, **bdev}
        if name in self.bdevs or made["uuid"] in {b["uuid"] for b in self.bdevs.values()}:
            raise RuntimeError("File exists")  # a UUID is a second name
        self.bdevs[name] = made
        return name

    def bdev_aio_create(self, name: str, filename: str, block_size: int, fallocate: bool, uuid: str) -> str:
        assert fallocate
        content = SCRAP if name.startswith("Scrap") else f"{filename} {Path(filename).stat().st_ino}"
        driver = {"aio": {"filename": filename}}
        return self._add(name, uuid=uuid, content=content, driver_specific=driver)

    def bdev_nvme_attach_controller(self, name: str, trtype: str, traddr: str) -> list[str]:
        if traddr not in self.namespaces:
            raise RuntimeError("No such device")
        here = self.namespaces[traddr]
        data = {"serial_number": here["serial"], "model_number": "m"}
        nvme = {"pci_address": traddr, "ctrlr_data": data, "ns_data": {"id": 1}}
        self._add(
            f"{name}n1", uuid=here["uuid"], content=here["serial"], num_blocks=here["blocks"], block_size=512,
            driver_specific={"nvme": [nvme]},
        )  # fmt: skip
        return [f"{name}n1"]

    def _delete(self, name: str) -> bool:
        del self.bdevs[name]
        for ctrlr, bdev in self.controllers.items():
            if bdev == name:
                self.world.contents[str(self.folder / ctrlr)] = SCRAP  # answers with errors from now on
        return True

    def bdev_aio_delete(self, name: str) -> bool:
        return self._delete(name)

    def bdev_nvme_detach_controller(self, name: str) -> bool:
        return self._delete(f"{name}n1")

    def bdev_set_qos_limit(self, name: str, **limits: int) -> bool:
        """As lib/bdev/bdev.c of 26.05: with limits and no channel (no VM was ever connected), opening the bdev for this
        request starts the limits anew, and the request finds that under way. A channel stays once there was a VM, as
        long as there are limits."""
        bdev = self.bdevs[name]
        assigned = bdev["assigned_rate_limits"]
        used = any(self.world.users(str(self.folder / c)) for c, b in self.controllers.items() if b == name)
        bdev["counted"] = used or bdev.get("counted", False)
        if any(assigned.values()) and not bdev["counted"]:
            raise RuntimeError("Failed to configure rate limit: Resource temporarily unavailable")
        thousands = -(-limits["rw_ios_per_sec"] // 1000) * 1000
        assigned |= {**limits, "rw_ios_per_sec": thousands}
        bdev["counted"] = used or (bdev["counted"] and any(assigned.values()))
        return True

    def limits(self, ordinal: int) -> Limits:
        """Those that a disk is held to."""
        return Limits(*self.bdevs[self.controllers[f"vhost.{ordinal}"]]["assigned_rate_limits"].values())

    def vhost_create_blk_controller(self, ctrlr: str, dev_name: str) -> bool:
        if ctrlr in self.controllers:
            raise RuntimeError("File exists")
        self.controllers[ctrlr] = dev_name
        self.open(str(self.folder / ctrlr), self.bdevs[dev_name]["content"])
        return True

    def vhost_delete_controller(self, ctrlr: str) -> bool:
        path = str(self.folder / ctrlr)
        if self.world.users(path):
            raise RuntimeError("Device or resource busy")
        del self.controllers[ctrlr]
        self.shut(path)
        return True


class FakeQemu(QmpServer):
    """obedient: its guest lets go of a device when it is asked."""

    def __init__(self, name: str, sockets: Path, world: World, definition: str = "") -> None:
        super().__init__(sockets / f"{name}.qmp")
        self.world, self.definition = world, definition or name
        self.obedient, self.old = True, False
        self.reads, self.card_open, self.running = 1, True, True
        self.chardevs: dict[str, str] = {}
        self.devices: dict[str, PluggedIn] = {}
        self.leaving: set[str] = set()
        world.qemus.append(self)

    async def stop(self) -> None:
        await super().stop()
        self.chardevs.clear()
        self.devices.clear()
        self.leaving.clear()

    def query_name(self) -> dict[str, Any]:
        return {"name": self.definition}

    def query_blockstats(self) -> list[dict[str, Any]]:
        return [{"device": "root", "stats": {"rd_operations": self.reads}}]

    def query_rx_filter(self) -> list[dict[str, Any]]:
        return [{"name": "net", "promiscuous": not self.card_open}]

    def query_status(self) -> dict[str, Any]:
        return {"running": self.running, "status": "running" if self.running else "paused"}

    def system_reset(self) -> dict[str, Any]:
        self.event("RESET")
        return {}

    def query_chardev(self) -> list[dict[str, Any]]:
        return [{"label": name} for name in ("qmp", *self.chardevs)]

    def qom_list(self, path: str) -> list[dict[str, Any]]:
        assert path == "/machine/peripheral"
        return [{"name": name} for name in ("net", *self.devices)]

    def chardev_add(self, id: str, backend: dict[str, Any]) -> dict[str, Any]:
        data = backend["data"]["data"] if "data" in backend["data"].get("data", {}) else backend["data"]
        if self.old and "reconnect-ms" in data:
            raise RuntimeError("Parameter 'backend.data.reconnect-ms' is unexpected")
        assert "reconnect-ms" in data or self.old
        if id in self.chardevs:
            raise RuntimeError(f"Chardev with id '{id}' already exists")
        self.chardevs[id] = data["addr"]["data"]["path"]
        return {}

    def chardev_remove(self, id: str) -> dict[str, Any]:
        if id not in self.chardevs or id in self.devices:
            raise RuntimeError(f"Chardev '{id}' is busy or not found")
        del self.chardevs[id]
        return {}

    def device_add(self, **device: Any) -> dict[str, Any]:
        path = self.chardevs[device["chardev"]]
        if path not in self.world.contents or self.world.users(path):
            self.world.harm.append(f"QEMU waits for {path} for ever")
            raise RuntimeError("in a real QEMU this does not return")
        self.devices[device["id"]] = PluggedIn(device["id"], path, self.world.contents[path])
        return {}

    def device_del(self, id: str) -> dict[str, Any]:
        if id not in self.devices:
            raise RuntimeError(f"Device '{id}' not found")
        if id in self.leaving:
            self.let_go()
            raise RuntimeError(f"Device {id} is already in the process of unplug")
        self.leaving.add(id)
        self.let_go()
        return {}

    def let_go(self) -> None:
        """The guest does what it was asked, where the target answers what is in flight."""
        for name in sorted(self.leaving):
            if self.obedient and self.devices[name].path in self.world.contents:
                del self.devices[name]
                self.leaving.discard(name)
                self.event("DEVICE_DELETED")


class Supervised(Supervisor):
    """A supervisor whose target is a fake in this process."""

    def __init__(self, target: Any) -> None:
        super().__init__(target)

    async def rise(self) -> None:
        await self.target.connect()
        self.starts += 1
        self.up = self.ever_up = True

    async def fall(self) -> None:
        self.up = False
        await self.target.close()


def write_config(file: Path, config: Config) -> None:
    """At once, as kubelet does."""
    disks = [asdict(d) | {"limits": d.limits.set} for d in config.disks.values()]
    kind = config.kind
    text = json.dumps(
        {
            "bdev": kind.bdev,
            "mib": kind.mib,
            "blockSize": kind.block_size,
            "queues": kind.queues,
            "vms": config.vms,
            "disks": disks,
        }
    )
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)
