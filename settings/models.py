"""The config as frozen pydantic models. Each field holds the rules about its own key.

The docstring below a field is the text that users read in docs/config.md and in their editor. Run
`python -m settings.schema` after a change: it writes docs/config.md and docs/config.schema.json.
Rules over several keys are in settings/rules.py, budgets in settings/budgets.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.alias_generators import to_camel

from settings import cores as core_lists
from settings.names import number
from settings.places import places
from settings.qos import LIMITS, NONE, Limit
from settings.way import Way

NAMESPACE = "spdk-k8s"
CONFIG_VERSION = 1  # raise it when a key is removed or changes its meaning
MAX_INSTANCES = 128
MAX_CORE = 999
MAX_STORAGE_HOSTS, MAX_VMS_PER_HOST = 8, 4  # of a dev stack


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=to_camel)


def _network(value: object) -> object:
    if not isinstance(value, str):
        return value
    network = IPv4Network(value)
    first = network.network_address
    if network.prefixlen < 8 or _special(first):
        raise ValueError("must be a network of ordinary addresses, /8 or smaller")
    return network


def _address(value: object) -> object:
    return IPv4Address(value) if isinstance(value, str) else value


def _special(address: IPv4Address) -> bool:
    """Whether no other machine can reach a machine at `address`: loopback, link-local, multicast, reserved."""
    here = address in IPv4Network("0.0.0.0/8") or address.is_loopback or address.is_link_local
    return here or address.is_multicast or address.is_reserved


def _reachable(address: IPv4Address) -> IPv4Address:
    if _special(address):
        raise ValueError("must be an address at which other machines can reach this one")
    return address


def _tuple(value: object) -> object:
    return tuple(cast(list[object], value)) if isinstance(value, list) else value


def _digits(value: object) -> object:
    """Turn an integer back into text: `pulumi config set --path` stores "2" as the number 2."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _each_once(cores: str) -> str:
    if backwards := [part for part in cores.split(",") if not core_lists.numbers(part)]:
        raise ValueError(f"{backwards[0]} must begin with the lower core")
    if twice := [core for core, count in Counter(core_lists.numbers(cores)).items() if count > 1]:
        raise ValueError(f"names core {twice[0]} twice")
    return cores


def _text(pattern: str, rule: str, example: str) -> Any:
    """A text field that must match `pattern`. rule: the same in words, shown by editors and error messages."""
    return Field(pattern=pattern, examples=[example], json_schema_extra={"patternErrorMessage": rule})


def _form(pattern: str, rule: str, **more: object) -> WithJsonSchema:
    """JSON Schema of a field that the config holds as text and Python as another type. rule: see `_text`."""
    return WithJsonSchema({"type": "string", "pattern": pattern, "patternErrorMessage": rule, **more})


def _limit(kind: Limit) -> WithJsonSchema:
    number: dict[str, Any] = {"minimum": kind.step, "maximum": kind.most, "multipleOf": kind.step}
    return _form(f"^{NONE}$", kind.rule, type=["integer", "string"], **number)


