"""How a resource's inputs differ, in few lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from components import hosts
from operate.cli import SPECIAL
from operate.difference import UNKNOWN, Step, assignments, between

pytestmark = pytest.mark.unit

MASK = {SPECIAL: "1b47061264138c4ac30d75fd1eb44270", "ciphertext": "[secret]"}
VALUES = {"ADDRESS": "192.0.2.1", "EMPTY": "", "KEY": "it's\nsecret", "WORDS": "-m\n3072\n-smp\n2"}


@pytest.mark.parametrize("undo", ["", "worker2-vm"])
def test_a_script_is_shown_by_its_values(undo: str) -> None:
    """As components/hosts.py writes it, also where the machine keeps it for its undo."""
    old, new = (
        hosts.script("ready", VALUES | more, undo=undo) for more in ({}, {"WORDS": "-m\n4096\n-smp\n2", "EMPTY": "x"})
    )
    assert between({"stdin": old}, {"stdin": new}).lines == ["EMPTY:  → x", "WORDS:", "  -3072", "  +4096"]


def test_of_a_changed_script_only_the_size_is_told() -> None:
    old = hosts.script("worker_vm", VALUES, undo="worker2-vm")
    new = hosts.script("node", VALUES | {"ADDRESS": "192.0.2.9"}, undo="worker2-vm")
    lines = between({"stdin": old}, {"stdin": new}).lines
    assert lines[0] == "ADDRESS: 192.0.2.1 → 192.0.2.9"
    assert lines[1].startswith("script changed: ")
    assert len(lines) == 2


NAMES = some.from_regex(r"\A[A-Z][A-Z_]{0,9}\Z").filter(lambda name: name != "TEXT")
TEXTS = some.text(some.characters(codec="utf-8", exclude_characters="\0\r"))


@given(some.dictionaries(NAMES, TEXTS))
def test_every_value_of_a_script_is_found_again(values: dict[str, str]) -> None:
    found, rest = assignments(hosts.script("ready", values))
    assert found == values
    assert rest == assignments(hosts.script("ready", {}))[1]


def test_json_is_shown_by_its_paths_and_named_items_by_their_names() -> None:
    def config(*ordinals: int) -> dict[str, Any]:
        disks = [{"ordinal": i, "port": i, "vm": "vm"} for i in ordinals]
        return {"data": {"vhost.json": json.dumps({"mib": 128, "disks": disks}, indent=1)}}

    assert between(config(0, 1), config(1)).lines == ["data.vhost.json.disks[0]: removed"]
    many = between(config(0), config(*range(24))).lines
    assert many[:2] == ["data.vhost.json.disks[1]: added", "data.vhost.json.disks[2]: added"]
    assert many[8:] == ["… and 15 more values of data.vhost.json"]


def test_a_small_item_is_shown_with_its_value() -> None:
    old, new = ({"env": [{"name": "A", "value": "1"}, *more]} for more in ([], [{"name": "B", "value": "2"}]))
    assert between(old, new).lines == ["env[B].name: (none) → B", "env[B].value: (none) → 2"]


def test_a_long_text_that_differs_a_lot_is_one_line() -> None:
    old, new = ("\n".join(f"{word} {i}" for i in range(20)) for word in ("old", "new"))
    assert between({"spec": {"text": old}}, {"spec": {"text": new}}).lines == ["spec.text: 40 lines differ"]


def test_what_only_up_knows_is_no_difference() -> None:
    old = {"connection": MASK, "spec": {"containers": [{"name": "a", "image": "i@sha256:0", "env": {"X": "1"}}]}}
    new = {"connection": UNKNOWN, "spec": {"containers": [{"name": "a", "image": UNKNOWN, "env": UNKNOWN}]}}
    found = between(old, new)
    assert found.lines == []
    assert found.unknown == ["connection", "spec.containers[a].env", "spec.containers[a].image"]
    assert found.perhaps
    assert not between({"a": UNKNOWN}, {"a": UNKNOWN}).perhaps


def test_a_secret_that_changes_is_said_and_not_shown() -> None:
    old = {"stdin": MASK, "connection": MASK}
    step = Step("update", {"inputs": old}, {"inputs": dict(old)}, ("stdin",))
    assert step.difference.lines == ["stdin: changed (secret)"]
    assert not step.difference.perhaps
