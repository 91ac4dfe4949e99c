"""A kubeadm cluster: one control plane, workers that join, all images from the private registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pulumi
import pulumi_kubernetes as kubernetes

from components.hosts import SCRIPTS, Host
from components.images import ROOT, Images
from render.cni import cni_config, routes
from render.cpus import cpu_plan, pinned, roles
from render.kubeadm import kubeadm_init, kubeadm_join
from settings.models import Cpus
from settings.names import number

PACKAGES = " ".join((ROOT / "node" / "packages-node").read_text().split())


@dataclass(frozen=True)
class Versions:
    """Versions of what the cluster runs, without a leading v."""

    kubernetes: str
    etcd: str
    coredns: str
    pause: str

    def upstream(self) -> dict[str, str]:
        """Name in the private registry -> upstream image. kubeadm asks for these names and tags."""
        own = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
        return {name: f"registry.k8s.io/{name}:v{self.kubernetes}" for name in own} | {
            "etcd": f"registry.k8s.io/etcd:{self.etcd}",
            "coredns": f"registry.k8s.io/coredns/coredns:v{self.coredns}",
            "pause": f"registry.k8s.io/pause:{self.pause}",
        }


@dataclass(frozen=True)
class ClusterArgs:
    master: Host
    """Where the control plane runs."""
    nodes: Mapping[str, IPv4Address]
    """Name -> address of every future node. The number in a node's name fixes its pod subnet."""
    versions: Versions
    images: Images
    """Builds and pushes the images of the nodes and of the control plane."""
    registry: pulumi.Input[str]
    """ "address:port"."""
    registry_values: Mapping[str, pulumi.Input[str]]
    """Variables with which a node can pull: Registry.node_values."""
    pod_cidr: IPv4Network
    service_cidr: IPv4Network


