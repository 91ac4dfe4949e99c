"""A running stack as `make status` and `make check` see it: its outputs, and an API server that can be told to fail."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from kubernetes import client  # type: ignore[import-untyped]

from settings.names import CLAIM, NAMESPACE, VHOST, VIDEO

DOWN = client.ApiException(status=503, reason="Service Unavailable")


def made(count: int = 2) -> dict[str, Any]:
    """The stack's outputs."""
    return {
        "numinst": count,
        "kubeconfig": "{}",
        "vhost": {"backend": "qemu-storage-daemon", "reason": "it is configured"},
        "nodes": {"master": "192.0.2.2", "worker1": "192.0.2.3", "worker2": "192.0.2.4"},
        "vms": ["worker2"],
        "targets": {VHOST: list(range(count))},
        "disks": [{"node": "worker2", "path": f"/dev/disk/{i}"} for i in range(count)],
        "pages": [f"http://192.0.2.4:{8080 + i}/" for i in range(count)],
        "streams": [f"rtmp://192.0.2.4:{1935 + i}/vod2" for i in range(count)],
    }


def node(name: str, *, ready: bool = True, labels: dict[str, str] | None = None) -> client.V1Node:
    condition = client.V1NodeCondition(type="Ready", status=str(ready), message="kubelet has stopped posting")
    info = client.V1NodeSystemInfo.model_construct(kubelet_version="v1", kernel_version="6.12")
    address = client.V1NodeAddress(address=made()["nodes"][name], type="InternalIP")
    return client.V1Node(
        metadata=client.V1ObjectMeta(name=name, labels={"type1": name} if labels is None else labels),
        status=client.V1NodeStatus(conditions=[condition], addresses=[address], node_info=info),
    )


def pod(name: str, app: str | None, on: str, *, ready: bool = True, last_words: str = "") -> client.V1Pod:
    ended = client.V1ContainerStateTerminated(exit_code=1, message=last_words) if last_words else None
    status = client.V1ContainerStatus(
        name=app or name, ready=ready, restart_count=0, image="", image_id="",
        last_state=client.V1ContainerState(terminated=ended),
    )  # fmt: skip
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, labels={"app": app} if app else None),
        spec=client.V1PodSpec(containers=[client.V1Container(name=app or name)], node_name=on),
        status=client.V1PodStatus(phase="Running", container_statuses=[status]),
    )


def volume(i: int, phase: str = "Bound") -> client.V1PersistentVolume:
    return client.V1PersistentVolume(
        metadata=client.V1ObjectMeta(name=f"vhost-{i}"),
        spec=client.V1PersistentVolumeSpec(
            claim_ref=client.V1ObjectReference(name=f"{CLAIM}-{VIDEO}-{i}"),
            local=client.V1LocalVolumeSource(path=f"/dev/disk/{i}"),
        ),
        status=client.V1PersistentVolumeStatus(phase=phase),
    )


class FakeCluster:
    """Stands in for CoreV1Api. error: what each question is answered with; silent: nodes whose kubelet is not there."""

    def __init__(self, count: int = 2) -> None:
        self.nodes = {name: node(name) for name in made()["nodes"]}
        self.pods = [pod(f"{VHOST}-x", VHOST, "worker1")]
        self.pods += [pod(f"{VIDEO}-{i}", VIDEO, "worker2") for i in range(count)]
        self.volumes = [volume(i) for i in range(count)]
        self.served = {f"vhost.{i}": "plugged" for i in range(count)}
        self.markers: dict[int, bytes] = {}
        self.error: Exception | None = None
        self.silent: set[str] = set()
        self.outdated = False

    def _items(self, items: list[Any]) -> SimpleNamespace:
        if self.error:
            raise self.error
        return SimpleNamespace(items=items)

    def list_node(self, **_: object) -> SimpleNamespace:
        return self._items(list(self.nodes.values()))

    def list_namespaced_pod(self, namespace: str, label_selector: str = "", **_: object) -> SimpleNamespace:
        assert namespace == NAMESPACE
        app = label_selector.removeprefix("app=")
        return self._items([p for p in self.pods if not app or (p.metadata.labels or {}).get("app") == app])

    def list_persistent_volume(self, **_: object) -> SimpleNamespace:
        return self._items(self.volumes)

    def connect_get_node_proxy_with_path(self, name: str, _path: str, **_: object) -> SimpleNamespace:
        if name in self.silent:
            raise DOWN
        pods = [
            {"volume": [{"pvcRef": {"name": f"{CLAIM}-{p.metadata.name}"}, "capacityBytes": 2**27, "usedBytes": 2**20}]}
            for p in self.pods
            if p.spec.node_name == name
        ]
        return SimpleNamespace(data=json.dumps({"pods": pods}))

    def connect_get_namespaced_pod_proxy_with_path(
        self, name: str, namespace: str, path: str, **_: object
    ) -> SimpleNamespace:
        """What the disk agent in the target's pod answers."""
        pod, _, port = name.partition(":")
        assert (namespace, port, path) == (NAMESPACE, "9301", "disks")
        if any(p.metadata.name == pod and p.spec.node_name in self.silent for p in self.pods):
            raise DOWN
        disks = [{"name": disk, "state": state, "why": "a reason"} for disk, state in self.served.items()]
        vms = {"vm": {"qemu": "answers", "why": "", "outdated": self.outdated}}
        return SimpleNamespace(data=json.dumps({"disks": disks, "vms": vms}))

    def marker(self, i: int) -> bytes:
        """What pod i serves as its disk's marker."""
        return self.markers.get(i, json.dumps({"ordinal": i}).encode() + b"\0\0\n")
