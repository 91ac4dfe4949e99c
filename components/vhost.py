"""The vhost target and its disk agent: a pod that gives the VMs of a storage host their disks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_kubernetes.core.v1 import ContainerArgsDict, ProbeArgsDict, VolumeArgsDict, VolumeMountArgsDict
from pulumi_kubernetes.meta.v1 import ObjectMetaArgsDict

from components.hosts import Host
from render.vhost import BDEV_FOLDER, Disks, spdk_args, spdk_config, vhost_config
from settings.budgets import AGENT_MIB, LOGS_LIMIT_MIB, LOGS_MIB
from settings.names import AGENT_PORT, RUN, STATE


@dataclass(frozen=True)
class VhostArgs:
    pod: str
    """Name of the Deployment and of the ConfigMap."""
    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    """Image by digest: images/vhost, built with the backend as the Dockerfile's target."""
    backend: Literal["spdk", "qemu-storage-daemon"]
    host: Host
    """Node of the cluster where the pod runs. It has the label type1=NAME."""
    disks: Disks
    memory_mib: int
    """Memory in MiB of the target, without its disks."""
    disks_mib: int = 0
    """Memory in MiB that disks of bdev malloc can come to take."""
    overhead_mib: int = 128
    """Memory in MiB that the pod needs beside that: for the agent, and for the page tables of the guests' memory."""
    guaranteed: bool = False
    """True: the node reserves all of the pod's memory. False: only what it needs when it starts. With a CPU limit as
    well, the pod is of the QoS class Guaranteed."""
    files: str = f"{STATE}/disks"
    """Folder on the host with the disk files of bdev aio."""
    cpu_mask: str = "0x1"
    """CPU cores that SPDK runs on, as SPDK writes them: 0x3f or [0-5]."""
    polls: bool = True
    """True: SPDK takes all of these cores. False: it sleeps until there is something to do (its interrupt mode)."""
    cpu_request: str = "1"
    """CPU request of the pod: for SPDK that polls at least the number of cores in `cpu_mask`."""
    cpu_limit: str | None = None
    """CPU limit of the pod, its request or more. None: no limit."""
    hugepage_size: Literal["none", "2Mi", "1Gi"] = "none"
    """Hugepages for SPDK's memory, which Cluster.prepare has reserved."""
    after: Sequence[pulumi.Resource] = ()
    """Resources that must exist first, such as the result of Cluster.join."""