_BYTES = r"([0-9]{1,3}\.){3}[0-9]{1,3}"
Network = Annotated[
    IPv4Network,
    BeforeValidator(_network),
    _form(f"^{_BYTES}/[0-9]{{1,2}}$", "must be an IPv4 network such as 192.0.2.0/24"),
]
Address = Annotated[
    IPv4Address, BeforeValidator(_address), _form(f"^{_BYTES}$", "must be an IPv4 address", examples=["192.0.2.11"])
]
NodeAddress = Annotated[Address, AfterValidator(_reachable)]
Port = Annotated[int, Field(ge=1, le=65535)]
UnprivilegedPort = Annotated[int, Field(ge=1024, le=65535)]
Path = Annotated[str, _text(r"^/[\w./-]*\w/?$", "must be an absolute path without blanks", "/srv/spdk-k8s")]
_CPU = r"^[1-9][0-9]{0,5}m?$"
Cpu = Annotated[
    str,
    BeforeValidator(_digits),
    Field(pattern=_CPU),
    _form(_CPU, "must be whole CPUs (2) or thousandths of a CPU (500m)", type=["string", "integer"], minimum=1),
]
_CORES = r"^[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*$"
Cores = Annotated[
    str,
    BeforeValidator(_digits),
    Field(pattern=_CORES),
    AfterValidator(_each_once),
    _form(
        _CORES,
        "must be a list of CPU cores such as 0-5 or 0-2,6",
        type=["string", "integer"],
        minimum=0,
        examples=["0-5"],
    ),
]
_HOST_KEY = r"^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)) AAAA[0-9A-Za-z+/]*={0,2}( .*)?$"
_PRIVATE_KEY = r"^-----BEGIN [A-Z ]*PRIVATE KEY-----\n"
Prefix = Annotated[int, Field(ge=8, le=29)]
Count = Annotated[int, Field(ge=0, le=MAX_INSTANCES)]
Name = Annotated[
    str, _text(r"^worker[1-9][0-9]?$", "must be worker and a number from 1 to 99, such as worker3", "worker3")
]
Place = Annotated[
    str,
    _text(r"^worker[1-9][0-9]?/(0|[1-9][0-9]{0,2})$", "must be a VM and one of its root ports, VM/PORT", "worker4/0"),
]
Devices = Annotated[
    tuple[Annotated[str, Field(examples=["/dev/disk/by-id/wwn-0x5000c50000000001"])], ...], BeforeValidator(_tuple)
]
Iops = Annotated[int | str | None, PlainValidator(LIMITS["iops"].check), _limit(LIMITS["iops"])]
MibPerSecond = Annotated[int | str | None, PlainValidator(LIMITS["mibPerSecond"].check), _limit(LIMITS["mibPerSecond"])]
HugepageSize = Literal["none", "2Mi", "1Gi"]
HUGEPAGE_MIB = {"none": 1, "2Mi": 2, "1Gi": 1024}


class Containers(Model):
    """The machines of the dev stack: the program creates them as containers on a Docker network of their own."""

    kind: Annotated[Literal["containers"], Way.REBUILD] = "containers"
    """`containers`: the program creates the machines. `ssh`: the machines exist and are reached by SSH."""
    subnet: Annotated[Network, Way.REBUILD] = IPv4Network("172.30.97.0/24")
    """Subnet of the Docker network. The gateway gets the first address, machines and VMs the next ones. The subnet
    must not overlap any other network."""
    storage_hosts: Annotated[int, Field(ge=1, le=MAX_STORAGE_HOSTS), Way.LIVE] = 1
    """Number of storage hosts. Each one runs a vhost target."""
    vms_per_host: Annotated[int, Field(ge=1, le=MAX_VMS_PER_HOST), Way.LIVE] = 1
    """Number of worker VMs on each storage host. Each new instance goes to the VM that has the fewest. With several
    storage hosts it cannot change while the stack is up."""
    since: Annotated[dict[str, Count], Way.LIVE] = {}
    """For a VM that is added while the stack is up: its name and the number of instances at that time. These stay where
    they are, and the VM gets later ones. Default: 0 for each VM."""
    moved: Annotated[dict[str, Place], Way.MOVE] = {}
    """Instances that are not where the program would put them: ordinal -> VM/PORT. They start there with a blank disk.
    A refused preview prints the entries for a VM that is to be removed."""

    def gateway(self, vm: str) -> IPv4Address:
        return self.subnet[1]

    def since_key(self, vm: str) -> str:
        """Config key of the number of instances when `vm` came."""
        return f"machines.since.{vm}"

    @property
    def all_names(self) -> list[str]:
        """Names of all machines and VMs that the stack can come to have."""
        return ["master", *(f"worker{i + 1}" for i in range(MAX_STORAGE_HOSTS * (1 + MAX_VMS_PER_HOST)))]

    @property
    def storage(self) -> dict[str, list[str]]:
        """Storage host -> names of its VMs, numbered on: {"worker1": ["worker2"], "worker3": ["worker4"]}."""
        each = 1 + self.vms_per_host
        names = [f"worker{i + 1}" for i in range(self.storage_hosts * each)]
        return {names[i]: names[i + 1 : i + each] for i in range(0, len(names), each)}

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        """Node name -> address."""
        names = ["master", *(n for host, vms in self.storage.items() for n in (host, *vms))]
        return {name: self.subnet[i] for i, name in enumerate(names, 2)}

    @property
    def prefix(self) -> int:
        return self.subnet.prefixlen

    def nameservers(self, vm: str) -> list[str]:
        """Name servers of VM `vm`: its storage host, which forwards queries to Docker's resolver."""
        return [str(self.addresses[host]) for host, vms in self.storage.items() if vm in vms]

    def nic(self, host: str) -> str:
        """Network card for the VMs on `host`. Empty: the card that carries the host's address."""
        return ""

    def devices(self, host: str) -> tuple[str, ...]:
        """Devices of `host` alone. Empty: those of vhost.devices."""
        return ()


