"""The benchmark's pure functions: how it reads the engine's event log, and what it prints."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import boots, figures, healing, isolation, programs, timeline
from bench.figures import Figure
from bench.programs import Took
from bench.stack import mebibytes

pytestmark = pytest.mark.unit


def urn(types: str, name: str) -> str:
    return f"urn:pulumi:bench::spdk-k8s::{types}::{name}"


def event(at: int, kind: str, types: str, name: str, operation: str = "create") -> str:
    return json.dumps({"timestamp": 1000 + at, kind: {"metadata": {"op": operation, "urn": urn(types, name)}}})


MACHINES, CLUSTER = "spdk-k8s:index:DevMachines", "spdk-k8s:index:Cluster"
COMMAND = "$command:remote:Command"
LINES = [
    json.dumps({"timestamp": 1000, "preludeEvent": {}}),
    event(0, "resourcePreEvent", MACHINES, "dev"),
    event(0, "resOutputsEvent", MACHINES, "dev"),
    event(1, "resourcePreEvent", MACHINES + COMMAND, "master-ready"),
    event(1, "resourcePreEvent", MACHINES + COMMAND, "worker1-ready"),
    event(2, "resOutputsEvent", MACHINES + COMMAND, "master-ready"),
    event(5, "resOutputsEvent", MACHINES + COMMAND, "worker1-ready"),
    event(5, "resourcePreEvent", "kubernetes:core/v1:Namespace", "namespace"),
    event(5, "resOutputsEvent", "kubernetes:core/v1:Namespace", "namespace"),
    event(6, "resourcePreEvent", CLUSTER + COMMAND, "worker1-ready"),
    event(6, "resourcePreEvent", CLUSTER + COMMAND, "cluster-control-plane", "same"),
    event(6, "resOutputsEvent", CLUSTER + COMMAND, "cluster-control-plane", "same"),
    event(9, "resOpFailedEvent", CLUSTER + COMMAND, "worker1-ready"),
    json.dumps({"timestamp": 1010, "summaryEvent": {"resourceChanges": {"create": 4, "same": 1}}}),
]


def test_an_event_log_becomes_spans_of_what_took_a_step() -> None:
    log = timeline.read(LINES)
    assert [(s.component, s.name, s.start, s.end) for s in log.spans] == [
        ("DevMachines", "master-ready", 1, 2),
        ("DevMachines", "worker1-ready", 1, 5),
        ("", "namespace", 5, 5),
        ("Cluster", "worker1-ready", 6, 9),
    ]
    assert log.changes == {"create": 4, "same": 1}


def test_a_phase_ends_with_its_last_resource() -> None:
    """The `ready` steps of a machine and of a node have names alike. Their components tell them apart."""
    assert timeline.phases(timeline.read(LINES).spans) == {"machines run": (1, 5), "VM is a Ready node": (6, 9)}


def test_an_empty_log_has_no_spans() -> None:
    assert timeline.read([]) == timeline.Log([], {})
    ET.fromstring(timeline.svg([], "nothing"))  # noqa: S314


def test_the_picture_has_a_bar_for_whatever_took_a_second() -> None:
    picture = timeline.svg(timeline.read(LINES).spans, "3 pages & more")
    root = ET.fromstring(picture)  # noqa: S314
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == "3 pages & more"
    assert words.count("worker1-ready") == 2
    assert "namespace" not in words
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("rx")]
    assert len(bars) == 3
    for bar in bars:
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= timeline.WIDTH


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([7], 50, 7), ([7], 99, 7), ([4, 1, 3, 2], 50, 2), ([1, 2, 3], 99, 3), (list(range(1, 201)), 99, 198)],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert figures.percentile(values, percent) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [("1.5GiB", 1536), ("12.25MiB", 12.25), ("512KiB", 0.5), ("0B", 0), ("1TiB", 1 << 20)]
)
def test_the_engines_sizes(size: str, expected: float) -> None:
    assert mebibytes(size) == expected


class Program:
    """A project whose first run takes longest, and each later one longer than the one before. It records its turns."""

    def __init__(self, name: str, turns: list[str], seconds: list[float]) -> None:
        self.name, self.turns, self.seconds = name, turns, iter(seconds)

    def run(self, *arguments: str) -> Took:
        self.turns.append(f"{self.name} {' '.join(arguments)}")
        seconds = next(self.seconds)
        return Took(seconds, 2 * seconds)


def test_programs_are_timed_in_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []
    some, other = Program("some", turns, [100, 1, 9, 2]), Program("other", turns, [200, 4, 3, 5])
    assert programs.in_turns((some, other), "up", "--yes", rounds=3) == [Took(2, 4), Took(4, 8)]
    assert turns == ["some up --yes", "other up --yes"] * 4


FIGURES = [
    Figure("bringup", "ratio", 1.234, "x", 1.5),
    Figure("bringup", "second up", 21.3, "s", 20),
    Figure("bringup", "second up: changes", 0, "", 0),
    Figure("io", "SPDK", None, "", note="not in reach"),
]


def test_the_table_shows_goal_and_measured_side_by_side() -> None:
    lines = [" ".join(line.split()) for line in figures.show(FIGURES).splitlines()]
    assert lines[1:] == [
        "bringup ratio 1.23 x ≤ 1.5 x met",
        "second up 21.3 s ≤ 20 s missed",
        "second up: changes 0 ≤ 0 met",
        "io SPDK - skipped not in reach",
    ]


def test_a_part_that_is_measured_again_replaces_its_figures_only(tmp_path: Path) -> None:
    file = tmp_path / "out" / "figures.json"
    assert figures.load(file) == []
    figures.save(file, FIGURES)
    again = [Figure("bringup", "ratio", 1.1, "x", 1.5)]
    assert figures.merge(figures.load(file), again) == [FIGURES[3], *again]


def test_a_boot_of_the_series_is_a_vms_but_for_its_network_and_media() -> None:
    asked = argparse.Namespace(
        vcpus=2, memory=1024, cpu="qemu64", accel="", append="nohz=off", qemu="-machine hpet=off"
    )
    words = boots.arguments(asked)
    options = [word for word in words if word.startswith("-")]
    alone = {"-nodefaults", "-no-user-config"}
    assert len([word for word in options if word not in alone]) == len(words) - len(options)
    assert words[words.index("-append") + 1].endswith(" ds=nocloud nohz=off")
    assert words[words.index("-cpu") + 1] == "qemu64"
    assert words[-2:] == ["-machine", "hpet=off"]
    assert not [word for word in words if "tap" in word or "media" in word]
    assert len([word for word in words if word.startswith("pcie-root-port")]) == 32


def test_a_fault_is_healed_at_the_last_moment_at_which_a_page_was_away() -> None:
    clock = iter(range(1000))
    gone = {"second": range(5, 25), "first": range(35, 40)}
    seconds = 0

    def now() -> float:
        return float(seconds)

    def sleep(_: float) -> None:
        nonlocal seconds
        seconds = next(clock)

    assert healing.healed(["first", "second"], lambda page: seconds not in gone[page], now, sleep) == 39
    seconds = 0
    assert healing.healed(["first"], lambda _: True, now, lambda _: sleep(0)) == 0


def test_a_fault_that_does_not_heal_ends_the_benchmark() -> None:
    seconds = 0.0

    def sleep(_: float) -> None:
        nonlocal seconds
        seconds += 10

    with pytest.raises(RuntimeError, match="still away after 300 s"):
        healing.healed(["page"], lambda _: False, lambda: seconds, sleep)


def test_the_picture_of_isolation_has_a_bar_for_each_latency_of_each_situation() -> None:
    seen = isolation.Seen(900, {"p50": 100, "p99": 400, "p99.9": 800}, 30)
    picture = ET.fromstring(isolation.svg([("alone", seen), ("beside <it>", seen)], "A & B"))  # noqa: S314
    bars = [bar for bar in picture.iter("{http://www.w3.org/2000/svg}rect") if bar.get("fill") != "#fff"]
    assert len(bars) == 6
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert widths[2] == pytest.approx(2 * widths[1], abs=0.2)
