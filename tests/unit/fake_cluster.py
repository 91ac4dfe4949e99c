"""A running stack as operate/ sees it: its outputs, its pages, and an API server that can be told to fail."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes import client

from operate import view
from settings.names import CLAIM, NAMESPACE, VHOST, VIDEO

DOWN = client.ApiException(status=503, reason="Service Unavailable")


def made(count: int = 2) -> dict[str, Any]:
    """The stack's outputs, as the CLI prints them."""
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
        "wall": "http://192.0.2.2:9090/user/",
    }


def node(
    name: str,
    *,
    ready: bool = True,
    labels: dict[str, str] | None = None,
    cordoned: bool = False,
    annotations: dict[str, str] | None = None,
) -> client.V1Node:
    condition = client.V1NodeCondition(type="Ready", status=str(ready), message="kubelet has stopped posting")
    info = client.V1NodeSystemInfo.model_construct(kubelet_version="v1", kernel_version="6.12")
    address = client.V1NodeAddress(address=made()["nodes"][name], type="InternalIP")
    return client.V1Node(
        metadata=client.V1ObjectMeta(
            name=name, labels={"type1": name} if labels is None else labels, annotations=annotations
        ),
        spec=client.V1NodeSpec(unschedulable=cordoned or None),
        status=client.V1NodeStatus(conditions=[condition], addresses=[address], node_info=info),
    )


def pod(name: str, app: str | None, on: str, *, ready: bool = True, last_words: str = "") -> client.V1Pod:
    ended = client.V1ContainerStateTerminated(exit_code=1, message=last_words) if last_words else None
    status = client.V1ContainerStatus(
        name=app or name, ready=ready, restart_count=0, image="", image_id="",
        last_state=client.V1ContainerState(terminated=ended),
    )  # fmt: skip
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, uid=f"uid-{name}", labels={"app": app} if app else None),
        spec=client.V1PodSpec(containers=[client.V1Container(name=app or name)], node_name=on),
        status=client.V1PodStatus(phase="Running", container_statuses=[status]),
    )


def pending(name: str, app: str, only_on: str = "") -> client.V1Pod:
    """A pod that no node takes."""
    unscheduled = client.V1PodCondition(type="PodScheduled", status="False", message="0/3 nodes are available")
    selector = {"type1": only_on} if only_on else None
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, uid=f"uid-{name}", labels={"app": app}),
        spec=client.V1PodSpec(containers=[client.V1Container(name=app)], node_selector=selector),
        status=client.V1PodStatus(phase="Pending", conditions=[unscheduled]),
    )


def volume(i: int, phase: str = "Bound", path: str = "", uid: str = "1") -> client.V1PersistentVolume:
    return client.V1PersistentVolume(
        metadata=client.V1ObjectMeta(name=f"vhost-{i}"),
        spec=client.V1PersistentVolumeSpec(
            claim_ref=client.V1ObjectReference(namespace=NAMESPACE, name=f"{CLAIM}-{VIDEO}-{i}", uid=uid),
            local=client.V1LocalVolumeSource(path=path or f"/dev/disk/{i}"),
        ),
        status=client.V1PersistentVolumeStatus(phase=phase),
    )


