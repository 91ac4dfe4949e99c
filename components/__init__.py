"""The Pulumi component resources of spdk-k8s, one file each. hosts.py runs scripts on machines."""