class SshServer(Model):
    """How to log in to an existing machine."""

    address: Annotated[Address, Way.LIVE]
    """IPv4 address of the machine. Pulumi connects to it by SSH."""
    user: Annotated[str, _text(r"^[a-z_][a-z0-9_-]*$", "must be a user name", "root"), Way.LIVE] = "root"
    """User that logs in: root, or a user whose sudo asks for no password."""
    port: Annotated[Port, Way.LIVE] = 22
    """SSH port."""
    host_key: Annotated[
        str, _text(_HOST_KEY, "must be a public key as ssh-keyscan prints it: ssh-ed25519 AAAA…", ""), Way.LIVE
    ]
    """Public host key of the machine: the output of ssh-keyscan without the address. A machine with another key is
    refused."""
    private_key: Annotated[
        Annotated[
            str, _text(_PRIVATE_KEY, "must be a private key: a file that begins with -----BEGIN … PRIVATE KEY-----", "")
        ]
        | None,
        Way.LIVE,
    ] = Field(default=None, repr=False)
    """Private SSH key of the user, stored as a secret. `up` requires it, a preview does not."""


class SshHost(SshServer):
    """An existing machine that becomes a node of the cluster."""

    address: Annotated[NodeAddress, Way.REBUILD]
    """IPv4 address at which Pulumi and the other nodes reach the machine. All nodes must be in one network."""
    jump_host: SshServer | None = None
    """SSH jump host in front of the machine, where there is no direct connection."""


class SshStorageHost(SshHost):
    """An existing machine that runs a vhost target and worker VMs."""

    nic: Annotated[str, _text(r"^[\w.-]{0,15}$", "must be the name of a network card", "eth0"), Way.REBUILD] = ""
    """Network card that connects the VMs, or a bridge with such a card. Default: the card that carries `address`."""
    devices: Annotated[Devices, Way.TARGET] = ()
    """Devices of this storage host, in place of vhost.devices."""


class Guest(Model):
    """What every worker VM says about its network."""

    address: Annotated[NodeAddress, Way.REBUILD]
    """IPv4 address of the VM: a free address in the nodes' network."""
    nameservers: Annotated[tuple[Address, ...], BeforeValidator(_tuple), Way.REBUILD] = ()
    """IPv4 addresses of the VM's name servers. Default: its gateway."""


class SshGuest(Guest):
    """Network settings of the only worker VM."""

    gateway: Annotated[NodeAddress, Way.REBUILD]
    """Default gateway of the VM."""
    prefix: Annotated[Prefix, Way.REBUILD] = 24
    """Prefix length of the nodes' network, in bits."""


