"""Names and folders that the program, its renderers and `make status` share."""

# The original's names of the two workloads.
VHOST = "cb-vhost-p0"
VIDEO = "app-vs-p2"

NAMESPACE = "spdk-k8s"  # of Kubernetes
CLAIM = "disk"  # of a video pod, in its StatefulSet: pod app-vs-p2-0 has the claim disk-app-vs-p2-0

# Folders on the machines.
SOCKETS = "/var/tmp"  # vhost.0, vhost.1, …: the vhost-user sockets, where the original had them
RUN = "/run/spdk-k8s"
STATE = "/var/lib/spdk-k8s"
MEDIA = "/srv/media"  # the playlists, on a storage host and in its VMs

# Labels of what the dev stack makes in the Docker engine: `make down` finds it by them where the state is lost.
STACK_LABEL = "spdk-k8s.stack"
CHECKOUT_LABEL = "spdk-k8s.checkout"
