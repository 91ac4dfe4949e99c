"""The config as frozen pydantic models. Each field holds the rules about its own key.

The docstring below a field is the text that users read in docs/config.md and in their editor. Run
`python -m settings.schema` after a change: it writes docs/config.md and docs/config.schema.json.
Rules over several keys are in settings/rules.py, budgets in settings/budgets.py.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

NAMESPACE = "spdk-k8s"
CONFIG_VERSION = 1  # raise it when a key is removed or changes its meaning
MAX_INSTANCES = 128


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


def _text(pattern: str, rule: str, example: str) -> Any:
    """A text field that must match `pattern`. rule: the same in words, shown by editors and error messages."""
    return Field(pattern=pattern, examples=[example], json_schema_extra={"patternErrorMessage": rule})


def _form(pattern: str, rule: str, **more: object) -> WithJsonSchema:
    """JSON Schema of a field that the config holds as text and Python as another type. rule: see `_text`."""
    return WithJsonSchema({"type": "string", "pattern": pattern, "patternErrorMessage": rule, **more})


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
_HOST_KEY = r"^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)) AAAA[0-9A-Za-z+/]*={0,2}( .*)?$"
_PRIVATE_KEY = r"^-----BEGIN [A-Z ]*PRIVATE KEY-----\n"
HugepageSize = Literal["none", "2Mi", "1Gi"]
HUGEPAGE_MIB = {"none": 1, "2Mi": 2, "1Gi": 1024}


class Containers(Model):
    """The machines of the dev stack: the program creates them as containers on a Docker network of their own."""

    kind: Literal["containers"] = "containers"
    """`containers`: the program creates the machines. `ssh`: the machines exist and are reached by SSH."""
    subnet: Network = IPv4Network("172.30.97.0/24")
    """Subnet of the Docker network. The gateway gets the first address, machines and VMs the next ones. The subnet
    must not overlap any other network."""
    storage_hosts: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of storage hosts. Each one runs a vhost target."""
    vms_per_host: Annotated[int, Field(ge=1, le=4)] = 1
    """Number of worker VMs on each storage host. Instances are spread over all VMs in turn."""

    @property
    def gateway(self) -> IPv4Address:
        return self.subnet[1]

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

    def nameservers(self, host: str) -> list[str]:
        """Name servers of the VMs on `host`: the host itself, which forwards queries to Docker's resolver."""
        return [str(self.addresses[host])]

    def nic(self, host: str) -> str:
        """Network card for the VMs on `host`. Empty: the card that carries the host's address."""
        return ""


class SshServer(Model):
    """How to log in to an existing machine."""

    address: Address
    """IPv4 address of the machine. Pulumi connects to it by SSH."""
    user: Annotated[str, _text(r"^[a-z_][a-z0-9_-]*$", "must be a user name", "root")] = "root"
    """User that logs in: root, or a user whose sudo asks for no password."""
    port: Port = 22
    """SSH port."""
    host_key: Annotated[str, _text(_HOST_KEY, "must be a public key as ssh-keyscan prints it: ssh-ed25519 AAAA…", "")]
    """Public host key of the machine: the output of ssh-keyscan without the address. A machine with another key is
    refused."""
    private_key: (
        Annotated[
            str, _text(_PRIVATE_KEY, "must be a private key: a file that begins with -----BEGIN … PRIVATE KEY-----", "")
        ]
        | None
    ) = Field(default=None, repr=False)
    """Private SSH key of the user, stored as a secret. `up` requires it, a preview does not."""


class SshHost(SshServer):
    """An existing machine that becomes a node of the cluster."""

    address: NodeAddress
    """IPv4 address at which Pulumi and the other nodes reach the machine. All nodes must be in one network."""
    jump_host: SshServer | None = None
    """SSH jump host in front of the machine, where there is no direct connection."""


class SshStorageHost(SshHost):
    """An existing machine that runs a vhost target and a worker VM."""

    nic: Annotated[str, _text(r"^[\w.-]{0,15}$", "must be the name of a network card", "eth0")] = ""
    """Network card that connects the VM, or a bridge with such a card. Default: the card that carries `address`."""


class SshGuest(Model):
    """Network settings of the worker VM."""

    address: NodeAddress
    """IPv4 address of the VM: a free address in worker1's network."""
    gateway: NodeAddress
    """Default gateway of worker1's network."""
    prefix: Annotated[int, Field(ge=8, le=29)] = 24
    """Prefix length of worker1's network, in bits."""
    nameservers: Annotated[tuple[Address, ...], BeforeValidator(_tuple)] = ()
    """IPv4 addresses of the VM's name servers. Default: the gateway."""


