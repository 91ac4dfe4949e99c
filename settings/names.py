"""Names and folders that components, renderers and operate/ share."""

# The two workloads. The names are those of the original, hand-run system.
VHOST = "cb-vhost-p0"
VIDEO = "app-vs-p2"

NAMESPACE = "spdk-k8s"  # Kubernetes namespace of both workloads
AGENT_PORT = 9301  # the disk agent's HTTP server in the vhost pod: GET /started /ready /alive /disks /metrics
MONITORING = "spdk-k8s-monitoring"  # namespace of Prometheus and the node exporters
EXPORTER_PORT = 9100  # on each node: CPUs and disks
PROMETHEUS_PORT = 9090  # on master: Prometheus, and the wall at /user/
CHANGING = "spdk-k8s/changing"  # annotation of a drained node whose VM is being changed: scripts/drained.sh
CLAIM = "disk"  # volumeClaimTemplate of the StatefulSet: pod app-vs-p2-0 has the claim disk-app-vs-p2-0

# Folders on the machines.
RUN = "/run/spdk-k8s"  # the vhost-user sockets vhost.0, vhost.1, …, QEMU's monitors, the agent's files; root owns it
STATE = "/var/lib/spdk-k8s"
MEDIA = "/srv/media"  # the playlists, on a storage host and in its VMs

# Labels of what the dev stack makes in the Docker engine: `make down` finds it by them where the state is lost.
STACK_LABEL = "spdk-k8s.stack"
CHECKOUT_LABEL = "spdk-k8s.checkout"


def number(node: str) -> int:
    """Number of a node: 0 of master, 3 of worker3. What must not change when other nodes come and go follows from it:
    the node's pod subnet, and a VM's MAC address and unit."""
    return int(node.removeprefix("worker")) if node.startswith("worker") else 0
