"""What a change costs, from the program's own resources before and after it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest

from operate import impact
from operate.cli import SPECIAL
from operate.difference import UNKNOWN, Step
from operate.impact import Away, Cause, Impact
from settings.names import VHOST
from tests.unit.recorder import Registered, run_program
from tests.unit.test_lab import rack

pytestmark = pytest.mark.unit

MASK = {SPECIAL: "1b47061264138c4ac30d75fd1eb44270", "ciphertext": "[secret]"}
QEMU = {"backend": "qemu-storage-daemon"}
FILES = {**QEMU, "bdev": "aio"}


def state(found: Registered) -> dict[str, Any]:
    """As the engine's events have it: what is secret is masked."""
    inputs = {key: MASK if key in found.secret_inputs else value for key, value in found.inputs.items()}
    return {"type": found.typ, "parent": found.request.parent, "inputs": inputs}


def changed(before: dict[str, object], after: dict[str, object]) -> dict[str, Step]:
    """What the engine would do to a stack with the config `before` when it becomes `after`."""
    old, new = ({r.urn: r for r in run_program(**config).values()} for config in (before, after))
    steps: dict[str, Step] = {}
    for urn in [*new, *(old.keys() - new.keys())]:
        if urn not in old:
            steps[urn] = Step("create", {}, state(new[urn]))
        elif urn not in new:
            steps[urn] = Step("delete", state(old[urn]), {})
        else:
            keys = old[urn].inputs.keys() | new[urn].inputs.keys()
            differs = tuple(k for k in sorted(keys) if old[urn].inputs.get(k) != new[urn].inputs.get(k))
            steps[urn] = Step("update" if differs else "same", state(old[urn]), state(new[urn]), differs)
    return steps


def of(before: dict[str, object], after: dict[str, object]) -> Impact:
    return impact.of(changed({"vhost": QEMU, **before}, {"vhost": QEMU, **after}))


def test_nothing_changed_costs_nothing() -> None:
    found = of({}, {})
    assert found.text() == ["Impact: none"]
    assert found.needs == {}


def test_a_first_bring_up_adds_and_needs_no_word() -> None:
    found = impact.of(
        {urn: Step("create", {}, step.new) for urn, step in changed({"vhost": QEMU}, {}).items() if step.new}
    )
    assert list(found.added) == [0, 1, 2]
    assert sorted(found.new) == ["master", "worker1", "worker2"]
    assert (found.pages, found.needs, found.blank) == ({}, {}, {})


def test_more_instances_touch_none_of_those_that_are_there() -> None:
    found = of({}, {"numinst": 5})
    assert list(found.added) == [3, 4]
    assert found.kept == [0, 1, 2]
    assert (found.pages, found.needs, found.targets, found.vms) == ({}, {}, {}, {})


def test_a_storage_host_that_is_added_interrupts_nobody_and_one_that_goes_takes_just_its_own() -> None:
    both, five = rack(), {"numinst": 5}
    first: dict[str, object] = {**both, "storage": both["storage"][:1]}
    since = {**both, "storage": [both["storage"][0], {**both["storage"][1], "vms": [{**GUEST, "since": 5}]}]}
    added = of({**five, "machines": first}, {**five, "machines": since})
    assert sorted(added.new) == ["worker4", "worker5"]
    assert (added.pages, added.vms, added.targets, added.needs) == ({}, {}, {}, {})
    gone = of({**five, "machines": both}, {**five, "machines": {**first, "moved": {"2": "worker3/2"}}})
    assert sorted(gone.gone) == ["worker4", "worker5"]
    assert gone.pages == {2: Away(Cause.SWAP)}
    assert (gone.moved, gone.blank) == ({2: "worker5 → worker3"}, {2: True})
    assert gone.needs.keys() == {"interrupt", "blank"}
    assert gone.kept == [0, 1, 3, 4]


GUEST = {"name": "worker5", "address": "10.1.2.16"}


def test_fewer_instances_need_no_word() -> None:
    """The user asks for exactly that; files keep their data, and memory held copies."""
    found = of({"numinst": 5}, {})
    assert list(found.ended) == [3, 4]
    assert found.kept == [0, 1, 2]
    assert (found.pages, found.needs) == ({}, {})


@dataclass(frozen=True)
class Row:
    """Of the matrix of keys: what a change of them does to three instances."""

    before: dict[str, object]
    after: dict[str, object]
    cause: Cause | None = None
    blank: bool = False
    targets: tuple[str, ...] = ()
    vms: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def vhost(**keys: object) -> dict[str, object]:
    return {"vhost": {**QEMU, **keys}}


