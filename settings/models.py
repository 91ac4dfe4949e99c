"""What can be configured: frozen models, with the rules of single keys.

The docstring below a field is its text in docs/config.md and in editors; `python -m settings.schema` writes those.
Rules over several keys are in settings/rules.py, budgets in settings/budgets.py.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

NAMESPACE = "spdk-k8s"
CONFIG_VERSION = 1  # raised when a key of earlier checkouts goes, or means something else
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
    """One that no machine can be reached at from another."""
    here = address in IPv4Network("0.0.0.0/8") or address.is_loopback or address.is_link_local
    return here or address.is_multicast or address.is_reserved


def _reachable(address: IPv4Address) -> IPv4Address:
    if _special(address):
        raise ValueError("must be an address at which the other machines reach it")
    return address


def _tuple(value: object) -> object:
    return tuple(cast(list[object], value)) if isinstance(value, list) else value


def _digits(value: object) -> object:
    """`pulumi config set --path` writes a text of digits as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(pattern: str, rule: str, example: str) -> Any:
    """A field of text that has a form. rule: in words, as editors and errors show it."""
    return Field(pattern=pattern, examples=[example], json_schema_extra={"patternErrorMessage": rule})


def _form(pattern: str, rule: str, **more: object) -> WithJsonSchema:
    """The same for values that are no text here."""
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
Path = Annotated[str, _text(r"^/[\w./-]*\w/?$", "must be an absolute path, without blanks", "/srv/spdk-k8s")]
_CPU = r"^[1-9][0-9]{0,5}m?$"
Cpu = Annotated[
    str,
    BeforeValidator(_digits),
    Field(pattern=_CPU),
    _form(_CPU, "must be whole CPUs (2) or thousandths of one (500m)", type=["string", "integer"], minimum=1),
]
_HOST_KEY = r"^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)) AAAA[0-9A-Za-z+/]*={0,2}( .*)?$"
_PRIVATE_KEY = r"^-----BEGIN [A-Z ]*PRIVATE KEY-----\n"
HugepageSize = Literal["none", "2Mi", "1Gi"]
HUGEPAGE_MIB = {"none": 1, "2Mi": 2, "1Gi": 1024}


class Containers(Model):
    """The dev stack's machines: containers on a Docker network of their own."""

    kind: Literal["containers"] = "containers"
    """Who makes the machines: containers of this program, or ssh: machines that exist."""
    subnet: Network = IPv4Network("172.30.97.0/24")
    """Of the Docker network: the engine has its first address, machines and VMs the next; no other network meets it."""
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

    @property
    def prefix(self) -> int:
        return self.subnet.prefixlen

    def nameservers(self, host: str) -> list[str]:
        """Of the VMs on `host`: it passes questions on to the engine's resolver."""
        return [str(self.addresses[host])]

    def nic(self, host: str) -> str:
        """For the VMs on `host`."""
        return ""


class SshServer(Model):
    """How to log in to a machine that exists already."""

    address: Address
    """The machine's own: the others reach it there too."""
    user: Annotated[str, _text(r"^[a-z_][a-z0-9_-]*$", "must be the name of a user", "root")] = "root"
    """root, or one with sudo that asks for no password."""
    port: Port = 22
    """Of SSH."""
    host_key: Annotated[str, _text(_HOST_KEY, "must be a public key as ssh-keyscan prints it: ssh-ed25519 AAAA…", "")]
    """The machine's public key: what ssh-keyscan prints, without the address."""
    private_key: (
        Annotated[
            str, _text(_PRIVATE_KEY, "must be a private key: a file that begins with -----BEGIN … PRIVATE KEY-----", "")
        ]
        | None
    ) = Field(default=None, repr=False)
    """Of the user, a secret; up wants it, a preview does without."""


class SshHost(SshServer):
    """A machine that becomes a node."""

    address: NodeAddress
    """Where all others reach it: all nodes are in one network."""
    jump_host: SshServer | None = None
    """A machine to go through where there is no direct way."""


class SshStorageHost(SshHost):
    """One with a vhost target and the VM."""

    nic: Annotated[str, _text(r"^[\w.-]{0,15}$", "must be the name of a network card", "eth0")] = ""
    """Network card for the VM, or a bridge that has one; none: the card that carries the address."""


