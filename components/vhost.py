"""The vhost target: a pod on worker1 that serves one vhost-user-blk disk for each instance."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_kubernetes.core.v1 import ContainerArgsDict, ProbeArgsDict

from components import render
from components.render import VHOST as NAME


class Vhost(pulumi.ComponentResource):
    """ConfigMap with the disks, and a Deployment of one pod, ready when every export answers.

    image: reference by digest. config: JSON of render.vhost_config. memory_mib: the pod's limit; the disks are in it.
    ready: the resource to wait for.
    """

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        node: str,
        config: str,
        memory_mib: int,
        depends_on: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:Vhost", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        config_map = kubernetes.core.v1.ConfigMap(
            f"{name}-config",
            metadata={"name": NAME, "namespace": namespace},
            data={"vhost.json": config},
            opts=child,
        )
        labels = {"app": NAME}

        container: ContainerArgsDict = {
            "name": "",
            "image": image,
            "security_context": {
                "allow_privilege_escalation": False,
                "read_only_root_filesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccomp_profile": {"type": "RuntimeDefault"},
            },
            "volume_mounts": [
                {"name": "config", "mount_path": "/etc/vhost"},
                {"name": "sockets", "mount_path": render.SOCKETS},
                {"name": "disks", "mount_path": "/disks"},
                {"name": "run", "mount_path": "/run/vhost"},
            ],
        }
        self.ready = kubernetes.apps.v1.Deployment(
            name,
            metadata={"name": NAME, "namespace": namespace},
            spec={
                "replicas": 1,
                # two targets would fight for the sockets
                "strategy": {"type": "Recreate"},
                "selector": {"match_labels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "node_selector": {"type1": node},
                        "automount_service_account_token": False,
                        "enable_service_links": False,
                        "termination_grace_period_seconds": 5,
                        "containers": [
                            {
                                **container,
                                "name": "vhost",
                                "resources": {
                                    "requests": {"cpu": "100m", "memory": "64Mi"},
                                    "limits": {"memory": f"{memory_mib}Mi"},
                                },
                                "startup_probe": _probe("started", period=1, failures=60),
                                "readiness_probe": _probe("ready", period=2, failures=2),
                                "liveness_probe": _probe("alive", period=10, failures=3),
                            },
                            {
                                **container,
                                "name": "reconcile",
                                "command": ["/usr/local/bin/reconcile"],
                                "resources": {
                                    "requests": {"cpu": "10m", "memory": "16Mi"},
                                    # the disks' pages count for whoever touches them first
                                    "limits": {"memory": f"{memory_mib}Mi"},
                                },
                            },
                        ],
                        "volumes": [
                            {"name": "config", "config_map": {"name": config_map.metadata["name"]}},
                            {"name": "sockets", "host_path": {"path": render.SOCKETS, "type": "Directory"}},
                            {"name": "disks", "empty_dir": {"medium": "Memory"}},
                            {"name": "run", "empty_dir": {"medium": "Memory"}},
                        ],
                    },
                },
            },
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=depends_on,
                custom_timeouts=pulumi.CustomTimeouts(create="4m", update="4m"),
            ),
        )
        self.register_outputs({})


def _probe(question: str, *, period: int, failures: int) -> ProbeArgsDict:
    return {
        "exec_": {"command": ["/usr/local/bin/probe", question]},
        "period_seconds": period,
        "failure_threshold": failures,
        "timeout_seconds": 5,
    }