class ListedVm(Guest):
    """A worker VM in the list of its storage host."""

    name: Annotated[Name, Way.REBUILD]
    """Name of the VM and its node. No other node may have it; its number fixes the VM's MAC address and pod subnet."""
    gateway: Annotated[NodeAddress | None, Way.REBUILD] = None
    """Default gateway of the VM. Default: that of the first VM that has one."""
    prefix: Annotated[Prefix | None, Way.REBUILD] = None
    """Prefix length of the nodes' network, in bits. Default: that of the first VM that has one, or
    24."""
    since: Annotated[Count, Way.LIVE] = 0
    """For a VM that is added while the stack is up: the number of instances at that time. These stay where they are,
    and the VM gets later ones."""


class ListedHost(SshStorageHost):
    """A storage host in the list, with its VMs."""

    name: Annotated[Name, Way.REBUILD]
    """Name of the node. No other node may have it; its number fixes the node's pod subnet."""
    vms: Annotated[tuple[ListedVm, ...], BeforeValidator(_tuple)] = ()
    """The worker VMs on this storage host."""


class Ssh(Model):
    """The machines of the lab stack: existing hosts, reached by SSH. Either worker1 and worker2, for one storage host
    with one VM, or the list `storage`, for any number of both."""

    kind: Annotated[Literal["ssh"], Way.REBUILD]
    master: SshHost
    worker1: SshStorageHost | None = None
    worker2: SshGuest | None = None
    listed: Annotated[tuple[ListedHost, ...], BeforeValidator(_tuple)] = Field(default=(), alias="storage")
    """The storage hosts, each with its VMs, in place of worker1 and worker2."""
    moved: Annotated[dict[str, Place], Way.MOVE] = {}
    """Instances that are not where the program would put them: ordinal -> VM/PORT. They start there with a blank disk.
    A refused preview prints the entries for a VM that is to be removed."""

    @property
    def storage_hosts(self) -> tuple[ListedHost, ...]:
        """The storage hosts; worker1 and worker2 are the list of one host with one VM."""
        if self.worker1 is None or self.worker2 is None:
            return self.listed
        vm = ListedVm.model_construct(**dict(self.worker2), name="worker2")
        return (ListedHost.model_construct(**dict(self.worker1), name="worker1", vms=(vm,)),)

    @property
    def keys(self) -> dict[str, str]:
        """Node name -> config key of its structure."""
        found = {"master": "machines.master"}
        if not self.listed:
            return {**found, "worker1": "machines.worker1", "worker2": "machines.worker2"}
        for i, host in enumerate(self.listed):
            found[host.name] = f"machines.storage[{i}]"
            found |= {vm.name: f"machines.storage[{i}].vms[{j}]" for j, vm in enumerate(host.vms)}
        return found

    @property
    def guests(self) -> dict[str, ListedVm]:
        """Name -> VM, in the order of the numbers: no place depends on the order of the lists."""
        found = {vm.name: vm for host in self.storage_hosts for vm in host.vms}
        return {name: found[name] for name in sorted(found, key=number)}

    @property
    def since(self) -> dict[str, int]:
        """VM -> number of instances when it came; without those that were there from the first instance on."""
        return {name: vm.since for name, vm in self.guests.items() if vm.since}

    def since_key(self, vm: str) -> str:
        """Config key of the number of instances when `vm` came."""
        return f"{self.keys[vm]}.since"

    @property
    def network(self) -> IPv4Network:
        """The network of all nodes. A VM shares its host's card, and nodes route pod traffic to each other."""
        return IPv4Network(f"{self.storage_hosts[0].address}/{self.prefix}", strict=False)

    @property
    def hosts(self) -> dict[str, SshHost]:
        return {"master": self.master, **{host.name: host for host in self.storage_hosts}}

    @property
    def servers(self) -> dict[str, SshServer]:
        """Config key -> server, for every server that Pulumi logs in to, jump hosts included."""
        found: dict[str, SshServer] = {}
        for name, host in self.hosts.items():
            found[self.keys[name]] = host
            if host.jump_host:
                found[f"{self.keys[name]}.jumpHost"] = host.jump_host
        return found

    @property
    def prefix(self) -> int:
        return next((vm.prefix for vm in self.guests.values() if vm.prefix), 24)

    def gateway(self, vm: str) -> IPv4Address:
        return self.guests[vm].gateway or next(vm.gateway for vm in self.guests.values() if vm.gateway)

    def nameservers(self, vm: str) -> list[str]:
        return [str(n) for n in self.guests[vm].nameservers or (self.gateway(vm),)]

    def nic(self, host: str) -> str:
        """Network card for the VMs on `host`. Empty: the card that carries the host's address."""
        return next(h.nic for h in self.storage_hosts if h.name == host)

    def devices(self, host: str) -> tuple[str, ...]:
        """Devices of `host` alone. Empty: those of vhost.devices."""
        return next(h.devices for h in self.storage_hosts if h.name == host)

    @property
    def storage(self) -> dict[str, list[str]]:
        """Storage host -> names of its VMs."""
        return {host.name: [vm.name for vm in host.vms] for host in self.storage_hosts}

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        """Node name -> address."""
        found = {"master": self.master.address}
        for host in self.storage_hosts:
            found |= {host.name: host.address, **{vm.name: vm.address for vm in host.vms}}
        return found