class FakeCluster:
    """Stands in for CoreV1Api and AppsV1Api, and for the pages.

    error: what each question is answered with. silent: nodes whose kubelet does not answer. markers, pages: what the
    instance of that number answers, where it is not what it should. cpus: what the host reports of its CPU plan.
    done: what was changed, in words.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
        self.nodes = {name: node(name) for name in made()["nodes"]}
        self.pods = [pod(f"{VHOST}-x", VHOST, "worker1")]
        self.pods += [pod(f"{VIDEO}-{i}", VIDEO, "worker2") for i in range(count)]
        self.volumes = [volume(i) for i in range(count)]
        self.served = {f"vhost.{i}": "plugged" for i in range(count)}
        self.limits: dict[str, dict[str, dict[str, int]]] = {}  # disk -> its limits, wanted and in force
        self.markers: dict[int, view.Answer] = {}
        self.pages: dict[int, view.Answer] = {}
        self.wall = view.Answer("200")
        self.events: list[client.CoreV1Event] = []
        self.revision = "1"
        self.namespaces = {NAMESPACE: "Active", "default": "Active"}
        self.error: Exception | None = None
        self.silent: set[str] = set()
        self.outdated = False
        self.cpus: dict[str, Any] = {}
        self.booting = self.silence = ""
        self.done: list[str] = []
        self.made = view.Outputs.parse(made(count))
        self.cluster = view.Cluster(core=self, apps=self)  # type: ignore[arg-type]
        monkeypatch.setattr(view, "outputs", lambda: self.made)
        monkeypatch.setattr(view, "connect", lambda _: self.cluster)
        monkeypatch.setattr(view, "fetch", self.fetch)

    def _items(self, items: list[Any]) -> SimpleNamespace:
        if self.error:
            raise self.error
        return SimpleNamespace(items=list(items))

    def list_node(self, **_: object) -> SimpleNamespace:
        return self._items(list(self.nodes.values()))

    def list_namespaced_pod(self, namespace: str, **_: object) -> SimpleNamespace:
        assert namespace == NAMESPACE
        return self._items(self.pods)

    def list_persistent_volume(self, **_: object) -> SimpleNamespace:
        return self._items(self.volumes)

    def list_namespace(self, **_: object) -> SimpleNamespace:
        return self._items(
            [
                SimpleNamespace(metadata=SimpleNamespace(name=name), status=SimpleNamespace(phase=phase))
                for name, phase in self.namespaces.items()
            ]
        )

    def list_namespaced_event(self, namespace: str, **_: object) -> SimpleNamespace:
        assert namespace == NAMESPACE
        return self._items(self.events)

    def list_namespaced_stateful_set(self, namespace: str, **_: object) -> SimpleNamespace:
        assert namespace == NAMESPACE
        status = SimpleNamespace(update_revision=self.revision)
        return self._items([SimpleNamespace(metadata=SimpleNamespace(name=VIDEO), status=status)])

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
        assert (namespace, port) == (NAMESPACE, "9301")
        if any(p.metadata.name == pod and p.spec.node_name in self.silent for p in self.pods):
            raise DOWN
        if path == "cpus":
            return SimpleNamespace(data=json.dumps(self.cpus))
        assert path == "disks"
        disks = [
            {"name": disk, "state": state, "why": "a reason", **self.limits.get(disk, {})}
            for disk, state in self.served.items()
        ]
        qemu = {"qemu": "silent" if self.silence else "answers", "why": self.silence}
        vms = {"vm": qemu | {"outdated": self.outdated, "booting": self.booting}}
        return SimpleNamespace(data=json.dumps({"disks": disks, "vms": vms}))

    def fetch(self, url: str) -> view.Answer:
        if url == self.made.wall:
            return self.wall
        port = int(url.partition("://")[2].partition(":")[2].partition("/")[0])
        i = port - 8080
        if not url.endswith("marker"):
            return self.pages.get(i, view.Answer("200"))
        return self.markers.get(i, view.Answer("200", json.dumps({"ordinal": i}).encode() + b"\0\0\n"))

    def patch_persistent_volume(self, name: str, body: dict[str, Any], **_: object) -> None:
        self._items([])
        ref = body["spec"]["claimRef"]
        assert ref["uid"] is None
        assert ref["resourceVersion"] is None
        for v in self.volumes:
            if v.metadata.name == name:
                v.spec.claim_ref = client.V1ObjectReference(namespace=ref["namespace"], name=ref["name"])
                v.status.phase = "Bound"
        self.done.append(f"{name} is for {ref['name']}")

    def delete_persistent_volume(self, name: str, **_: object) -> None:
        self.volumes = [v for v in self.volumes if v.metadata.name != name]
        self._delete(name)

    def delete_namespaced_persistent_volume_claim(self, name: str, namespace: str, **_: object) -> None:
        assert namespace == NAMESPACE
        self._delete(name)

    def delete_namespaced_pod(self, name: str, namespace: str, **_: object) -> None:
        assert namespace == NAMESPACE
        if all(p.metadata.name != name for p in self.pods):
            raise client.ApiException(status=404, reason="Not Found")
        self.pods = [p for p in self.pods if p.metadata.name != name]
        self._delete(name)

    def delete_node(self, name: str, **_: object) -> None:
        if self.nodes.pop(name, None) is None:
            raise client.ApiException(status=404, reason="Not Found")
        self._delete(name)

    def _delete(self, name: str) -> None:
        if self.error:
            raise self.error
        self.done.append(f"deleted {name}")