class SshGuest(Model):
    """The worker VM's place in the network of worker1."""

    address: NodeAddress
    """A free one in worker1's network."""
    gateway: NodeAddress
    """Of that network."""
    prefix: Annotated[int, Field(ge=8, le=29)] = 24
    """Its length."""
    nameservers: Annotated[tuple[Address, ...], BeforeValidator(_tuple)] = ()
    """None: the gateway."""


class Ssh(Model):
    """The lab stack's machines: existing hosts reached by SSH."""

    kind: Literal["ssh"]
    master: SshHost
    worker1: SshStorageHost
    worker2: SshGuest

    @property
    def network(self) -> IPv4Network:
        """All nodes': the VM is connected to worker1's card, and each node has a route by each other one."""
        return IPv4Network(f"{self.worker1.address}/{self.prefix}", strict=False)

    @property
    def hosts(self) -> dict[str, SshHost]:
        return {"master": self.master, "worker1": self.worker1}

    @property
    def servers(self) -> dict[str, SshServer]:
        """Key -> each one to log in to, jump hosts among them."""
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
        """Of the VM on `host`."""
        return [str(n) for n in self.worker2.nameservers or (self.gateway,)]

    def nic(self, host: str) -> str:
        """For the VM on `host`."""
        return self.worker1.nic

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
    """The private registry on master."""

    port: UnprivilegedPort = 5000
    """Not one that Kubernetes uses; the registry is a service without privileges."""
    tls: bool = True
    """With a certificate of a CA that the program makes; false: plain HTTP, for labs that insist."""


class Cluster(Model):
    """The kubeadm cluster."""

    pod_cidr: Network = IPv4Network("10.244.0.0/16")
    """Pods' addresses: each node has a /24 of it; no other network meets it."""
    service_cidr: Network = IPv4Network("10.96.0.0/16")
    """Services' addresses, /12 to /28; no other network meets it."""


class Vhost(Model):
    """The vhost target that serves the disks."""

    backend: Literal["auto", "spdk", "qemu-storage-daemon"] = "auto"
    """auto: SPDK where its source can be had and cores can be spared for polling, else qemu-storage-daemon."""
    source: str | None = None
    """Folder with SPDK's source and its submodules dpdk, isa-l and isa-l-crypto; none: the pinned release."""
    bdev: Literal["malloc", "aio", "nvme"] = "malloc"
    """What a disk is: memory of the target; a file or block device on worker1, which survive it; an NVMe device."""
    disk_mib: Annotated[int, Field(ge=16, le=1 << 20)] = 128
    """Size of each disk, MiB."""
    block_size: Literal[512, 4096] = 4096
    """Of the disks, bytes."""
    files: Annotated[
        str,
        _text(
            r"^/(var/lib/spdk-k8s/disks|mnt|srv)(/[\w-][\w.-]*)*/?$",
            "must be in /mnt or /srv, or the default: the policy host-access grants no other folder",
            "/srv/disks",
        ),
    ] = "/var/lib/spdk-k8s/disks"
    """Folder on worker1 with the files vhost.0, … of bdev aio; the default goes with the stack, once unprotected."""
    devices: Annotated[
        tuple[Annotated[str, Field(examples=["/dev/disk/by-id/wwn-0x5000c50000000001"])], ...], BeforeValidator(_tuple)
    ] = ()
    """Block devices (aio, instead of files) or PCI addresses (nvme) on worker1, in the order of the ordinals."""
    memory_mib: Annotated[int, Field(ge=64, le=1 << 24)] | None = None
    """Memory of the target, MiB, in whole hugepages: its own and disks of bdev malloc; none: enough for every slot."""
    cpu_mask: Annotated[
        str,
        _text(
            r"^(0x[0-9a-fA-F]{1,64}|\[[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*\])$",
            "must be a mask (0x3f) or a list ([0-5]) of cores",
            "0x1",
        ),
    ] = "0x1"
    """Cores that SPDK polls on, all there and one more: 0x3f or [0-5]."""
    hugepage_size: HugepageSize = "none"
    """Pages of SPDK's memory, reserved on worker1; none: ordinary pages, without DMA to NVMe devices."""

    @property
    def cores(self) -> frozenset[int]:
        """CPU numbers of `cpu_mask`."""
        if self.cpu_mask.startswith("0x"):
            mask = int(self.cpu_mask, 16)
            return frozenset(i for i in range(mask.bit_length()) if mask >> i & 1)
        spans = (sorted(map(int, part.split("-"))) for part in self.cpu_mask.strip("[]").split(","))
        return frozenset(i for span in spans for i in range(span[0], span[-1] + 1))