class Registry(Model):
    """The private registry on master."""

    port: Annotated[UnprivilegedPort, Way.NODE] = 5000
    """TCP port of the registry. Ports that Kubernetes uses are refused."""
    tls: Annotated[bool, Way.LIVE] = True
    """`true`: HTTPS, with a certificate from a CA that the program creates. `false`: plain HTTP; your Docker engine
    must then list the registry under insecure-registries."""


class Cluster(Model):
    """The kubeadm cluster."""

    pod_cidr: Annotated[Network, Way.REBUILD] = IPv4Network("10.244.0.0/16")
    """Network of the pods. Each node gets a /24 of it. It must not overlap any other network."""
    service_cidr: Annotated[Network, Way.REBUILD] = IPv4Network("10.96.0.0/16")
    """Network of the Services, /12 to /28. It must not overlap any other network."""


class Limits(Model):
    iops: Annotated[Iops, Way.LIVE] = None
    """The most reads and writes of a disk in a second. SPDK has no limit for one of the two. Default: no limit, as for
    the next three keys."""
    mib_per_second: Annotated[MibPerSecond, Way.LIVE] = None
    """The most MiB that are read and written, together, in a second. Not with one of the next two keys."""
    read_mib_per_second: Annotated[MibPerSecond, Way.LIVE] = None
    """The most MiB that are read in a second."""
    write_mib_per_second: Annotated[MibPerSecond, Way.LIVE] = None
    """The most MiB that are written in a second."""

    @property
    def set(self) -> dict[str, Any]:
        """Key -> value, for those that have one."""
        return {name: value for name, value in self.model_dump(by_alias=True).items() if name in LIMITS and value}


class Qos(Limits):
    """The limits of every disk, and exceptions."""

    disks: Annotated[
        dict[str, Limits],
        Field(json_schema_extra={"patternErrorMessage": "must be a map of ordinals to limits"}),
        Way.LIVE,
    ] = {}
    """Exceptions for single disks, by ordinal: `vhost.qos.disks.3.iops` and so on. A limit that is not named here is as
    for all disks; `none` lifts it."""

    def of(self, ordinal: int) -> dict[str, int]:
        """The limits of a disk. Key -> value, for those that it has."""
        exceptions = self.disks.get(str(ordinal), Limits())
        return {name: value for name, value in (self.set | exceptions.set).items() if value != NONE}


