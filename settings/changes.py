"""What another config means for the stack that runs: how each changed key changes it, and what cannot be changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from settings.models import MAX_INSTANCES, NAMESPACE, Containers, Model, Settings, Ssh
from settings.names import number
from settings.rules import put, remove
from settings.schema import SECRETS
from settings.way import Way

__all__ = ["Change", "Way", "compare", "exported", "refusals", "settings_of", "ways"]

Config = Mapping[str, Any]
"""A config as `exported` makes it."""


@dataclass(frozen=True)
class Change:
    """A key with another value, or a storage host or VM that comes or goes: its value is its name then.

    key: with dots, an index where it is in a list, and without the namespace: "vm.memoryMib",
    "machines.storage[1].vms[0].since". None as a value: the key is empty, or belongs to a structure that is absent.
    """

    key: str
    old: Any
    new: Any
    way: Way


@cache
def ways() -> dict[str, Way]:
    """Key -> way, for every key that holds a value, of both kinds of machines. Of items of a list: "storage[].nic"."""
    return {leaf.key: way for leaf in _leaves(Settings) for way in leaf.field.metadata if isinstance(way, Way)}


@dataclass(frozen=True)
class _Leaf:
    """A key that holds a value. may_be_absent: it has no default, or belongs to a structure that need not be there.
    of_structures: the value is a map of structures."""

    key: str
    field: FieldInfo
    may_be_absent: bool
    of_structures: bool


def _leaves(model: type[Model], prefix: str = "", *, may_be_absent: bool = False) -> Iterator[_Leaf]:
    for field in model.model_fields.values():
        key, absent = f"{prefix}{field.alias}", may_be_absent or field.default is None
        types = (field.annotation, *get_args(field.annotation))
        structures = [t for t in types if isinstance(t, type) and issubclass(t, Model)]
        if not structures or get_origin(field.annotation) is dict:
            yield _Leaf(key, field, absent, of_structures=bool(structures))
            continue
        inside = f"{key}[]." if Ellipsis in types else f"{key}."
        for structure in structures:
            yield from _leaves(structure, inside, may_be_absent=absent)


def exported(settings: Settings) -> dict[str, Any]:
    """The whole config as JSON values: with defaults, without secrets, and without null, which Pulumi does not keep. It
    is the stack's output `config`."""
    return _told(settings.model_dump(mode="json", by_alias=True))


def _told(config: Any) -> Any:
    if isinstance(config, list):
        return [_told(item) for item in cast(list[Any], config)]
    if not isinstance(config, dict):
        return config
    items = cast(dict[str, Any], config).items()
    return {key: _told(value) for key, value in items if key not in SECRETS and value is not None}


def compare(old: Config, new: Config) -> list[Change]:
    """Every key whose value differs, the most severe way first. A key that `old` was made without is no change."""
    if old["machines"]["kind"] != new["machines"]["kind"]:  # the other keys of the two kinds do not compare
        old, new = ({**config, "machines": {"kind": config["machines"]["kind"]}} for config in (old, new))
    before, after = _flat(old), _flat(new)
    may_be_absent = {leaf.key for leaf in _leaves(Settings) if leaf.may_be_absent}
    changes: list[Change] = []
    for item in {**before, **after}:
        had, has = before.get(item), after.get(item)
        around = [item[: end.end()] for end in re.finditer(r"\]", item) if end.end() < len(item)]
        if not all(outer in before and outer in after for outer in around):
            continue  # its host or VM comes or goes as a whole
        whole, name = item.endswith("]"), _generic(item)
        way = Way.LIVE if whole else ways().get(name)
        value, new_value = (found.value if found else None for found in (had, has))
        comparable = whole or (had and has) or name in may_be_absent
        if way and comparable and value != new_value and (known := has or had):
            changes += _each(Change(known.key, value, new_value, way))
    return sorted(changes, key=lambda change: change.way.severity, reverse=True)