class Vhost(pulumi.ComponentResource):
    """A vhost target: a ConfigMap with the list of disks, and a Deployment of one pod.

    The pod is the disk agent with the target as its child process. It is Ready when it serves every disk that can be
    served.

    opts: Cluster.contents. ready: depend on it for a pod that is Ready.

    ```python
    import pulumi
    import pulumi_kubernetes as kubernetes

    from components.hosts import Host
    from render.vhost import Disks
    from components.vhost import Vhost, VhostArgs

    config = pulumi.Config()
    provider = kubernetes.Provider("mine", kubeconfig=config.require_secret("kubeconfig"))
    key = config.require_secret("key")
    host = Host("worker1", address="192.0.2.12", host_key="ssh-ed25519 AAAA…", private_key=key)
    vhost = Vhost(
        "vhost",
        VhostArgs(
            pod="vhost",
            namespace="default",
            image=f"192.0.2.10:443/vhost@sha256:{'0' * 64}",
            backend="spdk",
            host=host,
            disks=Disks(
                ordinals=range(3), slots=32, mib=128, block_size=4096, queues=1, places={i: ("vm", i) for i in range(3)}
            ),
            memory_mib=512,
            disks_mib=32 * 128,
        ),
        pulumi.ResourceOptions(providers=[provider]),
    )
    ```
    """

    def __init__(self, name: str, args: VhostArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:Vhost", name, None, opts)
        pod, namespace, disks = args.pod, args.namespace, args.disks
        spdk = args.backend == "spdk"
        hugepages = spdk and args.hugepage_size != "none"
        config = {"vhost.json": vhost_config(disks)}
        # what no running target can follow is in the pod's template, so that a change makes the pod anew
        command = ["--kind", disks.kind]
        metadata: ObjectMetaArgsDict = {"labels": {"app": pod}}
        if spdk:
            config["spdk.json"] = spdk_config(disks.slots)
            metadata["annotations"] = {"spdk-k8s/start": hashlib.sha256(config["spdk.json"].encode()).hexdigest()[:12]}
            arguments = spdk_args(
                memory_mib=args.memory_mib,
                cpu_mask=args.cpu_mask,
                polls=args.polls,
                hugepages=hugepages,
                pci=disks.bdev == "nvme",
            )
            command += ["--", *arguments]
        config_map = kubernetes.core.v1.ConfigMap(
            f"{name}-config",
            metadata={"name": pod, "namespace": namespace},
            data=config,
            # A running target serves a changed list at once, so the host must have checked new devices before.
            opts=pulumi.ResourceOptions(parent=self, depends_on=args.after),
        )
        volumes: list[VolumeArgsDict] = [
            {"name": "config", "config_map": {"name": config_map.metadata["name"]}},
            {"name": "sockets", "host_path": {"path": RUN, "type": "DirectoryOrCreate"}},
            {"name": "disks", "host_path": {"path": args.files, "type": "DirectoryOrCreate"}}
            if disks.bdev == "aio"
            else {"name": "disks", "empty_dir": {"medium": "Memory"}},
            {"name": "run", "empty_dir": {"medium": "Memory"}},
        ]
        mounts: list[VolumeMountArgsDict] = [
            {"name": "config", "mount_path": "/etc/vhost"},
            {"name": "sockets", "mount_path": RUN},
            {"name": "disks", "mount_path": BDEV_FOLDER},
            {"name": "run", "mount_path": "/run/vhost"},
        ]
        if spdk:  # the pod's own: SPDK locks its cores there, and reads its start-up file through a socket there
            mounts.append({"name": "run", "mount_path": "/var/tmp", "sub_path": "tmp"})
        memory = args.overhead_mib + args.disks_mib + (512 if hugepages else args.memory_mib)
        limits = {"memory": f"{memory}Mi", "ephemeral-storage": f"{LOGS_LIMIT_MIB}Mi"}
        if hugepages:
            limits[f"hugepages-{args.hugepage_size}"] = f"{args.memory_mib}Mi"
            volumes.append({"name": "hugepages", "empty_dir": {"medium": f"HugePages-{args.hugepage_size}"}})
            mounts.append({"name": "hugepages", "mount_path": "/dev/hugepages"})
        if disks.devices:
            volumes.append({"name": "devices", "host_path": {"path": "/dev"}})
            mounts.append({"name": "devices", "mount_path": "/dev"})
        requests = {**limits, "cpu": args.cpu_request, "ephemeral-storage": f"{LOGS_MIB}Mi"}
        if args.cpu_limit:
            limits["cpu"] = args.cpu_limit
        if not args.guaranteed:
            requests["memory"] = f"{AGENT_MIB}Mi"

        container: ContainerArgsDict = {
            "name": "vhost",
            "image": args.image,
            "args": command,
            "volume_mounts": mounts,
            "resources": {"requests": requests, "limits": limits},
            "startup_probe": _probe("started", period=1, failures=60),
            "readiness_probe": _probe("ready", period=2, failures=2),
            "liveness_probe": _probe("alive", period=10, failures=3),
            "security_context": {
                "allow_privilege_escalation": False,
                "read_only_root_filesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccomp_profile": {"type": "RuntimeDefault"},
            },
            # `kubectl describe` and `make status` show the last words of a target that ended
            "termination_message_policy": "FallbackToLogsOnError",
        }
        if disks.devices:
            container["security_context"] = {"privileged": True, "read_only_root_filesystem": True}
        self.ready = kubernetes.apps.v1.Deployment(
            name,
            metadata={"name": pod, "namespace": namespace},
            spec={
                "replicas": 1,
                # two targets cannot share the sockets
                "strategy": {"type": "Recreate"},
                "selector": {"match_labels": {"app": pod}},
                "template": {
                    "metadata": metadata,
                    "spec": {
                        "node_selector": {"type1": args.host.name},
                        "automount_service_account_token": False,
                        "enable_service_links": False,
                        # Kubernetes evicts or kills this pod last if memory runs out: all VMs of the host use it.
                        "priority_class_name": "system-node-critical",
                        "termination_grace_period_seconds": 5,
                        "containers": [container],
                        "volumes": volumes,
                    },
                },
            },
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=args.after,
                custom_timeouts=pulumi.CustomTimeouts(create="4m", update="4m"),
            ),
        )
        self.register_outputs({"pod": pod, "backend": args.backend, "sockets": RUN})


def _probe(question: str, *, period: int, failures: int) -> ProbeArgsDict:
    return {
        "http_get": {"path": f"/{question}", "port": AGENT_PORT},
        "period_seconds": period,
        "failure_threshold": failures,
        "timeout_seconds": 5,
    }
