"""The vhost target: a pod on worker1 that serves one vhost-user-blk disk for each instance."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_kubernetes.core.v1 import ContainerArgsDict, ProbeArgsDict, VolumeArgsDict, VolumeMountArgsDict

from components import render
from components.hosts import Host


class Vhost(pulumi.ComponentResource):
    """ConfigMap with the disks, and a Deployment of one pod, ready when every disk is served.

    pod: its name. image: reference by digest. backend: "spdk" or "qemu-storage-daemon", the image's target.
    files: the host's folder for bdev aio. memory_mib: what the target and its disks take.
    SPDK polls on the `cores` cores of cpu_mask, its memory is on pages of hugepage_size: "2Mi", "1Gi" or "none".
    ready: the resource to wait for.
    """

    def __init__(
        self,
        name: str,
        *,
        pod: str,
        namespace: pulumi.Input[str],
        image: pulumi.Input[str],
        host: Host,
        backend: str,
        disks: render.Disks,
        files: str,
        cpu_mask: str,
        cores: int,
        memory_mib: int,
        hugepage_size: str,
        depends_on: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:Vhost", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        spdk = backend == "spdk"
        hugepages = spdk and hugepage_size != "none"
        config = {"vhost.json": render.vhost_config(disks)}
        args: list[str] = []
        if spdk:
            config["spdk.json"] = render.spdk_config(disks)
            args = render.spdk_args(
                memory_mib=memory_mib, cpu_mask=cpu_mask, hugepages=hugepages, pci=disks.bdev == "nvme"
            )
        config_map = kubernetes.core.v1.ConfigMap(
            f"{name}-config",
            metadata={"name": pod, "namespace": namespace},
            data=config,
            opts=child,
        )
        taken = (
            [
                host.run(
                    f"{name}-devices",
                    "devices",
                    {"BDEV": disks.bdev, "DEVICES": " ".join(disks.devices)},
                    parent=self,
                    depends_on=depends_on,
                )
            ]
            if disks.devices
            else []
        )
        labels = {"app": pod}
        volumes: list[VolumeArgsDict] = [
            {"name": "config", "config_map": {"name": config_map.metadata["name"]}},
            {"name": "sockets", "host_path": {"path": render.SOCKETS, "type": "Directory"}},
            {"name": "disks", "host_path": {"path": files, "type": "DirectoryOrCreate"}}
            if disks.bdev == "aio"
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
        if hugepages:
            limits = {"memory": "512Mi", f"hugepages-{hugepage_size}": f"{memory_mib}Mi"}
            volumes.append({"name": "hugepages", "empty_dir": {"medium": f"HugePages-{hugepage_size}"}})
            target_mounts.append({"name": "hugepages", "mount_path": "/dev/hugepages"})
        if disks.devices:
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
            "args": args,
            "volume_mounts": target_mounts,
            "resources": {
                "requests": {**limits, "cpu": str(cores) if spdk else "100m", "memory": "64Mi"},
                "limits": limits,
            },
            "startup_probe": _probe("started", period=1, failures=60),
            "readiness_probe": _probe("ready", period=2, failures=2),
            "liveness_probe": _probe("alive", period=10, failures=3),
        }
        if disks.devices:
            target["security_context"] = {"privileged": True, "read_only_root_filesystem": True}
        self.ready = kubernetes.apps.v1.Deployment(
            name,
            metadata={"name": pod, "namespace": namespace},
            spec={
                "replicas": 1,
                # two targets would fight for the sockets
                "strategy": {"type": "Recreate"},
                "selector": {"match_labels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "node_selector": {"type1": host.name},
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
                depends_on=[*depends_on, *taken],
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
