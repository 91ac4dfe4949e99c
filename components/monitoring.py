"""Prometheus on master, what it asks on the nodes, and the wall: every video, disk and core on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_kubernetes.core.v1 import (
    ContainerArgsDict,
    EnvVarArgsDict,
    PodSpecArgsDict,
    PodTemplateSpecArgsDict,
    ResourceRequirementsArgsDict,
    SecurityContextArgsDict,
)

from components.images import Images
from settings.budgets import LOGS_LIMIT_MIB, LOGS_MIB
from settings.names import EXPORTER_PORT, MONITORING, PROMETHEUS_PORT

KEPT_MIB = 256  # of what was measured: some days of 24 instances
STORE_GIB = 1  # with what is being written; beyond it kubelet makes the pod anew, with nothing
PROMETHEUS_MIB, PROMETHEUS_LIMIT_MIB = 128, 512
EXPORTER_MIB, EXPORTER_LIMIT_MIB = 16, 64
USER = 10001
EXPORTER, PROMETHEUS = "node-exporter", "prometheus"  # names, and labels by which Prometheus finds the pods

# /proc and /sys of the pod's own show the node's CPUs and disks, so the exporter mounts nothing of the node
EXPORTS = [
    "--collector.disable-defaults",
    "--collector.cpu",
    "--collector.diskstats",
    "--collector.meminfo",
    # the pod's own root: it lies where the node keeps its containers and images
    "--collector.filesystem",
    "--collector.filesystem.mount-points-exclude=^/.+",
    "--collector.filesystem.fs-types-exclude=^(proc|sysfs|tmpfs|devpts|mqueue)$",
]


@dataclass(frozen=True)
class MonitoringArgs:
    images: Images
    """Builds and pushes images/monitoring, with its two targets."""
    base: str
    """Image that they start from."""
    node: str
    """Node where Prometheus runs. It has the label kubernetes.io/hostname=NAME."""
    address: str
    """Address of this node, at which Prometheus and the wall answer."""
    after: Sequence[pulumi.Resource] = ()
    """Resources that must exist first: on an emulated CPU a pod more keeps others waiting."""


class Monitoring(pulumi.ComponentResource):
    """Prometheus, a node exporter on every node, and the wall. opts: Cluster.contents. wall: its URL.

    Whom Prometheus asks it learns from the API server, so nothing here depends on hosts, VMs or instances.

    ```python
    import pulumi
    import pulumi_docker as docker
    import pulumi_kubernetes as kubernetes

    from components.images import Images, ImagesArgs
    from components.monitoring import Monitoring, MonitoringArgs

    config = pulumi.Config()
    provider = kubernetes.Provider("mine", kubeconfig=config.require_secret("kubeconfig"))
    login = docker.RegistryArgs(server="192.0.2.10:443", username="me", password=config.require_secret("password"))
    images = Images("images", ImagesArgs(registry="192.0.2.10:443", login=login))
    monitoring = Monitoring(
        "monitoring",
        MonitoringArgs(images, base="debian:trixie-slim", node="master", address="192.0.2.11"),
        pulumi.ResourceOptions(providers=[provider]),
    )
    pulumi.export("wall", monitoring.wall)
    ```
    """

    def __init__(self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:Monitoring", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        exporter, prometheus = (
            args.images.build(target, "monitoring", {"BASE": args.base}, target=target)
            for target in (EXPORTER, PROMETHEUS)
        )
        last = pulumi.ResourceOptions(parent=self, depends_on=args.after)
        space = kubernetes.core.v1.Namespace(f"{name}-namespace", metadata={"name": MONITORING}, opts=child)
        namespace = space.metadata["name"]
        kubernetes.apps.v1.DaemonSet(
            f"{name}-exporter",
            metadata={"name": EXPORTER, "namespace": namespace},
            spec={
                "selector": {"match_labels": {"app": EXPORTER}},
                "template": _template(
                    EXPORTER,
                    {
                        "name": EXPORTER,
                        "image": exporter,
                        "args": [*EXPORTS, f"--web.listen-address=$(ADDRESS):{EXPORTER_PORT}"],
                        "resources": _resources(EXPORTER_MIB, EXPORTER_LIMIT_MIB),
                    },
                    automount_service_account_token=False,
                ),
            },
            opts=last,
        )
        account = kubernetes.core.v1.ServiceAccount(
            f"{name}-account", metadata={"name": PROMETHEUS, "namespace": namespace}, opts=child
        )
        role = kubernetes.rbac.v1.ClusterRole(
            f"{name}-role",
            metadata={"name": "spdk-k8s-prometheus"},
            rules=[
                {"api_groups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
                {"api_groups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                {"non_resource_urls": ["/metrics"], "verbs": ["get"]},
            ],
            opts=child,
        )
        kubernetes.rbac.v1.ClusterRoleBinding(
            f"{name}-binding",
            metadata={"name": "spdk-k8s-prometheus"},
            role_ref={"api_group": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role.metadata["name"]},
            subjects=[{"kind": "ServiceAccount", "name": account.metadata["name"], "namespace": namespace}],
            opts=child,
        )
        kubernetes.apps.v1.Deployment(
            f"{name}-prometheus",
            metadata={"name": PROMETHEUS, "namespace": namespace},
            spec={
                "strategy": {"type": "Recreate"},  # two cannot share the port
                "selector": {"match_labels": {"app": PROMETHEUS}},
                "template": _template(
                    PROMETHEUS,
                    {
                        "name": PROMETHEUS,
                        "image": prometheus,
                        "args": [
                            f"--web.listen-address=$(ADDRESS):{PROMETHEUS_PORT}",
                            "--storage.tsdb.path=/data",
                            f"--storage.tsdb.retention.size={KEPT_MIB}MB",
                            "--log.level=warn",
                        ],
                        "readiness_probe": {
                            "http_get": {"path": "/-/ready", "port": PROMETHEUS_PORT},
                            "period_seconds": 2,
                        },
                        "resources": _resources(PROMETHEUS_MIB, PROMETHEUS_LIMIT_MIB, store_mib=1024 * STORE_GIB),
                        "volume_mounts": [{"name": "data", "mount_path": "/data"}],
                    },
                    service_account_name=account.metadata["name"],
                    node_selector={"kubernetes.io/hostname": args.node},
                    volumes=[{"name": "data", "empty_dir": {"size_limit": f"{STORE_GIB}Gi"}}],
                ),
            },
            opts=last,
        )
        self.wall = f"http://{args.address}:{PROMETHEUS_PORT}/user/"
        self.register_outputs({"wall": self.wall})


def _template(app: str, container: ContainerArgsDict, **more: Any) -> PodTemplateSpecArgsDict:
    """A pod of `app` on its node's network, at the node's address ADDRESS. more: of the pod's specification."""
    address: EnvVarArgsDict = {"name": "ADDRESS", "value_from": {"field_ref": {"field_path": "status.hostIP"}}}
    confined: SecurityContextArgsDict = {
        "allow_privilege_escalation": False,
        "read_only_root_filesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    spec: PodSpecArgsDict = {
        "host_network": True,
        "enable_service_links": False,
        "tolerations": [{"operator": "Exists"}],  # master, and nodes that are cordoned or away
        "security_context": {
            "run_as_non_root": True,
            "run_as_user": USER,
            "run_as_group": USER,
            "fs_group": USER,
            "seccomp_profile": {"type": "RuntimeDefault"},
        },
        "containers": [{**container, "env": [address], "security_context": confined}],
    }
    return {"metadata": {"labels": {"app": app}}, "spec": cast(PodSpecArgsDict, {**spec, **more})}


def _resources(request_mib: int, limit_mib: int, *, store_mib: int = 0) -> ResourceRequirementsArgsDict:
    return {
        "requests": {"cpu": "10m", "memory": f"{request_mib}Mi", "ephemeral-storage": f"{LOGS_MIB}Mi"},
        "limits": {"memory": f"{limit_mib}Mi", "ephemeral-storage": f"{LOGS_LIMIT_MIB + store_mib}Mi"},
    }
