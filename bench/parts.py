"""The parts of the benchmark, one function each. Each brings the stack into the state that it needs."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import disk_io, healing, programs, target, timeline
from bench import isolation as isolated
from bench.figures import percentile
from bench.stack import DEFAULT, OUT, Bench, memory_watch, spdk_source
from bench.viewers import STALL, viewers
from operate.view import fetch
from render.placement import disk_path
from settings.names import VHOST

FEW, MANY = 3, 24
GIB = 1024  # MiB


def bringup(bench: Bench) -> None:
    """From nothing to FEW pages, by hand and by the program; then an `up` with nothing to do."""
    bench.down()
    by_hand = floor(FEW)
    with memory_watch() as memory:
        seconds, log = bench.up(FEW)
    for phase, (start, end) in timeline.phases(log.spans).items():
        hand = f"; by hand at {by_hand[phase]} s" if phase in by_hand else ""
        bench.add(phase, end, "s", note=f"took {end - start} s{hand}")
    bench.add(f"from nothing to {FEW} pages", seconds, "s", 240, f"VM on {bench.outputs['accel']}")
    hand = by_hand["pages answer"]
    bench.add("the same by hand", hand, "s")
    bench.add("ratio", seconds / hand, "x", 1.5)
    pod_starts(bench)
    bench.add(f"peak memory, N = {FEW}", memory[0] / GIB, "GiB", 6)
    title = f"pulumi up: from nothing to {FEW} pages in {seconds:.0f} s (VM on {bench.outputs['accel']})"
    (OUT / "timeline.svg").write_text(timeline.svg(log.spans, title))

    seconds, log = bench.up(FEW)
    bench.add("second up", seconds, "s", 20)
    bench.add("second up: changes", changed(log), "", 0)


def floor(count: int) -> dict[str, int]:
    """Phase of bench/floor.sh -> seconds after which it was reached."""
    script = Path(__file__).with_name("floor.sh")
    with subprocess.Popen([script, str(count)], stdout=subprocess.PIPE, text=True) as process:
        reached: dict[str, int] = {}
        for line in process.stdout or ():
            print(f"by hand: {line}", end="", flush=True)
            if found := re.match(r"\s*(\d+) s  (.*)", line):
                reached[found[2]] = int(found[1])
    if process.returncode:
        raise SystemExit(process.returncode)
    return reached


def changed(log: timeline.Log) -> int:
    return sum(count for operation, count in log.changes.items() if operation != "same")


def pod_starts(bench: Bench) -> None:
    starts = bench.pod_starts()
    for p in (50, 99):
        bench.add(f"pod start p{p}, N = {len(starts)}", percentile(starts, p), "s", note="created to Ready")


def preview(bench: Bench, rounds: int = programs.ROUNDS) -> None:
    """Previews from nothing, and an `up` of FEW pages with nothing to do, beside those of an empty program."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = programs.project(folder / "empty")
        few, many = (programs.project(folder / str(count), count) for count in (FEW, MANY))
        none, three, twenty_four = programs.in_turns((empty, few, many), "preview", rounds=rounds)
        compare(bench, "preview", "an empty program", none, f"N = {FEW}", three, 2)
        compare(bench, "preview", f"N = {FEW}", three, f"N = {MANY}", twenty_four, 1.5)
        bench.ensure(FEW)
        none, same = programs.in_turns((empty, bench.project), "up", "--yes", "--skip-preview", rounds=rounds)
        compare(bench, "up with nothing to do", "an empty program", none, f"N = {FEW}", same, 2)


def compare(
    bench: Bench, what: str, name: str, first: programs.Took, other_name: str, other: programs.Took, goal: float
) -> None:
    """Add the ratio of `other` to `first`, by the clock, with CPU time as a note."""
    note = (
        f"{other.seconds:.2f} / {first.seconds:.2f} s; processors {other.processors / first.processors:.2f} x,"
        f" {other.processors:.2f} / {first.processors:.2f} s"
    )
    bench.add(f"{what}: {other_name} / {name}", other.seconds / first.seconds, "x", goal, note)


