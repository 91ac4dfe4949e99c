"""From bare machines to N videos playing, each from its own vhost-user-blk disk. Start reading here."""

import gc

gc.disable()  # the SDKs' many classes all stay: to look through them again and again and at the exit costs 0.3 s

import asyncio
import os

import pulumi
import pulumi_docker as docker
import pulumi_kubernetes as kubernetes
from pulumi.runtime.config import CONFIG, is_config_secret

from components import settings
from components.cluster import Cluster, ClusterArgs, Versions
from components.config import ConfigError, load
from components.dev_machines import DevMachines, DevMachinesArgs
from components.images import Images, ImagesArgs
from components.lab_machines import LabMachines, LabMachinesArgs
from components.pins import PINS
from components.registry import Registry, RegistryArgs
from components.render import NAMESPACE, VHOST, VIDEO, Disks, disk_path, mac_address, place
from components.vhost import Vhost, VhostArgs
from components.video import Disk, Video, VideoArgs
from components.worker_vm import MEDIA, WorkerVm, WorkerVmArgs


def unsaid(*_: object, **__: object) -> None:
    """For the SDK's debug messages: four for each resource, and each is a call that waits. 0.2 s."""


pulumi.log.debug = unsaid

cpus = os.cpu_count() or 1
try:
    config = load(
        CONFIG.get(),
        cpus=cpus,
        preview=pulumi.runtime.is_dry_run(),
        is_secret=is_config_secret,
    )
except ConfigError as error:
    raise pulumi.RunError(str(error)) from None
where = config.machines
backend, reason = config.backend(
    cpus=cpus if isinstance(where, settings.Containers) else None, release="SPDK_RELEASE" in os.environ
)

nodes = where.addresses
debian = f"debian:{PINS['DEBIAN']}-slim"
engine = docker.Provider("engine")
on_engine = pulumi.ResourceOptions(providers=[engine])

# The machines: one code path behind the list of hosts.
machines = (
    DevMachines(
        "dev",
        DevMachinesArgs(
            subnet=where.subnet,
            gateway=where.gateway,
            containers={name: nodes[name] for name in ("master", *where.storage)},
            guests=config.vms,
            base_image=debian,
            memory_mib=config.memory_mib(backend),
            holding=config.holding,
            kvm=config.vm.accel == "kvm",
        ),
        on_engine,
    )
    if isinstance(where, settings.Containers)
    else LabMachines(
        "lab",
        LabMachinesArgs(
            hosts=where.hosts,
            guests=config.vms,
            holding=config.holding,
            needs={name: config.needs(name, backend) for name in where.hosts},
        ),
    )
)
master = machines.hosts["master"]

# The private registry, and all that the nodes will ever need in it.
registry = Registry("registry", RegistryArgs(host=master, port=config.registry.port, tls=config.registry.tls))
images = Images("images", ImagesArgs(registry.address, registry.login, registry.ready), on_engine)
guest_image = images.build("guest", "node", {"BASE": debian}, target="guest")
pulumi.info(f"vhost backend: {backend}, because {reason}")
pulumi.info(config.budget(backend))
source = images.spdk_source(config.vhost.source, debian) if backend == "spdk" else None
vhost_image = images.build(VHOST, "vhost", {"BASE": debian}, target=backend, source=source)
video_image = images.build(VIDEO, "video", {"BASE": debian})
media_image = (
    None
    if config.video.media_dir
    else images.build("media", "media", {"BASE": debian, "COUNT": str(config.vm.disk_slots * len(config.vms))})
)

# The cluster: control plane on master, the storage hosts and the VMs joined.
cluster = Cluster(
    "cluster",
    ClusterArgs(
        master=master,
        nodes=nodes,
        versions=Versions(PINS["KUBERNETES"], etcd=PINS["ETCD"], coredns=PINS["COREDNS"], pause=PINS["PAUSE"]),
        images=images,
        registry=registry.address,
        registry_values=registry.node_values,
        pod_cidr=config.cluster.pod_cidr,
        service_cidr=config.cluster.service_cidr,
    ),
)
namespace = kubernetes.core.v1.Namespace("namespace", metadata={"name": NAMESPACE}, opts=cluster.contents)