def _each(change: Change) -> list[Change]:
    """The changes of the structures in a map; of another key just the change."""
    if not any(leaf.of_structures for leaf in _leaves(Settings) if leaf.key == change.key):
        return [change]
    old, new = (
        {f"{change.key}.{item}.{name}": value for item, values in found.items() for name, value in values.items()}
        for found in (change.old, change.new)
    )
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [Change(key, old.get(key), new.get(key), change.way) for key in keys]


@dataclass(frozen=True)
class _Value:
    """key: where the config has it, with the index in a list."""

    key: str
    value: Any


def _flat(config: Config) -> dict[str, _Value]:
    """What a key is, by names -> its value. An item of a list is known by its name, not by its place: a host that is
    removed does not turn the next one into it. "storage[worker3]" is the item itself."""
    found = dict(_values(config, "", ""))
    guests = [item for item in found if re.fullmatch(r"machines\.storage\[\w+\]\.vms\[\w+\]", item)]
    guests.sort(key=lambda guest: number(str(found[guest].value)))
    for name, default in (("gateway", None), ("prefix", 24)):  # VMs that do not say it take it from one that does
        said = next((value.value for guest in guests if (value := found.get(f"{guest}.{name}"))), default)
        for guest in guests:
            found.setdefault(f"{guest}.{name}", _Value(f"{found[guest].key}.{name}", said))
    return found


def _values(config: Config, item: str, key: str) -> Iterator[tuple[str, _Value]]:
    for name, value in config.items():
        below, at = f"{item}{name}", f"{key}{name}"
        if at in PAIR and isinstance(value, Mapping):  # a list of one host with one VM
            below = PAIR[at]
            yield below, _Value(at, name)
        if isinstance(value, Mapping) and below not in ways():
            yield from _values(cast(Config, value), f"{below}.", f"{at}.")
        elif isinstance(value, list) and f"{_generic(below)}[].name" in ways():
            for i, member in enumerate(cast(Sequence[Config], value)):
                yield f"{below}[{member['name']}]", _Value(f"{at}[{i}]", member["name"])
                yield from _values(member, f"{below}[{member['name']}].", f"{at}[{i}].")
        else:
            yield below, _Value(at, value)


def _generic(item: str) -> str:
    """ "machines.storage[worker3].nic" -> "machines.storage[].nic"."""
    return re.sub(r"\[\w+\]", "[]", item)


PAIR = {"machines.worker1": "machines.storage[worker1]", "machines.worker2": "machines.storage[worker1].vms[worker2]"}


# --- what cannot be changed ------------------------------------------------------------------------------------------


def refusals(old: Config, new: Config) -> list[str]:
    """Why a stack that runs with `old` cannot be changed to `new`: a line with key, values, rule and remedy for each.

    new: a config that `settings.load` accepts.
    """
    changes = {change.key: change for change in compare(old, new)}
    found = list(_rebuilds(old, changes))
    before, after = settings_of(old), settings_of(new)
    if before and after and not found:
        found += _moved_instances(before, after, changes)
        found += _files_of_another_size(before, after, changes)
        found += _exchanged_devices(before, after, changes)
        found += _ports_in_use(before, after, changes)
    return found


def settings_of(config: Config) -> Settings | None:
    """Of a config as `exported` makes it; None where an older program made it, with keys that there are no more."""
    try:
        return Settings.model_validate(config)
    except ValidationError:
        return None


def _refusal(change: Change, rule: str, mend: str) -> str:
    values = " → ".join(
        "none" if v in (None, [], {}, "") else json.dumps(v).strip('"') for v in (change.old, change.new)
    )
    return f"{NAMESPACE}:{change.key} = {values}: {rule}; mend: {mend}"


def _back(change: Change) -> str:
    """The command that gives the key its old value again."""
    if not change.old:
        return remove(change.key)
    match change.old:
        case list():
            values = enumerate(cast(list[object], change.old))
            return " && ".join([remove(change.key), *(put(f"{change.key}[{i}]", value) for i, value in values)])
        case dict():
            values = cast(dict[str, object], change.old).items()
            return " && ".join([remove(change.key), *(put(f"{change.key}.{name}", value) for name, value in values)])
        case _:
            return put(change.key, change.old)


