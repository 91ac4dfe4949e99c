"""A worker VM: a QEMU guest, run by a systemd unit on its storage host. QMP plugs its vhost-user-blk disks in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

import pulumi

from components.hosts import SCRIPTS, Host
from render.placement import unit_name
from render.vm import (
    ACCEL_ARGS,
    cloud_init_meta_data,
    cloud_init_network,
    cloud_init_user_data,
    definition,
    qemu_args,
)
from settings.names import MEDIA, VHOST


@dataclass(frozen=True)
class WorkerVmArgs:
    host: Host
    """Where QEMU runs. Cluster.prepare has run there: worker_vm.sh needs containerd and the registry's login."""
    address: IPv4Address
    """Address of the VM, in the host's network."""
    gateway: IPv4Address
    nameservers: Sequence[str]
    authorized_key: pulumi.Input[str]
    """Public SSH key that may log in as root."""
    host_private: pulumi.Input[str]
    """Private half of the VM's SSH host key."""
    host_public: pulumi.Input[str]
    """Public half of the VM's SSH host key."""
    guest: pulumi.Input[str]
    """Image of the root disk: reference by digest."""
    bundle: pulumi.Input[str]
    """Image of Kubernetes' binaries, which are copied onto the root disk: reference by digest."""
    registry: pulumi.Input[str]
    """ "address:port" of the registry that has the images."""
    prefix: int = 24
    """Prefix length of the host's network, in bits."""
    nic: str = ""
    """The host's network card that becomes a port of the VM's bridge, or an existing bridge. Empty: the card that
    carries the host's address."""
    index: int = 0
    """Number of this VM on its host, from 0."""
    preload: Sequence[pulumi.Input[str]] = ()
    """Container images to put onto the VM's disk before its first boot."""
    media_image: pulumi.Input[str] | None = None
    """Image with sample movies, unpacked into the host's `media_dir`. None: the folder is the user's own."""
    media_dir: str = MEDIA
    """Folder on the host. The VM mounts it read-only at MEDIA."""
    vcpus: int = 2
    memory_mib: int = 3072
    """Memory of the VM in MiB."""
    hugepage_size: Literal["none", "2Mi", "1Gi"] = "none"
    """Hugepages for the VM's memory, which Cluster.prepare has reserved."""
    cores: str = ""
    """CPU cores of the vCPUs, such as 12-23, which Cluster.prepare has planned. Empty: none of their own."""
    emulator: str = ""
    """CPU cores of QEMU's own threads. Empty: those of the system."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    mac: str = "DE:AD:BE:EF:01:41"
    disk_slots: int = 32
    """Number of PCIe root ports for vhost disks."""
    master: Host | None = None
    """The control plane's machine, which drains the VM's node before the VM boots anew. None: the VM is no node."""
    target: str = VHOST
    """Deployment of the vhost target that serves the VM's disks. Error messages name it."""
    vnc: str | None = None
    """VNC display of QEMU, such as 127.0.0.1:2. None: no VNC."""
    after: Sequence[pulumi.Resource] = ()
    """Resources that must exist first, such as the result of Cluster.prepare."""


