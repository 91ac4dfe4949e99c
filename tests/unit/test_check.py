"""check.py: what it makes of what the cluster answers."""

from types import SimpleNamespace
from typing import Any

import pytest

import check

pytestmark = pytest.mark.unit

MADE = {"targets": {"cb-vhost-p0": [0]}, "disks": [{"node": "worker2", "path": ""}], "vms": ["worker2"], "nodes": {}}


def drifts(monkeypatch: pytest.MonkeyPatch, listed: str) -> list[check.Drift]:
    """Of a target that is ready and lists its disks so."""
    pod: Any = SimpleNamespace(
        metadata=SimpleNamespace(name="cb-vhost-p0-0"),
        spec=SimpleNamespace(containers=[0], node_name="worker1"),
        status=SimpleNamespace(container_statuses=[SimpleNamespace(ready=True)]),
    )
    core: Any = SimpleNamespace(
        list_namespaced_pod=lambda *_, **__: SimpleNamespace(items=[pod]), connect_get_namespaced_pod_exec=None
    )
    monkeypatch.setattr(check.stream, "stream", lambda *_, **__: listed)
    return list(check.targets(core, MADE))


def test_a_vm_that_runs_by_an_earlier_definition_is_drift_with_a_remedy_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert drifts(monkeypatch, "vhost.0 used\n") == []
    (drift,) = drifts(monkeypatch, "vhost.0 used\nvm outdated\n")
    assert "spdk-k8s-vm on worker1" in drift.what
    assert drift.step is None, "no step of the program mends it"
    assert drift.mend.startswith("systemctl restart spdk-k8s-vm, on worker1")