def _rebuilds(old: Config, changes: Mapping[str, Change]) -> Iterator[str]:
    for change in changes.values():
        # the default card may be the one that is named now: scripts/worker_vm.sh compares
        same_card = change.key.endswith(".nic") and not (change.old and change.new)
        if change.way is Way.REBUILD and not same_card:
            rule = "only a new stack can have another value"
            yield _refusal(change, rule, f"{_back(change)}, or: make down && make up, {_fate(old)}")


def _fate(old: Config) -> str:
    """What `make down` does to the disks' data."""
    vhost = old["vhost"]
    if vhost["bdev"] == "malloc":
        return "which blanks all disks"
    if vhost["devices"]:
        return "which keeps what the devices hold"
    in_default = old["machines"]["kind"] == "containers" or vhost["files"].startswith("/var/lib/spdk-k8s/")
    return "which deletes the disk files" if in_default else f"which keeps the disk files in {vhost['files']}"


def _moved_instances(before: Settings, after: Settings, changes: Mapping[str, Change]) -> Iterator[str]:
    """Neither a machine's role nor the place of an instance that stays may change: a disk leads to one VM and port.

    Except where `machines.moved` says so: then the instance starts anew with a blank disk.
    """
    layout = [change for key, change in changes.items() if key.startswith(LAYOUT)]
    if not layout:
        return
    change = next((gone for gone in layout if gone.key.endswith("]") and gone.new is None), layout[0])
    roles, new_roles = _roles(before), _roles(after)
    turned = [name for name in roles if new_roles.get(name, roles[name]) != roles[name]]
    if turned:
        name, listed = turned[0], isinstance(after.machines, Ssh)
        why = "give the new one another name" if listed else f"make down && make up, {_fate(exported(before))}"
        because = "" if listed else ", because machines are numbered host by host"
        yield _refusal(
            change, f"{name} is {roles[name]} and would be {new_roles[name]}{because}", f"{_back(change)}, or: {why}"
        )
        return
    host = {vm: name for settings in (before, after) for name, vms in settings.machines.storage.items() for vm in vms}
    stay = range(min(before.numinst, after.numinst))
    moved = [i for i in stay if before.places[i] != after.places[i]]
    wanted = [i for i in moved if i in after.moved]
    beside = [i for i in wanted if host[before.places[i][0]] == host[after.places[i][0]]]
    unwanted = [i for i in moved if i not in wanted]
    if beside:
        rule = f"instances {_numbers(beside)} would stay on their storage host, which gives a disk to one VM only"
        yield _refusal(change, rule, " && ".join(remove(f"machines.moved.{i}") for i in beside))
    elif leaving := [i for i in unwanted if before.places[i][0] not in after.vms]:
        yield _refusal(
            change, f"the VM of instances {_numbers(leaving)} would go", _drain(before, after, change, leaving)
        )
    elif unwanted:
        added = [vm for vm in after.vms if vm not in before.vms]
        rule = f"instances {_numbers(unwanted)} would move to another VM or port, away from their disks"
        since = (put(after.machines.since_key(vm), before.numinst) for vm in added)
        yield _refusal(change, rule, " && ".join(since) or _back(change))


LAYOUT = (
    *("machines.vmsPerHost", "machines.storageHosts", "machines.since", "machines.moved"),
    *("machines.storage", "machines.worker1", "machines.worker2"),
)


def _drain(before: Settings, after: Settings, change: Change, leaving: Sequence[int]) -> str:
    """How the instances of a VM that is to be removed can be ended, or moved to storage hosts that stay."""
    back = f"put {change.old} back into the list" if change.new is None else _back(change)
    ways = [f"{back} && {put('numinst', leaving[0])} && make up, and this change after that"] if leaving[0] else [back]
    if places := drained(before, after, leaving):
        moves = " && ".join(put(f"machines.moved.{i}", f"{vm}/{port}") for i, (vm, port) in places.items())
        ways.append(f"to start them elsewhere with blank disks: {moves}")
    return "; or, ".join(ways)