def grow(bench: Bench) -> None:
    """From FEW to MANY while a viewer watches pod 0, then one more disk."""
    bench.ensure(FEW)
    before, vm = lives(bench), vm_pid(bench)
    with viewers(bench.outputs["pages"][:1], pause=1) as (viewer,):
        seconds, log = bench.up(MANY)
    bench.add(f"N = {FEW} to {MANY}", seconds, "s", 300)
    bench.add("time per added instance", seconds / (MANY - FEW), "s")
    pod_starts(bench)
    own = MANY - FEW  # an instance has a volume of its own; its disk is the agent's, its pod the StatefulSet's
    updated = [s.name for s in log.spans if s.operation == "update"]
    foreign = changed(log) - log.changes.get("update", 0) - own
    bench.add("resources made or removed beyond the new instances'", foreign, "", 0,
              f"{log.changes.get('create', 0)} made; updated in place: {', '.join(updated)}")  # fmt: skip
    bench.add("restarts of target, VM and pods", restarts(bench, before) + (vm_pid(bench) != vm), "", 0)
    bench.add("longest gap for the viewer of pod 0", viewer.worst_gap, "s", STALL)

    seen = threading.Thread(target=lambda: found.append(appears(bench, MANY)), daemon=True)
    found: list[float] = []
    seen.start()
    bench.up(MANY + 1)
    seen.join()
    served = float(bench.machine("worker1", f"stat -c %.Y /run/spdk-k8s/vhost.{MANY}"))
    bench.add("one more disk: seen in the guest, after its socket", found[0] - served, "s", 5)


def lives(bench: Bench) -> dict[str, int]:
    """Pod and container -> restarts."""
    return {f"{p.metadata.uid}/{c.name}": c.restart_count for p in bench.pods() for c in p.status.container_statuses}


def restarts(bench: Bench, before: dict[str, int]) -> int:
    """Containers of `before` that are gone, or have restarted since."""
    after = lives(bench)
    return sum(after.get(life) != count for life, count in before.items())


def vm_pid(bench: Bench) -> str:
    return bench.machine("worker1", "systemctl show -P MainPID spdk-k8s-vm")


def appears(bench: Bench, ordinal: int) -> float:
    """The time, by this machine's clock, at which the guest sees the disk of instance `ordinal`."""
    bench.guest(f"udevadm wait --timeout=900 {disk_path(ordinal)}", timeout=900)
    return time.time()


def many(bench: Bench) -> None:
    """From nothing to MANY pages at once."""
    bench.down()
    began = time.monotonic()
    with memory_watch() as memory:
        bench.up(MANY)
        while waiting := [page for page in bench.outputs["pages"] if fetch(page).status != "200"]:
            if time.monotonic() > began + 900:
                raise RuntimeError(f"no answer from {waiting}")
    bench.add(f"from nothing to {MANY} pages", time.monotonic() - began, "s", 300)
    pod_starts(bench)
    bench.add(f"peak memory, N = {MANY}", memory[0] / GIB, "GiB", 6)


def watch(bench: Bench) -> None:
    """A viewer for each of MANY pages at once."""
    if bench.count < MANY:
        bench.ensure(MANY)
    seconds = 30
    with viewers(bench.outputs["pages"]) as seen:
        time.sleep(seconds)
    mib = [v.bytes / 2**20 / seconds for v in seen]
    bench.add(f"{len(seen)} viewers at once", sum(mib), "MiB/s", note=f"slowest {min(mib):.2g} MiB/s each")
    bench.add(f"stalls of {STALL:.0f} s and more", sum(v.stalls for v in seen), "", 0)
    bench.add("longest gap", max(v.worst_gap for v in seen), "s", STALL)


def io(bench: Bench) -> None:
    """For both vhost targets: the time to start, and disk I/O in the guest."""
    results = {}
    for backend in backends(bench):
        bench.ensure(1, backend)
        image = next(p.spec.containers[0].image for p in bench.pods() if p.metadata.labels.get("app") == VHOST)
        seconds = target.start(image, MANY, backend == "spdk")
        bench.add(f"{backend}: start to all {MANY} controllers", seconds, "s", 2, "by itself in a container")
        results[backend] = disk_io.compare(bench)
        for job, (vhost, plain) in results[backend].items():
            unit = disk_io.JOBS[job][-1]
            bench.add(f"{job}, {backend} / virtio-blk", vhost / plain, "x",
                      note=f"{vhost:.0f} / {plain:.0f} {unit}")  # fmt: skip
    if len(results) == 2:
        for job in disk_io.JOBS:
            bench.add(f"{job}, spdk / {DEFAULT}", results["spdk"][job][0] / results[DEFAULT][job][0], "x")


