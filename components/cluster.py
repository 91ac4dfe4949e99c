"""A kubeadm cluster: nodes fed by the private registry, one control plane, workers that join."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pulumi
import pulumi_kubernetes as kubernetes

from components import render
from components.hosts import Host
from components.images import ROOT, Images

PACKAGES = " ".join((ROOT / "node" / "packages-node").read_text().split())


@dataclass(frozen=True)
class Versions:
    """Pinned versions, without a leading v."""

    kubernetes: str
    etcd: str
    coredns: str
    pause: str

    def upstream(self) -> dict[str, str]:
        """Name in the private registry -> upstream image. kubeadm asks for these names with these tags."""
        own = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
        return {name: f"registry.k8s.io/{name}:v{self.kubernetes}" for name in own} | {
            "etcd": f"registry.k8s.io/etcd:{self.etcd}",
            "coredns": f"registry.k8s.io/coredns/coredns:v{self.coredns}",
            "pause": f"registry.k8s.io/pause:{self.pause}",
        }


class Cluster(pulumi.ComponentResource):
    """The control plane on `nodes`' first host; `join` adds the others.

    nodes: name -> address of every node that will be, control plane first: its place in this mapping fixes a node's
    pod subnet. registry_values: see Registry.node_values.
    provider: for pulumi-kubernetes. kubeconfig: admin's, secret. bundle, pause: image references by digest;
    kube_proxy: by tag.
    """

    def __init__(
        self,
        name: str,
        *,
        master: Host,
        nodes: Mapping[str, IPv4Address],
        versions: Versions,
        pod_cidr: IPv4Network,
        service_cidr: IPv4Network,
        images: Images,
        registry: str,
        registry_values: Mapping[str, pulumi.Input[str]],
        in_containers: bool,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:Cluster", name, None, opts)
        self._master = master
        self._nodes = dict(nodes)
        self._pod_cidr = pod_cidr
        self._registry_values = registry_values
        self._in_containers = in_containers

        self.bundle = images.build("node-bundle", "bundle", {"BINARIES": f"spdk-k8s/kubernetes:v{versions.kubernetes}"})
        upstream = {
            image: images.build(image, "mirror", {"UPSTREAM": source}, tag=source.rpartition(":")[2])
            for image, source in versions.upstream().items()
        }
        self.pause = upstream["pause"]
        # kubeadm's DaemonSet asks for it by tag
        self.kube_proxy = upstream["kube-proxy"].apply(lambda _: f"{registry}/kube-proxy:v{versions.kubernetes}")

        prepared = self.prepare(master)
        address = nodes[master.name]
        control_plane = master.run(
            f"{name}-control-plane",
            "control_plane",
            {
                "NODE": master.name,
                "CONFIG": pulumi.Output.all(*upstream.values()).apply(  # when they are all pushed
                    lambda _: render.kubeadm_init(
                        version=versions.kubernetes,
                        repository=registry,
                        address=address,
                        pod_cidr=pod_cidr,
                        service_cidr=service_cidr,
                        in_container=in_containers,
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
            # a new certificate is no new cluster
            cluster_identifier=f"{pulumi.get_project()}-{pulumi.get_stack()}",
            enable_server_side_apply=True,
            # an interrupted `up` leaves objects that the next one adopts
            upsert_existing_objects=True,
            # a changed ConfigMap is updated where it is: its pods read it again by themselves
            enable_config_map_mutable=True,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({"kubeconfig": self.kubeconfig})

    def prepare(self, host: Host, *, hugepages: Mapping[str, int] | None = None) -> pulumi.Resource:
        """Everything that a node needs before kubeadm runs on it. hugepages: size ("2Mi", "1Gi") -> how many."""
        reserved = (
            [
                host.run(
                    f"{host.name}-hugepages",
                    "hugepages",
                    {"HUGEPAGES": " ".join(f"{size}={count}" for size, count in hugepages.items())},
                    parent=self,
                    undo="always",  # a container's are those of the machine below it
                )
            ]
            if hugepages
            else []
        )
        node = list(self._nodes).index(host.name)
        return host.run(
            f"{host.name}-node",
            "node",
            {
                **self._registry_values,
                "BUNDLE": self.bundle,
                "PAUSE": self.pause,
                "PACKAGES": PACKAGES,
                "CNI_CONFIG": render.cni_config(self._pod_cidr, node),
                "ROUTES": render.routes(self._pod_cidr, list(self._nodes.values()), node),
                "NODE_IP": str(self._nodes[host.name]),
            },
            parent=self,
            depends_on=reserved,
        )

    def join(self, host: Host, prepared: pulumi.Resource, *, in_container: bool) -> pulumi.Resource:
        """Make `host` a node, labelled type1=NAME; done when it is Ready."""
        joined = host.run(
            f"{host.name}-join",
            "join",
            {
                "NODE": host.name,
                "KUBECONFIG_TEXT": self.kubeconfig,
                "CONFIG": self._ca_hash.apply(
                    lambda ca_hash: render.kubeadm_join(
                        node=host.name,
                        api_server=self._api_server,
                        ca_hash=ca_hash,
                        in_container=in_container,
                    )
                ),
            },
            parent=self,
            depends_on=[prepared],
        )
        return self._master.run(
            f"{host.name}-ready",
            "node_ready",
            {"NODE": host.name, "LABELS": f"type1={host.name} node-role.kubernetes.io/worker="},
            parent=self,
            undo="never",
            depends_on=[joined],
        )
