"""Storage hosts and VMs come and go, N grows and shrinks: no instance moves that can stay where it is."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settings.changes import exported, refusals
from settings.load import ConfigError, load
from settings.models import Settings
from tests.unit.test_remedies import run

pytestmark = pytest.mark.unit

Config = dict[str, Any]
SERVER = {"privateKey": "-----BEGIN OPENSSH PRIVATE KEY-----\n"}


def server(number: int) -> Config:
    return {"address": f"10.1.2.{number}", "hostKey": f"ssh-ed25519 AAAA{number}", **SERVER}


def guest(number: int, since: int = 0) -> Config:
    return {"name": f"worker{number}", "address": f"10.1.2.{number + 10}", "gateway": "10.1.2.1", "since": since}


def host(number: int, *vms: Config) -> Config:
    return {"name": f"worker{number}", **server(number + 10), "vms": list(vms)}


START: Config = {
    "numinst": 3,
    "machines": {"kind": "ssh", "master": server(10), "storage": [host(1, guest(2))]},
    "vm": {"diskSlots": 128, "memoryMib": 8192, "vcpus": 8},
    "video": {"cpuRequest": "1m"},
    "vhost": {"backend": "qemu-storage-daemon"},
}


def loaded(config: Config) -> Settings:
    return load({f"spdk-k8s:{key}": json.dumps(value) for key, value in config.items()})


def names(config: Config) -> list[str]:
    return [node["name"] for each in config["machines"]["storage"] for node in (each, *each["vms"])]


# A change: what it is, and numbers that choose what of. The numbers are read modulo what there is.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add host", "add vm", "remove host", "remove vm", "grow", "shrink"]), st.integers(0, 99)
    ),
    min_size=1,
    max_size=6,
)


def changed(config: Config, what: str, which: int) -> Config:
    """`config` after one change, as a user makes it: without a thought of the instances."""
    new = copy.deepcopy(config)
    storage: list[Config] = new["machines"]["storage"]
    unused = [i for i in range(1, 12) if f"worker{i}" not in names(config)]
    with_vms = [each for each in storage if each["vms"]]
    match what:
        case "add host" if len(unused) > 1:
            number = unused.pop(which % len(unused))  # a name may be that of one that is gone
            storage.insert(which % (len(storage) + 1), host(number, guest(unused[which % len(unused)])))
        case "add vm" if unused:
            of = storage[which % len(storage)]["vms"]
            of.insert(which % (len(of) + 1), guest(unused[which % len(unused)]))
        case "remove host":
            storage.pop(which % len(storage))
        case "remove vm":
            of = with_vms[which % len(with_vms)]["vms"]
            of.pop(which % len(of))
        case "grow":
            new["numinst"] = min(40, new["numinst"] + 1 + which % 9)
        case "shrink":
            new["numinst"] = max(1, new["numinst"] - 1 - which % 9)
        case _:
            pass
    return new


def told(config: Config, problems: list[str], *, pick: str) -> None:
    """Run the commands after `pick` in each remedy."""
    for problem in problems:
        for command in problem.rpartition(pick)[2].split(" && "):
            run(command, config)


def accepted(old: Settings, config: Config) -> Settings | None:
    """The stack of `config`, with the commands that refusals print; None where there is nowhere to go."""
    for _ in range(4):
        try:
            new = loaded(config)
        except ConfigError as error:
            if any("some storage host must have a VM" in p or "machines.worker1" in p for p in error.problems):
                return None
            told(config, error.problems, pick="; mend: ")
            continue
        found = refusals(exported(old), exported(new))
        if not found:
            return new
        (problem,) = found
        if "would go" in problem and "blank disks: " not in problem:
            return None
        told(config, found, pick="blank disks: " if "would go" in problem else "; mend: ")
    raise AssertionError(f"the remedies do not end: {config}")


@given(CHANGES)
@settings(deadline=None, max_examples=150)
def test_an_instance_that_can_stay_stays_whatever_comes_and_goes(changes: list[tuple[str, int]]) -> None:
    storage = [host(1, guest(2), guest(3)), host(4, guest(5))]
    config: Config = {**START, "numinst": 7, "machines": {**START["machines"], "storage": storage}}
    now = loaded(config)
    for what, which in changes:
        wanted = changed(config, what, which)
        new = accepted(now, wanted)
        if new is None:  # refused: the stack stays as it is
            continue
        for i, (before, after) in enumerate(zip(now.places, new.places, strict=False)):
            assert before == after or before[0] not in new.vms, f"instance {i} moved by: {what}"
        assert len(set(new.places)) == new.numinst, "two instances at one place"
        assert all(vm in new.vms for vm, _ in new.places)
        for vm in set(now.vms) & set(new.vms):
            assert new.machines.addresses[vm] == now.machines.addresses[vm]
        config, now = wanted, new


def test_the_places_do_not_depend_on_the_order_of_the_lists() -> None:
    storage = [host(1, guest(3), guest(2)), host(4, guest(5))]
    there = loaded({**START, "numinst": 9, "machines": {**START["machines"], "storage": storage}})
    back = loaded({**START, "numinst": 9, "machines": {**START["machines"], "storage": storage[::-1]}})
    assert there.places == back.places
    assert there.places[:4] == [("worker2", 0), ("worker3", 0), ("worker5", 0), ("worker2", 1)]


def test_a_moved_instance_takes_no_place_that_another_one_will_have() -> None:
    moved = {"1": "worker2/4"}
    machines = {**START["machines"], "moved": moved}
    places = [loaded({**START, "numinst": n, "machines": machines}).places for n in (3, 12)]
    assert places[1][:3] == places[0] == [("worker2", 0), ("worker2", 4), ("worker2", 1)]
    assert [port for _, port in places[1]] == [0, 4, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("moved", "named", "remedy"),
    [
        ({"x": "worker2/1"}, "must be named by an ordinal, 0 to 127", "config rm --path machines.moved.x"),
        ({"1": "worker9/1"}, "there is no such VM: the VMs are worker2", "config rm --path machines.moved.1"),
        ({"1": "worker2/9", "2": "worker2/9"}, "the place of two instances", "config rm --path machines.moved.1"),
        ({"1": "worker2"}, "must be a VM and one of its root ports, VM/PORT", "config rm --path machines.moved.1"),
        ({"1": "worker2/128"}, "a VM has root ports 0 to 127", "config rm --path machines.moved.1"),
    ],
)
def test_a_place_that_is_none_is_refused(moved: dict[str, str], named: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded({**START, "machines": {**START["machines"], "moved": moved}})
    assert any(re.search(named, p) and remedy in p for p in caught.value.problems), caught.value.problems
