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
    """kubeadm v1beta4: InitConfiguration, ClusterConfiguration, KubeletConfiguration, KubeProxyConfiguration."""
    proxy: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
    }
    if in_container:  # conntrack's limits belong to the machine below
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
            # as long as the CA's and the registry's: kubeadm renews the others, of a year, only when it upgrades
            "certificateValidityPeriod": "87600h0m0s",
            "networking": {"podSubnet": str(pod_cidr), "serviceSubnet": str(service_cidr)},
            # each node's pod subnet is fixed by the program: see pod_subnet
            "controllerManager": {"extraArgs": [{"name": "allocate-node-cidrs", "value": "false"}]},
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "serverTLSBootstrap": False,
            # `make status` shows how full the disks are, not how full they were
            "volumeStatsAggPeriod": "10s",
            # up to 128 video pods on one VM; they need no addresses of their own
            "maxPods": 200,
        },
        proxy,
    )


def kubeadm_join(*, node: str, api_server: str, ca_hash: str, in_container: bool) -> str:
    """kubeadm v1beta4 JoinConfiguration; scripts/join.sh puts the token in place of @TOKEN@."""
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
    if in_container:  # kernel config, swap and cgroups are the outer machine's
        registration["ignorePreflightErrors"] = ["SystemVerification", "Swap"]
    return registration
