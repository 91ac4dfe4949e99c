"""The wall, in Chromium, over a Prometheus that answers what a test tells it to: many instances, faults, small windows.

What it shows of a real stack is in tests/e2e/test_stack.py.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from components import images
from tests.e2e.browser import WALL, chromium
from tests.engine.test_images import BUILDS, build
from tests.engine.test_video_page import until

pytestmark = pytest.mark.engine

ADDRESS = "127.0.0.1"
Series = tuple[str, dict[str, str], float]


@dataclass
class Prometheus:
    """What it answers. down: nothing at all."""

    port: int = 0
    series: list[Series] = field(default_factory=list[Series])
    alerts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    down: bool = False

    def of(self, count: int, iops: float = 100) -> None:
        """A stack of `count` instances on one VM, the disks of which do `iops` each."""
        now = time.time()
        self.series = [("core:busy:ratio15s", {"node": n, "cpu": str(i)}, 0.25) for n in ("worker1", "worker2")
                       for i in range(8)]  # fmt: skip
        for role, cores in {"target": "0-1", "vm": "2-5", "emulator": "6", "system": "6-7"}.items():
            labels = {"node": "worker1", "role": role, "cores": cores}
            self.series.append(("disk_agent_role_threads", labels, 1))
        self.series.append(("disk_agent_target_start_time_seconds", {"node": "worker1"}, now - 60))
        for i in range(count):
            pod = {"pod": f"app-vs-p2-{i}", "node": "worker2", "ordinal": str(i)}
            self.series += [
                ("up", {**pod, "job": "video", "instance": f"{ADDRESS}:{self.port}"}, 1),
                ("disk:read_requests:rate15s", pod, iops),
                ("disk:write_requests:rate15s", pod, iops / 2),
                ("disk:read_bytes:rate15s", pod, iops * 4096),
                ("disk:written_bytes:rate15s", pod, 0),
                ("disk:request_seconds:mean15s", pod, 0.0015),
                ("disk_agent_disk_state", {"disk": f"vhost.{i}", "state": "plugged"}, 1),
                ("video_start_time_seconds", pod, now - 30),
                ("video_disk_created_time_seconds", pod, now - 3000),
            ]

    def answer(self, path: str, query: str) -> Any:
        if path.endswith("/alerts"):
            return {"alerts": [{"state": "firing", "activeAt": at, "annotations": {"summary": what}}
                               for what, at in self.alerts]}  # fmt: skip
        now = time.time()
        times = "time_seconds" in query
        found = [s for s in self.series if ("time_seconds" in s[0]) == times]
        if path.endswith("/query"):
            return {"result": [{"metric": {"__name__": n, **labels}, "value": [now, str(v)]} for n, labels, v in found]}
        return {"result": [
            {"metric": {"__name__": n, **labels}, "values": [[now - 10 + i, str(v)] for i in range(5)]}
            for n, labels, v in found if times or n.startswith("disk:")
        ]}  # fmt: skip


class Handler(SimpleHTTPRequestHandler):
    prometheus: Prometheus

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path.startswith("/api/"):
            query = parse_qs(asked.query).get("query", [""])[0]
            body = json.dumps({"status": "success", "data": self.prometheus.answer(asked.path, query)})
            self.say(503 if self.prometheus.down else 200, body)
        elif asked.path == "/playlist.json":
            self.say(200, '{"movies": [], "unlisted": []}')
        else:
            self.path = self.path.removeprefix("/user")
            super().do_GET()

    def say(self, code: int, body: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wall's files, as the image has them."""
    folder = tmp_path_factory.mktemp("wall")
    image = build(images.ROOT / "monitoring", *BUILDS["monitoring"])
    made = subprocess.run(["docker", "create", image], capture_output=True, text=True, check=True).stdout.strip()
    try:
        subprocess.run(["docker", "cp", f"{made}:/usr/share/wall/.", str(folder)], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", made], check=True, capture_output=True)
    return folder


@pytest.fixture
def prometheus(files: Path) -> Iterator[Prometheus]:
    made = Prometheus()
    handler = type("Ours", (Handler,), {"prometheus": made})
    server = ThreadingHTTPServer((ADDRESS, 0), partial(handler, directory=str(files)))
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def wall(prometheus: Prometheus) -> Iterator[Callable[..., Chrome]]:
    """Opens the wall of what `prometheus` answers by then."""
    opened: list[Any] = []

    def open_it(*flags: str) -> Chrome:
        context = chromium(*flags)
        browser = context.__enter__()
        opened.append(context)
        browser.get(f"http://{ADDRESS}:{prometheus.port}/user/index.html")
        return browser

    yield open_it
    for context in opened:
        context.__exit__(None, None, None)


def seen(browser: Chrome) -> dict[str, Any]:
    found: dict[str, Any] = browser.execute_script(WALL)
    return found


def test_figures_limits_roles_and_events_are_shown(prometheus: Prometheus, wall: Callable[..., Chrome]) -> None:
    prometheus.of(3)
    prometheus.series.append(("disk_agent_disk_limit", {"disk": "vhost.1", "limit": "iops"}, 5000))
    browser = wall()
    until(10, "the figures", lambda: [t["iops"] for t in seen(browser)["tiles"]] == [150, 150, 150])
    text = browser.execute_script("return [...document.querySelectorAll('article')].map((t) => t.innerText)")
    assert "≤ 5000 IOPS" in text[1]
    assert "≤" not in text[0]
    assert "0.4" in text[0], "MB/s"
    assert "1.5 ms" in text[0]
    classes = "return [...document.querySelectorAll('#hosts > div')[0].querySelectorAll('li')].map((e) => e.className)"
    assert browser.execute_script(classes) == ["target"] * 2 + ["vcpu"] * 4 + ["system"] * 2
    events = seen(browser)["events"]
    assert "app-vs-p2-0 was started on worker2" in events[0]
    assert any("the vhost target of worker1 was started" in event for event in events)
    assert "disk vhost.0 of app-vs-p2-0 was new and blank" in events[-3]
    assert seen(browser)["wrong"] == []


def test_what_is_not_well_comes_first_and_goes(prometheus: Prometheus, wall: Callable[..., Chrome]) -> None:
    prometheus.of(2)
    browser = wall()
    until(10, "two tiles", lambda: len(seen(browser)["tiles"]) == 2)
    prometheus.alerts = [("the vhost target of worker1 does not answer", "2026-01-01T10:00:00Z")]
    prometheus.series.remove(("disk_agent_disk_state", {"disk": "vhost.1", "state": "plugged"}, 1))
    prometheus.series.append(("disk_agent_disk_state", {"disk": "vhost.1", "state": "missing"}, 1))
    until(5, "what is not well", lambda: seen(browser)["wrong"])
    assert seen(browser)["wrong"][0].startswith("the vhost target of worker1 does not answer, since ")
    wrong = "return [...document.querySelectorAll('article.wrong')].map((tile) => tile.dataset.pod)"
    assert browser.execute_script(wrong) == ["app-vs-p2-1"]
    prometheus.alerts = []
    until(5, "all to be well", lambda: not seen(browser)["wrong"])
    prometheus.down = True
    until(5, "what is not well", lambda: seen(browser)["wrong"])
    assert seen(browser)["wrong"][0].startswith("Prometheus has not answered since ")
    prometheus.down = False
    until(5, "all to be well", lambda: not seen(browser)["wrong"])


def test_128_instances_stay_smooth(prometheus: Prometheus, wall: Callable[..., Chrome]) -> None:
    prometheus.of(128)
    browser = wall()
    until(20, "128 tiles", lambda: len(seen(browser)["tiles"]) == 128)
    pods = [tile["pod"] for tile in seen(browser)["tiles"]]
    assert pods == [f"app-vs-p2-{i}" for i in range(128)]
    drawn = "return [...document.querySelectorAll('article')].filter((t) => t.querySelector('canvas')).length"
    assert 0 < browser.execute_script(drawn) < 40, "only what is in view is drawn"
    browser.execute_script("document.querySelector('article:last-child').scrollIntoView()")
    last = "return document.querySelector('article:last-child canvas') !== null"
    until(5, "the last tile's lines", lambda: browser.execute_script(last))


def test_a_narrow_window_the_keyboard_and_less_motion(prometheus: Prometheus, wall: Callable[..., Chrome]) -> None:
    prometheus.of(2)
    browser = wall("--window-size=500,900", "--force-prefers-reduced-motion")
    until(10, "two tiles", lambda: len(seen(browser)["tiles"]) == 2)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
    assert browser.execute_script("return [...document.querySelectorAll('video')].every((v) => v.controls && v.paused)")
    reached = set[str]()
    for _ in range(12):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.execute_script("return document.activeElement.textContent"))
    assert {"Prometheus", "app-vs-p2-0", "app-vs-p2-1"} <= reached
