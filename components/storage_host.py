"""A storage host: a node with a vhost target, and the worker VMs that use its disks and are nodes too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi

from components.cluster import Cluster
from components.hosts import Host, Keys
from components.vhost import Vhost, VhostArgs
from components.video import Disk
from components.worker_vm import WorkerVm, WorkerVmArgs
from render.placement import disk_path, unit_name, vm_index, vm_mac
from render.vhost import Disks, vhost_config
from settings import budgets
from settings.models import Settings
from settings.names import MEDIA, VHOST


@dataclass(frozen=True)
class Shared:
    """What all storage hosts of a stack have in common."""

    config: Settings
    backend: budgets.Backend
    keys: Keys
    cluster: Cluster
    registry: pulumi.Input[str]
    """ "address:port"."""
    namespace: pulumi.Input[str]
    vhost_image: pulumi.Input[str]
    """The images are references by digest."""
    guest_image: pulumi.Input[str]
    video_image: pulumi.Input[str]
    """The VMs have this image before their first boot."""
    media_image: pulumi.Input[str] | None
    """None: `video.mediaDir` names the user's own movies."""


@dataclass(frozen=True)
class StorageHost:
    """The result of `storage_host`."""

    target: str
    """Deployment of the vhost target."""
    vms: Mapping[str, WorkerVm]
    """Name -> VM."""
    ordinals: Mapping[str, Sequence[int]]
    """Name of a VM -> ordinals of its instances."""
    disks: Mapping[int, Disk]
    """Ordinal -> disk, for every instance on this host."""
    joined: Sequence[pulumi.Resource]
    """Depend on these resources for VMs that are Ready nodes."""
    config: str
    """vhost.json of the target."""

    def released(self, after: pulumi.Resource) -> None:
        """Take the disks that no instance uses any more out of the VMs, once `after` has ended their pods."""
        for name, vm in self.vms.items():
            vm.released(self.ordinals[name], config=self.config, after=after)


def storage_host(host: Host, shared: Shared) -> StorageHost:
    """Make `host` a node with a vhost target, and make its VMs nodes.

    The VMs boot while the host joins the cluster. The disk agent in the vhost pod plugs in their disks.
    """
    config, cluster = shared.config, shared.cluster
    first = host.name == "worker1"  # whose target has the original's names
    devices = config.devices(host.name)
    target = VHOST if first else f"{VHOST}-{host.name}"
    prepared = cluster.prepare(
        host,
        hugepages=budgets.hugepages(config, shared.backend, host.name),
        cpus=config.cpus,
        vms=[unit_name(vm_index(vm, host.name)) for vm in config.machines.storage[host.name]],
        bdev=config.vhost.bdev,
        devices=devices,
        disk_mib=config.vhost.disk_mib,
        sync="2s",  # the target reads the list of its disks from a ConfigMap
    )
    vms = {name: _worker_vm(name, host, target, prepared, shared) for name in config.machines.storage[host.name]}
    ports = {name: _ports(config, name) for name in vms}
    cpu_request, cpu_limit = budgets.vhost_cpus(config, shared.backend)
    ordinals = config.ordinals(host.name)
    disks = Disks(
        ordinals=ordinals,
        slots=budgets.vhost_disks(config, shared.backend),
        mib=config.vhost.disk_mib,
        block_size=config.vhost.block_size,
        queues=config.vm.queues,
        bdev=config.vhost.bdev,
        devices=devices,
        places={ordinal: (vms[name].unit, port) for name in vms for ordinal, port in ports[name].items()},
        vms={vm.unit: vm.definition for vm in vms.values()},
        limits={ordinal: config.vhost.qos.of(ordinal) for ordinal in ordinals},
    )
    vhost = Vhost(
        "vhost" if first else f"vhost-{host.name}",
        VhostArgs(
            pod=target,
            namespace=shared.namespace,
            image=shared.vhost_image,
            backend=shared.backend,
            host=host,
            disks=disks,
            memory_mib=budgets.vhost_memory_mib(config, shared.backend),
            disks_mib=budgets.vhost_disks_mib(config, shared.backend),
            overhead_mib=budgets.vhost_beside_mib(config),
            guaranteed=budgets.reserved(config),
            files=config.vhost.files,
            cpu_mask=config.target_mask,
            polls=config.polls,
            cpu_request=cpu_request,
            cpu_limit=cpu_limit,
            hugepage_size=config.vhost.hugepage_size,
            after=[cluster.join(host, prepared)],
        ),
        cluster.contents,
    )
    served = vhost_config(disks)
    plugged = {name: vm.plugged(list(ports[name]), config=served, vhost=vhost.ready) for name, vm in vms.items()}
    return StorageHost(
        target=target,
        vms=vms,
        ordinals={name: list(ports[name]) for name in vms},
        disks={
            ordinal: Disk(name, str(config.machines.addresses[name]), disk_path(port), plugged[name])
            for name in vms
            for ordinal, port in ports[name].items()
        },
        joined=[_join(name, vm, host, shared) for name, vm in vms.items()],
        config=served,
    )


def _ports(config: Settings, vm: str) -> dict[int, int]:
    """Ordinal of each instance on VM `vm` -> number of its root port."""
    return {ordinal: port for ordinal, (name, port) in enumerate(config.places) if name == vm}


def _worker_vm(name: str, host: Host, target: str, prepared: pulumi.Resource, shared: Shared) -> WorkerVm:
    config, cluster, keys = shared.config, shared.cluster, shared.keys
    machines = config.machines
    return WorkerVm(
        name,
        WorkerVmArgs(
            host=host,
            index=vm_index(name, host.name),
            nic=machines.nic(host.name),
            address=machines.addresses[name],
            prefix=machines.prefix,
            gateway=machines.gateway(name),
            nameservers=machines.nameservers(name),
            authorized_key=keys.key("client", "public"),
            host_private=keys.key(name, "private"),
            host_public=keys.key(name, "public"),
            guest=shared.guest_image,
            bundle=cluster.bundle,
            registry=shared.registry,
            preload=[cluster.kube_proxy, cluster.pause, shared.video_image],
            media_image=shared.media_image,
            media_dir=config.video.media_dir or MEDIA,
            vcpus=config.vm.vcpus,
            memory_mib=config.vm.memory_mib,
            hugepage_size=config.vm.hugepage_size,
            cores=config.cpus.of_vm(machines.storage[host.name].index(name)),
            emulator=config.cpus.emulator or "",
            accel=config.vm.accel,
            mac=vm_mac(config.vm.mac, name),
            disk_slots=config.vm.disk_slots,
            master=cluster.master,
            target=target,
            vnc=config.vm.vnc,
            after=[prepared],
        ),
    )


def _join(name: str, vm: WorkerVm, host: Host, shared: Shared) -> pulumi.Resource:
    """Make the VM a node. Its steps need no undo: the VM is deleted with its machine, or on a server with QEMU."""
    guest = shared.keys.host(
        name,
        str(shared.config.machines.addresses[name]),
        via=host.via,
        deleted_with=host.deleted_with or vm.running,
        after=[vm.answers],
    )
    return shared.cluster.join(guest, shared.cluster.prepare(guest), definition=vm.definition)