class Vhost(Model):
    """The vhost target on each storage host, which serves the disks."""

    backend: Annotated[Literal["auto", "spdk", "qemu-storage-daemon"], Way.TARGET] = "auto"
    """Vhost target. `auto` chooses SPDK where its source is available and, if it polls, CPU cores are free for that;
    else qemu-storage-daemon."""
    source: Annotated[str | None, Way.TARGET] = None
    """Local folder with SPDK's source, including the submodules dpdk, isa-l and isa-l-crypto. Default: download the
    pinned release."""
    bdev: Annotated[Literal["malloc", "aio", "nvme"], Way.TARGET] = "malloc"
    """What a disk is made of. `malloc`: memory of the vhost pod, lost when the pod is made anew. `aio`: a file or block
    device on the storage host. `nvme`: an NVMe device, SPDK only."""
    disk_mib: Annotated[int, Field(ge=16, le=1 << 20), Way.TARGET] = 128
    """Size of each disk in MiB."""
    block_size: Annotated[Literal[512, 4096], Way.TARGET] = 4096
    """Logical block size of each disk in bytes."""
    files: Annotated[
        str,
        _text(
            r"^/(var/lib/spdk-k8s/disks|mnt|srv)(/[\w-][\w.-]*)*/?$",
            "must be the default or a folder in /mnt or /srv: the policy host-access grants no other folder",
            "/srv/disks",
        ),
        Way.TARGET,
    ] = "/var/lib/spdk-k8s/disks"
    """Folder on the storage host that holds the disk files vhost.0, vhost.1, … of bdev `aio`. On a server, destroy
    deletes the default folder, but only after you unprotect it, and keeps a folder in /mnt or /srv."""
    devices: Annotated[Devices, Way.TARGET] = ()
    """Devices on the storage host, one for each of its instances, in the order of their ordinals. `aio`: block
    devices to use instead of files. `nvme`: PCI addresses."""
    memory_mib: Annotated[Annotated[int, Field(ge=64, le=1 << 24)] | None, Way.TARGET] = None
    """Memory in MiB for the target's own buffers, a multiple of hugepageSize. Disks of bdev `malloc` are beside it.
    Default: enough for vm.diskSlots disks."""
    mode: Annotated[Literal["poll", "interrupt"] | None, Way.TARGET] = None
    """How SPDK waits for I/O. `poll`: it takes all of its cores, for the lowest latency. `interrupt`: it sleeps until
    there is something to do. Default: `interrupt` on machines that are containers, where everything shares the CPUs,
    unless cpus.target gives SPDK cores of its own; else `poll`."""
    cpu_mask: Annotated[
        str,
        _text(
            r"^(0x[0-9a-fA-F]{1,64}|\[[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*\])$",
            "must be a mask (0x3f) or a list ([0-5]) of CPU cores",
            "0x1",
        ),
        Way.TARGET,
    ] = "0x1"
    """CPU cores that SPDK runs on, as a mask (0x3f) or a list ([0-5]). The host must have all of them, and one more
    where SPDK polls. cpus.target takes its place in a CPU plan."""
    hugepage_size: Annotated[HugepageSize, Way.TARGET] = "none"
    """Hugepages for SPDK's memory. The program reserves them on the storage host. `none`: ordinary pages, without
    DMA to NVMe devices."""
    qos: Qos = Qos()

    @property
    def cores(self) -> frozenset[int]:
        """The CPU numbers that `cpu_mask` names."""
        if self.cpu_mask.startswith("0x"):
            mask = int(self.cpu_mask, 16)
            return frozenset(i for i in range(mask.bit_length()) if mask >> i & 1)
        spans = (sorted(map(int, part.split("-"))) for part in self.cpu_mask.strip("[]").split(","))
        return frozenset(i for span in spans for i in range(span[0], span[-1] + 1))


