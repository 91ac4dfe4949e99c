"""A storage host with all that runs on it: its vhost target and its worker VMs, which join the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pulumi

from components.cluster import Cluster
from components.hosts import Host, Keys
from components.vhost import Vhost, VhostArgs
from components.video import Disk
from components.worker_vm import WorkerVm, WorkerVmArgs
from render.placement import disk_path, mac_address, place
from render.vhost import Disks, vhost_config
from settings import budgets
from settings.models import Settings, Ssh
from settings.names import MEDIA, VHOST


@dataclass(frozen=True)
class Parts:
    """What all storage hosts of a stack share."""

    config: Settings
    backend: budgets.Backend
    keys: Keys
    cluster: Cluster
    registry: pulumi.Input[str]
    """ "address:port"."""
    namespace: pulumi.Input[str]
    vhost_image: pulumi.Input[str]
    guest_image: pulumi.Input[str]
    video_image: pulumi.Input[str]
    """The VMs have it from the start."""
    media_image: pulumi.Input[str] | None
    """None: `video.mediaDir` has the user's own."""


@dataclass
class StorageHost:
    """What `storage_host` made.

    pod: name of the vhost pod. ordinals: of the instances whose disks it serves; disks has those by ordinal.
    config: the pod's vhost.json. vms: by name. users: of each VM, the instances there. joined: the resources after
    which the VMs are nodes.
    """

    pod: str
    ordinals: Sequence[int]
    disks: dict[int, Disk] = field(default_factory=dict[int, Disk])
    vms: dict[str, WorkerVm] = field(default_factory=dict[str, WorkerVm])
    joined: list[pulumi.Resource] = field(default_factory=list[pulumi.Resource])
    users: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    config: str = ""

    def released(self, after: pulumi.Resource) -> None:
        """Disks that are wanted no more leave their VMs after `after`, which had them mounted."""
        for name, vm in self.vms.items():
            vm.released(self.users[name], config=self.config, after=after)


def storage_host(host: Host, parts: Parts) -> StorageHost:
    """Make `host` a node with a vhost target, and boot its VMs meanwhile.

    The disk agent in the vhost pod plugs the disks of its instances into each VM.
    """
    config, cluster = parts.config, parts.cluster
    machines = config.machines
    hosts, vm_names = list(machines.storage), machines.storage[host.name]
    first = host.name == hosts[0]
    places = {i: place(i, len(config.vms)) for i in range(config.numinst)}
    ordinals = [i for i, (vm, _) in places.items() if config.vms[vm] in vm_names]
    made = StorageHost(VHOST if first else f"{VHOST}-{host.name}", ordinals)

    prepared = cluster.prepare(
        host,
        hugepages=budgets.hugepages(config, parts.backend),
        bdev=config.vhost.bdev,
        devices=config.vhost.devices,
        disk_mib=config.vhost.disk_mib,
        sync="2s",  # the target reads its disks from a ConfigMap
    )
    for index, name in enumerate(vm_names):
        made.vms[name] = WorkerVm(
            name,
            WorkerVmArgs(
                host=host,
                index=index,
                nic=machines.nic(host.name),
                address=machines.addresses[name],
                prefix=machines.prefix,
                gateway=machines.gateway,
                nameservers=machines.nameservers(host.name),
                authorized_key=parts.keys.key("client", "public"),
                host_private=parts.keys.key(name, "private"),
                host_public=parts.keys.key(name, "public"),
                guest=parts.guest_image,
                bundle=cluster.bundle,
                registry=parts.registry,
                preload=[cluster.kube_proxy, cluster.pause, parts.video_image],
                media_image=parts.media_image,
                media_dir=config.video.media_dir or MEDIA,
                vcpus=config.vm.vcpus,
                memory_mib=config.vm.memory_mib,
                hugepage_size=config.vm.hugepage_size,
                accel=config.vm.accel,
                mac=mac_address(config.vm.mac, config.vms.index(name)),
                disk_slots=config.vm.disk_slots,
                target=made.pod,
                vnc=config.vm.vnc,
                after=[prepared],
            ),
        )
    disks = Disks(
        ordinals=ordinals,
        slots=config.slots,
        mib=config.vhost.disk_mib,
        block_size=config.vhost.block_size,
        queues=config.vm.queues,
        bdev=config.vhost.bdev,
        devices=config.vhost.devices,
        places={i: (made.vms[config.vms[places[i][0]]].unit, places[i][1]) for i in ordinals},
        vms={vm.unit: vm.definition for vm in made.vms.values()},
    )
    made.config = vhost_config(disks)
    vhost = Vhost(
        "vhost" if first else f"vhost-{host.name}",
        VhostArgs(
            pod=made.pod,
            namespace=parts.namespace,
            image=parts.vhost_image,
            backend=parts.backend,
            host=host,
            disks=disks,
            memory_mib=budgets.vhost_memory_mib(config),
            overhead_mib=budgets.vhost_beside_mib(config),
            guaranteed=isinstance(machines, Ssh),
            files=config.vhost.files,
            cpu_mask=config.vhost.cpu_mask,
            cores=len(config.vhost.cores),
            hugepage_size=config.vhost.hugepage_size,
            after=[cluster.join(host, prepared)],
        ),
        cluster.contents,
    )
    for name, vm in made.vms.items():
        address = machines.addresses[name]
        # the guest goes with the machine, or where the machine stays (a server), with QEMU
        gone_with = host.deleted_with or vm.running
        guest = parts.keys.host(name, str(address), via=host.via, deleted_with=gone_with, after=[vm.answers])
        made.joined.append(cluster.join(guest, cluster.prepare(guest)))
        mine = [i for i in ordinals if config.vms[places[i][0]] == name]
        made.users[name] = mine
        plugged = vm.plugged(mine, config=made.config, vhost=vhost.ready)
        for i in mine:
            made.disks[i] = Disk(name, str(address), disk_path(places[i][1]), plugged)
    return made
