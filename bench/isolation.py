"""Isolation: what a disk with one request at a time notices of a neighbour with 32, and how exactly limits are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from bench.disk_io import FIO, JOBS
from bench.stack import Bench

AGGRESSOR, VICTIM = 0, 1  # ordinals
ROUNDS, SECONDS = 5, 6
PERCENTILES = {"p50": "50.000000", "p99": "99.000000", "p99.9": "99.900000"}
LIMITS = (1, 2, 4, 8, 16)  # MiB/s


@dataclass(frozen=True)
class Seen:
    """Of the victim: requests in a second, and latencies in microseconds by percentile. aggressor: its MiB/s."""

    iops: float
    latency: Mapping[str, float]
    aggressor: float


def fio(bench: Bench, *jobs: str) -> list[dict[str, Any]]:
    """The reports of fio's jobs, which run at the same time past the guest's page cache."""
    common = "--output-format=json --size=32M --direct=1 --ioengine=libaio --time_based --ramp_time=1"
    report = json.loads(bench.guest(f"{FIO} {common} --runtime={SECONDS} {' '.join(jobs)}"))
    return list(report["jobs"])


def file(bench: Bench, ordinal: int) -> str:
    """A file of fio's on that instance's disk, as the guest sees it."""
    return f"{bench.mounted(ordinal)}/bench.fio"


def victim(bench: Bench, *, beside: bool) -> Seen:
    """The victim's figures, alone or beside the aggressor: medians of ROUNDS."""
    jobs = [f"--name=victim --filename={file(bench, VICTIM)} --rw=randread --bs=4k --iodepth=1"]
    if beside:
        jobs.append(f"--name=aggressor --filename={file(bench, AGGRESSOR)} --rw=randread --bs=4k --iodepth=32")
    rounds = [fio(bench, *jobs) for _ in range(ROUNDS)]
    reads = [found[0]["read"] for found in rounds]
    return Seen(
        median(read["iops"] for read in reads),
        {p: median(read["clat_ns"]["percentile"][key] for read in reads) / 1000 for p, key in PERCENTILES.items()},
        median(found[1]["read"]["bw_bytes"] for found in rounds) / 2**20 if beside else 0,
    )


def rates(bench: Bench) -> dict[str, float]:
    """Job -> MiB/s of the aggressor's disk."""
    at = file(bench, AGGRESSOR)
    found: dict[str, float] = {}
    for name, (arguments, direction, *_) in JOBS.items():
        (job,) = fio(bench, f"--name=one --filename={at} --iodepth=16 {arguments}")
        found[name] = job[direction]["bw_bytes"] / 2**20
    return found


def clear(bench: Bench) -> None:
    for ordinal in (AGGRESSOR, VICTIM):
        bench.guest(f"rm -f {file(bench, ordinal)}")


LEFT, WIDTH, ROW, TOP = 260, 760, 20, 50  # pixels
COLOURS = {"p50": "#4e79a7", "p99": "#f28e2b", "p99.9": "#e15759"}


def svg(seen: Sequence[tuple[str, Seen]], title: str) -> str:
    """Bars of the victim's latencies, by situation."""
    longest = max(value for _, each in seen for value in each.latency.values())
    height = TOP + ROW * len(PERCENTILES) * len(seen) + 12 * len(seen)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="24" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    top = TOP
    for situation, each in seen:
        parts.append(f'<text x="{LEFT - 60}" y="{top + 34}" text-anchor="end">{escape(situation)}</text>')
        for name, value in each.latency.items():
            wide = value * (WIDTH - LEFT - 90) / longest
            parts += [
                f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end" fill="#777">{name}</text>',
                f'<rect x="{LEFT}" y="{top + 3}" width="{wide:.1f}" height="{ROW - 6}" fill="{COLOURS[name]}"/>',
                f'<text x="{LEFT + wide + 6:.1f}" y="{top + 14}">{value:.0f} µs</text>',
            ]
            top += ROW
        top += 12
    return "\n".join([*parts, "</svg>", ""])
