"""Properties that hold for every N, every layout and every text in a config."""

from __future__ import annotations

import itertools
import json
import tomllib
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from render.cni import cni_config, pod_subnet, routes
from render.kubeadm import kubeadm_join
from render.placement import vm_mac
from render.registry import registry_hosts
from render.vhost import Disks, vhost_config
from render.vm import cloud_init_network, cloud_init_user_data
from settings import budgets
from settings.load import ConfigError, load
from settings.models import MAX_INSTANCES, Settings
from settings.places import places
from tests.unit.recorder import ROOMY, of_count

pytestmark = pytest.mark.unit

LAYOUTS: list[dict[str, int]] = [{"storageHosts": hosts, "vmsPerHost": vms} for hosts, vms in [(1, 1), (2, 2)]]
COUNT = st.integers(1, MAX_INSTANCES)
quick = settings(deadline=None, max_examples=50)

# --- identity --------------------------------------------------------------------------------------------------------


# VM -> number of instances when it came; the first one is there from the beginning
SINCE = st.lists(st.integers(0, MAX_INSTANCES), max_size=31).map(
    lambda later: {f"vm{i}": first for i, first in enumerate([0, *later])}
)


@given(COUNT, st.integers(1, 32))
@quick
def test_vms_that_came_together_share_evenly_in_turn(count: int, vms: int) -> None:
    """Stacks of the time before `machines.since` were placed like this: nothing may move in them."""
    since = {f"worker{i}": 0 for i in range(vms)}
    assert places(count, since) == [(f"worker{i % vms}", i // vms) for i in range(count)]


@given(COUNT, SINCE)
@quick
def test_every_instance_has_a_place_of_its_own(count: int, since: dict[str, int]) -> None:
    found = places(count, since)
    assert len(set(found)) == count
    for vm, first in since.items():
        ports = [port for at, port in found if at == vm]
        assert ports == list(range(len(ports))), "a port is left out: its slot would be lost for ever"
        assert all(at != vm for at, _ in found[:first])


@given(COUNT, COUNT, SINCE, st.data())
@quick
def test_neither_more_instances_nor_another_vm_moves_one(
    few: int, many: int, since: dict[str, int], data: st.DataObject
) -> None:
    before = places(few, since)
    assert places(max(few, many), since)[:few] == before
    added = data.draw(st.integers(1, 4))
    assert places(max(few, many), since | {f"new{i}": few for i in range(added)})[:few] == before
    # and it can be taken away again, as long as it has no instance
    assert places(few, since | {"new": few}) == before


@given(COUNT, st.lists(COUNT, max_size=3), st.integers(1, 32))
@quick
def test_every_disk_has_a_root_port_or_the_config_is_refused(count: int, later: list[int], slots: int) -> None:
    since = {f"worker{3 + i}": first for i, first in enumerate(later)}
    keys: dict[str, Any] = {
        "numinst": count,
        "machines": {"vmsPerHost": 1 + len(later), "since": since},
        **ROOMY,
        "vm": {**ROOMY["vm"], "diskSlots": slots},
    }
    if all(port < slots for _, port in places(count, {"worker2": 0, **since})):
        assert loaded(**keys).per_vm <= slots
    else:
        with pytest.raises(ConfigError, match=r"vm\.diskSlots"):
            loaded(**keys)


@given(st.data())
@quick
def test_vms_have_mac_addresses_of_their_own(data: st.DataObject) -> None:
    first = data.draw(st.from_regex(r"([0-9A-F]{2}:){5}[0-9A-F]{2}", fullmatch=True))
    addresses = [vm_mac(first, f"worker{i}") for i in range(2, 100)]
    assert addresses[0] == first
    assert len(set(addresses)) == 98


@pytest.mark.parametrize(
    ("few", "many", "layout"),
    [
        *((*n, LAYOUTS[0]) for n in itertools.pairwise((1, 2, 3, 24, 128))),
        *((*n, LAYOUTS[1]) for n in [(1, 2), (2, 5)]),
    ],
    ids=str,
)
def test_more_instances_add_just_their_own_and_fewer_take_just_the_last(
    few: int, many: int, layout: dict[str, int]
) -> None:
    before, after = ({r.urn: r for r in of_count(n, **layout).values()} for n in (few, many))
    vms = [r.name for r in before.values() if r.typ.endswith("WorkerVm")]
    own = {f"video-disk-{i}" for i in range(few, many)}
    assert not set(before) - set(after)
    assert {urn.rpartition("::")[2] for urn in set(after) - set(before)} == own
    # and existing VMs, disks and volumes do not change
    same = [urn for urn, r in before.items() if "-disk-" in r.name or r.name.endswith("-vm")]
    assert len(same) == few + len(vms)
    for urn in same:
        assert before[urn].inputs == after[urn].inputs, before[urn].path


def test_every_disk_has_a_path_of_its_own() -> None:
    volumes = [r.inputs["spec"] for r in of_count(128, **LAYOUTS[0]).values() if "PersistentVolume" in r.typ]
    assert len({json.dumps([s["nodeAffinity"], s["local"]]) for s in volumes}) == 128


# --- budgets and ports -----------------------------------------------------------------------------------------------


def loaded(**keys: Any) -> Settings:
    return load({f"spdk-k8s:{k}": json.dumps(v) for k, v in keys.items()})


PAGES = st.sampled_from(["none", "2Mi", "1Gi"])


@given(
    st.tuples(COUNT, COUNT).map(sorted),
    st.tuples(st.integers(16, 4096), st.integers(16, 4096)).map(sorted),
    st.sampled_from(LAYOUTS),
    PAGES,
    st.sampled_from(["malloc", "aio"]),
)
@quick
def test_more_or_larger_disks_never_need_less(
    numbers: list[int], sizes: list[int], layout: dict[str, int], page: str, bdev: str
) -> None:
    small, large = (
        loaded(
            numinst=count,
            machines={"kind": "containers", **layout},
            **{**ROOMY, "vhost": {"diskMib": mib, "hugepageSize": page, "bdev": bdev}},
        )
        for count, mib in zip(numbers, sizes, strict=True)
    )
    assert budgets.machine_memory_mib(small, "spdk") <= budgets.machine_memory_mib(large, "spdk")
    assert budgets.vhost_memory_mib(small, "spdk") <= budgets.vhost_memory_mib(large, "spdk")
    for size, pages in budgets.hugepages(small, "spdk", "worker1").items():
        assert pages <= budgets.hugepages(large, "spdk", "worker1")[size]
    if bdev == "malloc":
        served = -(-large.numinst // layout["storageHosts"])
        assert budgets.vhost_disks_mib(large, "spdk") >= served * large.vhost.disk_mib
    if page != "none":
        mib = {"2Mi": 2, "1Gi": 1024}[page]
        assert budgets.hugepages(large, "spdk", "worker1")[page] * mib == budgets.vhost_memory_mib(large, "spdk")


@given(COUNT, st.integers(1, 65535), st.integers(1, 65535), st.integers(1, 65535))
@quick
def test_ports_of_an_accepted_config_never_meet(count: int, http: int, rtmp: int, registry: int) -> None:
    try:
        config = loaded(
            numinst=count,
            vm=ROOMY["vm"],
            video={**ROOMY["video"], "httpPort": http, "rtmpPort": rtmp},
            registry={"port": registry},
        )
    except ConfigError:
        return
    first = (config.video.http_port, config.video.rtmp_port)
    used = [port + i for port in first for i in range(config.numinst)]
    assert len(set(used)) == len(used)
    assert max(used) <= 65535
    assert not {22, 2379, 6443, 10250, 10256} & set(used)


# --- renderers -------------------------------------------------------------------------------------------------------


@st.composite
def some_disks(draw: st.DrawFn) -> Disks:
    ordinals = sorted(draw(st.sets(st.integers(0, MAX_INSTANCES - 1), max_size=MAX_INSTANCES)))
    bdev = draw(st.sampled_from(["malloc", "aio", "nvme"]))
    devices = [f"0000:{i:02x}:00.0" for i in ordinals] if bdev == "nvme" else []
    if bdev == "aio" and draw(st.booleans()):
        devices = [f"/dev/disk/by-id/d{i}" for i in ordinals]
    size = draw(st.sampled_from([512, 4096]))
    places = {i: (f"vm-{i % 3}", i // 3) for i in ordinals}
    return Disks(ordinals, MAX_INSTANCES, draw(st.integers(16, 1 << 20)), size, 1, bdev, devices, places)


@given(some_disks())
@quick
def test_a_target_serves_each_of_its_disks_once(disks: Disks) -> None:
    wanted = json.loads(vhost_config(disks))["disks"]
    assert [d["ordinal"] for d in wanted] == list(disks.ordinals)
    assert len({d["path"] for d in wanted}) == len(wanted), "two instances on one device"
    assert len({(d["vm"], d["port"]) for d in wanted}) == len(wanted)


@given(st.integers(1, 40), st.data())
@quick
def test_texts_for_nodes_can_be_read_back(count: int, data: st.DataObject) -> None:
    pod_cidr = IPv4Network("10.244.0.0/16")
    nodes = [IPv4Address("192.0.2.10") + i for i in range(count)]
    number = data.draw(st.integers(0, count - 1))
    password = data.draw(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
    own = pod_subnet(pod_cidr, number)
    cni = json.loads(cni_config(pod_cidr, number))
    assert cni["plugins"][0]["ipam"]["ranges"] == [[{"subnet": str(own)}]]
    text = routes(pod_cidr, dict(enumerate(nodes)), number)
    assert text.count("ip route replace") == count - 1
    assert f"replace {own} " not in text, "a node would send its own pods' traffic away"
    hosts = registry_hosts("https://r:5000", host="r:5000", user="u", password=password, tls=True)
    assert list(tomllib.loads(hosts)["host"]) == ["https://r:5000"]
    for text in (
        kubeadm_join(node=f"worker{number}", api_server="r:6443", ca_hash="sha256:0", in_container=True),
        cloud_init_network(mac="DE:AD:BE:EF:01:41", address=nodes[0], prefix=24, gateway=nodes[-1]),
    ):
        assert list(yaml.safe_load_all(text))
    user_data = cloud_init_user_data(
        hostname="w", authorized_key=password, host_private=f"{password}\n", host_public=password, nameservers=["1"]
    )
    assert user_data.startswith("#cloud-config\n")
    assert yaml.safe_load(user_data)["ssh_authorized_keys"] == [password]


# --- any config at all -----------------------------------------------------------------------------------------------

ODD = st.sampled_from([
    "", "none", "auto", "containers", "ssh", "malloc", "nvme", "aio", "spdk", "2Mi", "1Gi", "-1", "0x0", "0x", "[0-]",
    "[-]", "[,]", "[5-1]", "[1-2-3]", "0x" + "f" * 400, "[0-999999999]", "0.0.0.0/0", "10.0.0.0/8", "172.30.97.0/30",
    "::1/64", "fe80::1", "1e999", "NaN", "null", "127.0.0.1:2", ":99999", "/", "/srv", "50m", "0m", "9" * 40, "é",
    "192.0.2.1", "ssh-ed25519 AAAA", "0000:5e:00.0", "/dev/sdb", "{", "true", "0b1", "1_0", " 3", "3 ",
])  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | ODD
ANY = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=6
)
HOST = ["address", "user", "port", "hostKey", "privateKey", "nic", "gateway", "prefix"]
FIELDS = {
    "machines": [
        "kind",
        "subnet",
        "storageHosts",
        "vmsPerHost",
        "master",
        "worker1",
        "worker2",
        "mastr",
        "storage",
        "moved",
        "since",
    ],
    **{
        name: [*(f.alias or n for n, f in model.model_fields.items()), "typo"]
        for name, model in ((n, type(f.default)) for n, f in Settings.model_fields.items())
        if issubclass(model, BaseModel) and name != "machines"
    },
}
HOSTS = st.dictionaries(st.sampled_from(HOST), SCALARS, max_size=4)
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        name: st.dictionaries(st.sampled_from(fields), ANY | st.integers(0, 70000) | HOSTS, max_size=3)
        for name, fields in FIELDS.items()
    },
)
CONFIGS = st.tuples(
    SECTIONS.map(lambda sections: {name: json.dumps(values) for name, values in sections.items()}),
    st.dictionaries(
        st.sampled_from(["numinst", "numnist", *FIELDS]), ANY.map(json.dumps) | ODD | st.integers(0, 200).map(str),
        max_size=2,
    ),
)  # fmt: skip


@given(CONFIGS)
@settings(deadline=None, max_examples=200)
def test_any_config_is_accepted_or_refused_by_name(parts: tuple[dict[str, str], dict[str, str]]) -> None:
    config = parts[0] | parts[1]
    problems: list[str] = []
    try:
        accepted = load({f"spdk-k8s:{key}": text for key, text in config.items()})
        # an accepted config can be used
        budgets.in_words(accepted, "spdk")
        budgets.choose_backend(accepted, cpus=4, release=False)
        assert len(accepted.vhost.cores) >= 1
        assert [pod_subnet(accepted.cluster.pod_cidr, i) for i in range(len(accepted.machines.addresses))]
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        named = problem.removeprefix("spdk-k8s:").replace(":", ".").partition(" ")[0].split(".")[0]
        # a rule over several keys names one of them, which may have its default
        assert named in {*config, *FIELDS, "numinst"}, problem
        assert "; mend: pulumi config " in problem, problem
