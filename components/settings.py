"""Stack config -> frozen models. Every rule about values lives here; nothing here imports a provider SDK."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

NAMESPACE = "spdk-k8s"
MAX_INSTANCES = 128


class ConfigError(ValueError):
    """The config breaks a rule. `problems` holds every broken one, each with its key, value, rule and remedy."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(
            "the stack's config cannot be used; nothing was started:\n" + "\n".join(f"  - {p}" for p in problems)
        )


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True)


def _network(value: object) -> object:
    return IPv4Network(value) if isinstance(value, str) else value


def _address(value: object) -> object:
    return IPv4Address(value) if isinstance(value, str) else value


def _tuple(value: object) -> object:
    return tuple(cast(list[object], value)) if isinstance(value, list) else value


Network = Annotated[IPv4Network, BeforeValidator(_network)]
Address = Annotated[IPv4Address, BeforeValidator(_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
Cpu = Annotated[str, Field(pattern=r"^[1-9][0-9]*m?$")]


class Containers(Model):
    """The dev stack's machines: containers on a Docker network of their own."""

    kind: Literal["containers"] = "containers"
    subnet: Network = IPv4Network("172.30.97.0/24")
    storage_hosts: Annotated[int, Field(ge=1, le=8)] = 1
    """Machines with a vhost target."""
    vms_per_host: Annotated[int, Field(ge=1, le=4)] = 1
    """Worker VMs on each of them; instances are spread over all VMs in turn."""

    @property
    def gateway(self) -> IPv4Address:
        return self.subnet[1]

    @property
    def storage(self) -> dict[str, list[str]]:
        """Storage host -> its VMs: worker1 with worker2, and so on."""
        each = 1 + self.vms_per_host
        names = [f"worker{i + 1}" for i in range(self.storage_hosts * each)]
        return {names[i]: names[i + 1 : i + each] for i in range(0, len(names), each)}

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        """Node name -> address."""
        names = ["master", *(n for host, vms in self.storage.items() for n in (host, *vms))]
        return {name: self.subnet[i] for i, name in enumerate(names, 2)}


class SshHost(Model):
    """A machine that exists already."""

    address: Address
    user: str = "root"
    port: Port = 22
    host_key: str = Field(pattern=r"^(ssh-|ecdsa-)\S+ \S+")
    private_key: str = Field(repr=False)
    nic: str = ""
    """Network card that carries `address`; empty: the one with the default route."""


class SshGuest(Model):
    """The worker VM's place in the hosts' network."""

    address: Address
    gateway: Address
    prefix: Annotated[int, Field(ge=8, le=30)] = 24


class Ssh(Model):
    """The lab stack's machines: existing hosts reached by SSH."""

    kind: Literal["ssh"]
    master: SshHost
    worker1: SshHost
    worker2: SshGuest

    @property
    def storage(self) -> dict[str, list[str]]:
        """Storage host -> its VMs."""
        return {"worker1": ["worker2"]}

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        return {
            "master": self.master.address,
            "worker1": self.worker1.address,
            "worker2": self.worker2.address,
        }


class Registry(Model):
    port: Port = 5000
    tls: bool = True


class Cluster(Model):
    pod_cidr: Network = IPv4Network("10.244.0.0/16")
    service_cidr: Network = IPv4Network("10.96.0.0/16")


class Vhost(Model):
    backend: Literal["auto", "spdk", "qemu-storage-daemon"] = "auto"
    """auto: SPDK where its source can be had and a core can be spared for polling, else qemu-storage-daemon."""
    source: str | None = None
    """Folder with SPDK's source and its submodules dpdk, isa-l and isa-l-crypto; none: the pinned release."""
    bdev: Literal["malloc", "aio", "nvme"] = "malloc"
    """What a disk is: memory of the target; a file or block device on worker1, which survive it; an NVMe device."""
    disk_mib: Annotated[int, Field(ge=16, le=1 << 20)] = 128
    block_size: Literal[512, 4096] = 4096
    files: Annotated[str, Field(pattern=r"^/[\w./-]+$")] = "/var/lib/spdk-k8s/disks"
    """Folder on worker1 with the files vhost.0, vhost.1, … of bdev aio; the default one is removed with the stack."""
    devices: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    """Block devices (aio, instead of files) or PCI addresses (nvme) on worker1, in the order of the ordinals."""
    memory_mib: Annotated[int, Field(ge=64)] | None = None
    """Memory that the target may use, MiB; default: the disks in memory and what the target itself needs."""
    cpu_mask: Annotated[str, Field(pattern=r"^(0x[0-9a-fA-F]+|\[[0-9,-]+\])$")] = "0x1"
    """Cores that SPDK polls on, as a mask or a list: 0x3f or [0-5]."""
    hugepage_size: Literal["none", "2Mi", "1Gi"] = "none"
    """Pages of SPDK's memory, reserved on worker1; none: ordinary pages, without DMA to NVMe devices."""

    @property
    def cores(self) -> frozenset[int]:
        """CPU numbers of `cpu_mask`."""
        if self.cpu_mask.startswith("0x"):
            mask = int(self.cpu_mask, 16)
            return frozenset(i for i in range(mask.bit_length()) if mask >> i & 1)
        spans = (part.split("-") for part in self.cpu_mask.strip("[]").split(",") if part.strip("-"))
        return frozenset(i for span in spans for i in range(int(span[0]), int(span[-1]) + 1))


class Vm(Model):
    vcpus: Annotated[int, Field(ge=1, le=128)] = 2
    memory_mib: Annotated[int, Field(ge=1024)] = 3072
    hugepage_size: Literal["none", "2Mi", "1Gi"] = "none"
    """Pages of the VM's memory, reserved on worker1."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    queues: Annotated[int, Field(ge=1, le=64)] = 1
    disk_slots: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 32
    """PCIe root ports made at the VM's start: numinst grows up to this with nothing restarted."""
    mac: Annotated[str, Field(pattern=r"^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$")] = "DE:AD:BE:EF:01:41"
    vnc: Annotated[str, Field(pattern=r"^[^,\s]*:[0-9]+$")] | None = None
    """QEMU's VNC display, for example 127.0.0.1:2; none: no VNC."""


class Video(Model):
    http_port: Port = 8080
    rtmp_port: Port = 1935
    media_dir: str | None = None
    """Folder on worker1 with mp4-1, mp4-2, …; none: samples made by the program."""
    cpu_request: Cpu = "50m"
    cpu_limit: Cpu = "500m"


class Settings(Model):
    """The whole config of a stack."""

    numinst: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 3
    machines: Annotated[Containers | Ssh, Field(discriminator="kind")] = Containers()
    registry: Registry = Registry()
    cluster: Cluster = Cluster()
    vhost: Vhost = Vhost()
    vm: Vm = Vm()
    video: Video = Video()

    @property
    def vhost_memory_mib(self) -> int:
        """Memory of the vhost target, MiB: disks of bdev malloc live in it, and it needs some of its own.

        It has room for every disk slot of its VMs, because another size would be another pod, with blank disks.
        """
        page = HUGEPAGE_MIB.get(self.vhost.hugepage_size, 1)
        default = self._disks_mib(self.slots) + self.vhost_overhead_mib
        return self.vhost.memory_mib or -(-default // page) * page

    @property
    def vms(self) -> list[str]:
        """Names of all VMs; instance i runs on the one of render.place."""
        return [vm for vms in self.machines.storage.values() for vm in vms]

    @property
    def slots(self) -> int:
        """As many disks as a storage host may ever serve."""
        return self.vm.disk_slots * len(next(iter(self.machines.storage.values())))

    @property
    def vhost_overhead_mib(self) -> int:
        """What the target itself needs, MiB, with every slot in use."""
        return VHOST_OVERHEAD_MIB + self.slots * VHOST_OVERHEAD_MIB_PER_DISK

    def _disks_mib(self, count: int) -> int:
        return count * self.vhost.disk_mib if self.vhost.bdev == "malloc" else 0

    @property
    def memory_mib(self) -> int:
        """What a machine needs that carries the whole stack, MiB: disks in use, VM, and the nodes themselves."""
        return self._disks_mib(self.numinst) + self.vhost_overhead_mib + len(self.vms) * self.vm.memory_mib + NODES_MIB

    def hugepages(self, backend: str) -> dict[str, int]:
        """Size -> number of hugepages that worker1 must reserve."""
        vms = len(next(iter(self.machines.storage.values())))
        wanted = {self.vm.hugepage_size: self.vm.memory_mib * vms}
        if backend == "spdk":
            wanted[self.vhost.hugepage_size] = wanted.get(self.vhost.hugepage_size, 0) + self.vhost_memory_mib
        return {size: -(-mib // HUGEPAGE_MIB[size]) for size, mib in wanted.items() if size != "none"}

    def budget(self, backend: str) -> str:
        """What worker1 must have, in words."""
        pages = [f"{count} hugepages of {size}" for size, count in self.hugepages(backend).items()]
        return (
            f"budget of worker1: vhost {self.vhost_memory_mib} MiB for up to {self.slots} disks of"
            f" {self.vhost.disk_mib} MiB, VM {self.vm.memory_mib} MiB; {' and '.join(pages) or 'no hugepages'}"
        )

    def backend(self, *, cpus: int, release: bool) -> tuple[Literal["spdk", "qemu-storage-daemon"], str]:
        """The vhost backend in use, and why.

        cpus: of the machine that worker1 is on. release: SPDK's release can be fetched.
        """
        if self.vhost.backend != "auto":
            return self.vhost.backend, "it is configured"
        if not (release or self.vhost.source):
            return "qemu-storage-daemon", "SPDK's release cannot be reached and vhost.source names no folder"
        if cpus < (need := self.vm.vcpus + 2):
            return "qemu-storage-daemon", f"SPDK polls on a core of its own, and {cpus} CPUs are less than {need}"
        return "spdk", f"its source can be had, and of {cpus} CPUs one can be spared"


NODES_MIB = 1536  # control plane, kubelets and registry of a dev stack
HUGEPAGE_MIB = {"2Mi": 2, "1Gi": 1024}
VHOST_OVERHEAD_MIB = 256
VHOST_OVERHEAD_MIB_PER_DISK = 8  # SPDK's buffers, see render.spdk_config

# Example values, for remedies of keys that have no default.
_EXAMPLES: dict[str, str] = {
    "machines.kind": "containers",
    "machines.master.address": "192.0.2.11",
    "machines.worker1.address": "192.0.2.12",
    "machines.worker2.address": "192.0.2.13",
    "machines.worker2.gateway": "192.0.2.1",
    "machines.master.hostKey": "'ssh-ed25519 AAAA…'",
    "machines.worker1.hostKey": "'ssh-ed25519 AAAA…'",
}

VM_RESERVED_MILLICPU = 200  # for CoreDNS, where it lands there

# Ports that a node uses itself: SSH, etcd, API server, kubelet, kube-proxy, controller manager, scheduler.
_NODE_PORTS = {22, 2379, 2380, 2381, 6443, 10248, 10249, 10250, 10256, 10257, 10259}


def load(raw: Mapping[str, str]) -> Settings:
    """`raw`: the stack's config, full key -> text as Pulumi gives it (JSON for structures).

    Raises ConfigError with every broken rule at once. Keys of other namespaces are not ours to judge.
    """
    values = {
        key.removeprefix(f"{NAMESPACE}:"): _parse(text) for key, text in raw.items() if key.startswith(f"{NAMESPACE}:")
    }
    machines = values.get("machines")
    if isinstance(machines, dict) and "kind" not in machines:
        cast(dict[str, Any], machines)["kind"] = "containers"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_explain(dict(item), values) for item in error.errors()]) from None
    problems = _cross_checks(settings)
    if problems:
        raise ConfigError(problems)
    return settings


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _set(key: str, value: object) -> str:
    path = "--path " if "." in key else ""
    secret = "--secret " if key.endswith("privateKey") else ""
    return f"pulumi config set {secret}{path}{key} {value}"


def _explain(item: dict[str, Any], values: dict[str, Any]) -> str:
    # pydantic puts the union's tag into the location; it is no key of the user's
    parts = [str(p) for i, p in enumerate(item["loc"]) if not (i == 1 and p in ("containers", "ssh"))]
    key = ".".join(parts)
    if item["type"] == "union_tag_invalid":
        key = "machines.kind"
    full = f"{NAMESPACE}:{key}"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(parts[-1], _known_keys(parts[:-1]), n=1)
        meant = ".".join([*parts[:-1], *near])
        path = "--path " if "." in key else ""
        also = f" (did you mean {NAMESPACE}:{meant}?)" if near else ""
        return f"{full}: there is no such key{also}; mend: pulumi config rm {path}{key}"
    if item["type"] == "missing":
        return f"{full}: is required; mend: {_set(key, _EXAMPLES.get(key, '…'))}"
    rule = _range(parts) or str(item["msg"]).removeprefix("Value error, ")
    default = _EXAMPLES.get(key, _default(parts))
    shown = "(hidden)" if key.endswith("privateKey") else json.dumps(item["input"], default=str)
    return f"{full} = {shown}: {rule[0].lower()}{rule[1:]}; mend: {_set(key, default)}"


def _model_at(parts: list[str]) -> type[Model] | None:
    model: type[Model] = Settings
    for part in parts:
        default = next((f.default for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        if not isinstance(default, Model):
            return {"master": SshHost, "worker1": SshHost, "worker2": SshGuest}.get(part)
        model = type(default)
    return model


def _known_keys(parts: list[str]) -> list[str]:
    model = _model_at(parts)
    return [f.alias or n for n, f in model.model_fields.items()] if model else []


def _default(parts: list[str]) -> object:
    model = _model_at(parts[:-1])
    for name, field in (model.model_fields if model else {}).items():
        if parts[-1] in (name, field.alias) and isinstance(field.default, (str, int, IPv4Network)):
            return str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "…"


def _range(parts: list[str]) -> str | None:
    """The rule of a whole number, in words."""
    model = _model_at(parts[:-1])
    for name, field in (model.model_fields if model else {}).items():
        if parts[-1] in (name, field.alias) and str(field.annotation) in (
            "<class 'int'>",
            "int | None",
            "typing.Optional[int]",
        ):
            bounds = {k: getattr(m, k) for m in field.metadata for k in ("ge", "le") if hasattr(m, k)}
            upper = f" to {bounds['le']}" if "le" in bounds else " up"
            return f"must be a whole number from {bounds['ge']}{upper}" if "ge" in bounds else None
    return None


def _cross_checks(s: Settings) -> list[str]:
    problems: list[str] = []

    def rule(holds: bool, key: str, value: object, text: str, remedy: object) -> None:
        if not holds:
            problems.append(f"{NAMESPACE}:{key} = {value}: {text}; mend: {_set(key, remedy)}")

    machines = s.machines
    networks: dict[str, IPv4Network] = {}
    if isinstance(machines, Containers):
        networks["machines.subnet"] = machines.subnet
        rule(
            machines.subnet.num_addresses >= max(16, len(machines.storage) * (1 + machines.vms_per_host) + 4),
            "machines.subnet",
            machines.subnet,
            "must have room for a gateway and all machines (/28 or larger)",
            "172.30.97.0/24",
        )
    else:
        for name, address in machines.addresses.items():
            others = {n: a for n, a in machines.addresses.items() if n != name}
            rule(
                address not in others.values(),
                f"machines.{name}.address",
                address,
                "every machine needs an address of its own",
                _EXAMPLES[f"machines.{name}.address"],
            )
    networks |= {"cluster.podCidr": s.cluster.pod_cidr, "cluster.serviceCidr": s.cluster.service_cidr}
    keys = list(networks)
    for i, key in enumerate(keys):
        for other in keys[i + 1 :]:
            rule(
                not networks[key].overlaps(networks[other]),
                key,
                networks[key],
                f"must not overlap {NAMESPACE}:{other} = {networks[other]}",
                _default(key.split(".")),
            )
    rule(
        s.cluster.pod_cidr.prefixlen <= 20,
        "cluster.podCidr",
        s.cluster.pod_cidr,
        "must have room for a /24 for each node (/20 or larger)",
        "10.244.0.0/16",
    )
    rule(
        (per_vm := -(-s.numinst // len(s.vms))) <= s.vm.disk_slots,
        "vm.diskSlots",
        s.vm.disk_slots,
        f"must be at least numinst ({s.numinst}) for each VM ({len(s.vms)}): a disk has a PCIe root port of its own",
        min(MAX_INSTANCES, -(-per_vm // 8) * 8),
    )
    rule(s.vm.queues <= s.vm.vcpus, "vm.queues", s.vm.queues, f"must not exceed vm.vcpus ({s.vm.vcpus})", s.vm.vcpus)
    need = s._disks_mib(-(-s.numinst // len(machines.storage))) + s.vhost_overhead_mib  # pyright: ignore[reportPrivateUsage]
    rule(
        s.vhost_memory_mib >= need,
        "vhost.memoryMib",
        s.vhost.memory_mib,
        f"{s.numinst} disks x {s.vhost.disk_mib} MiB + {s.vhost_overhead_mib} MiB = {need} MiB must fit",
        need,
    )
    problems += _device_checks(s)
    for key, size, mib in (
        ("vhost", s.vhost.hugepage_size, s.vhost_memory_mib),
        ("vm", s.vm.hugepage_size, s.vm.memory_mib),
    ):
        page = HUGEPAGE_MIB.get(size, 1)
        rule(
            mib % page == 0,
            f"{key}.memoryMib",
            mib,
            f"must be a multiple of {key}.hugepageSize ({size})",
            -(-mib // page) * page,
        )
    request = int(s.video.cpu_request.removesuffix("m")) * (1 if s.video.cpu_request.endswith("m") else 1000)
    fitting = (s.vm.vcpus * 1000 - VM_RESERVED_MILLICPU) // per_vm
    rule(
        request <= fitting,
        "video.cpuRequest",
        s.video.cpu_request,
        f"{per_vm} pods x {request}m must fit into the VM's {s.vm.vcpus} vCPUs less {VM_RESERVED_MILLICPU}m",
        f"{max(1, fitting)}m",
    )
    http = range(s.video.http_port, s.video.http_port + s.numinst)
    rtmp = range(s.video.rtmp_port, s.video.rtmp_port + s.numinst)
    ports: list[tuple[str, range, object]] = [("video.httpPort", http, 8080), ("video.rtmpPort", rtmp, 1935)]
    for key, used, remedy in ports:
        rule(
            used.stop <= 65536,
            key,
            used.start,
            f"numinst ({s.numinst}) ports from here go beyond 65535",
            remedy,
        )
        taken = sorted(_NODE_PORTS.intersection(used))
        rule(
            not taken,
            key,
            used.start,
            f"ports {used.start}-{used.stop - 1} include {taken}, which a node needs itself",
            remedy,
        )
    rule(
        not set(http) & set(rtmp),
        "video.rtmpPort",
        s.video.rtmp_port,
        f"RTMP ports {rtmp.start}-{rtmp.stop - 1} overlap the HTTP ports {http.start}-{http.stop - 1}",
        1935,
    )
    rule(
        s.registry.port not in _NODE_PORTS,
        "registry.port",
        s.registry.port,
        "is a port that a node needs itself",
        5000,
    )
    return problems


DEVICE = {
    "aio": (r"/dev/[\w./-]+", "/dev/sdb"),
    "nvme": (r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", "0000:5e:00.0"),
}


def _device_checks(s: Settings) -> list[str]:
    """What bdev says of the devices."""
    vhost, problems = s.vhost, list[str]()

    def rule(holds: bool, key: str, value: object, text: str, remedy: object) -> None:
        if not holds:
            problems.append(f"{NAMESPACE}:{key} = {json.dumps(value)}: {text}; mend: {_set(key, remedy)}")

    if vhost.bdev == "malloc":
        rule(not vhost.devices, "vhost.devices", vhost.devices, "bdev malloc has none", "'[]'")
        return problems
    pattern, example = DEVICE[vhost.bdev]
    remedy = f"'[\"{example}\", …]'"
    for device in vhost.devices:
        rule(
            re.fullmatch(pattern, device) is not None,
            "vhost.devices",
            device,
            f"must be like {example} for bdev {vhost.bdev}",
            remedy,
        )
    rule(len(set(vhost.devices)) == len(vhost.devices), "vhost.devices", vhost.devices, "names one twice", remedy)
    if vhost.devices or vhost.bdev == "nvme":
        rule(
            len(vhost.devices) >= s.numinst,
            "vhost.devices",
            vhost.devices,
            f"each of {s.numinst} instances needs a device of its own",
            remedy,
        )
    if vhost.bdev == "nvme":
        rule(vhost.backend == "spdk", "vhost.backend", vhost.backend, "only SPDK serves bdev nvme", "spdk")
        rule(
            vhost.hugepage_size != "none",
            "vhost.hugepageSize",
            vhost.hugepage_size,
            "NVMe devices need memory on hugepages",
            "2Mi",
        )
    return problems
