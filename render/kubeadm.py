"""kubeadm's configuration files."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from render.text import documents

PATCHES = "/etc/kubernetes/patches"


def kubeadm_init(
    *,
    version: str,
    repository: str,
    address: IPv4Address,
    pod_cidr: IPv4Network,
    service_cidr: IPv4Network,
    in_container: bool,
) -> str:
    """kubeadm's configuration for `kubeadm init`, as YAML documents (API v1beta4).

    version: Kubernetes' version without a leading v. repository: where kubeadm pulls images from, "address:port".
    address: of the API server. in_container: the node is a container, which shares the kernel of its machine.
    """
    proxy: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
    }
    if in_container:  # the limits belong to the machine, and a container may not change them
        proxy["conntrack"] = {"maxPerCore": 0, "min": 0}
    return documents(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": str(address), "bindPort": 6443},
            "nodeRegistration": _node_registration("master", in_container),
            "patches": {"directory": PATCHES},
        },
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "clusterName": "spdk-k8s",
            "kubernetesVersion": f"v{version}",
            "imageRepository": repository,
            # As long as the CA and the registry's certificate. kubeadm's default is a year, renewed only by an upgrade.
            "certificateValidityPeriod": "87600h0m0s",
            "networking": {"podSubnet": str(pod_cidr), "serviceSubnet": str(service_cidr)},
            # render.cni.pod_subnet assigns the pod subnets
            "controllerManager": {"extraArgs": [{"name": "allocate-node-cidrs", "value": "false"}]},
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "serverTLSBootstrap": False,
            # `make status` shows the disks' fill; the default of 1 minute is too old for it
            "volumeStatsAggPeriod": "10s",
            # One VM runs up to 128 video pods. They share the node's network, so the /24 is large enough.
            "maxPods": 200,
        },
        proxy,
    )


def kubeadm_join(*, node: str, api_server: str, ca_hash: str, in_container: bool) -> str:
    """kubeadm's configuration for `kubeadm join` (API v1beta4). scripts/join.sh replaces @TOKEN@ with a fresh token.

    api_server: "address:port". ca_hash: "sha256:…" of the cluster's CA. in_container: see `kubeadm_init`.
    """
    return documents(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "JoinConfiguration",
            "discovery": {
                "bootstrapToken": {
                    "token": "@TOKEN@",
                    "apiServerEndpoint": api_server,
                    "caCertHashes": [ca_hash],
                }
            },
            "nodeRegistration": _node_registration(node, in_container),
            "patches": {"directory": PATCHES},
        }
    )


def _node_registration(node: str, in_container: bool) -> dict[str, Any]:
    registration: dict[str, Any] = {"name": node, "criSocket": "unix:///run/containerd/containerd.sock"}
    if in_container:  # kernel config, swap and cgroups belong to the machine, and kubeadm would refuse some of them
        registration["ignorePreflightErrors"] = ["SystemVerification", "Swap"]
    return registration
