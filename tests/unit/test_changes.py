"""Another config for a stack that runs: the way of each key, what differs, and what is refused before it is tried."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settings import schema
from settings.changes import Change, Way, compare, exported, refusals, ways
from settings.load import load
from tests.unit.recorder import STACK, Registered, of_type, run_program

pytestmark = pytest.mark.unit

HOST = {"hostKey": "ssh-ed25519 AAAA", "privateKey": "-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret"}
LAB: dict[str, Any] = {
    "kind": "ssh",
    "master": {"address": "10.1.2.11", **HOST},
    "worker1": {"address": "10.1.2.12", **HOST, "hostKey": "ssh-ed25519 AAAAB"},
    "worker2": {"address": "10.1.2.13", "gateway": "10.1.2.1"},
}
LISTED: dict[str, Any] = {
    "kind": "ssh",
    "master": LAB["master"],
    "storage": [{"name": "worker1", **LAB["worker1"], "vms": [{"name": "worker2", **LAB["worker2"]}]}],
}
THIRD: dict[str, Any] = {
    **{"name": "worker3", "address": "10.1.2.14", **HOST, "hostKey": "ssh-ed25519 AAAAC"},
    "vms": [{"name": "worker4", "address": "10.1.2.15", "since": 3}, {"name": "worker5", "address": "10.1.2.16"}],
}


def listed(*more: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """LISTED with other keys of worker1, and more storage hosts."""
    return {**LISTED, "storage": [{**LISTED["storage"][0], **keys}, *more]}


def late(host: dict[str, Any], count: int) -> dict[str, Any]:
    """A storage host that is added when there are `count` instances."""
    return {**host, "vms": [{**vm, "since": count} for vm in host["vms"]]}


BY_ID = [f"/dev/disk/by-id/wwn-0x5000c5000000000{n}" for n in range(1, 6)]


def config(**keys: object) -> dict[str, Any]:
    """The output `config` of a stack with these keys."""
    raw = {f"spdk-k8s:{key}": value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    return exported(load(raw, is_secret=lambda key: True))


def leaves(node: schema.Node, prefix: str) -> set[str]:
    found: set[str] = set()
    for name, below in node["properties"].items():
        kinds = [schema.resolve(choice) for choice in below.get("oneOf", [below])]
        for kind in kinds:
            items = schema.resolve(kind.get("items", {}))
            if "properties" in items:
                found |= leaves(items, f"{prefix}{name}[].")
            else:
                found |= leaves(kind, f"{prefix}{name}.") if "properties" in kind else {f"{prefix}{name}"}
    return found


def test_every_key_has_a_way() -> None:
    """A key without one would be changed without a word on what that interrupts. In settings/models.py: Way.…"""
    keys = leaves(schema.models(), "")
    assert len(keys) > 50
    assert keys == ways().keys()


@pytest.mark.parametrize("machines", [{"kind": "containers"}, LAB], ids=["dev", "lab"])
def test_the_stack_says_what_it_runs_with_and_no_secret(machines: dict[str, Any]) -> None:
    (stack,) = of_type(run_program(machines=machines, vhost={"backend": "qemu-storage-daemon"}), STACK)
    said = stack.outputs["config"]
    assert said == config(machines=machines, vhost={"backend": "qemu-storage-daemon"})
    assert said["vm"]["memoryMib"] == 3072, "defaults too"
    assert "s3cret" not in json.dumps(said)
    assert "config" not in stack.secret_outputs


LOGIN = {
    **{"user": "admin", "port": 2222, "hostKey": "ssh-ed25519 AAAA/", "privateKey": HOST["privateKey"] + "2"},
    "jumpHost": {**HOST, "address": "10.9.9.9"},
}
DEV: dict[str, Any] = {"vhost": {"backend": "spdk"}}
SERVERS: dict[str, Any] = {**DEV, "machines": LAB}
ON_HUGEPAGES: dict[str, Any] = {
    "vhost": {"backend": "spdk", "hugepageSize": "2Mi", "memoryMib": 1024},
    "vm": {"hugepageSize": "2Mi"},
}
ON_FILES: dict[str, Any] = {"vhost": {"backend": "spdk", "bdev": "aio"}}
CHANGED: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [  # a config, what changes in it, of which keys
    (DEV, {"numinst": 5}, ["numinst"]),
    (
        DEV,
        {"machines": {"storageHosts": 2, "since": {"worker4": 3}}},
        ["machines.storageHosts", "machines.since"],
    ),
    (DEV, {"machines": {"vmsPerHost": 2, "since": {"worker3": 3}}}, ["machines.vmsPerHost"]),
    (ON_HUGEPAGES, {"machines": {"vmsPerHost": 2, "since": {"worker3": 3}}}, ["machines.vmsPerHost"]),
    *(
        (SERVERS, {"machines": {name: LOGIN}}, [f"machines.{name}.{key}" for key in LOGIN])
        for name in ("master", "worker1")
    ),
    ({**DEV, "machines": LISTED}, {"machines": listed(**LOGIN)}, [f"machines.storage[].{key}" for key in LOGIN]),
    ({**DEV, "machines": LISTED}, {"machines": listed(late(THIRD, 3))}, ["machines.storage[].vms[].since"]),
    (
        {"vhost": {"backend": "spdk", "bdev": "aio"}, "machines": LISTED},
        {"machines": listed(devices=BY_ID[:3])},
        ["machines.storage[].devices", "machines.worker1.devices"],
    ),
    (
        {**DEV, "machines": {"storageHosts": 2}},
        {"machines": {"moved": {"2": "worker4/1"}}},
        ["machines.moved"],
    ),
    (SERVERS, {"video": {"mediaDir": "/srv/movies"}}, ["video.mediaDir"]),
    *(
        ({**SERVERS, "cpus": {"target": "0"}}, {"cpus": {key: value}}, [f"cpus.{key}"])
        for key, value in {"target": "0-1", "vms": ["2-3"], "emulator": "1", "system": "1"}.items()
    ),
    *(
        (DEV, {"vhost": {"qos": {key: value}}}, [f"vhost.qos.{key}"])
        for key, value in {
            "iops": 5000, "mibPerSecond": 100, "readMibPerSecond": 50, "writeMibPerSecond": 20,
            "disks": {"1": {"iops": 2000}},
        }.items()
    ),
    (ON_FILES, {"vhost": {"files": "/var/lib/spdk-k8s/disks/2"}}, ["vhost.files"]),
    (ON_FILES, {"vhost": {"devices": BY_ID[:3]}}, ["vhost.devices"]),
    *(
        (DEV, {section: {key: value}}, [f"{section}.{key}"])
        for section, values in {
            "registry": {"port": 5001, "tls": False},
            "vhost": {
                "backend": "qemu-storage-daemon", "source": "scripts", "bdev": "aio", "diskMib": 64, "blockSize": 512,
                "memoryMib": 2048, "cpuMask": "0x2", "mode": "poll", "hugepageSize": "2Mi",
            },
            "vm": {
                "vcpus": 4, "memoryMib": 4096, "hugepageSize": "2Mi", "accel": "kvm", "queues": 2, "diskSlots": 16,
                "vnc": ":2",
            },
            "video": {"httpPort": 9000, "rtmpPort": 9000, "cpuRequest": "60m", "cpuLimit": "400m"},
        }.items()
        for key, value in values.items()
    ),
]  # fmt: skip


def interrupted(before: dict[str, Registered], after: dict[str, Registered]) -> Way:
    """The most severe of what the difference between two programs interrupts."""

    def differs(typ: str, of: Callable[[Registered], object]) -> bool:
        return any(of(r) != of(after[r.path]) for r in of_type(before, typ) if r.path in after)

    def template(resource: Registered) -> object:
        return resource.inputs["spec"]["template"]

    def definitions(resource: Registered) -> object:
        return {**json.loads(resource.inputs["data"]["vhost.json"])["vms"], "vm-2": None}

    def of_containerd(step: Registered) -> object:
        return re.findall("^(?:PAUSE|BUNDLE|CNI_CONFIG|NODE_IP)=.*", step.inputs["stdin"], re.MULTILINE)

    docker = ("network:Network", "container:Container", "volume:Volume")
    signals = {
        Way.REBUILD: any(differs(f"docker:index/{kind}", lambda r: r.inputs) for kind in docker)
        or not before.keys() <= after.keys() | {"images/images-spdk-source", "images/images-media"},
        Way.NODE: differs("command:remote:Command", of_containerd),
        Way.GUEST: differs("kubernetes:core/v1:ConfigMap", definitions),
        Way.TARGET: any(
            template(r) != template(after[r.path]) for r in of_type(before, "kubernetes:apps/v1:Deployment")
        ),
        Way.MOVE: differs("kubernetes:core/v1:PersistentVolume", lambda r: r.inputs["spec"]["nodeAffinity"]),
        Way.ROLLING: differs("kubernetes:apps/v1:StatefulSet", template),
    }
    return next((way for way, there in signals.items() if there), Way.LIVE)


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in more.items()
    }
    return {**base, **both}


@pytest.mark.parametrize(("base", "change", "keys"), CHANGED, ids=lambda value: value[0] if type(value) is list else "")
def test_a_change_interrupts_what_its_keys_way_says(
    base: dict[str, Any], change: dict[str, Any], keys: list[str]
) -> None:
    """Else a preview, or the page that users read, would promise too much, or ask for a word without need."""
    (way,) = {way for known, way in ways().items() if any(f"{known}.".startswith(f"{key}.") for key in keys)}
    assert interrupted(run_program(**base), run_program(**merged(base, change))) is way


def test_every_way_but_the_most_severe_is_held_against_the_program() -> None:
    tried = {f"{key}." for *_, keys in CHANGED for key in keys}
    other = {key: way for key, way in ways().items() if not any(f"{key}.".startswith(prefix) for prefix in tried)}
    # the first has one value; nothing depends on the second: test_graph.py
    assert {key for key, way in other.items() if way is not Way.REBUILD} == {"configVersion", "monitoring"}


def test_changes_come_with_the_most_severe_first() -> None:
    assert compare(config(), config()) == []
    new = config(numinst=5, video={"httpPort": 9000}, vm={"vcpus": 4}, cluster={"podCidr": "10.245.0.0/16"})
    assert compare(config(), new) == [
        Change("cluster.podCidr", "10.244.0.0/16", "10.245.0.0/16", Way.REBUILD),
        Change("vm.vcpus", 2, 4, Way.GUEST),
        Change("video.httpPort", 8080, 9000, Way.ROLLING),
        Change("numinst", 3, 5, Way.LIVE),
    ]


def test_a_structure_that_comes_or_goes_is_compared_key_by_key() -> None:
    jump = {**LAB, "worker1": {**LAB["worker1"], "jumpHost": {"address": "10.9.9.9", **HOST}}}
    direct, behind = config(machines=LAB), config(machines=jump)
    added = {change.key.removeprefix("machines.worker1.jumpHost."): change.new for change in compare(direct, behind)}
    assert added == {"address": "10.9.9.9", "user": "root", "port": 22, "hostKey": "ssh-ed25519 AAAA"}
    assert all(change.new is None for change in compare(behind, direct))
    assert compare(config(), config(vm={"vnc": ":2"})) == [Change("vm.vnc", None, ":2", Way.GUEST)]


def test_hosts_and_vms_are_compared_by_name() -> None:
    one, two = config(machines=LISTED), config(machines=listed(late(THIRD, 3)))
    assert compare(config(machines=LAB), one) == compare(one, config(machines=LAB)) == []
    assert compare(one, two) == [Change("machines.storage[1]", None, "worker3", Way.LIVE)]
    assert compare(two, one) == [Change("machines.storage[1]", "worker3", None, Way.LIVE)]
    turned = {**LISTED, "storage": [late(THIRD, 3), LISTED["storage"][0]]}
    assert compare(two, config(machines=turned)) == []
    guests = [{**vm, "gateway": "10.1.2.1", "prefix": 24} for vm in late(THIRD, 3)["vms"]]
    assert compare(two, config(machines=listed({**THIRD, "vms": guests}))) == [], "said or taken from the first VM"
    fewer = listed({**THIRD, "vms": [{**guests[1], "address": "10.1.2.17"}]})
    assert compare(two, config(machines=fewer)) == [
        Change("machines.storage[1].vms[0].address", "10.1.2.16", "10.1.2.17", Way.REBUILD),
        Change("machines.storage[1].vms[0]", "worker4", None, Way.LIVE),
    ]
    assert "s3cret" not in json.dumps(two)


def test_exceptions_are_compared_disk_by_disk() -> None:
    old = config(vhost={"qos": {"iops": 5000, "disks": {"0": {"iops": 2000}, "1": {"iops": 3000}}}})
    new = config(vhost={"qos": {"disks": {"0": {"iops": "none"}, "1": {"iops": 3000}, "2": {"mibPerSecond": 7}}}})
    assert compare(old, new) == [
        Change("vhost.qos.iops", 5000, None, Way.LIVE),
        Change("vhost.qos.disks.0.iops", 2000, "none", Way.LIVE),
        Change("vhost.qos.disks.2.mibPerSecond", None, 7, Way.LIVE),
    ]
    assert refusals(old, new) == refusals(new, old) == []


def test_a_key_of_a_later_version_is_no_change() -> None:
    old = config()
    del old["machines"]["since"], old["video"]["cpuLimit"]
    assert compare(old, config()) == []
    assert refusals({**old, "gone": 1}, config()) == []


LAYOUT = {"kind": "containers"}
TWO = {"vmsPerHost": 2}
FILES = {"bdev": "aio"}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (
        {},
        {"cluster": {"serviceCidr": "10.97.0.0/16"}},
        "cluster.serviceCidr = 10.96.0.0/16 → 10.97.0.0/16: only a new stack",
        "pulumi config set --path cluster.serviceCidr 10.96.0.0/16, or: make down && make up, which blanks all disks",
    ),
    (
        {"vhost": FILES},
        {"vhost": FILES, "machines": {"subnet": "172.30.90.0/24"}},
        "machines.subnet = 172.30.97.0/24 → 172.30.90.0/24",
        "--path machines.subnet 172.30.97.0/24, or: make down && make up, which deletes the disk files",
    ),
    (
        {"machines": LAB, "vhost": {**FILES, "files": "/srv/disks"}},
        {"vhost": FILES},
        "machines.kind = ssh → containers: only a new stack",
        "--path machines.kind ssh, or: make down && make up, which keeps the disk files in /srv/disks",
    ),
    (
        {"machines": LAB},
        {"machines": {**LAB, "worker2": {**LAB["worker2"], "nameservers": ["10.1.2.1"]}}},
        "machines.worker2.nameservers = none → [",
        "pulumi config rm --path machines.worker2.nameservers",
    ),
    # instances that would move (finding U22)
    (
        {},
        {"machines": TWO},
        "machines.vmsPerHost = 1 → 2: instances 1, 2 would move to another VM or port",
        "pulumi config set --path machines.since.worker3 3",
    ),
    (
        {"numinst": 5},
        {"numinst": 7, "machines": {"storageHosts": 3}},
        "machines.storageHosts = 1 → 3",
        "--path machines.since.worker4 5 && pulumi config set --path machines.since.worker6 5",
    ),
    (
        {"machines": {**TWO, "since": {"worker3": 3}}},
        {"machines": TWO},
        "machines.since = {",
        "pulumi config rm --path machines.since && pulumi config set --path machines.since.worker3 3",
    ),
    (
        {"numinst": 5, "machines": {**TWO, "since": {"worker3": 3}}},
        {"numinst": 5, "machines": {}},
        "machines.vmsPerHost = 2 → 1: the VM of instances 3, 4 would go",
        "vmsPerHost 2 && pulumi config set numinst 3 && make up",
    ),
    (
        {"machines": {"storageHosts": 2}},
        {"machines": {"storageHosts": 2, "vmsPerHost": 2}},
        "worker3 is a storage host and would be a VM of worker1",
        "--path machines.vmsPerHost 1, or: make down && make up",
    ),
    (
        {"machines": LISTED, "numinst": 4},
        {"machines": listed(late(THIRD, 0)), "numinst": 4},
        "machines.storage[1] = none → worker3: instances 1, 2, 3 would move to another VM or port",
        "pulumi config set --path 'machines.storage[1].vms[0].since' 4 && pulumi config set --path "
        "'machines.storage[1].vms[1].since' 4",
    ),
    (
        {"machines": listed(late(THIRD, 0)), "numinst": 4},
        {"machines": LISTED, "numinst": 4},
        "machines.storage[1] = worker3 → none: the VM of instances 1, 2 would go",
        "put worker3 back into the list && pulumi config set numinst 1 && make up, and this change after that; or, to "
        "start them elsewhere with blank disks: pulumi config set --path machines.moved.1 worker2/2 && pulumi config "
        "set --path machines.moved.2 worker2/3",
    ),
    (
        {"machines": listed(late(THIRD, 0))},
        {"machines": {**listed(late(THIRD, 0)), "moved": {"1": "worker5/7"}}},
        "machines.moved = none → {",
        "pulumi config rm --path machines.moved.1",
    ),
    (
        {"machines": listed(late(THIRD, 0))},
        {
            "machines": {
                **LISTED,
                "storage": [
                    {**LISTED["storage"][0], "vms": [*LISTED["storage"][0]["vms"], THIRD["vms"][1]]},
                    {**THIRD, "vms": []},
                ],
            }
        },
        "worker5 is a VM of worker3 and would be a VM of worker1",
        "give the new one another name",
    ),
    (
        {"machines": listed(late(THIRD, 0)), "vhost": {**FILES, "devices": BY_ID[:4]}, "numinst": 4},
        {
            "machines": {**listed(late({**THIRD, "vms": THIRD["vms"][:1]}, 0)), "moved": {"2": "worker2/9"}},
            "vhost": {**FILES, "devices": BY_ID[:4]},
            "numinst": 4,
        },
        "holds the data of another instance",
        "pulumi config",
    ),
    # disks
    (
        {"vhost": FILES},
        {"vhost": {**FILES, "diskMib": 64}},
        "vhost.diskMib = 128 → 64: the disk files in /var/lib/spdk-k8s/disks hold data",
        "pulumi config set --path vhost.diskMib 128",
    ),
    (
        {"machines": LAB, "vhost": FILES},
        {"machines": LAB, "vhost": {**FILES, "diskMib": 256}},
        "vhost.diskMib = 128 → 256",
        "--path vhost.diskMib 128, or for blank disks: pulumi config set --path vhost.files with a folder",
    ),
    (
        {"machines": LAB, "vhost": {**FILES, "devices": BY_ID[:4]}},
        {"machines": LAB, "vhost": {**FILES, "devices": BY_ID[1:4]}},
        f"{BY_ID[1]} holds the data of another instance",
        f"pulumi config rm --path vhost.devices && pulumi config set --path 'vhost.devices[0]' {BY_ID[0]} && ",
    ),
    # ports
    (
        {"video": {"httpPort": 8081}},
        {"video": {"httpPort": 8080}},
        "video.httpPort = 8081 → 8080: port 8081 of instance 1 is still that of instance 0",
        "pulumi config set --path video.httpPort 9080 && make up, and this change after that",
    ),
    (
        {"numinst": 24, "video": {"httpPort": 1900}},
        {"numinst": 24, "video": {"httpPort": 1930, "rtmpPort": 8000}},
        "video.httpPort = 1900 → 1930: port 1935 of instance 5 is still that of instance 0",
        "--path video.httpPort 8080",
    ),
]


@pytest.mark.parametrize(("old", "new", "named", "remedy"), REFUSED)
def test_what_cannot_change_is_refused_with_values_rule_and_remedy(
    old: dict[str, Any], new: dict[str, Any], named: str, remedy: str
) -> None:
    found = refusals(config(**old), config(**new))
    (problem,) = [line for line in found if named in line] or found
    assert problem.startswith("spdk-k8s:")
    assert named in problem
    assert remedy in problem.partition("; mend: ")[2], problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"machines": {**TWO, "since": {"worker3": 3}}}),
        ({"machines": {**TWO, "since": {"worker3": 3}}}, {}),  # back again, while the VM has no instance
        ({"numinst": 5, "machines": {**TWO, "since": {"worker3": 3}}}, {"numinst": 3}),
        ({"numinst": 1}, {"numinst": 2, "machines": TWO}),  # instance 0 stays, instance 1 is new
        ({}, {"machines": {"storageHosts": 2, "since": {"worker4": 3}}}),
        ({"machines": LAB}, {"machines": listed(late(THIRD, 3))}),
        ({"machines": LISTED}, {"machines": LAB}),
        (
            {"machines": listed(late(THIRD, 0)), "numinst": 4},
            {"machines": {**LISTED, "moved": {"1": "worker2/2", "2": "worker2/3"}}, "numinst": 4},
        ),
        ({"machines": listed(late(THIRD, 0)), "numinst": 4}, {"machines": LISTED, "numinst": 1}),
        ({"numinst": 3}, {"numinst": 24}),
        ({"vhost": {"diskMib": 64}}, {"vhost": {"diskMib": 128}}),  # memory is blank anyway
        ({"vhost": FILES}, {"vhost": {"bdev": "malloc", "diskMib": 64}}),
        (
            {"machines": LAB, "vhost": {**FILES, "devices": BY_ID[:3]}},
            {"machines": LAB, "numinst": 4, "vhost": {**FILES, "devices": [BY_ID[0], BY_ID[4], *BY_ID[2:4]]}},
        ),  # a sick device is replaced by a new one
        ({"machines": LAB}, {"machines": {**LAB, "worker1": {**LAB["worker1"], "nic": "eth0"}}}),  # maybe the default
        ({}, {"video": {"httpPort": 8083}}),
        ({"video": {"rtmpPort": 2000}}, {"video": {"rtmpPort": 1935}, "registry": {"tls": False}}),
    ],
)
def test_what_can_change_is_not_refused(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert refusals(config(**old), config(**new)) == []


def test_the_remedy_for_a_vm_that_is_added_is_accepted() -> None:
    (problem,) = refusals(config(), config(machines=TWO))
    since = {vm: int(first) for vm, first in re.findall(r"machines\.since\.(\w+) (\d+)", problem)}
    assert refusals(config(), config(machines={**TWO, "since": since})) == []


PORT = st.integers(1024, 1100)


@given(st.integers(1, 5), st.tuples(PORT, PORT, PORT, PORT))
@settings(deadline=None, max_examples=100)
def test_accepted_ports_never_meet_while_pods_restart_in_any_order(count: int, ports: tuple[int, ...]) -> None:
    http, rtmp, new_http, new_rtmp = ports
    try:
        old, new = (
            config(numinst=count, video={"httpPort": h, "rtmpPort": r}) for h, r in ((http, rtmp), (new_http, new_rtmp))
        )
    except ValueError:
        return
    if refusals(old, new):
        return
    for restarted in range(count):
        for other in set(range(count)) - {restarted}:
            assert not {new_http + restarted, new_rtmp + restarted} & {http + other, rtmp + other}
