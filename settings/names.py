"""Names and folders that the program, its renderers and `make status` share."""

# The original's names of the two workloads.
VHOST = "cb-vhost-p0"
VIDEO = "app-vs-p2"

NAMESPACE = "spdk-k8s"  # of Kubernetes
AGENT_PORT = 9301  # of the disk agent in its pod: GET /started /ready /alive /disks /metrics
CLAIM = "disk"  # of a video pod, in its StatefulSet: pod app-vs-p2-0 has the claim disk-app-vs-p2-0

# Folders on the machines.
RUN = "/run/spdk-k8s"  # root's own: vhost.0, vhost.1, … (the vhost-user sockets), QEMU's monitors, the disk agent's
STATE = "/var/lib/spdk-k8s"
MEDIA = "/srv/media"  # the playlists, on a storage host and in its VMs
