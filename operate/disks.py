"""What a storage host's disk agent says of its disks: GET /disks, through the API server."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client  # type: ignore[import-untyped]

from settings.names import AGENT_PORT, NAMESPACE


def report(core: client.CoreV1Api, pod: str, timeout: float) -> dict[str, Any]:
    """disks: each with name, state and why; vms: each with qemu, why and outdated; target, problem."""
    answer = core.connect_get_namespaced_pod_proxy_with_path(
        f"{pod}:{AGENT_PORT}", NAMESPACE, "disks", _preload_content=False, _request_timeout=timeout
    )
    return json.loads(answer.data)