class Ssh(Model):
    """The machines of the lab stack: existing hosts, reached by SSH."""

    kind: Literal["ssh"]
    master: SshHost
    worker1: SshStorageHost
    worker2: SshGuest

    @property
    def network(self) -> IPv4Network:
        """The network of all nodes. The VM shares worker1's card, and nodes route pod traffic to each other."""
        return IPv4Network(f"{self.worker1.address}/{self.prefix}", strict=False)

    @property
    def hosts(self) -> dict[str, SshHost]:
        return {"master": self.master, "worker1": self.worker1}

    @property
    def servers(self) -> dict[str, SshServer]:
        """Config key -> server, for every server that Pulumi logs in to, jump hosts included."""
        found: dict[str, SshServer] = {}
        for name, host in self.hosts.items():
            found[f"machines.{name}"] = host
            if host.jump_host:
                found[f"machines.{name}.jumpHost"] = host.jump_host
        return found

    @property
    def gateway(self) -> IPv4Address:
        return self.worker2.gateway

    @property
    def prefix(self) -> int:
        return self.worker2.prefix

    def nameservers(self, host: str) -> list[str]:
        """Name servers of the VM on `host`."""
        return [str(n) for n in self.worker2.nameservers or (self.gateway,)]

    def nic(self, host: str) -> str:
        """Network card for the VM on `host`. Empty: the card that carries the host's address."""
        return self.worker1.nic

    @property
    def storage(self) -> dict[str, list[str]]:
        """Storage host -> names of its VMs."""
        return {"worker1": ["worker2"]}

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        return {
            "master": self.master.address,
            "worker1": self.worker1.address,
            "worker2": self.worker2.address,
        }


class Registry(Model):
    """The private registry on master."""

    port: UnprivilegedPort = 5000
    """TCP port of the registry. Ports that Kubernetes uses are refused."""
    tls: bool = True
    """`true`: HTTPS, with a certificate from a CA that the program creates. `false`: plain HTTP; your Docker engine
    must then list the registry under insecure-registries."""


class Cluster(Model):
    """The kubeadm cluster."""

    pod_cidr: Network = IPv4Network("10.244.0.0/16")
    """Network of the pods. Each node gets a /24 of it. It must not overlap any other network."""
    service_cidr: Network = IPv4Network("10.96.0.0/16")
    """Network of the Services, /12 to /28. It must not overlap any other network."""


class Vhost(Model):
    """The vhost target on each storage host, which serves the disks."""

    backend: Literal["auto", "spdk", "qemu-storage-daemon"] = "auto"
    """Vhost target. `auto` chooses SPDK where its source is available and CPU cores are free for polling, else
    qemu-storage-daemon."""
    source: str | None = None
    """Local folder with SPDK's source, including the submodules dpdk, isa-l and isa-l-crypto. Default: download the
    pinned release."""
    bdev: Literal["malloc", "aio", "nvme"] = "malloc"
    """What a disk is made of. `malloc`: memory of the target, lost when the target restarts. `aio`: a file or block
    device on the storage host. `nvme`: an NVMe device, SPDK only."""
    disk_mib: Annotated[int, Field(ge=16, le=1 << 20)] = 128
    """Size of each disk in MiB."""
    block_size: Literal[512, 4096] = 4096
    """Logical block size of each disk in bytes."""
    files: Annotated[
        str,
        _text(
            r"^/(var/lib/spdk-k8s/disks|mnt|srv)(/[\w-][\w.-]*)*/?$",
            "must be the default or a folder in /mnt or /srv: the policy host-access grants no other folder",
            "/srv/disks",
        ),
    ] = "/var/lib/spdk-k8s/disks"
    """Folder on the storage host that holds the disk files vhost.0, vhost.1, … of bdev `aio`. On a server, destroy
    deletes the default folder, but only after you unprotect it, and keeps a folder in /mnt or /srv."""
    devices: Annotated[
        tuple[Annotated[str, Field(examples=["/dev/disk/by-id/wwn-0x5000c50000000001"])], ...], BeforeValidator(_tuple)
    ] = ()
    """Devices on the storage host, one for each of its instances, in the order of their ordinals. `aio`: block
    devices to use instead of files. `nvme`: PCI addresses."""
    memory_mib: Annotated[int, Field(ge=64, le=1 << 24)] | None = None
    """Memory of the target in MiB, a multiple of hugepageSize. It holds the target's own buffers and the disks of
    bdev `malloc`. Default: enough for a disk in every slot."""
    cpu_mask: Annotated[
        str,
        _text(
            r"^(0x[0-9a-fA-F]{1,64}|\[[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*\])$",
            "must be a mask (0x3f) or a list ([0-5]) of CPU cores",
            "0x1",
        ),
    ] = "0x1"
    """CPU cores that SPDK polls on, as a mask (0x3f) or a list ([0-5]). The host must have all of them and one more."""
    hugepage_size: HugepageSize = "none"
    """Hugepages for SPDK's memory. The program reserves them on the storage host. `none`: ordinary pages, without
    DMA to NVMe devices."""

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

    vcpus: Annotated[int, Field(ge=1, le=128)] = 2
    """Number of virtual CPUs."""
    memory_mib: Annotated[int, Field(ge=1024, le=1 << 24)] = 3072
    """Memory of the VM in MiB, a multiple of hugepageSize. At least 512 MiB and 32 MiB for each video pod."""
    hugepage_size: HugepageSize = "none"
    """Hugepages for the VM's memory. The program reserves them on the storage host. `none`: ordinary pages."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """Accelerator of QEMU. `auto` tries to boot a guest on KVM and uses TCG (emulation) where that fails."""
    queues: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of virtqueues of each disk, at most vcpus."""
    disk_slots: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 32
    """Number of PCIe root ports that the VM starts with, one for each disk. Up to this number of instances on each
    VM, numinst can grow without a restart."""
    mac: Annotated[
        str,
        _text(
            r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
            "must be a unicast MAC address: its second digit is even",
            "DE:AD:BE:EF:01:41",
        ),
    ] = "DE:AD:BE:EF:01:41"
    """MAC address of the first VM. Each further VM has the next address."""
    vnc: Annotated[str, _text(r"^[^,\s]*:[0-9]{1,5}$", "must be a VNC display, HOST:NUMBER", "127.0.0.1:2")] | None = (
        None
    )
    """VNC display of QEMU: 127.0.0.1:2 is port 5902. Default: no VNC. Allowed only with one VM on each host."""

    @property
    def vnc_port(self) -> int:
        """TCP port of `vnc`. 0: no VNC."""
        return 5900 + int(self.vnc.rpartition(":")[2]) if self.vnc else 0


