"""The pod network of a node: its CNI configuration, and its routes to the other nodes' pods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network


def pod_subnet(pod_cidr: IPv4Network, node: int) -> IPv4Network:
    """The pod subnet of node number `node` (0 = master): the node-th /24 of `pod_cidr`.

    It is fixed here, not assigned by the controller manager, so that routes are known before any node joins.
    """
    return IPv4Network((pod_cidr[node * 256], 24))


def cni_config(pod_cidr: IPv4Network, node: int) -> str:
    """CNI network configuration list (JSON) of node number `node`: a bridge with the node's pod subnet."""
    subnet = pod_subnet(pod_cidr, node)
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "spdk-k8s",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": str(subnet)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )


def routes(pod_cidr: IPv4Network, nodes: Mapping[int, IPv4Address], node: int) -> str:
    """Shell script for node number `node`: routes to the other nodes' pods, and NAT for what leaves the cluster.

    nodes: number -> address of each node.
    """
    lines = [
        f"ip route replace {pod_subnet(pod_cidr, other)} via {address}"
        for other, address in nodes.items()
        if other != node
    ]
    own = pod_subnet(pod_cidr, node)
    return "\n".join(
        [
            "set -e",
            *lines,
            "nft -f - <<'EOF'",
            "table ip spdk-k8s",
            "delete table ip spdk-k8s",
            "table ip spdk-k8s {",
            "  chain postrouting {",
            "    type nat hook postrouting priority srcnat; policy accept;",
            f"    ip saddr {own} ip daddr != {pod_cidr} masquerade",
            "  }",
            "}",
            "EOF",
        ]
    )
