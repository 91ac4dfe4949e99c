"""Component resources of spdk-k8s, one file each."""
