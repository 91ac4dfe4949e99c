"""The vhost target: a pod on worker1 that serves one vhost-user-blk disk for each instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_kubernetes.core.v1 import ContainerArgsDict, ProbeArgsDict, VolumeArgsDict, VolumeMountArgsDict

from components import render
from components.render import VHOST as NAME


class Vhost(pulumi.ComponentResource):
    """ConfigMap with the disks, and a Deployment of one pod, ready when every disk is served.

    image: reference by digest. config: file name -> text, what the image reads from /etc/vhost. args: of the target.
    memory_mib: what the target and its disks take. hugepage_size: the pages that it is on, "2Mi", "1Gi" or "none".
    files: worker1's folder with the disks; none: they are in memory. devices: the target may use worker1's own.
    ready: the resource to wait for.
    """

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        node: str,
        config: Mapping[str, str],
        args: Sequence[str],
        cpu: str,
        memory_mib: int,
        hugepage_size: str,
        files: str | None,
        devices: bool,
        depends_on: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:Vhost", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        config_map = kubernetes.core.v1.ConfigMap(
            f"{name}-config",
            metadata={"name": NAME, "namespace": namespace},
            data=dict(config),
            opts=child,
        )
        labels = {"app": NAME}
        volumes: list[VolumeArgsDict] = [
            {"name": "config", "config_map": {"name": config_map.metadata["name"]}},
            {"name": "sockets", "host_path": {"path": render.SOCKETS, "type": "Directory"}},
            {"name": "disks", "host_path": {"path": files, "type": "DirectoryOrCreate"}}
            if files
            else {"name": "disks", "empty_dir": {"medium": "Memory"}},
            {"name": "run", "empty_dir": {"medium": "Memory"}},
        ]
        mounts: list[VolumeMountArgsDict] = [
            {"name": "config", "mount_path": "/etc/vhost"},
            {"name": "sockets", "mount_path": render.SOCKETS},
            {"name": "disks", "mount_path": render.BDEV_FOLDER},
            {"name": "run", "mount_path": "/run/vhost"},
        ]
        limits = {"memory": f"{memory_mib}Mi"}
        target_mounts = list(mounts)
        if hugepage_size != "none":
            limits = {"memory": "512Mi", f"hugepages-{hugepage_size}": f"{memory_mib}Mi"}
            volumes.append({"name": "hugepages", "empty_dir": {"medium": f"HugePages-{hugepage_size}"}})
            target_mounts.append({"name": "hugepages", "mount_path": "/dev/hugepages"})
        if devices:
            volumes.append({"name": "devices", "host_path": {"path": "/dev"}})
            target_mounts.append({"name": "devices", "mount_path": "/dev"})

        container: ContainerArgsDict = {
            "name": "",
            "image": image,
            "security_context": {
                "allow_privilege_escalation": False,
                "read_only_root_filesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccomp_profile": {"type": "RuntimeDefault"},
            },
            # what a target says as it dies is what `kubectl describe` and `make status` show
            "termination_message_policy": "FallbackToLogsOnError",
        }
        target: ContainerArgsDict = {
            **container,
            "name": "vhost",
            "args": list(args),
            "volume_mounts": target_mounts,
            "resources": {
                "requests": {**limits, "cpu": cpu, "memory": "64Mi"},
                "limits": limits,
            },
            "startup_probe": _probe("started", period=1, failures=60),
            "readiness_probe": _probe("ready", period=2, failures=2),
            "liveness_probe": _probe("alive", period=10, failures=3),
        }
        if devices:
            target["security_context"] = {"privileged": True, "read_only_root_filesystem": True}
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
                            target,
                            {
                                **container,
                                "name": "reconcile",
                                "command": ["/usr/local/bin/reconcile"],
                                "volume_mounts": mounts,
                                "resources": {
                                    "requests": {"cpu": "10m", "memory": "16Mi"},
                                    # the disks' pages count for whoever touches them first
                                    "limits": {"memory": f"{memory_mib}Mi"},
                                },
                            },
                        ],
                        "volumes": volumes,
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