class WorkerVm(pulumi.ComponentResource):
    """A QEMU guest as a systemd unit, on the host's own network. The host's disk agent plugs in its vhost disks, and
    `plugged` and `released` wait for that.

    Another definition (CPUs, memory, root ports, …) takes effect at once: `NODE-drained` drains the VM's node, one VM
    after the other, and the guest boots anew; Cluster.join gives the node back to its pods.

    unit: the VM's name on its host. definition: the name that QEMU has when it runs with this definition.
    running: depend on it for a VM whose boot has begun. answers: depend on it for a VM that answers SSH.
    accel: the accelerator in use, "kvm" or "tcg".

    ```python
    from ipaddress import IPv4Address

    import pulumi

    from components.hosts import Host
    from components.worker_vm import WorkerVm, WorkerVmArgs
    from render.vhost import Disks, vhost_config

    config = pulumi.Config()
    key = config.require_secret("key")
    host = Host("worker1", address="192.0.2.12", host_key="ssh-ed25519 AAAA…", private_key=key)
    vm = WorkerVm(
        "worker2",
        WorkerVmArgs(
            host=host,
            address=IPv4Address("192.0.2.13"),
            gateway=IPv4Address("192.0.2.1"),
            nameservers=["192.0.2.1"],
            authorized_key="ssh-ed25519 AAAA…",
            host_private=config.require_secret("hostKey"),
            host_public="ssh-ed25519 AAAA…",
            guest=f"192.0.2.10:443/guest@sha256:{'0' * 64}",
            bundle=f"192.0.2.10:443/node-bundle@sha256:{'0' * 64}",
            registry="192.0.2.10:443",
        ),
    )
    disks = Disks(
        ordinals=[0, 1, 2], slots=32, mib=128, block_size=4096, queues=1, places={i: (vm.unit, i) for i in range(3)}
    )
    vm.plugged([0, 1, 2], config=vhost_config(disks), vhost=vm.answers)
    pulumi.export("accel", vm.accel)
    ```
    """

    def __init__(self, name: str, args: WorkerVmArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:WorkerVm", name, None, opts)
        self._name, self._args = name, args
        self.unit = unit_name(args.index)
        tap = f"tap-spdk-k8s-{args.index}"
        user_data = pulumi.Output.all(args.authorized_key, args.host_private, args.host_public).apply(
            lambda v: cloud_init_user_data(
                hostname=name,
                authorized_key=str(v[0]),
                host_private=str(v[1]),
                host_public=str(v[2]),
                nameservers=args.nameservers,
            )
        )
        qemu = qemu_args(
            vm=self.unit,
            vcpus=args.vcpus,
            memory_mib=args.memory_mib,
            mac=args.mac,
            tap=tap,
            disk_slots=args.disk_slots,
            vnc=args.vnc,
            hugepage_size=args.hugepage_size,
            cores=args.cores,
        )
        # the slice of the unit and the NUMA node of the memory stay as they are until QEMU starts anew
        planned = [f"cores {args.cores} {args.emulator}"] if args.cores or args.emulator else []
        accel_args = {name: "\n".join(words) for name, words in ACCEL_ARGS.items()}
        self.definition = definition(self.unit, args.accel, args.media_dir, *qemu, *accel_args.values(), *planned)
        drained = [self._drained(args.master)] if args.master else []
        network = cloud_init_network(mac=args.mac, address=args.address, prefix=args.prefix, gateway=args.gateway)
        self.running = args.host.run(
            f"{name}-vm",
            "worker_vm",
            {
                "REGISTRY": args.registry,
                "GUEST": args.guest,
                "BUNDLE": args.bundle,
                "PRELOAD": pulumi.Output.all(*args.preload).apply(" ".join),
                "MEDIA_IMAGE": args.media_image if args.media_image is not None else "",
                "MEDIA_DIR": args.media_dir,
                "DISK_GIB": "8",
                "ACCEL": args.accel,
                "VM": self.unit,
                "DEFINITION": self.definition,
                "QEMU_ARGS": "\n".join([*qemu, "-name", self.definition]),
                "KVM_ARGS": accel_args["kvm"],
                "TCG_ARGS": accel_args["tcg"],
                "USER_DATA": pulumi.Output.secret(user_data),
                "META_DATA": cloud_init_meta_data(hostname=name, network=network),
                "NETWORK_CONFIG": network,
                "BRIDGE": "br-spdk-k8s",
                "TAP": tap,
                "MAC": args.mac,
                "NIC": args.nic,
                **({"CORES": args.cores} if args.cores else {}),
                "HOST_ADDRESS": args.host.address,
                "BRIDGE_SCRIPT": (SCRIPTS / "host" / "bridge").read_text(),
                "ALIVE_SCRIPT": (SCRIPTS / "host" / "alive").read_text(),
            },
            parent=self,
            depends_on=[*args.after, *drained],
        )
        self.answers = args.host.run(
            f"{name}-answers",
            "vm_answers",
            {"ADDRESS": str(args.address), "VM": self.unit, "DEFINITION": self.definition},
            parent=self,
            undo="never",
            depends_on=[self.running],
        )
        self.accel = self.running.stdout
        self.register_outputs({"address": str(args.address), "accel": self.accel})

    def _drained(self, master: Host) -> pulumi.Resource:
        return master.run(
            f"{self._name}-drained",
            "drained",
            {"NODE": self._name, "DEFINITION": self.definition},
            parent=self,
            timeout=4200,  # other VMs may come first
            undo="never",
        )

    def plugged(self, ordinals: Sequence[int], *, config: str, vhost: pulumi.Resource) -> pulumi.Resource:
        """Wait until the VM has these disks, as `config` (vhost.json) lists them. A message names the missing ones."""
        return self._disks("plugged", f"{self._name}-disks", ordinals, config, [self.running, vhost])

    def released(self, ordinals: Sequence[int], *, config: str, after: pulumi.Resource) -> pulumi.Resource:
        """Tell the disk agent that after `after` nobody uses other disks than these; wait until they are out."""
        return self._disks("released", f"{self._name}-disks-released", ordinals, config, [after])

    def _disks(
        self, which: str, name: str, ordinals: Sequence[int], config: str, after: Sequence[pulumi.Resource]
    ) -> pulumi.Resource:
        values = {
            "VM": self.unit,
            "DISKS": ",".join(map(str, ordinals)),
            "CONFIG": hashlib.sha256(config.encode()).hexdigest()[:12],
            "WHICH": which,
            "TARGET": self._args.target,
        }
        return self._args.host.run(name, "vm_disks", values, parent=self, undo="never", depends_on=after)