class Video(Model):
    """The video pods."""

    http_port: UnprivilegedPort = 8080
    """HTTP port of instance 0's page. Instance i serves at httpPort + i."""
    rtmp_port: UnprivilegedPort = 1935
    """RTMP port of instance 0's stream. Instance i serves at rtmpPort + i. The two port ranges must not overlap."""
    media_dir: Path | None = None
    """Folder on worker1 with your own movies in mp4-1, mp4-2, … Only with machines.kind `ssh`. Default: sample
    movies that the program makes."""
    cpu_request: Cpu = "50m"
    """CPU request of each video pod. The requests of a VM's pods must fit into its vCPUs less 200m."""
    cpu_limit: Cpu = "500m"
    """CPU limit of each video pod, at least cpuRequest."""


class Settings(Model):
    """The whole config of a stack."""

    config_version: Annotated[int, Field(ge=1, le=CONFIG_VERSION)] = CONFIG_VERSION
    """Version of the config's keys. A config with a newer version than the checkout is refused."""
    numinst: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 3
    """Number of instances. Each instance is one disk and one video pod."""
    machines: Annotated[Containers | Ssh, Field(discriminator="kind")] = Containers()
    registry: Registry = Registry()
    cluster: Cluster = Cluster()
    vhost: Vhost = Vhost()
    vm: Vm = Vm()
    video: Video = Video()

    @property
    def vms(self) -> list[str]:
        """Names of all VMs. `render.placement.place` maps an instance to its index in this list."""
        return [vm for vms in self.machines.storage.values() for vm in vms]

    @property
    def vms_per_host(self) -> int:
        return len(self.vms) // len(self.machines.storage)

    @property
    def per_vm(self) -> int:
        """Number of instances on the fullest VM."""
        return -(-self.numinst // len(self.vms))

    @property
    def per_host(self) -> int:
        """Number of instances on the fullest storage host, which is the first one."""
        return sum(i % len(self.vms) < self.vms_per_host for i in range(self.numinst))

    @property
    def on_files(self) -> bool:
        """Whether the disks are files on the storage hosts, not memory or devices."""
        return self.vhost.bdev == "aio" and not self.vhost.devices

    @property
    def holding(self) -> Collection[str]:
        """Storage hosts whose disk files a destroy would delete: files in a container, or in the default folder."""
        deleted = isinstance(self.machines, Containers) or self.vhost.files.startswith("/var/lib/spdk-k8s/")
        return self.machines.storage if self.on_files and deleted else ()

    @property
    def slots(self) -> int:
        """Number of disks that a storage host can serve at most."""
        return self.vm.disk_slots * self.vms_per_host