def heal(bench: Bench) -> None:
    """The target is killed and hangs, with disks in memory; on files it is killed again and again under writers."""
    kills, every = 10, 12
    for backend in backends(bench):
        bench.ensure(FEW, backend)
        pages = bench.outputs["pages"]
        for name, what, goal in (("KILL", "killed", 3), ("STOP", "hangs", 15)):
            healing.signal(bench, backend, name)
            bench.add(f"{backend}, disks in memory: target {what}, to all pages", healing.healed(pages), "s", goal)
        bench.ensure(FEW, backend, **{"vhost.bdev": "aio"})
        before, killed = lives(bench), healing.out_of_memory(bench)
        away, writers = healing.killed_again(bench, backend, kills, every)
        name = f"{backend}, files: {kills} kills in {kills * every} s"
        bench.add(f"{name}: a page away", away, "s", 3)
        for what in ("errors", "wrong"):
            bench.add(f"{name}: {what}", sum(writer[what] for writer in writers), "", 0,
                      f"of {sum(writer['writes'] for writer in writers):.0f} writes")  # fmt: skip
        bench.add(f"{name}: restarts", restarts(bench, before), "", 0)
        bench.add(f"{name}: out of memory", healing.out_of_memory(bench) - killed, "", 0)


def isolation(bench: Bench) -> None:
    """What a disk notices of its neighbour, without a limit and with one; how exactly limits are kept."""
    pictures: list[tuple[str, isolated.Seen]] = []
    for backend in backends(bench):
        bench.ensure(FEW, backend)
        disk_io.install_fio(bench)
        alone = isolated.victim(bench, beside=False)
        beside = isolated.victim(bench, beside=True)
        limit = max(1, round(beside.aggressor / 10))
        one = f"vhost.qos.disks.{isolated.AGGRESSOR}.mibPerSecond"
        bench.change(one, str(limit))
        limited = isolated.victim(bench, beside=True)
        situations = {"alone": alone, "beside the aggressor": beside, f"aggressor limited to {limit} MiB/s": limited}
        pictures += [(f"{backend}, {name}", seen) for name, seen in situations.items()]
        for name, seen in situations.items():
            latency = ", ".join(f"{p} {value:.0f} µs" for p, value in seen.latency.items())
            bench.add(f"{backend}, {name}: victim", seen.iops, "IOPS",
                      note=f"{latency}; aggressor {seen.aggressor:.1f} MiB/s")  # fmt: skip
        bench.add(f"{backend}: victim's p99 with a limited aggressor / alone",
                  limited.latency["p99"] / alone.latency["p99"], "x", 1.3)  # fmt: skip
        for limit in isolated.LIMITS:
            bench.change(one, str(limit))
            found = isolated.rates(bench)
            off = {job: abs(rate / limit - 1) * 100 for job, rate in found.items()}
            bench.add(f"{backend}, limit of {limit} MiB/s: farthest off", max(off.values()), "%", 5,
                      ", ".join(f"{job} {found[job]:.2f}" for job in found))  # fmt: skip
        isolated.clear(bench)
    title = "A disk with one request at a time beside one with 32"
    (OUT / "isolation.svg").write_text(isolated.svg(pictures, title))


def backends(bench: Bench) -> list[str]:
    """The vhost targets that can be measured here."""
    if spdk_source() is not None:
        return [DEFAULT, "spdk"]
    bench.add("SPDK", None, "", note="SPDK_SOURCE is not set, and SPDK's release cannot be downloaded")
    return [DEFAULT]


PARTS: dict[str, Callable[[Bench], None]] = {
    "bringup": bringup,
    "preview": preview,
    "grow": grow,
    "many": many,
    "watch": watch,
    "io": io,
    "heal": heal,
    "isolation": isolation,
}
