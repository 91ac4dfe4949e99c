"""The matrix of keys: each is changed on a running stack and taken back, and what the preview said is so.

`make test ARGS=tests/e2e/test_changes.py` runs all rows, writes docs/changes.md, and then kills changes half-way.
`make test` runs one row, and leaves the page alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from operate import cli
from settings.changes import ways
from tests.e2e.conftest import COUNT, Running
from tests.e2e.test_stack import ORDINALS, checked, get, make_up, marker
from tests.pulumi_cli import ROOT

pytestmark = pytest.mark.e2e

PAGE = ROOT / "docs/changes.md"


@dataclass(frozen=True)
class Row:
    """A key, and its other value. asks: the words that `up` wants. moved: first port of the pages meanwhile. beside:
    what has to be set with it."""

    key: str
    other: str
    asks: str = ""
    quick: bool = False
    moved: int = 8080
    beside: Mapping[str, str] = field(default_factory=dict[str, str])


ROWS = [
    Row("video.cpuLimit", "600m", quick=True),
    Row("video.cpuRequest", "60m"),
    Row("video.httpPort", "9080", moved=9080),
    Row("video.rtmpPort", "2935"),
    Row("vhost.memoryMib", "8192", asks="interrupt,blank"),
    Row("vhost.blockSize", "512", asks="interrupt,blank"),
    Row("vhost.diskMib", "160", asks="interrupt,blank"),
    Row("vhost.bdev", "aio", asks="interrupt,blank"),
    Row("vhost.qos.iops", "5000"),
    Row("vm.queues", "2", asks="interrupt,blank"),
    Row("vm.vcpus", "3", asks="interrupt"),
    Row("vm.memoryMib", "3200", asks="interrupt"),
    Row("vm.diskSlots", "16", asks="interrupt"),
    Row("vm.vnc", "127.0.0.1:7", asks="interrupt"),
    Row("monitoring", "false"),
    Row("registry.port", "5001", asks="interrupt,blank"),
    Row("machines.vmsPerHost", "2", beside={"machines.since.worker3": str(COUNT)}),
]

HEAD = """\
# What each change costs

`make test ARGS=tests/e2e/test_changes.py` writes this page: it changes each key on a running `dev` stack of {count}
instances ({backend}, disks in memory unless the row says otherwise, the VM on {accel}) and takes it back. In each row
`make up` asked for the consent in the table and for no other, what its preview said came true, and after the way back
the graph was the one before, with no drift. Data was kept in each row that asks for no `blank`.

| key | way | from → to | consent | `make up`, s | longest gap of a page, s |
| --- | --- | --- | --- | ---: | ---: |
"""


class Table:
    """docs/changes.md. Rows that this run does not have stay as they are."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.lines: dict[str, list[str]] = {}
        for line in PAGE.read_text().splitlines(keepends=True) if PAGE.exists() else ():
            if found := re.match(r"\| `([\w.]+)` \|", line):
                self.lines.setdefault(found[1], []).append(line)

    def put(self, key: str, lines: list[str]) -> None:
        self.lines[key] = lines
        PAGE.write_text(self.head + "".join(line for row in ROWS for line in self.lines.get(row.key, ())))


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest, running: Running, backend: str) -> Table | None:
    """None: `make test`, which leaves the page alone."""
    if backend != "qemu-storage-daemon" or not any(i.get_closest_marker("matrix") for i in request.session.items):
        return None
    accel = {"tcg": "an emulated CPU"}.get(running.outputs["accel"], "KVM")
    return Table(HEAD.format(count=COUNT, backend=backend, accel=accel))


@dataclass
class Changes:
    """What a run of `make up` has printed so far: the resources that it changed, in their order."""

    names: list[str]
    killed: bool