class Vm(Model):
    """The worker VMs. All of them are alike."""

    vcpus: Annotated[int, Field(ge=1, le=128), Way.GUEST] = 2
    """Number of virtual CPUs."""
    memory_mib: Annotated[int, Field(ge=1024, le=1 << 24), Way.GUEST] = 3072
    """Memory of the VM in MiB, a multiple of hugepageSize. At least 512 MiB and 32 MiB for each video pod."""
    hugepage_size: Annotated[HugepageSize, Way.GUEST] = "none"
    """Hugepages for the VM's memory. The program reserves them on the storage host. `none`: ordinary pages."""
    accel: Annotated[Literal["auto", "kvm", "tcg"], Way.GUEST] = "auto"
    """Accelerator of QEMU. `auto` tries to boot a guest on KVM and uses TCG (emulation) where that fails."""
    queues: Annotated[int, Field(ge=1, le=64), Way.TARGET] = 1
    """Number of virtqueues of each disk, at most vcpus."""
    disk_slots: Annotated[int, Field(ge=1, le=MAX_INSTANCES), Way.GUEST] = 32
    """Number of PCIe root ports that the VM starts with, one for each disk. Up to this number of instances on each
    VM, numinst can grow without a restart. With SPDK, a storage host has no more instances than that."""
    mac: Annotated[
        str,
        _text(
            r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
            "must be a unicast MAC address: its second digit is even",
            "DE:AD:BE:EF:01:41",
        ),
        Way.REBUILD,
    ] = "DE:AD:BE:EF:01:41"
    """MAC address of the first VM. Each further VM has the next address."""
    vnc: Annotated[
        Annotated[str, _text(r"^[^,\s]*:[0-9]{1,5}$", "must be a VNC display, HOST:NUMBER", "127.0.0.1:2")] | None,
        Way.GUEST,
    ] = None
    """VNC display of QEMU: 127.0.0.1:2 is port 5902. Default: no VNC. Allowed only with one VM on each host."""

    @property
    def vnc_port(self) -> int:
        """TCP port of `vnc`. 0: no VNC."""
        return 5900 + int(self.vnc.rpartition(":")[2]) if self.vnc else 0


class Cpus(Model):
    """The CPU plan of each storage host: which cores are whose. Empty: nothing is pinned."""

    target: Annotated[Cores | None, Way.TARGET] = None
    """Cores of the vhost target. SPDK polls on all of them. The target's pod gets the QoS class Guaranteed."""
    vms: Annotated[tuple[Cores, ...], BeforeValidator(_tuple), Way.GUEST] = ()
    """Cores of each VM of a host, in the order of the VMs: one core for each vCPU, all on one NUMA node, where the VM's
    memory is then too. A VM without an entry has no cores of its own."""
    emulator: Annotated[Cores | None, Way.GUEST] = None
    """Cores of QEMU's own threads, for all VMs of a host. Default: those of the system."""
    system: Annotated[Cores | None, Way.LIVE] = None
    """Cores of everything else: kubelet, containerd, the other pods, the disk agent. Default: all cores that the plan
    does not name."""

    @property
    def roles(self) -> dict[str, str]:
        """Key below `cpus` -> its cores, for every key that names some: {"target": "0-5", "vms[0]": "12-23"}."""
        named = {"target": self.target, **{f"vms[{i}]": cores for i, cores in enumerate(self.vms)}}
        named |= {"emulator": self.emulator, "system": self.system}
        return {role: cores for role, cores in named.items() if cores}

    def of_vm(self, index: int) -> str:
        """Cores of VM number `index` of its host. Empty: none of its own."""
        return self.vms[index] if index < len(self.vms) else ""

    @property
    def no_pods(self) -> str:
        """Cores that no pod may use: those of the VMs."""
        return core_lists.ranges(c for cores in (*self.vms, self.emulator or "") for c in core_lists.numbers(cores))


class Video(Model):
    """The video pods."""

    http_port: Annotated[UnprivilegedPort, Way.ROLLING] = 8080
    """HTTP port of instance 0's page. Instance i serves at httpPort + i."""
    rtmp_port: Annotated[UnprivilegedPort, Way.ROLLING] = 1935
    """RTMP port of instance 0's stream. Instance i serves at rtmpPort + i. The two port ranges must not overlap."""
    media_dir: Annotated[Path | None, Way.GUEST] = None
    """Folder on worker1 with your own movies in mp4-1, mp4-2, … Only with machines.kind `ssh`. Default: sample
    movies that the program makes."""
    cpu_request: Annotated[Cpu, Way.ROLLING] = "50m"
    """CPU request of each video pod. The requests of a VM's pods must fit into its vCPUs less 200m."""
    cpu_limit: Annotated[Cpu, Way.ROLLING] = "500m"
    """CPU limit of each video pod, at least cpuRequest."""


