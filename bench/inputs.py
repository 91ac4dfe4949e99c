"""Writes the input of bench/floor.sh: the scripts for its machines, and the Kubernetes manifests, for fixed addresses.

usage: python -m bench.inputs DIR NUMINST   (DIR holds keys.json and certificate.json)
       python -m bench.inputs images        prints "NAME TAG" of each image that `up` builds from this checkout
"""

from __future__ import annotations

import hashlib
import json
import sys
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import yaml

from components.cluster import PACKAGES
from components.hosts import SCRIPTS, script
from components.images import content_tag
from render.cni import cni_config, routes
from render.kubeadm import kubeadm_init
from render.placement import disk_path
from render.registry import registry_config, registry_hosts
from render.vhost import Disks, vhost_config
from render.vm import ACCEL_ARGS, cloud_init_meta_data, cloud_init_network, cloud_init_user_data, qemu_args
from settings.models import Settings
from settings.names import CLAIM, NAMESPACE, RUN, VHOST, VIDEO
from settings.pins import PINS

SUBNET = IPv4Network("172.30.93.0/24")
NODES = dict(zip(("master", "worker1", "worker2"), (SUBNET[2], SUBNET[3], SUBNET[4]), strict=True))
REGISTRY = f"{NODES['master']}:5000"
CONFIG = Settings()  # the stack's defaults
POD_CIDR = CONFIG.cluster.pod_cidr


def images() -> dict[str, str]:
    """Image name -> tag, as the program builds them: see the calls of images.build in the root's __main__.py."""
    base = f"debian:{PINS['DEBIAN']}-slim"
    with_base = f"BASE={base}"
    return {
        "machine": content_tag("node", base, "machine"),
        "guest": content_tag("node", "guest", with_base),
        "node-bundle": content_tag("bundle", "", f"BINARIES=spdk-k8s/kubernetes:v{PINS['KUBERNETES']}"),
        VHOST: content_tag("vhost", "qemu-storage-daemon", with_base),
        VIDEO: content_tag("video", "", with_base),
        "media": content_tag("media", "", with_base, f"COUNT={CONFIG.vm.disk_slots}"),
    }


def main(folder: Path, count: int) -> None:
    keys = json.loads((folder / "keys.json").read_text())
    made = json.loads((folder / "certificate.json").read_text())
    login = {"host": REGISTRY, "user": "spdk-k8s", "password": made["password"], "tls": True}

    def write(name: str, step: str, values: dict[str, str]) -> None:
        (folder / f"{name}.sh").write_text(script(step, values))

    write("registry", "registry", {
        "CONFIG": registry_config(port=5000, tls=True), "CERTIFICATE": made["certificate"], "KEY": made["key"],
        "CA": made["ca"], "USER_NAME": "spdk-k8s", "PASSWORD": made["password"], "PORT": "5000",
        "URL": f"https://{REGISTRY}",
    })  # fmt: skip
    for i, (name, address) in enumerate(NODES.items()):
        write(f"{name}-node", "node", {
            "REGISTRY": REGISTRY, "REGISTRY_CA": made["ca"], "PACKAGES": PACKAGES, "NODE_IP": str(address),
            "REGISTRY_HOSTS": registry_hosts(f"https://{REGISTRY}", **login),
            "BUNDLE": f"{REGISTRY}/node-bundle:floor", "PAUSE": f"{REGISTRY}/pause:{PINS['PAUSE']}",
            "CNI_CONFIG": cni_config(POD_CIDR, i), "ROUTES": routes(POD_CIDR, dict(enumerate(NODES.values())), i),
            "SYNC": "2s" if name == "worker1" else "1m",
        })  # fmt: skip
    write("control-plane", "control_plane", {
        "NODE": "master",
        "CONFIG": kubeadm_init(
            version=PINS["KUBERNETES"], repository=REGISTRY, address=NODES["master"], pod_cidr=POD_CIDR,
            service_cidr=CONFIG.cluster.service_cidr, in_container=True,
        ),
    })  # fmt: skip
    network = cloud_init_network(mac=CONFIG.vm.mac, address=NODES["worker2"], prefix=24, gateway=SUBNET[1])
    write("vm", "worker_vm", {
        "REGISTRY": REGISTRY, "GUEST": f"{REGISTRY}/guest:floor", "BUNDLE": f"{REGISTRY}/node-bundle:floor",
        "PRELOAD": " ".join([
            f"{REGISTRY}/kube-proxy:v{PINS['KUBERNETES']}", f"{REGISTRY}/pause:{PINS['PAUSE']}",
            f"{REGISTRY}/{VIDEO}:floor",
        ]),
        "MEDIA_IMAGE": f"{REGISTRY}/media:floor", "MEDIA_DIR": "/srv/media", "DISK_GIB": "8", "ACCEL": "auto",
        "VM": "vm", "DEFINITION": "vm",
        "QEMU_ARGS": "\n".join([
            *qemu_args(
                vm="vm", vcpus=CONFIG.vm.vcpus, memory_mib=CONFIG.vm.memory_mib, mac=CONFIG.vm.mac, tap="tap0",
                disk_slots=CONFIG.vm.disk_slots, vnc=None,
            ),
            "-name", "vm",
        ]),
        "KVM_ARGS": "\n".join(ACCEL_ARGS["kvm"]), "TCG_ARGS": "\n".join(ACCEL_ARGS["tcg"]),
        "USER_DATA": cloud_init_user_data(
            hostname="worker2", authorized_key=keys["client"]["public"],
            host_private=keys["worker2"]["private"], host_public=keys["worker2"]["public"],
            nameservers=[str(NODES["worker1"])],
        ),
        "META_DATA": cloud_init_meta_data(hostname="worker2", network=network),
        "NETWORK_CONFIG": network,
        "BRIDGE": "br0", "TAP": "tap0", "MAC": CONFIG.vm.mac, "NIC": "eth0",
        **{f"{name.upper()}_SCRIPT": (SCRIPTS / "host" / name).read_text() for name in ("alive", "bridge")},
    })  # fmt: skip
    write("disks", "vm_disks", {
        "VM": "vm", "DISKS": ",".join(map(str, range(count))), "TARGET": VHOST, "WHICH": "plugged",
        "CONFIG": hashlib.sha256(vhost_config(disks(count)).encode()).hexdigest()[:12],
    })  # fmt: skip
    (folder / "vhost.yaml").write_text(yaml.safe_dump_all(vhost(count)))
    (folder / "video.yaml").write_text(yaml.safe_dump_all(video(count)))