def changing(running: Running, allow: str, *, kill_after: int | None = None) -> Changes:
    """`make up`. kill_after: kill it and its Pulumi when that resource, counted from 0, is changed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "operate.up", running.stack.name],
        env=running.stack.environment | {"ALLOW": allow, "PYTHONUNBUFFERED": "1"}, cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    names, printed = list[str](), list[str]()
    for line in process.stdout or ():
        printed.append(line)
        if found := re.match(r"[~+±-] (\S+) ", line):
            names.append(found[1])
            if len(names) - 1 == kill_after:
                os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    assert code in ((0, -signal.SIGKILL) if kill_after is not None else (0,)), "".join(printed)[-3000:]
    return Changes(names, killed=code != 0)


def graph(running: Running) -> dict[str, Any]:
    """URN -> inputs, without what differs from run to run."""
    exported = json.loads(running.stack.run("stack", "export", "--stack", running.stack.name, "--show-secrets"))
    found = {r["urn"]: cli.plain(r.get("inputs") or {}) for r in cli.resources(exported)}
    return {urn: re.sub(r"NOW=\d+| # drifted", "", json.dumps(inputs)) for urn, inputs in found.items()}


def value_of(running: Running, key: str) -> object:
    found: Any = running.stack.outputs()["config"]
    for part in key.split("."):
        found = found.get(part) if found else None
    return "none" if found is None else str(found).lower() if isinstance(found, bool) else found


def cases() -> list[Any]:
    return [pytest.param(row, id=row.key, marks=() if row.quick else (pytest.mark.matrix,)) for row in ROWS]


@pytest.mark.parametrize("row", cases())
def test_a_key_is_changed_and_taken_back(running: Running, table: Table | None, row: Row) -> None:
    lines = list[str]()
    before, lives = graph(running), [marker(running, i) for i in ORDINALS]
    config = running.stack.config_file.read_text()
    section, *parts = row.key.split(".")
    as_it_was = yaml.safe_load(config)["config"].get(f"spdk-k8s:{section}")
    for part in parts:
        as_it_was = as_it_was.get(part) if as_it_was else None
    for other in (row.other, None):
        old = value_of(running, row.key)
        if other is None and as_it_was is None:
            running.stack.run("config", "rm", "--path", row.key)
        else:
            running.stack.run("config", "set", "--path", row.key, other or str(as_it_was))
        for key, value in row.beside.items():
            running.stack.run("config", *(("set", "--path", key, value) if other else ("rm", "--path", key)))
        if row.asks:
            code, said = make_up(running)
            assert code == 3, said[-3000:]
            assert f"ALLOW={row.asks}\n" in said
            assert graph(running) == before or other is None
        began = time.monotonic()
        code, said = make_up(running, allow=row.asks)
        assert code == 0, said[-5000:]
        gap = re.search(r"^pages were away for at most (\d+) s", said, re.MULTILINE)
        new = value_of(running, row.key)
        assert new != old
        cells = (row.key, ways()[row.key], f"{old} → {new}", row.asks or "none", time.monotonic() - began)
        lines.append("| `{}` | {} | {} | {} | {:.0f} | {} |\n".format(*cells, gap[1] if gap else "0"))
        for i in ORDINALS:
            status, _ = get(f"http://{running.outputs['nodes']['worker2']}:{(row.moved if other else 8080) + i}/marker")
            assert status == 200
        assert "no drift" in checked(running).stdout
    assert graph(running) == before
    if "blank" not in row.asks:
        assert [marker(running, i) for i in ORDINALS] == lives
    if table:
        table.put(row.key, lines)


@pytest.mark.matrix
@pytest.mark.parametrize(("key", "other", "asks"), [
    ("video.cpuLimit", "600m", ""),
    ("vhost.blockSize", "512", "interrupt,blank"),
    ("vm.memoryMib", "3200", "interrupt"),
])  # fmt: skip
def test_a_change_that_is_killed_after_any_resource_is_mended_both_ways(
    running: Running, key: str, other: str, asks: str
) -> None:
    """By an `up` with the new value and, the next time, by one with the old value."""
    first = str(value_of(running, key))
    set_to, lives = first, [marker(running, i) for i in ORDINALS]

    def put(value: str) -> None:
        nonlocal set_to
        running.stack.run("config", "set", "--path", key, value)
        set_to = value

    put(other)
    number = len(changing(running, asks).names)
    assert number > 1
    for at in range(number):
        old = set_to
        put(first if old == other else other)
        assert changing(running, asks, kill_after=at).killed, f"killed after {at} of {number} resources"
        if at % 2:
            put(old)
        changing(running, asks)
        assert str(value_of(running, key)) == set_to
        assert "no drift" in checked(running).stdout
        if "blank" not in asks:
            assert [marker(running, i) for i in ORDINALS] == lives
    put(first)
    changing(running, asks)