class Vm(Model):
    """The worker VMs, all alike."""

    vcpus: Annotated[int, Field(ge=1, le=128)] = 2
    """Virtual CPUs."""
    memory_mib: Annotated[int, Field(ge=1024, le=1 << 24)] = 3072
    """Memory, MiB, in whole hugepages: 32 for each pod and 512."""
    hugepage_size: HugepageSize = "none"
    """Pages of the VM's memory, reserved on worker1."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """QEMU's accelerator; auto: KVM where a guest really boots on it, else TCG."""
    queues: Annotated[int, Field(ge=1, le=64)] = 1
    """Virtqueues of each disk, as many as vcpus at most."""
    disk_slots: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 32
    """PCIe root ports made at the VM's start: numinst grows up to this, for each VM, with nothing restarted."""
    mac: Annotated[
        str,
        _text(
            r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
            "must be a unicast MAC address: the second digit even",
            "DE:AD:BE:EF:01:41",
        ),
    ] = "DE:AD:BE:EF:01:41"
    """MAC address of the first VM; the others count on from it."""
    vnc: Annotated[str, _text(r"^[^,\s]*:[0-9]{1,5}$", "must be a VNC display, HOST:NUMBER", "127.0.0.1:2")] | None = (
        None
    )
    """QEMU's VNC display, for example 127.0.0.1:2, which is port 5902; none: no VNC. Only with one VM on a host."""

    @property
    def vnc_port(self) -> int:
        """Of `vnc`; 0: none."""
        return 5900 + int(self.vnc.rpartition(":")[2]) if self.vnc else 0


class Video(Model):
    """The video pods."""

    http_port: UnprivilegedPort = 8080
    """Of instance 0's page; instance i has this + i."""
    rtmp_port: UnprivilegedPort = 1935
    """Of instance 0's RTMP; instance i has this + i. The ranges must not meet."""
    media_dir: Path | None = None
    """Folder on worker1, a server of your own, with mp4-1, mp4-2, …; none: samples made by the program."""
    cpu_request: Cpu = "50m"
    """What the scheduler sets aside for each pod: all of a VM's fit into its vCPUs less 200m."""
    cpu_limit: Cpu = "500m"
    """What a pod may use at most, no less than cpuRequest."""


class Settings(Model):
    """The whole config of a stack."""

    config_version: Annotated[int, Field(ge=1, le=CONFIG_VERSION)] = CONFIG_VERSION
    """Of these keys; a config of a newer checkout is refused as such."""
    numinst: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 3
    """Instances: each is a disk and a video pod."""
    machines: Annotated[Containers | Ssh, Field(discriminator="kind")] = Containers()
    registry: Registry = Registry()
    cluster: Cluster = Cluster()
    vhost: Vhost = Vhost()
    vm: Vm = Vm()
    video: Video = Video()

    @property
    def vms(self) -> list[str]:
        """Names of all VMs; instance i runs on the one that render.placement.place names."""
        return [vm for vms in self.machines.storage.values() for vm in vms]

    @property
    def vms_per_host(self) -> int:
        return len(self.vms) // len(self.machines.storage)

    @property
    def per_vm(self) -> int:
        """Instances of the VM that has most."""
        return -(-self.numinst // len(self.vms))

    @property
    def per_host(self) -> int:
        """Instances of the storage host that has most: the first."""
        return sum(i % len(self.vms) < self.vms_per_host for i in range(self.numinst))

    @property
    def on_files(self) -> bool:
        """Whether the disks are files on the storage hosts."""
        return self.vhost.bdev == "aio" and not self.vhost.devices

    @property
    def holding(self) -> Collection[str]:
        """The storage hosts that hold data which would go with them: files in a container, or in the stack's folder."""
        goes = isinstance(self.machines, Containers) or self.vhost.files.startswith("/var/lib/spdk-k8s/")
        return self.machines.storage if self.on_files and goes else ()

    @property
    def slots(self) -> int:
        """As many disks as a storage host may ever serve."""
        return self.vm.disk_slots * self.vms_per_host