def drained(before: Settings, after: Settings, leaving: Sequence[int]) -> dict[int, tuple[str, int]]:
    """Free places for the instances `leaving`, each on the emptiest VM of a storage host other than the one that it is
    on. Empty: there are none. Nothing that stays moves for them: their ports are above all that are in use."""
    storage = before.machines.storage
    taken = {*before.places, *after.moved.values()}
    found: dict[int, tuple[str, int]] = {}
    for i in leaving:
        here = next(host for host, vms in storage.items() if before.places[i][0] in vms)
        ports = {
            vm: {port for at, port in (*taken, *found.values()) if at == vm}
            for host, vms in after.machines.storage.items()
            if host != here
            for vm in vms
        }
        vm = min(ports, key=lambda vm: len(ports[vm]), default=None)
        if vm is None:
            return {}
        found[i] = (vm, next(port for port in range(MAX_INSTANCES) if port not in ports[vm]))
    return found


def _numbers(ordinals: Sequence[int]) -> str:
    return ", ".join(map(str, ordinals))


def _roles(settings: Settings) -> dict[str, str]:
    storage = settings.machines.storage
    return dict.fromkeys(storage, "a storage host") | {
        vm: f"a VM of {host}" for host in storage for vm in storage[host]
    }


def _files_of_another_size(before: Settings, after: Settings, changes: Mapping[str, Change]) -> Iterator[str]:
    change = changes.get("vhost.diskMib")
    if change and before.on_files and after.on_files and before.vhost.files == after.vhost.files:
        rule = f"the disk files in {before.vhost.files} hold data, and their size does not change"
        fresh = (
            ""
            if isinstance(after.machines, Containers)
            else ", or for blank disks: pulumi config set --path vhost.files with a folder that has none"
        )
        yield _refusal(change, rule, f"{_back(change)}{fresh}")


def _exchanged_devices(before: Settings, after: Settings, changes: Mapping[str, Change]) -> Iterator[str]:
    """A device that holds an instance's data must not become another instance's."""
    for host in before.machines.storage.keys() & after.machines.storage.keys():
        used = dict(zip(before.devices(host), before.ordinals(host), strict=False))
        now = dict(zip(after.devices(host), after.ordinals(host), strict=False))
        taken = [device for device, i in now.items() if used.get(device, i) != i]
        change = next((c for key, c in changes.items() if key.endswith(".devices") or key.startswith(LAYOUT)), None)
        if taken and change:
            rule = (
                f"{taken[0]} holds the data of another instance of {host}, {used[taken[0]]}:"
                " devices that stay must stay with their instances, in the order of the ordinals"
            )
            yield _refusal(change, rule, _back(change))


def _ports_in_use(before: Settings, after: Settings, changes: Mapping[str, Change]) -> Iterator[str]:
    """Pods of a VM share its network and restart one after the other: a new port must not be another pod's old one."""
    keys = {"video.httpPort": after.video.http_port, "video.rtmpPort": after.video.rtmp_port}
    taken = {
        (vm, first + i): i
        for first in (before.video.http_port, before.video.rtmp_port)
        for i, (vm, _) in enumerate(before.places)
    }
    for key, first in keys.items():
        change = changes.get(key)
        clash = [(i, vm) for i, (vm, _) in enumerate(after.places) if taken.get((vm, first + i), i) != i]
        if change and clash:
            i, vm = clash[0]
            rule = f"port {first + i} of instance {i} is still that of instance {taken[vm, first + i]}"
            span = max(before.numinst, after.numinst)
            used = [*(p for _, p in taken), *(p + i for p in keys.values() for i in range(span))]
            free = next(p for p in (*range(8080, 65536 - span, 1000), *range(1024, 65536 - span))
                        if not any(p <= u < p + span for u in used))  # fmt: skip
            yield _refusal(change, rule, f"{put(key, free)} && make up, and this change after that, or leave it so")
