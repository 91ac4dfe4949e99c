"""Files of images/monitoring that name what others define: ports, labels, namespaces, series."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.monitoring import EXPORTER
from settings.names import AGENT_PORT, EXPORTER_PORT, MONITORING, NAMESPACE, VHOST, VIDEO
from tests.unit.recorder import run_program

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "images/monitoring"
RECORDED = {
    rule["record"]
    for group in yaml.safe_load((IMAGE / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "record" in rule
}


def jobs() -> dict[str, dict[str, Any]]:
    config = yaml.safe_load((IMAGE / "prometheus.yml").read_text())
    return {job["job_name"]: job for job in config["scrape_configs"]}


def test_pods_are_found_by_the_labels_and_ports_that_they_have() -> None:
    found = {
        name: {str(rule.get("regex", "")) for rule in job["relabel_configs"]}
        | {str(rule["replacement"]) for rule in job["relabel_configs"] if "replacement" in rule}
        for name, job in jobs().items()
        if "relabel_configs" in job
    }
    assert {f"{VHOST}.*", f"$1:{AGENT_PORT}"} <= found["disk-agent"]
    assert VIDEO in found["video"]
    assert {EXPORTER, f"$1:{EXPORTER_PORT}"} <= found["node"]
    for name in ("disk-agent", "video", "node"):
        (discovery,) = jobs()[name]["kubernetes_sd_configs"]
        assert set(discovery["namespaces"]["names"]) == {NAMESPACE, MONITORING}


def test_each_video_pod_is_asked_at_a_port_of_its_own() -> None:
    resources = run_program(video={"httpPort": 9200})
    template = resources["video/video"].inputs["spec"]["template"]
    assert template["metadata"]["annotations"] == {"prometheus.io/port": "9200"}
    patch = resources["video/video-ports"].inputs["spec"]["mutations"][0]["jsonPatch"]["expression"]
    assert re.search(r'path: "/metadata/annotations/prometheus\.io~1port", value: string\(9200 \+ int\(', patch)
    assert "__meta_kubernetes_pod_annotation_prometheus_io_port" in (IMAGE / "prometheus.yml").read_text()


@pytest.mark.parametrize("file", [IMAGE / "wall/wall.js", ROOT / "docs/grafana.json", ROOT / "docs/monitoring.md"])
def test_what_is_asked_for_is_recorded(file: Path) -> None:
    asked = set(re.findall(r"(?:disk|core):\w+:\w+", file.read_text()))
    assert asked
    assert asked <= RECORDED


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((ROOT / "docs/grafana.json").read_text())
    assert {panel["type"] for panel in dashboard["panels"]} == {"timeseries"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