def disks(count: int) -> Disks:
    return Disks(
        ordinals=range(count), slots=CONFIG.vm.disk_slots, mib=CONFIG.vhost.disk_mib,
        block_size=CONFIG.vhost.block_size, queues=CONFIG.vm.queues,
        places={i: ("vm", i) for i in range(count)}, vms={"vm": "vm"},
    )  # fmt: skip


def vhost(count: int) -> list[dict[str, Any]]:
    volumes = {
        "config": {"configMap": {"name": VHOST}},
        "sockets": {"hostPath": {"path": RUN}},
        "disks": {"emptyDir": {"medium": "Memory"}},
        "run": {"emptyDir": {"medium": "Memory"}},
    }
    paths = {"config": "/etc/vhost", "sockets": RUN, "disks": "/disks", "run": "/run/vhost"}
    container = {
        "name": "vhost", "image": f"{REGISTRY}/{VHOST}:floor", "args": ["--kind", disks(count).kind],
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in paths.items()],
    }  # fmt: skip
    pod = {
        "nodeSelector": {"type1": "worker1"}, "containers": [container],
        "volumes": [{"name": name, **volume} for name, volume in volumes.items()],
    }  # fmt: skip
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": VHOST, "namespace": NAMESPACE},
         "data": {"vhost.json": vhost_config(disks(count))}},
        {"apiVersion": "apps/v1", "kind": "Deployment",
         "metadata": {"name": VHOST, "namespace": NAMESPACE},
         "spec": {"selector": {"matchLabels": {"app": VHOST}},
                  "template": {"metadata": {"labels": {"app": VHOST}}, "spec": pod}}},
    ]  # fmt: skip


def video(count: int) -> list[dict[str, Any]]:
    node = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "type1", "operator": "In", "values": ["worker2"]}]}]}
    volumes: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"vhost-{i}"},
         "spec": {"storageClassName": "vhost-disks", "accessModes": ["ReadWriteOnce"],
                  "capacity": {"storage": f"{CONFIG.vhost.disk_mib}Mi"},
                  "claimRef": {"namespace": NAMESPACE, "name": f"{CLAIM}-{VIDEO}-{i}"},
                  "local": {"path": disk_path(i), "fsType": "ext4"}, "nodeAffinity": {"required": node}}}
        for i in range(count)
    ]  # fmt: skip
    container = {
        "name": "video", "image": f"{REGISTRY}/{VIDEO}:floor",
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "resources": {"requests": {"cpu": CONFIG.video.cpu_request}, "limits": {"cpu": CONFIG.video.cpu_limit}},
        "volumeMounts": [{"name": CLAIM, "mountPath": "/data"}, {"name": "media", "mountPath": "/media"},
                         {"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": "vhost-disks",
             "resources": {"requests": {"storage": f"{CONFIG.vhost.disk_mib}Mi"}}}  # fmt: skip
    return [
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "vhost-disks"},
         "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"},
        *volumes,
        {"apiVersion": "apps/v1", "kind": "StatefulSet",
         "metadata": {"name": VIDEO, "namespace": NAMESPACE},
         "spec": {"replicas": count, "serviceName": VIDEO, "podManagementPolicy": "Parallel",
                  "selector": {"matchLabels": {"app": VIDEO}},
                  "template": {"metadata": {"labels": {"app": VIDEO}},
                               "spec": {"nodeSelector": {"type1": "worker2"}, "hostNetwork": True,
                                        "securityContext": {"runAsUser": 10001, "fsGroup": 10001},
                                        "containers": [container],
                                        "volumes": [{"name": "media", "hostPath": {"path": "/srv/media"}},
                                                    {"name": "tmp", "emptyDir": {}}]}},
                  "volumeClaimTemplates": [{"metadata": {"name": CLAIM}, "spec": claim}]}},
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "images":
        print("\n".join(f"{name} {tag}" for name, tag in images().items()))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