# On each storage host a vhost target with the disks of its instances, and worker VMs that boot beside all this; the
# disks are plugged in as the target serves them.
places = [place(i, len(config.vms)) for i in range(config.numinst)]
disks: dict[int, Disk] = {}
vms: dict[str, WorkerVm] = {}
joined: list[pulumi.Resource] = []
targets: dict[str, list[int]] = {}  # vhost pod -> the instances whose disks it serves
for number, (host_name, vm_names) in enumerate(where.storage.items()):
    host = machines.hosts[host_name]
    prepared = cluster.prepare(
        host,
        hugepages=config.hugepages(backend),
        bdev=config.vhost.bdev,
        devices=config.vhost.devices,
        disk_mib=config.vhost.disk_mib,
        sync="2s",  # the target's disks are in a ConfigMap
    )
    host_joined = cluster.join(host, prepared)
    ordinals = [i for i, (vm, _) in enumerate(places) if config.vms[vm] in vm_names]
    pod = VHOST if number == 0 else f"{VHOST}-{host_name}"
    targets[pod] = ordinals
    vhost = Vhost(
        "vhost" if number == 0 else f"vhost-{host_name}",
        VhostArgs(
            pod=pod,
            namespace=namespace.metadata["name"],
            image=vhost_image,
            backend=backend,
            host=host,
            disks=Disks(
                ordinals=ordinals,
                slots=config.slots,
                mib=config.vhost.disk_mib,
                block_size=config.vhost.block_size,
                queues=config.vm.queues,
                bdev=config.vhost.bdev,
                devices=config.vhost.devices,
            ),
            memory_mib=config.vhost_memory_mib,
            files=config.vhost.files,
            cpu_mask=config.vhost.cpu_mask,
            cores=len(config.vhost.cores),
            hugepage_size=config.vhost.hugepage_size,
            after=[host_joined],
        ),
        cluster.contents,
    )
    for index, name in enumerate(vm_names):
        vms[name] = vm = WorkerVm(
            name,
            WorkerVmArgs(
                host=host,
                index=index,
                nic=where.nic(host_name),
                address=nodes[name],
                prefix=where.prefix,
                gateway=where.gateway,
                nameservers=where.nameservers(host_name),
                authorized_key=machines.keys.key("client", "public"),
                host_private=machines.keys.key(name, "private"),
                host_public=machines.keys.key(name, "public"),
                guest=guest_image,
                bundle=cluster.bundle,
                registry=registry.address,
                preload=[cluster.kube_proxy, cluster.pause, video_image],
                media_image=media_image,
                media_dir=config.video.media_dir or MEDIA,
                vcpus=config.vm.vcpus,
                memory_mib=config.vm.memory_mib,
                hugepage_size=config.vm.hugepage_size,
                accel=config.vm.accel,
                mac=mac_address(config.vm.mac, config.vms.index(name)),
                disk_slots=config.vm.disk_slots,
                target=pod,
                vnc=config.vm.vnc,
                after=[prepared],
            ),
        )
        # it goes with its host, or where that stays with QEMU
        gone_with = host.deleted_with or vm.running
        guest = machines.keys.host(name, str(nodes[name]), via=host.via, deleted_with=gone_with, after=[vm.answers])
        joined.append(cluster.join(guest, cluster.prepare(guest)))
        for i in ordinals:
            if config.vms[places[i][0]] == name:
                port = places[i][1]
                disks[i] = Disk(name, str(nodes[name]), disk_path(port), vm.disk(i, port=port, vhost=vhost.ready))

video = Video(
    "video",
    VideoArgs(
        namespace=namespace.metadata["name"],
        image=video_image,
        disks=[disks[i] for i in range(config.numinst)],
        disk_mib=config.vhost.disk_mib,
        media=MEDIA,
        http_port=config.video.http_port,
        rtmp_port=config.video.rtmp_port,
        cpu_request=config.video.cpu_request,
        cpu_limit=config.video.cpu_limit,
        after=joined,
    ),
    cluster.contents,
)

pulumi.export("numinst", config.numinst)
pulumi.export("kubeconfig", pulumi.Output.secret(cluster.kubeconfig))
pulumi.export("registry", registry.address)
pulumi.export("vhost", {"backend": backend, "reason": reason})
pulumi.export("accel", pulumi.Output.unsecret(vms[config.vms[0]].accel))
pulumi.export("nodes", {name: str(address) for name, address in nodes.items()})
pulumi.export("vms", config.vms)
pulumi.export("targets", targets)
pulumi.export("disks", [{"node": disks[i].node, "path": disks[i].path} for i in range(config.numinst)])
pulumi.export("sshKey", machines.keys.key("client", "private"))
pulumi.export("pages", video.pages)
pulumi.export("streams", video.streams)


async def begun() -> None:
    """Let the registrations begin before the SDK looks for them: else it waits for each of their outputs in turn."""
    await asyncio.sleep(0)


pulumi.run(begun)
gc.freeze()  # what is there is not visited at the exit
