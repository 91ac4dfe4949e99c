"""From bare machines to N videos playing, each from its own vhost-user-blk disk. docs/architecture.md is the map."""

from components import startup

startup.quick()

import os

import pulumi
import pulumi_docker as docker
import pulumi_kubernetes as kubernetes
from pulumi.runtime.config import CONFIG, is_config_secret

from components.cluster import Cluster, ClusterArgs, Versions
from components.dev_machines import DevMachines, DevMachinesArgs
from components.images import Images, ImagesArgs
from components.lab_machines import LabMachines, LabMachinesArgs
from components.monitoring import Monitoring, MonitoringArgs
from components.registry import Registry, RegistryArgs
from components.storage_host import Shared, storage_host
from components.video import Video, VideoArgs
from render.preflight import needs
from settings import budgets
from settings.changes import exported
from settings.load import ConfigError, load
from settings.models import Containers
from settings.names import MEDIA, NAMESPACE, VHOST, VIDEO
from settings.pins import PINS

# The config. `load` reports every error at once, before anything starts.
cpus = os.cpu_count() or 1
try:
    config = load(CONFIG.get(), cpus=cpus, preview=pulumi.runtime.is_dry_run(), is_secret=is_config_secret)
except ConfigError as error:
    raise pulumi.RunError(str(error)) from None
where = config.machines
backend, reason = budgets.choose_backend(
    config, cpus=cpus if isinstance(where, Containers) else None, release="SPDK_RELEASE" in os.environ
)
pulumi.info(f"vhost backend: {backend}, because {reason}")
pulumi.info(budgets.in_words(config, backend))

debian = f"debian:{PINS['DEBIAN']}-slim"
on_engine = pulumi.ResourceOptions(providers=[docker.Provider("engine")])

# The machines: `dev` creates containers, `lab` uses existing servers. Both give hosts.
machines = (
    DevMachines(
        "dev",
        DevMachinesArgs(
            subnet=where.subnet,
            gateway=where.subnet[1],
            containers={name: where.addresses[name] for name in ("master", *where.storage)},
            keys=where.all_names,
            base_image=debian,
            memory_mib=budgets.machine_memory_mib(config, backend),
            holding=config.holding,
            cpus=config.cpus,
            kvm=config.vm.accel == "kvm",
        ),
        on_engine,
    )
    if isinstance(where, Containers)
    else LabMachines(
        "lab",
        LabMachinesArgs(
            hosts=where.hosts,
            guests=config.vms,
            holding=config.holding,
            needs={name: needs(config, name, backend) for name in where.hosts},
        ),
    )
)
master = machines.hosts["master"]

# The private registry, and the images that the local Docker engine builds and pushes to it.
registry = Registry("registry", RegistryArgs(host=master, port=config.registry.port, tls=config.registry.tls))
images = Images("images", ImagesArgs(registry.address, registry.login, registry.ready), on_engine)
guest_image = images.build("guest", "node", {"BASE": debian}, target="guest")
source = images.spdk_source(config.vhost.source, debian) if backend == "spdk" else None
vhost_image = images.build(VHOST, "vhost", {"BASE": debian}, target=backend, source=source)
video_image = images.build(VIDEO, "video", {"BASE": debian})
media = {"BASE": debian, "COUNT": str(budgets.sample_playlists(config))}
media_image = None if config.video.media_dir else images.build("media", "media", media)

# The Kubernetes cluster, with its control plane on master.
cluster = Cluster(
    "cluster",
    ClusterArgs(
        master=master,
        nodes=where.addresses,
        versions=Versions(PINS["KUBERNETES"], etcd=PINS["ETCD"], coredns=PINS["COREDNS"], pause=PINS["PAUSE"]),
        images=images,
        registry=registry.address,
        registry_values=registry.node_values,
        pod_cidr=config.cluster.pod_cidr,
        service_cidr=config.cluster.service_cidr,
    ),
)
namespace = kubernetes.core.v1.Namespace("namespace", metadata={"name": NAMESPACE}, opts=cluster.contents)

# The storage hosts. Each is a node with a vhost target, and runs the worker VMs that use the target's disks.
shared = Shared(
    config,
    backend,
    keys=machines.keys,
    cluster=cluster,
    registry=registry.address,
    namespace=namespace.metadata["name"],
    vhost_image=vhost_image,
    guest_image=guest_image,
    video_image=video_image,
    media_image=media_image,
)
storage = [storage_host(machines.hosts[name], shared) for name in where.storage]
disks = {ordinal: disk for host in storage for ordinal, disk in host.disks.items()}

# The N video pods, each on its own disk.
video = Video(
    "video",
    VideoArgs(
        namespace=namespace.metadata["name"],
        image=video_image,
        disks=[disks[ordinal] for ordinal in range(config.numinst)],
        disk_mib=config.vhost.disk_mib,
        media=MEDIA,
        http_port=config.video.http_port,
        rtmp_port=config.video.rtmp_port,
        cpu_request=config.video.cpu_request,
        cpu_limit=config.video.cpu_limit,
        after=[node for host in storage for node in host.joined],
    ),
    cluster.contents,
)
for host in storage:
    host.released(video.running)

# Prometheus and the wall. They come last, and nothing waits for them.
if config.monitoring:
    at = str(where.addresses["master"])
    args = MonitoringArgs(images, base=debian, node="master", address=at, after=[video.running])
    pulumi.export("wall", Monitoring("monitoring", args, cluster.contents).wall)

pulumi.export("config", exported(config))
pulumi.export("numinst", config.numinst)
pulumi.export("kubeconfig", pulumi.Output.secret(cluster.kubeconfig))
pulumi.export("registry", registry.address)
pulumi.export("vhost", {"backend": backend, "reason": reason})
pulumi.export("accel", pulumi.Output.unsecret(next(vm for host in storage for vm in host.vms.values()).accel))
pulumi.export("nodes", {name: str(address) for name, address in where.addresses.items()})
pulumi.export("vms", config.vms)
pulumi.export("targets", {host.target: sorted(host.disks) for host in storage})
pulumi.export("disks", [{"node": disks[i].node, "path": disks[i].path} for i in range(config.numinst)])
pulumi.export("sshKey", machines.keys.key("client", "private"))
pulumi.export("pages", video.pages)
pulumi.export("streams", video.streams)
pulumi.export("publishKey", video.publish_key)