class Cluster(pulumi.ComponentResource):
    """A control plane. `prepare` and `join` make other hosts its nodes.

    master: the control plane's machine. kubeconfig: the admin's, a secret. provider: pulumi-kubernetes for this
    cluster. contents: resource options for everything that runs in the cluster. control_plane: depend on it for an API
    server that answers. bundle, pause: image references by digest. kube_proxy: image reference by tag.

    ```python
    from ipaddress import IPv4Address, IPv4Network

    import pulumi
    import pulumi_docker as docker
    import pulumi_kubernetes as kubernetes

    from components.cluster import Cluster, ClusterArgs, Versions
    from components.hosts import Host
    from components.images import Images, ImagesArgs

    config = pulumi.Config()
    login = docker.RegistryArgs(server="192.0.2.10:443", username="me", password=config.require_secret("password"))
    hosts = {"master": "192.0.2.11", "worker1": "192.0.2.12"}
    master, worker1 = (
        Host(name, address, host_key="ssh-ed25519 AAAA…", private_key=config.require_secret("key"))
        for name, address in hosts.items()
    )
    cluster = Cluster(
        "cluster",
        ClusterArgs(
            master=master,
            nodes={name: IPv4Address(address) for name, address in hosts.items()},
            versions=Versions("1.36.3", etcd="3.6.6-0", coredns="1.13.1", pause="3.10.1"),
            images=Images("images", ImagesArgs(registry="192.0.2.10:443", login=login)),
            registry="192.0.2.10:443",
            registry_values={"REGISTRY": "192.0.2.10:443", "REGISTRY_CA": "", "REGISTRY_HOSTS": ""},
            pod_cidr=IPv4Network("10.244.0.0/16"),
            service_cidr=IPv4Network("10.96.0.0/16"),
        ),
    )
    cluster.join(worker1, cluster.prepare(worker1))
    kubernetes.core.v1.Namespace("mine", opts=cluster.contents)
    ```
    """

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:Cluster", name, None, opts)
        self._name, self._args = name, args
        self.master = args.master
        self._reserved: list[pulumi.Resource] = []
        master, images, versions = args.master, args.images, args.versions

        self.bundle = images.build("node-bundle", "bundle", {"BINARIES": f"spdk-k8s/kubernetes:v{versions.kubernetes}"})
        upstream = {
            image: images.build(image, "mirror", {"UPSTREAM": source}, tag=source.rpartition(":")[2])
            for image, source in versions.upstream().items()
        }
        self.pause = upstream["pause"]
        # kubeadm's DaemonSet names this image by tag
        self.kube_proxy = pulumi.Output.all(args.registry, upstream["kube-proxy"]).apply(
            lambda v: f"{v[0]}/kube-proxy:v{versions.kubernetes}"
        )

        prepared = self.prepare(master)
        address = args.nodes[master.name]
        control_plane = master.run(
            f"{name}-control-plane",
            "control_plane",
            {
                "NODE": master.name,
                "CONFIG": pulumi.Output.all(args.registry, master.in_container, *upstream.values()).apply(
                    lambda v: kubeadm_init(  # Output.all waits until every image is pushed
                        version=versions.kubernetes,
                        repository=str(v[0]),
                        address=address,
                        pod_cidr=args.pod_cidr,
                        service_cidr=args.service_cidr,
                        in_container=bool(v[1]),
                    )
                ),
            },
            parent=self,
            depends_on=[prepared],
        )
        made = pulumi.Output.secret(control_plane.stdout).apply(json.loads)
        self.kubeconfig: pulumi.Output[str] = made.apply(lambda m: str(m["kubeconfig"]))
        self._ca_hash: pulumi.Output[str] = made.apply(lambda m: str(m["caHash"]))
        self._api_server = f"{address}:6443"
        self.control_plane = control_plane
        self.provider = kubernetes.Provider(
            f"{name}-provider",
            kubeconfig=self.kubeconfig,
            # the provider would replace every object if a new admin certificate counted as a new cluster
            cluster_identifier=f"{pulumi.get_project()}-{pulumi.get_stack()}",
            enable_server_side_apply=True,
            # the next `up` adopts objects that an interrupted one has left
            upsert_existing_objects=True,
            # update a changed ConfigMap in place, do not replace it: its pods read it again by themselves
            enable_config_map_mutable=True,
            opts=pulumi.ResourceOptions(parent=self),
        )
        # deleted_with: when the control plane is deleted, nothing in the cluster is deleted one by one.
        self.contents = pulumi.ResourceOptions(providers=[self.provider], deleted_with=control_plane)
        self.register_outputs({"kubeconfig": self.kubeconfig, "apiServer": self._api_server})

    def prepare(
        self,
        host: Host,
        *,
        hugepages: Mapping[str, int] | None = None,
        cpus: Cpus | None = None,
        vms: Sequence[str] = (),
        bdev: str = "",
        devices: Sequence[str] = (),
        disk_mib: int = 0,
        sync: str = "1m",
    ) -> pulumi.Resource:
        """Install everything that `host` needs before kubeadm runs there. Returns the resource to depend on.

        hugepages: place -> number of pages to reserve: budgets.hugepages.
        cpus: the host's CPU plan. vms: names, on the host, of the VMs that it is to run, in order.
        devices: of bdev "aio" block devices, of "nvme" PCI addresses; each must hold `disk_mib` MiB.
        sync: kubelet's sync period: how soon a pod sees a changed ConfigMap.
        """
        # Their undo comes after the node's, when no pod uses them. undo="always": a container's hugepages and devices
        # belong to the machine below it, which stays when the container is deleted.
        taken: list[pulumi.Resource] = []
        if hugepages:
            reserved = host.run(
                f"{self._name}-{host.name}-hugepages",
                "hugepages",
                {"HUGEPAGES": " ".join(f"{size}={count}" for size, count in hugepages.items())},
                parent=self,
                undo="always",
                depends_on=self._reserved,  # one at a time: containers share the number of pages
            )
            self._reserved = [reserved]
            taken.append(reserved)
        cpus = cpus or Cpus()
        if cpus.roles:
            values = {
                "PLAN": cpu_plan(cpus, vms),
                "ROLES": roles(cpus),
                "VMS": " ".join(pinned(cpus, vms)),
                "CPUS_SCRIPT": (SCRIPTS / "host" / "cpus").read_text(),
            }
            taken.append(host.run(f"{self._name}-{host.name}-cpus", "cpus", values, parent=self))
        if devices:
            values = {"BDEV": bdev, "DEVICES": " ".join(devices), "MIB": str(disk_mib)}
            taken.append(host.run(f"{self._name}-{host.name}-devices", "devices", values, parent=self, undo="always"))
        nodes = self._args.nodes
        return host.run(
            f"{self._name}-{host.name}-node",
            "node",
            {
                **self._args.registry_values,
                "BUNDLE": self.bundle,
                "PAUSE": self.pause,
                "PACKAGES": PACKAGES,
                "CNI_CONFIG": cni_config(self._args.pod_cidr, number(host.name)),
                "ROUTES": routes(
                    self._args.pod_cidr,
                    {number(node): address for node, address in nodes.items()},
                    number(host.name),
                ),
                "NODE_IP": str(nodes[host.name]),
                "SYNC": sync,
                **({"RESERVED_CPUS": cpus.no_pods} if cpus.no_pods else {}),
            },
            parent=self,
            depends_on=taken,
        )

    def join(self, host: Host, prepared: pulumi.Resource, *, definition: str = "") -> pulumi.Resource:
        """Make `host` a node with the label type1=NAME. The returned resource is complete when the node is Ready.

        prepared: the result of `prepare`. definition: of a VM. When another one has booted, the node takes pods again,
        and those that it was drained of are waited for.
        """
        joined = host.run(
            f"{self._name}-{host.name}-join",
            "join",
            {
                "NODE": host.name,
                "KUBECONFIG_TEXT": self.kubeconfig,
                "CONFIG": pulumi.Output.all(host.in_container, self._ca_hash).apply(
                    lambda v: kubeadm_join(
                        node=host.name,
                        api_server=self._api_server,
                        ca_hash=str(v[1]),
                        in_container=bool(v[0]),
                    )
                ),
            },
            parent=self,
            depends_on=[prepared],
        )
        return self._args.master.run(
            f"{self._name}-{host.name}-ready",
            "node_ready",
            {
                "NODE": host.name,
                "LABELS": f"type1={host.name} node-role.kubernetes.io/worker=",
                **({"DEFINITION": definition} if definition else {}),
            },
            parent=self,
            timeout=2400,
            undo="never",
            depends_on=[joined],
        )