def spdk(**keys: object) -> dict[str, object]:
    return {"vhost": {"backend": "spdk", "source": "images", **keys}}


def test_other_limits_cost_nothing_and_are_told_by_disk() -> None:
    limited = vhost(qos={"iops": 5000, "disks": {"1": {"iops": "none", "writeMibPerSecond": 20}}})
    there, back = of({}, limited), of(limited, {})
    assert there.limits == {0: "no limit → 5000 IOPS", 1: "no limit → 20 MiB/s written", 2: "no limit → 5000 IOPS"}
    row = "0, 2 (no limit → 5000 IOPS); 1 (no limit → 20 MiB/s written)"
    assert ("disks with other limits", row) in there.rows()
    assert back.limits[1] == "20 MiB/s written → no limit"
    for found in (there, back):
        assert (found.pages, found.needs, found.targets, found.vms, found.blank) == ({}, {}, {}, {}, {})
        assert found.kept == [0, 1, 2]


ROWS = {
    "video.cpuLimit": Row({}, {"video": {"cpuLimit": "600m"}}, Cause.ROLLING),
    "video.httpPort": Row({}, {"video": {"httpPort": 9080}}, Cause.ROLLING),
    "vm.vcpus": Row({}, {"vm": {"vcpus": 3}}, Cause.GUEST, vms=("worker2",), needs=("interrupt",)),
    "vm.vnc": Row({}, {"vm": {"vnc": "127.0.0.1:2"}}, Cause.GUEST, vms=("worker2",), needs=("interrupt",)),
    "vhost.diskMib in memory": Row(
        {}, vhost(diskMib=256), Cause.TOGETHER, blank=True, targets=(VHOST,), needs=("interrupt", "blank")
    ),
    "vhost.blockSize in memory": Row(
        {}, vhost(blockSize=512), Cause.SWAP, blank=True, targets=(VHOST,), needs=("interrupt", "blank")
    ),
    "vhost.blockSize on files": Row(
        vhost(bdev="aio"), vhost(bdev="aio", blockSize=512), Cause.SWAP, targets=(VHOST,), needs=("interrupt",)
    ),
    "vhost.bdev": Row(
        {}, vhost(bdev="aio"), Cause.SWAP, blank=True, targets=(VHOST,), needs=("interrupt", "blank")
    ),
    "vhost.files": Row(
        vhost(bdev="aio"),
        vhost(bdev="aio", files="/var/lib/spdk-k8s/disks/b"),
        Cause.SWAP,
        blank=True,
        targets=(VHOST,),
        needs=("interrupt", "blank"),
    ),
    "vhost.devices": Row(
        vhost(bdev="aio"),
        vhost(bdev="aio", devices=[f"/dev/disk/by-id/wwn-{i}" for i in range(3)]),
        Cause.SWAP,
        blank=True,
        targets=(VHOST,),
        needs=("interrupt", "blank"),
    ),
    "vhost.cpuMask in memory": Row(
        spdk(), spdk(cpuMask="0x2"), Cause.SWAP, blank=True, targets=(VHOST,), needs=("interrupt", "blank")
    ),
    "vhost.cpuMask on files": Row(
        spdk(bdev="aio"), spdk(bdev="aio", cpuMask="0x2"), Cause.TARGET, targets=(VHOST,)
    ),
    "vhost.backend": Row({}, spdk(), Cause.SWAP, blank=True, targets=(VHOST,), needs=("interrupt", "blank")),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_key_there_and_back(row: Row) -> None:
    for before, after in ((row.before, row.after), (row.after, row.before)):
        found = of(before, after)
        assert {i: away.cause for i, away in found.pages.items()} == (
            dict.fromkeys(range(3), row.cause) if row.cause else {}
        )
        assert all(away.sure for away in found.pages.values())
        assert list(found.blank) == ([0, 1, 2] if row.blank else [])
        assert tuple(found.targets) == row.targets
        assert tuple(found.vms) == row.vms
        assert tuple(found.needs) == row.needs
        assert [*found.added, *found.ended, *found.moved, *found.anew] == []


def test_of_two_causes_the_longer_one_counts() -> None:
    found = of({}, {"vm": {"vcpus": 3}, "video": {"cpuLimit": "600m"}})
    assert {away.cause for away in found.pages.values()} == {Cause.GUEST}


def test_a_disk_that_gets_another_place_moves() -> None:
    machines = {"kind": "containers", "storageHosts": 2}
    found = of({}, {"machines": machines})
    assert found.moved == {1: "worker2 → worker4"} | ({2: "worker2, root port 2 → 1"} if 2 in found.moved else {})
    assert list(found.blank) == [1]  # the memory that it was in is another host's
    assert {"worker3", "worker4"} <= set(found.new)
    assert found.pages[1].cause is Cause.SWAP


def test_a_machine_made_anew_takes_all_that_runs_on_it_along() -> None:
    steps = changed({"vhost": QEMU}, {"vhost": QEMU})
    urn = next(urn for urn in steps if urn.endswith("::dev-worker1"))
    new = {**steps[urn].new, "inputs": {**steps[urn].new["inputs"], "hostname": "worker1", "envs": ["X=1"]}}
    found = impact.of({**steps, urn: Step("replace", steps[urn].old, new)})
    assert found.anew == ["worker1"]
    assert found.vms == {"worker2": True}
    assert found.of(Cause.NODE) == [0, 1, 2]
    assert found.blank == {0: True, 1: True, 2: True}
    assert set(found.needs) == {"interrupt", "blank"}


def unknown(name: str, path: list[Any]) -> dict[str, Step]:
    """A step whose only difference is a value that `up` will know, such as the digest of an image."""
    steps = changed({"vhost": QEMU}, {"vhost": QEMU})
    urn = next(urn for urn in steps if urn.endswith(name))
    new = copy.deepcopy(steps[urn].new)
    below = new["inputs"]
    for key in path[:-1]:
        below = below[key]
    below[path[-1]] = UNKNOWN
    return {**steps, urn: Step("update", steps[urn].old, new)}


CONTAINER = ["spec", "template", "spec", "containers", 0]


def test_what_a_new_image_does_is_not_sure_and_yet_needs_a_word() -> None:
    """The same image may come out of the build: then nothing restarts."""
    found = impact.of(unknown("Deployment::vhost", [*CONTAINER, "image"]))
    assert found.targets == {VHOST: False}
    assert not any(away.sure for away in found.pages.values())
    assert found.blank == {0: False, 1: False, 2: False}
    assert set(found.needs) == {"interrupt", "blank"}
    assert any("perhaps: 0 to 2" in line for line in found.text())


def test_what_is_sure_beside_it_stays_sure() -> None:
    rolling = changed({"vhost": QEMU}, {"vhost": QEMU, "video": {"cpuLimit": "600m"}})
    rebuilt = unknown("Deployment::vhost", [*CONTAINER, "image"])
    urn = next(urn for urn in rebuilt if urn.endswith("Deployment::vhost"))
    found = impact.of({**rolling, urn: rebuilt[urn]})
    assert all(away == Away(Cause.SWAP, sure=True) for away in found.pages.values())  # the pods restart anyhow
    assert set(found.blank.values()) == {False}


def test_the_control_planes_machine_is_not_made_anew_without_consent() -> None:
    steps = changed({"vhost": QEMU}, {"vhost": QEMU})
    urn = next(urn for urn in steps if urn.endswith("::dev-master"))
    new = {**steps[urn].new, "inputs": {**steps[urn].new["inputs"], "envs": ["X=1"]}}
    found = impact.of({**steps, urn: Step("replace", steps[urn].old, new)})
    assert found.needs == {"interrupt": "master: made anew"}
    assert found.pages == {}


def test_a_step_that_only_up_will_know_is_no_step() -> None:
    found = impact.of(unknown("::worker2-answers", ["stdin"]))
    assert found.text() == ["Impact: none"]


def test_the_text_says_what_why_and_for_how_long() -> None:
    found = impact.of(changed({"vhost": QEMU}, {"vhost": {**QEMU, "blockSize": 512}}), seconds={Cause.SWAP: 41.6})
    assert found.text()[:5] == [
        "Impact:",
        "  pods restarted           0 to 2",
        "  disks that go blank      0 to 2; on them: playlist mp4-1 to 3 (copied again) and what was added (lost)",
        f"  vhost targets restarted  {VHOST}",
        "  steps run                2 on worker2",
    ]
    assert found.text()[5] == (
        "  pages away               0 to 2 for about 42 s (measured): the disk is replaced, the pod starts anew"
    )


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([0, 1, 2, 5], "0 to 2, 5"), ([3, 1, 2, 2], "1 to 3")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert impact.ranges(numbers) == text
