"""The JSON Schema and docs/config.md are up to date, and agree with the program."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from settings import changes, schema
from settings.load import ConfigError, load

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/config.schema.json").read_text())
NOTES = {
    "$schema",
    "$defs",
    "title",
    "description",
    "default",
    "x-changes",
    "examples",
    "patternErrorMessage",
    "discriminator",
}
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def wrong(value: Any, node: Any, at: str = "") -> Iterator[str]:
    """Violations of the schema by `value`. It knows the keywords of draft 7 that are used here, and fails on others."""
    if node is True:
        return
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")] | {k: v for k, v in node.items() if k != "$ref"}
    for keyword, rule in node.items():
        match keyword:
            case "type":
                types = [TYPES[t] for t in ([rule] if isinstance(rule, str) else rule)]
                fits = any(isinstance(value, t) and (t is bool or not isinstance(value, bool)) for t in types)
            case "enum" | "const":
                fits = value in (rule if keyword == "enum" else [rule])
            case "minimum":
                fits = not isinstance(value, int) or value >= rule
            case "maximum":
                fits = not isinstance(value, int) or value <= rule
            case "pattern":
                fits = not isinstance(value, str) or re.search(rule, value) is not None
            case "required":
                fits = not isinstance(value, dict) or set(rule) <= set(value)
            case "anyOf":
                fits = any(not list(wrong(value, choice)) for choice in rule)
            case "oneOf":
                fits = sum(not list(wrong(value, choice)) for choice in rule) == 1
            case "items":
                fits = True
                for i, item in enumerate(value if isinstance(value, list) else ()):
                    yield from wrong(item, rule, f"{at}[{i}]")
            case "additionalProperties" if isinstance(rule, dict):
                fits = True
                for key, inside in value.items() if isinstance(value, dict) else ():
                    yield from wrong(inside, rule, f"{at}.{key}")
            case "properties" | "patternProperties" | "additionalProperties":
                fits = True
            case _:
                assert keyword in NOTES, keyword
                continue
        if not fits:
            yield f"{at}: {value!r} against {keyword} {rule!r}"
    for key, inside in value.items() if isinstance(value, dict) else ():
        if key in node.get("properties", {}):
            yield from wrong(inside, node["properties"][key], f"{at}.{key}")
        elif node.get("additionalProperties") is False and not any(
            re.search(pattern, key) for pattern in node.get("patternProperties", ())
        ):
            yield f"{at}: no key {key}"


@pytest.mark.parametrize("name", schema.FILES)
def test_what_is_checked_in_is_of_these_models(name: str) -> None:
    made = schema.FILES[name]()
    assert (schema.DOCS / name).read_text() == made, "out of date; remedy: python -m settings.schema"


# without stacks of the tests' own
STACKS = [path for path in sorted(ROOT.glob("Pulumi.*.yaml")) if path.name not in (ROOT / ".gitignore").read_text()]


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.name)
def test_a_stacks_file_is_valid_and_names_its_schema(path: Path) -> None:
    text = path.read_text()
    assert not list(wrong(yaml.safe_load(text), SCHEMA))
    assert re.search(r"^# yaml-language-server: \$schema=docs/config\.schema\.json$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("config", "good"),
    [
        ({"numinst": 24}, True),
        ({"numinst": "24"}, True),
        ({"numinst": "many"}, False),
        ({"numinst": 129}, False),
        ({"numinst": True}, False),
        ({"numnist": 3}, False),
        ({"machines": {"subnet": "172.30.90.0/24"}}, True),
        ({"machines": {"kind": "cloud"}}, False),
        ({"machines": {"kind": "ssh"}}, False),
        ({"machines": {"subnet": "172.30.90.0"}}, False),
        (
            {
                "vhost": {
                    "devices": [
                        "/dev/disk/by-id/wwn-0x5000c50000000001",
                        "/dev/disk/by-id/wwn-0x5000c50000000002",
                        "/dev/disk/by-id/wwn-0x5000c50000000003",
                    ],
                    "bdev": "aio",
                }
            },
            True,
        ),
        ({"vhost": {"devices": "/dev/disk/by-id/wwn-0x5000c50000000001"}}, False),
        ({"vhost": {"memoryMib": 2048, "cpuMask": "[0-5]", "blockSize": 512}}, True),
        ({"machines": {"vmsPerHost": 2, "since": {"worker3": 3}}}, True),
        ({"machines": {"vmsPerHost": 2, "since": {"worker3": "3"}}}, False),
        ({"vhost": {"blockSize": 1024}}, False),
        ({"vhost": {"files": "disks"}}, False),
        ({"vm": {"vcpus": "2"}}, False),
        ({"vm": {"vnc": "127.0.0.1:2", "accel": "kvm"}}, True),
        ({"vm": {"vnc": "2"}}, False),
        ({"vm": {"disk_slots": 8}}, False),
        ({"vm": []}, False),
        ({"video": {"cpuLimit": 1}}, True),
        ({"video": {"cpuLimit": 0}}, False),
        ({"video": {"cpuLimit": "1.5"}}, False),
        ({"registry": {"tls": "yes"}}, False),
    ],
)
def test_an_editor_says_what_the_program_says(config: dict[str, Any], good: bool) -> None:
    file = {"config": {"pulumi:tags": {}, **{f"spdk-k8s:{key}": value for key, value in config.items()}}}
    assert (not list(wrong(file, SCHEMA))) == good
    raw = {f"spdk-k8s:{key}": v if isinstance(v, str) else json.dumps(v) for key, v in config.items()}
    if good:
        load(raw)
    else:
        with pytest.raises(ConfigError):
            load(raw)


def test_a_secret_is_what_pulumi_encrypts() -> None:
    host = {"address": "192.0.2.11", "hostKey": "ssh-ed25519 AAAA"}

    def lab(key: object) -> dict[str, Any]:
        guest = {"address": "192.0.2.13", "gateway": "192.0.2.1"}
        machines = {"kind": "ssh", "master": {**host, "privateKey": key}, "worker1": {**host, "privateKey": key}}
        return {"config": {"spdk-k8s:machines": {**machines, "worker2": guest}}}

    assert not list(wrong(lab({"secure": "v1:abc"}), SCHEMA))
    assert list(wrong(lab({"plain": "abc"}), SCHEMA))


def test_every_key_is_on_the_page_with_its_meaning() -> None:
    page = (schema.DOCS / "config.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \|.*\| (.*) \| (.*) \|$", page, re.MULTILINE)
    meaning = {key: words for key, _, words in rows}
    assert {key: way for key, way, _ in rows} == changes.ways()
    for name in ("registry", "cluster", "vhost", "vm", "video"):
        assert all(f" {name}.{key}" in " " + " ".join(meaning) for key in schema.at([name])["properties"])
    assert "machines.worker1.jumpHost.hostKey" in meaning
    assert not [key for key, words in meaning.items() if not words and not key.endswith(".kind")], "has no docstring"
    tables = page.split("\n\n")
    assert all(table.count("| key | default |") <= 1 for table in tables), "a table's head in the middle of a table"
