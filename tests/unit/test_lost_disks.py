"""The worker VM's images/node/lost_disks.py: which pods lost their disk, and what it asks of the API server."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.unit

VOLUMES = "/volumes/kubernetes.io~local-volume"
MOUNTS = f"""\
30 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 30 254:48 / /var/lib/kubelet/plugins/kubernetes.io/local-volume/mounts/vhost-0 rw - ext4 /dev/vdd rw
91 30 254:48 / /var/lib/kubelet/pods/aa{VOLUMES}/vhost-0 rw,relatime shared:9 - ext4 /dev/vdd rw
92 30 254:64 / /var/lib/kubelet/pods/bb{VOLUMES}/vhost-1 rw,relatime shared:9 master:1 - ext4 /dev/vde rw
93 30 0:80 / /var/lib/kubelet/pods/aa/volumes/kubernetes.io~empty-dir/tmp rw - tmpfs tmpfs rw
"""


@pytest.fixture(scope="module")
def lost_disks() -> ModuleType:
    path = Path(__file__).parents[2] / "images/node/lost_disks.py"
    spec = importlib.util.spec_from_file_location("lost_disks", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Api(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str, Any]] = []
        self.status = 200


class Answer(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, json.loads(body) if body else None))
        self.send_response(self.server.status)
        self.end_headers()
        pods = [{"metadata": {"uid": uid, "name": f"video-{uid}", "namespace": "n"}} for uid in ("aa", "bb")]
        self.wfile.write(json.dumps({"items": pods}).encode())

    do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pod_whose_volume_is_on_a_device_that_is_gone_is_lost(lost_disks: ModuleType) -> None:
    assert lost_disks.lost(MOUNTS, {"254:0", "254:64"}.__contains__) == {"aa"}
    assert lost_disks.lost(MOUNTS, lambda _: True) == set()
    assert lost_disks.lost(MOUNTS, lambda _: False) == {"aa", "bb"}


def test_exactly_that_pod_is_deleted(lost_disks: ModuleType, api: Api) -> None:
    ask = lost_disks.client(lambda: HTTPConnection("127.0.0.1", api.server_port))
    assert lost_disks.delete(ask, "worker2", {"aa"}) == {"aa"}
    options = {"gracePeriodSeconds": 1, "preconditions": {"uid": "aa"}}
    assert api.asked == [
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dworker2", None),
        ("DELETE", "/api/v1/namespaces/n/pods/video-aa", options),
    ]


@pytest.mark.parametrize("status", [404, 409])
def test_a_pod_that_went_by_itself_or_has_a_successor_is_none_to_delete(
    lost_disks: ModuleType, api: Api, status: int
) -> None:
    api.status = status
    ask = lost_disks.client(lambda: HTTPConnection("127.0.0.1", api.server_port))
    assert lost_disks.delete(ask, "worker2", {"aa"}) == {"aa"}


def test_a_server_that_cannot_is_asked_again(lost_disks: ModuleType, api: Api) -> None:
    api.status = 503
    ask = lost_disks.client(lambda: HTTPConnection("127.0.0.1", api.server_port))
    with pytest.raises(HTTPException, match=r"GET /api/v1/pods.*: 503"):
        lost_disks.delete(ask, "worker2", {"aa"})