class Settings(Model):
    """The whole config of a stack."""

    config_version: Annotated[int, Field(ge=1, le=CONFIG_VERSION), Way.LIVE] = CONFIG_VERSION
    """Version of the config's keys. A config with a newer version than the checkout is refused."""
    numinst: Annotated[int, Field(ge=1, le=MAX_INSTANCES), Way.LIVE] = 3
    """Number of instances. Each instance is one disk and one video pod."""
    machines: Annotated[Containers | Ssh, Field(discriminator="kind")] = Containers()
    registry: Registry = Registry()
    cluster: Cluster = Cluster()
    vhost: Vhost = Vhost()
    vm: Vm = Vm()
    cpus: Cpus = Cpus()
    video: Video = Video()
    monitoring: Annotated[bool, Way.LIVE] = True
    """Prometheus on master, at port 9090, and what it asks on each node, at port 9100; and the wall, which shows every
    video, disk and core."""

    @property
    def vms(self) -> list[str]:
        """Names of all VMs."""
        return [vm for vms in self.machines.storage.values() for vm in vms]

    @property
    def places(self) -> list[tuple[str, int]]:
        """VM and root port of each instance, by ordinal."""
        since = {vm: self.machines.since.get(vm, 0) for vm in sorted(self.vms, key=number)}
        return places(self.numinst, since, self.moved)

    @property
    def moved(self) -> dict[int, tuple[str, int]]:
        """Ordinal -> VM and root port of the instances in `machines.moved`."""
        split = {int(i): place.split("/") for i, place in self.machines.moved.items()}
        return {i: (vm, int(port)) for i, (vm, port) in split.items()}

    @property
    def per_vm(self) -> int:
        """Number of instances on the fullest VM."""
        return max(Counter(vm for vm, _ in self.places).values())

    def ordinals(self, host: str) -> list[int]:
        """Of the instances on a storage host."""
        vms = self.machines.storage[host]
        return [i for i, (vm, _) in enumerate(self.places) if vm in vms]

    @property
    def per_host(self) -> int:
        """Number of instances on the fullest storage host."""
        return max(len(self.ordinals(host)) for host in self.machines.storage)

    def devices(self, host: str) -> tuple[str, ...]:
        """The devices that hold the disks of `host`, in the order of its instances' ordinals. Empty: none do."""
        return self.machines.devices(host) or self.vhost.devices

    @property
    def target_cores(self) -> frozenset[int]:
        """The cores that SPDK runs on."""
        return frozenset(core_lists.numbers(self.cpus.target)) if self.cpus.target else self.vhost.cores

    @property
    def polls(self) -> bool:
        """Whether SPDK takes all of its cores: see vhost.mode."""
        if self.vhost.mode:
            return self.vhost.mode == "poll"
        return bool(self.cpus.target) or not isinstance(self.machines, Containers)

    @property
    def target_mask(self) -> str:
        """`target_cores` as SPDK reads them."""
        return f"[{self.cpus.target}]" if self.cpus.target else self.vhost.cpu_mask

    @property
    def on_files(self) -> bool:
        """Whether the disks are files on the storage hosts, not memory or devices."""
        return self.vhost.bdev == "aio" and not any(self.devices(host) for host in self.machines.storage)

    @property
    def holding(self) -> Collection[str]:
        """Storage hosts whose disk files a destroy would delete: files in a container, or in the default folder."""
        deleted = isinstance(self.machines, Containers) or self.vhost.files.startswith("/var/lib/spdk-k8s/")
        return self.machines.storage if self.on_files and deleted else ()
