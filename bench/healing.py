"""Faults of the vhost target: how long pages are away, and whether each acknowledged write is on its disk."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.stack import ROOT, Bench
from operate.pages import Watch
from operate.running import answers

HOLD = 20.0  # seconds in which every page must answer before a fault counts as healed
LIMIT = 300.0  # seconds after which a fault is given up
PROGRAMS = {"qemu-storage-daemon": "qemu-storage-daemon", "spdk": "spdk-vhost"}
WRITER = ROOT / "tests/e2e/writer.py"


def signal(bench: Bench, backend: str, name: str) -> None:
    """Send signal `name` to the vhost target."""
    bench.machine("worker1", f"pkill -{name} -f '^(/usr/local/bin/)?{PROGRAMS[backend]} '")


def healed(
    pages: Sequence[str],
    looks: Callable[[str], bool] = answers,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Seconds from now to the last moment at which a page was away, 0 if none was. HOLD seconds without one end it."""
    began = away = now()
    with ThreadPoolExecutor(len(pages)) as each:
        while now() - away < HOLD:
            if now() - began > LIMIT:
                raise RuntimeError(f"pages are still away after {LIMIT:.0f} s")
            if not all(each.map(looks, pages)):
                away = now()
            sleep(0.1)
    return away - began


def killed_again(bench: Bench, backend: str, times: int, every: float) -> tuple[float, list[Mapping[str, float]]]:
    """Kill the target `times` times, one each `every` seconds, under verified writers on the first two disks.

    Returns the longest absence of a page in seconds, and what each writer says at its end (see tests/e2e/writer.py).
    """
    folders = [bench.mounted(i) for i in (0, 1)]
    seconds = times * every + HOLD
    program = shlex.quote(WRITER.read_text())

    def write(folder: str) -> Mapping[str, float]:
        found: Mapping[str, float] = json.loads(
            bench.guest(f"python3 -c {program} {folder}/verified {seconds:.0f}", timeout=seconds + 120)
        )
        return found

    pages = {i: [page] for i, page in enumerate(bench.outputs["pages"])}
    with ThreadPoolExecutor(len(folders)) as each, Watch(pages, answers) as watch:
        writers = [each.submit(write, folder) for folder in folders]
        for _ in range(times):
            next_one = time.monotonic() + every
            signal(bench, backend, "KILL")
            time.sleep(max(0.0, next_one - time.monotonic()))
        said = [writer.result() for writer in writers]
    return max(watch.longest.values()), said


def out_of_memory(bench: Bench) -> int:
    """Processes of the storage host that the kernel has ended for want of memory, since its start."""
    counted = "-name memory.events -o -name memory.oom_control"
    return int(
        bench.machine(
            "worker1",
            f"find /sys/fs/cgroup \\( {counted} \\) -exec awk '/^oom_kill /{{n += $2}} END {{print n + 0}}' {{}} +",
        ).split()[0]
    )
