"""From bare machines to N videos playing, each from its own vhost-user-blk disk. Start reading here."""

import os

import pulumi
import pulumi_docker as docker
import pulumi_kubernetes as kubernetes
from pulumi.runtime.config import CONFIG

from components import settings
from components.cluster import Cluster, Versions
from components.dev_machines import DevMachines
from components.images import Images
from components.pins import PINS
from components.registry import Registry
from components.render import NAMESPACE, VHOST, VIDEO, Disks, spdk_args, spdk_config, vhost_config
from components.vhost import Vhost
from components.video import Video
from components.worker_vm import MEDIA, WorkerVm

try:
    config = settings.load(CONFIG.get())
except settings.ConfigError as error:
    raise pulumi.RunError(str(error)) from None

machines = config.machines
if not isinstance(machines, settings.Containers):
    raise pulumi.RunError(
        "spdk-k8s:machines.kind = ssh is not served yet; mend: pulumi config set --path machines.kind containers"
    )
nodes = machines.addresses
debian = f"debian:{PINS['DEBIAN']}-slim"
engine = docker.Provider("engine")
on_engine = pulumi.ResourceOptions(providers=[engine])

# The machines: one code path behind the list of hosts.
dev = DevMachines(
    "dev",
    subnet=machines.subnet,
    gateway=machines.gateway,
    containers={name: nodes[name] for name in ("master", "worker1")},
    guests={"worker2": nodes["worker2"]},
    base_image=debian,
    memory_mib=config.memory_mib,
    opts=on_engine,
)
master, worker1 = dev.hosts["master"], dev.hosts["worker1"]

# The private registry, and all that the nodes will ever need in it.
registry = Registry(
    "registry", host=master, ip=str(nodes["master"]), port=config.registry.port, tls=config.registry.tls
)
images = Images("images", registry=registry.address, login=registry.login, ready=registry.ready, opts=on_engine)
guest_image = images.build("guest", "node", {"BASE": debian}, target="guest")
backend, reason = config.backend(cpus=os.cpu_count() or 1, release="SPDK_RELEASE" in os.environ)
pulumi.info(f"vhost backend: {backend}, because {reason}")
pulumi.info(config.budget(backend))
spdk = backend == "spdk"
source = images.spdk_source(config.vhost.source, debian) if spdk else None
vhost_image = images.build(VHOST, "vhost", {"BASE": debian}, target=backend, source=source)
video_image = images.build(VIDEO, "video", {"BASE": debian})
media_image = (
    None
    if config.video.media_dir
    else images.build("media", "media", {"BASE": debian, "COUNT": str(config.vm.disk_slots)})
)

# The cluster: control plane on master, worker1 joined.
cluster = Cluster(
    "cluster",
    master=master,
    nodes=nodes,
    versions=Versions(PINS["KUBERNETES"], etcd=PINS["ETCD"], coredns=PINS["COREDNS"], pause=PINS["PAUSE"]),
    pod_cidr=config.cluster.pod_cidr,
    service_cidr=config.cluster.service_cidr,
    images=images,
    registry=registry.address,
    registry_values=registry.node_values,
    in_containers=True,
)
worker1_prepared = cluster.prepare(worker1, hugepages=config.hugepages(backend))
worker1_joined = cluster.join(worker1, worker1_prepared, in_container=True)

# The worker VM boots beside all this; its disks are plugged in as the vhost target serves them.
vm = WorkerVm(
    "worker2",
    host=worker1,
    host_ready=[worker1_prepared],
    address=nodes["worker2"],
    prefix=machines.subnet.prefixlen,
    gateway=machines.gateway,
    nameservers=[str(nodes["worker1"])],  # it passes questions on to the engine's resolver
    authorized_key=dev.key("client", "public"),
    host_key=(dev.key("worker2", "private"), dev.key("worker2", "public")),
    guest=guest_image,
    bundle=cluster.bundle,
    preload=[cluster.kube_proxy, cluster.pause, video_image],
    media_image=media_image,
    media_dir=config.video.media_dir,
    registry_values=registry.node_values,
    vcpus=config.vm.vcpus,
    memory_mib=config.vm.memory_mib,
    accel=config.vm.accel,
    mac=config.vm.mac,
    queues=config.vm.queues,
    disk_slots=config.vm.disk_slots,
    vnc=config.vm.vnc,
    hugepage_size=config.vm.hugepage_size,
    nic="eth0",
)
worker2 = dev.host("worker2", nodes["worker2"], worker1.deleted_with, after=[vm.answers])
worker2_prepared = cluster.prepare(worker2)
worker2_joined = cluster.join(worker2, worker2_prepared, in_container=False)

# What runs in the cluster goes with it: no in-cluster deletes when the control plane itself is deleted.
in_cluster = pulumi.ResourceOptions(providers=[cluster.provider], deleted_with=cluster.control_plane)
namespace = kubernetes.core.v1.Namespace(
    "namespace",
    metadata={"name": NAMESPACE},
    opts=pulumi.ResourceOptions(provider=cluster.provider, deleted_with=cluster.control_plane),
)
disks = Disks(
    numinst=config.numinst,
    slots=config.vm.disk_slots,
    mib=config.vhost.disk_mib,
    block_size=config.vhost.block_size,
    queues=config.vm.queues,
    bdev=config.vhost.bdev,
    devices=config.vhost.devices,
)
hugepage_size = config.vhost.hugepage_size if spdk else "none"
vhost = Vhost(
    "vhost",
    namespace=namespace.metadata["name"],
    image=vhost_image,
    node=worker1.name,
    config={"vhost.json": vhost_config(disks), **({"spdk.json": spdk_config(disks)} if spdk else {})},
    args=spdk_args(
        memory_mib=config.vhost_memory_mib,
        cpu_mask=config.vhost.cpu_mask,
        hugepages=hugepage_size != "none",
        pci=config.vhost.bdev == "nvme",
    )
    if spdk
    else [],
    cpu=str(len(config.vhost.cores)) if spdk else "100m",
    memory_mib=config.vhost_memory_mib,
    hugepage_size=hugepage_size,
    files=config.vhost.files if config.vhost.bdev == "aio" else None,
    devices=bool(config.vhost.devices),
    depends_on=[worker1_joined],
    opts=in_cluster,
)
video = Video(
    "video",
    namespace=namespace.metadata["name"],
    image=video_image,
    node=worker2.name,
    disks=[vm.disk(i, vhost=vhost.ready) for i in range(config.numinst)],
    disk_mib=config.vhost.disk_mib,
    http_port=config.video.http_port,
    rtmp_port=config.video.rtmp_port,
    media=MEDIA,
    cpu_request=config.video.cpu_request,
    cpu_limit=config.video.cpu_limit,
    depends_on=[worker2_joined],
    opts=in_cluster,
)

pulumi.export("numinst", config.numinst)
pulumi.export("kubeconfig", pulumi.Output.secret(cluster.kubeconfig))
pulumi.export("registry", registry.address)
pulumi.export("vhost", {"backend": backend, "reason": reason})
pulumi.export("accel", pulumi.Output.unsecret(vm.accel))
pulumi.export("nodes", {name: str(address) for name, address in nodes.items()})
pulumi.export("vms", [worker2.name])
pulumi.export("sshKey", dev.key("client", "private"))
pulumi.export("pages", [f"http://{nodes['worker2']}:{config.video.http_port + i}/" for i in range(config.numinst)])
pulumi.export(
    "streams", [f"rtmp://{nodes['worker2']}:{config.video.rtmp_port + i}/vod2" for i in range(config.numinst)]
)
