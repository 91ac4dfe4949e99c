"""The renderers: their properties, and their whole text against golden files (`pytest --golden` rewrites these)."""

import itertools
import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import yaml

from render.cni import cni_config, pod_subnet, routes
from render.kubeadm import kubeadm_init, kubeadm_join
from render.placement import FIRST_PORT_SLOT, disk_path, root_port
from render.registry import registry_config, registry_hosts
from render.vhost import Disks, spdk_args, spdk_config, vhost_config
from render.vm import cloud_init_network, cloud_init_user_data, qemu_args
from settings.qos import LIMITS

pytestmark = pytest.mark.unit

POD_CIDR = IPv4Network("10.244.0.0/16")
NODES = [IPv4Address(f"192.0.2.{i}") for i in (11, 12, 13)]
GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[2]


def disks(count: int) -> Disks:
    return Disks(
        ordinals=range(count), slots=32, mib=128, block_size=4096, queues=1,
        places={i: ("vm", i) for i in range(count)}, vms={"vm": "vm-0123abcd"},
    )  # fmt: skip


TEXTS = {
    "registry.yml": registry_config(port=5000, tls=True),
    "hosts.toml": registry_hosts(
        "https://192.0.2.11:5000", host="192.0.2.11:5000", user="spdk-k8s", password="example", tls=True
    ),
    "cni.conflist": cni_config(POD_CIDR, 1),
    "routes.sh": routes(POD_CIDR, dict(enumerate(NODES)), 1),
    "kubeadm-init-container.yaml": kubeadm_init(
        version="1.36.3",
        repository="192.0.2.11:5000",
        address=NODES[0],
        pod_cidr=POD_CIDR,
        service_cidr=IPv4Network("10.96.0.0/16"),
        in_container=True,
    ),
    "kubeadm-join.yaml": kubeadm_join(
        node="worker2", api_server="192.0.2.11:6443", ca_hash="sha256:00", in_container=False
    ),
    "vhost.json": vhost_config(disks(2)),
    "vhost-nvme.json": vhost_config(replace(disks(1), bdev="nvme", devices=["0000:5e:00.0"])),
    "spdk.json": spdk_config(32),
    "qemu.args": "\n".join(
        qemu_args(
            vm="vm", vcpus=2, memory_mib=2048, mac="DE:AD:BE:EF:01:41", tap="tap0", disk_slots=9, vnc="127.0.0.1:2"
        )
    ),
    "user-data.yaml": cloud_init_user_data(
        hostname="worker2",
        authorized_key="ssh-ed25519 AAAA client",
        host_private="PRIVATE\n",
        host_public="PUBLIC",
        nameservers=["192.0.2.1"],
    ),
    "network-config.yaml": cloud_init_network(
        mac="DE:AD:BE:EF:01:41", address=NODES[2], prefix=24, gateway=IPv4Address("192.0.2.1")
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / name
    if request.config.getoption("--golden"):
        path.write_text(TEXTS[name] + "\n")
    assert TEXTS[name] + "\n" == path.read_text()


def test_every_ordinal_has_a_pci_path_and_a_port_of_its_own() -> None:
    ordinals = range(128)
    assert len({disk_path(i) for i in ordinals}) == 128
    assert len({root_port(i) for i in ordinals}) == 128
    assert disk_path(0) == "/dev/disk/by-path/pci-0000:01:00.0"
    assert disk_path(127) == "/dev/disk/by-path/pci-0000:80:00.0"


def test_root_ports_fit_the_bus_beside_the_fixed_devices() -> None:
    args = qemu_args(vm="vm", vcpus=2, memory_mib=2048, mac="DE:AD:BE:EF:01:41", tap="tap0", disk_slots=128, vnc=":2")
    addresses = [word.split("addr=")[1].split(",")[0] for word in args if "addr=" in word]
    assert len(addresses) == len(set(addresses))
    slots = {int(a.partition(".")[0], 16) for a in addresses}
    assert max(slots) < 31  # slot 31 belongs to the q35 machine itself
    assert not {s for s in slots if s < FIRST_PORT_SLOT} & {int(root_port(i).partition(".")[0], 16) for i in range(128)}


@pytest.mark.parametrize(
    ("size", "options"), [("none", ""), ("2Mi", "hugetlb=on,hugetlbsize=2M"), ("1Gi", "hugetlb=on,hugetlbsize=1G")]
)
def test_the_vms_memory_is_shared_and_on_the_pages_that_are_asked_for(size: str, options: str) -> None:
    args = qemu_args(vm="vm", vcpus=2, memory_mib=2048, mac="", tap="tap0", disk_slots=1, vnc=None, hugepage_size=size)
    memory = args[args.index("-object") + 1].split(",")
    assert {"size=2048M", "share=on"} < set(memory)
    assert ",".join(word for word in memory if word.startswith("hugetlb")) == options


def test_the_disk_agent_reads_the_limits_of_each_disk(tmp_path: Path) -> None:
    """And an unlimited disk is written as before there were limits: nothing changes in a stack without any."""
    limits = dict.fromkeys(LIMITS, 7000)
    text = vhost_config(replace(disks(3), limits={0: {}, 1: limits}))
    assert [disk.get("limits") for disk in json.loads(text)["disks"]] == [None, limits, None]
    spec = spec_from_file_location("agents_config", ROOT / "images/vhost/agent/disk_agent/config.py")
    assert spec
    assert spec.loader
    agents = sys.modules["agents_config"] = module_from_spec(spec)
    spec.loader.exec_module(agents)
    (tmp_path / "vhost.json").write_text(text)
    read = agents.load(tmp_path / "vhost.json")
    assert [disk.limits.set for disk in read.disks.values()] == [{}, limits, {}]


def test_the_path_of_a_disk_does_not_depend_on_how_many_there_are() -> None:
    few, many = (json.loads(vhost_config(disks(n))) for n in (3, 24))
    assert many["disks"][:3] == few["disks"]


@pytest.mark.parametrize("count", [1, 33, 128])
def test_spdk_has_buffers_for_every_disk(count: int) -> None:
    """Each controller fills a cache twice, for bdev and accel. SPDK refuses a controller if the pool is empty."""
    made = {c["method"]: c["params"] for s in json.loads(spdk_config(count))["subsystems"] for c in s["config"]}
    for size in ("small", "large"):
        caches = made["accel_set_options"][f"{size}_cache_size"] + made["bdev_set_options"][f"iobuf_{size}_cache_size"]
        assert made["iobuf_set_options"][f"{size}_pool_count"] > count * caches


@pytest.mark.parametrize(
    ("hugepages", "pci", "given"),
    [(False, False, ["--no-huge", "--no-pci"]), (True, False, ["--iova-mode", "va", "--no-pci"]), (True, True, [])],
)
def test_spdk_asks_for_physical_addresses_only_where_it_does_dma(hugepages: bool, pci: bool, given: list[str]) -> None:
    args = spdk_args(memory_mib=512, cpu_mask="0x1", polls=True, hugepages=hugepages, pci=pci)
    assert args[args.index("512") + 1 :] == given


def test_pod_subnets_never_overlap() -> None:
    subnets = [pod_subnet(POD_CIDR, i) for i in range(16)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(subnets, 2))


@pytest.mark.parametrize("name", [n for n in TEXTS if n.endswith((".yaml", ".yml"))])
def test_yaml_can_be_read_back(name: str) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(TEXTS[name]))
