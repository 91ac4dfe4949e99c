"""N video pods, each on its own disk: a StatefulSet, and a local PersistentVolume for each ordinal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_command import local

from components.hosts import STEP, here
from settings.budgets import LOGS_LIMIT_MIB, LOGS_MIB, VIDEO_LIMIT_MIB, VIDEO_MIB
from settings.names import CLAIM
from settings.names import VIDEO as NAME

USER = 10001
PORT = "prometheus.io/port"  # annotation: where Prometheus asks the pod


@dataclass(frozen=True)
class Disk:
    node: str
    """Name of the node that has the disk. It has the label type1=NAME."""
    address: pulumi.Input[str]
    """Address of that node, at which the pod serves."""
    path: str
    """Path of the block device on the node."""
    plugged: pulumi.Resource
    """Depend on this resource for a disk that is plugged in."""


@dataclass(frozen=True)
class VideoArgs:
    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    """Reference by digest."""
    disks: Sequence[Disk]
    """The disks of instances 0, 1, …"""
    disk_mib: int
    """Size of each disk in MiB."""
    media: str
    """Folder on every node with the playlists mp4-1, mp4-2, …"""
    http_port: int = 8080
    """HTTP port of instance 0. Instance i serves at http_port + i."""
    rtmp_port: int = 1935
    """RTMP port of instance 0. Instance i serves at rtmp_port + i."""
    cpu_request: str = "50m"
    cpu_limit: str = "500m"
    after: Sequence[pulumi.Resource] = ()
    """Resources that must exist first, such as the results of Cluster.join."""


class Video(pulumi.ComponentResource):
    """N video pods. Pod i uses disk i, and runs on the node that has this disk.

    kubelet formats a blank disk as ext4, and only mounts a used one. opts: Cluster.contents.
    running: depend on it for exactly these pods. pages, streams: URLs of the HTTP pages and of the RTMP streams, by
    ordinal. publish_key: whoever has this secret may publish live streams.

    ```python
    import pulumi
    import pulumi_kubernetes as kubernetes

    from components.video import Disk, Video, VideoArgs

    kubeconfig = pulumi.Config().require_secret("kubeconfig")
    provider = kubernetes.Provider("mine", kubeconfig=kubeconfig)
    disk = Disk("worker2", address="192.0.2.13", path="/dev/vdb", plugged=provider)
    video = Video(
        "video",
        VideoArgs(
            namespace="default",
            image=f"192.0.2.10:443/video@sha256:{'0' * 64}",
            disks=[disk],
            disk_mib=128,
            media="/srv/media",
        ),
        pulumi.ResourceOptions(providers=[provider]),
    )
    pulumi.export("pages", video.pages)
    pulumi.export("publishKey", video.publish_key)
    ```
    """

    def __init__(self, name: str, args: VideoArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:Video", name, None, opts)
        namespace, disks, http_port, rtmp_port = args.namespace, args.disks, args.http_port, args.rtmp_port
        child = pulumi.ResourceOptions(parent=self)
        storage_class = kubernetes.storage.v1.StorageClass(
            f"{name}-disks",
            metadata={"name": "vhost-disks"},
            provisioner="kubernetes.io/no-provisioner",
            volume_binding_mode="WaitForFirstConsumer",
            reclaim_policy="Retain",
            opts=child,
        )
        volumes = [
            kubernetes.core.v1.PersistentVolume(
                f"{name}-disk-{i}",
                metadata={"name": f"vhost-{i}"},
                spec={
                    "storage_class_name": storage_class.metadata["name"],
                    "capacity": {"storage": f"{args.disk_mib}Mi"},
                    "access_modes": ["ReadWriteOnce"],
                    "volume_mode": "Filesystem",
                    "persistent_volume_reclaim_policy": "Retain",
                    "claim_ref": {
                        "api_version": "v1",
                        "kind": "PersistentVolumeClaim",
                        "namespace": namespace,
                        "name": f"{CLAIM}-{NAME}-{i}",
                    },
                    "local": {"path": disk.path, "fs_type": "ext4"},
                    "node_affinity": {
                        "required": {
                            "node_selector_terms": [
                                {"match_expressions": [{"key": "type1", "operator": "In", "values": [disk.node]}]}
                            ]
                        }
                    },
                },
                opts=pulumi.ResourceOptions(parent=self, depends_on=[disk.plugged]),
            )
            for i, disk in enumerate(disks)
        ]
        patience = f"{max(600, 10 * len(disks))}s"  # on an emulated CPU each pod takes some seconds to start
        labels = {"app": NAME}
        service = kubernetes.core.v1.Service(
            f"{name}-service",
            metadata={"name": NAME, "namespace": namespace, "annotations": {"pulumi.com/skipAwait": "true"}},
            spec={"cluster_ip": "None", "selector": labels, "ports": [{"name": "http", "port": http_port}]},
            opts=child,
        )
        ports = _ports_by_ordinal(name, labels=labels, http_port=http_port, rtmp_port=rtmp_port, opts=child)
        made = local.Command(
            f"{name}-publish-key",
            create=STEP,
            environment=here("publish_key"),
            logging=local.Logging.NONE,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stdout"]),
        )
        self.publish_key = pulumi.Output.secret(made.stdout)
        # immutable: another key is another Secret, so the pods restart with it
        key = kubernetes.core.v1.Secret(
            f"{name}-publish",
            metadata={"namespace": namespace},
            immutable=True,
            string_data={"key": self.publish_key},
            opts=child,
        )
        self.running = kubernetes.apps.v1.StatefulSet(
            name,
            metadata={"name": NAME, "namespace": namespace},
            spec={
                "replicas": len(disks),
                "service_name": NAME,
                "pod_management_policy": "Parallel",
                "persistent_volume_claim_retention_policy": {
                    "when_deleted": "Delete",
                    "when_scaled": "Delete",
                },
                "selector": {"match_labels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": {PORT: str(http_port)}},
                    "spec": {
                        # the volume's node affinity places each pod
                        "host_network": True,
                        "dns_policy": "Default",
                        "automount_service_account_token": False,
                        "enable_service_links": False,
                        "termination_grace_period_seconds": 5,
                        "security_context": {
                            "run_as_non_root": True,
                            "run_as_user": USER,
                            "run_as_group": USER,
                            "fs_group": USER,
                            "fs_group_change_policy": "OnRootMismatch",
                            "seccomp_profile": {"type": "RuntimeDefault"},
                        },
                        "containers": [
                            {
                                "name": "video",
                                "image": args.image,
                                "env": [
                                    {
                                        "name": "POD_NAME",
                                        "value_from": {"field_ref": {"field_path": "metadata.name"}},
                                    },
                                    {
                                        "name": "POD_IP",
                                        "value_from": {"field_ref": {"field_path": "status.podIP"}},
                                    },
                                    {"name": "HTTP_BASE", "value": str(http_port)},
                                    {"name": "RTMP_BASE", "value": str(rtmp_port)},
                                ],
                                "security_context": {
                                    "allow_privilege_escalation": False,
                                    "read_only_root_filesystem": True,
                                    "capabilities": {"drop": ["ALL"]},
                                },
                                "resources": {
                                    "requests": {
                                        "cpu": args.cpu_request,
                                        "memory": f"{VIDEO_MIB}Mi",
                                        "ephemeral-storage": f"{LOGS_MIB}Mi",
                                    },
                                    "limits": {
                                        "cpu": args.cpu_limit,
                                        "memory": f"{VIDEO_LIMIT_MIB}Mi",
                                        "ephemeral-storage": f"{LOGS_LIMIT_MIB}Mi",
                                    },
                                },
                                # /healthz reads marker, page and movie from the disk
                                "startup_probe": {
                                    "tcp_socket": {"port": rtmp_port},
                                    "period_seconds": 1,
                                    "failure_threshold": 180,
                                },
                                "readiness_probe": {
                                    "http_get": {"path": "/healthz", "port": http_port},
                                    "period_seconds": 5,
                                    "failure_threshold": 3,
                                    "timeout_seconds": 5,
                                },
                                "liveness_probe": {
                                    "tcp_socket": {"port": rtmp_port},
                                    "period_seconds": 20,
                                    "failure_threshold": 3,
                                    "timeout_seconds": 10,
                                },
                                "volume_mounts": [
                                    {"name": CLAIM, "mount_path": "/data"},
                                    {"name": "media", "mount_path": "/media", "read_only": True},
                                    {"name": "tmp", "mount_path": "/tmp"},
                                    {"name": "hls", "mount_path": "/hls"},
                                    {"name": "publish", "mount_path": "/run/publish", "read_only": True},
                                ],
                            }
                        ],
                        "volumes": [
                            {"name": "media", "host_path": {"path": args.media, "type": "Directory"}},
                            {"name": "tmp", "empty_dir": {"medium": "Memory", "size_limit": "16Mi"}},
                            # live streams; full, their segments are not written, and all else goes on
                            {"name": "hls", "empty_dir": {"medium": "Memory", "size_limit": "48Mi"}},
                            {"name": "publish", "secret": {"secret_name": key.metadata["name"]}},
                        ],
                    },
                },
                "volume_claim_templates": [
                    {
                        "metadata": {"name": CLAIM},
                        "spec": {
                            "access_modes": ["ReadWriteOnce"],
                            "storage_class_name": storage_class.metadata["name"],
                            "resources": {"requests": {"storage": f"{args.disk_mib}Mi"}},
                        },
                    }
                ],
            },
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[*args.after, *ports, service, *volumes],
                custom_timeouts=pulumi.CustomTimeouts(create=patience, update=patience),
            ),
        )
        self.pages = [pulumi.Output.format("http://{0}:{1}/", d.address, http_port + i) for i, d in enumerate(disks)]
        self.streams = [
            pulumi.Output.format("rtmp://{0}:{1}/vod2", d.address, rtmp_port + i) for i, d in enumerate(disks)
        ]
        self.register_outputs({"pages": self.pages, "streams": self.streams, "publish_key": self.publish_key})


def _ports_by_ordinal(
    name: str, *, labels: dict[str, str], http_port: int, rtmp_port: int, opts: pulumi.ResourceOptions
) -> list[pulumi.Resource]:
    """Let kubelet probe each pod on the pod's own ports, and Prometheus ask there, by a MutatingAdmissionPolicy.

    The pods share their node's network, so pod i serves at port + i. But a StatefulSet has one template, with one port
    for all. The API server therefore adds the ordinal to the ports of probes and annotation when a pod is created.
    Probes that execute a command could compute their port, but each costs an emulated CPU a second: see
    docs/decisions/0004.
    """
    ordinal = 'int(object.metadata.labels["apps.kubernetes.io/pod-index"])'
    container = "/spec/containers/0"
    values = {
        f"{container}/startupProbe/tcpSocket/port": f"{rtmp_port} + {ordinal}",
        f"{container}/readinessProbe/httpGet/port": f"{http_port} + {ordinal}",
        f"{container}/livenessProbe/tcpSocket/port": f"{rtmp_port} + {ordinal}",
        f"/metadata/annotations/{PORT.replace('/', '~1')}": f"string({http_port} + {ordinal})",
    }
    patches = ",\n ".join(
        f'JSONPatch{{op: "replace", path: "{path}", value: {value}}}' for path, value in values.items()
    )
    policy = kubernetes.admissionregistration.v1.MutatingAdmissionPolicy(
        f"{name}-ports",
        metadata={"name": f"{NAME}-ports"},
        spec={
            "failure_policy": "Fail",
            "reinvocation_policy": "Never",
            "match_constraints": {
                "object_selector": {"match_labels": labels},
                "resource_rules": [
                    {
                        "api_groups": [""],
                        "api_versions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ],
            },
            "mutations": [{"patch_type": "JSONPatch", "json_patch": {"expression": f"[{patches}]"}}],
        },
        opts=opts,
    )
    binding = kubernetes.admissionregistration.v1.MutatingAdmissionPolicyBinding(
        f"{name}-ports-binding",
        metadata={"name": f"{NAME}-ports"},
        spec={"policy_name": policy.metadata["name"]},
        opts=opts,
    )
    return [policy, binding]
