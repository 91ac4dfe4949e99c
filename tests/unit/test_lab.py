"""The program on existing servers: the same steps as in containers, each with an undo, none before the preflight."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from render.preflight import needs
from settings import budgets
from settings.load import ConfigError, load
from settings.models import Settings, Ssh
from tests.unit.recorder import Registered, of_type, run_program

pytestmark = pytest.mark.unit

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
OTHER_KEY = HOST_KEY[:-1] + "B"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret\n-----END OPENSSH PRIVATE KEY-----"
STEP = "command:remote:Command"
TARGET = {
    "backend": "spdk", "source": "images", "hugepageSize": "2Mi",
    "bdev": "nvme", "devices": ["0000:5e:00.0", "0000:5f:00.0", "0000:60:00.0"],
}  # fmt: skip


def servers(**changes: object) -> dict[str, Any]:
    """Two servers, one of them behind a jump host, and a VM. changes: "master.user" -> value; None removes the key."""
    host = {"user": "admin", "hostKey": HOST_KEY, "privateKey": PRIVATE_KEY}
    machines: dict[str, Any] = {
        "kind": "ssh",
        "master": {"address": "10.1.2.11", **host},
        "worker1": {
            "address": "10.1.2.12",
            **host,
            "hostKey": OTHER_KEY,
            "jumpHost": {"address": "10.9.9.9", "port": 2222, **host},
        },
        "worker2": {"address": "10.1.2.13", "gateway": "10.1.2.1"},
    }
    for path, value in changes.items():
        *parts, last = path.split(".")
        at = machines
        for part in parts:
            at = at[part]
        at[last] = value
        if value is None:
            del at[last]
    return machines


def loaded(*, preview: bool = False, **keys: object) -> Settings:
    return load({f"spdk-k8s:{k}": json.dumps(v) for k, v in keys.items()}, preview=preview)


def problems(**keys: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(**keys)
    assert "s3cret" not in str(caught.value)
    return caught.value.problems


# --- config ----------------------------------------------------------------------------------------------------------


def test_servers_are_taken() -> None:
    machines = loaded(machines=servers()).machines
    assert isinstance(machines, Ssh)
    jump = machines.hosts["worker1"].jump_host
    assert jump
    assert jump.port == 2222
    assert machines.nameservers("worker2") == ["10.1.2.1"]
    assert PRIVATE_KEY not in repr(machines)


@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        ({"master.hostKey": None}, "machines.master.hostKey: is required", '"$(ssh-keyscan -t ed25519 ADDRESS'),
        ({"master.hostKey": f"10.1.2.11 {HOST_KEY}"}, "as ssh-keyscan prints it", "--path machines.master.hostKey"),
        ({"worker1.jumpHost.hostKey": "x"}, "machines.worker1.jumpHost.hostKey", "ssh-keyscan"),
        ({"master.privateKey": None}, "privateKey: is required, except in a preview", "machines.master.privateKey <"),
        ({"master.privateKey": HOST_KEY}, "begins with -----BEGIN", "--secret --path machines.master.privateKey <"),
        ({"worker1.jumpHost.privateKey": None}, "jumpHost.privateKey: is required", "--secret --path machines.worker1"),
        ({"worker1.user": "Big Admin"}, "must be a user name", "--path machines.worker1.user root"),
        ({"worker1.usr": "x"}, "did you mean spdk-k8s:machines.worker1.user?", "pulumi config rm"),
        ({"worker1.address": "10.1.2.11"}, "an address of its own", "--path machines.worker1.address 10.1.2"),
        ({"master.address": "10.3.0.1"}, "in worker1's network, 10.1.2.0/24", "--path machines.master.address 10.1.2"),
        ({"worker1.address": "127.0.0.1"}, "at which other machines can reach", "--path machines.worker1.address"),
        (
            {"worker2.address": "10.8.0.1"},
            "in worker1's network, 10.1.2.0/24",
            "--path machines.worker2.address 10.1.2",
        ),
        ({"worker2.address": "10.1.2.255"}, "in worker1's network, 10.1.2.0/24", "machines.worker2.address 10.1.2"),
        ({"worker2.gateway": "10.1.2.13"}, "in worker1's network, 10.1.2.0/24", "machines.worker2.gateway 10.1.2"),
        ({"worker2.prefix": 30}, "whole number from 8 to 29", "worker2.prefix 24"),
    ],
)
def test_what_is_wrong_with_servers_is_named_with_its_remedy(
    changes: dict[str, object], named: str, remedy: str
) -> None:
    found = problems(machines=servers(**changes))
    assert any(named in problem and remedy in problem for problem in found), found


@pytest.mark.parametrize(
    ("cidr", "changes", "met"),
    [
        ("10.1.0.0/16", {}, "the nodes' network, 10.1.2.0/24"),
        ("10.9.0.0/16", {}, "spdk-k8s:machines.worker1.jumpHost.address = 10.9.9.9"),
        ("10.7.0.0/16", {"worker2.nameservers": ["10.7.0.53"]}, "spdk-k8s:machines.worker2.nameservers[0] = 10.7.0.53"),
    ],
)
@pytest.mark.parametrize("key", ["podCidr", "serviceCidr"])
def test_the_clusters_networks_hide_nothing_that_is_in_use(
    key: str, cidr: str, changes: dict[str, object], met: str
) -> None:
    (found,) = problems(machines=servers(**changes), cluster={key: cidr})
    assert found.startswith(f'spdk-k8s:cluster.{key} = "{cidr}": must not overlap {met}; mend: pulumi config set')


def test_a_preview_needs_no_private_keys() -> None:
    keyless = servers(**{"master.privateKey": None, "worker1.jumpHost.privateKey": None})
    assert loaded(machines=keyless, preview=True).numinst == 3


def test_a_private_key_in_plain_text_is_refused_even_in_a_preview() -> None:
    raw = {"spdk-k8s:machines": json.dumps(servers())}
    with pytest.raises(ConfigError) as caught:
        load(raw, preview=True, is_secret=lambda key: key != "spdk-k8s:machines")
    found = caught.value.problems
    assert [problem.partition(": ")[0] for problem in found] == [
        f"spdk-k8s:machines.{name}.privateKey" for name in ("master", "worker1", "worker1.jumpHost")
    ]
    assert "in plain text" in found[0]
    assert "pulumi config set --secret --path machines.master.privateKey <" in found[0]
    assert PRIVATE_KEY not in str(caught.value)


def test_a_config_of_a_newer_checkout_is_refused_as_such() -> None:
    (found,) = problems(configVersion=2, numinst=0, somethingNew=True)
    assert found.startswith("spdk-k8s:configVersion = 2: is newer than this checkout, which knows version 1; mend: git")
    assert loaded(configVersion=1).numinst == 3


def test_what_a_server_must_have_follows_from_the_config() -> None:
    config = loaded(
        numinst=24,
        machines=servers(),
        vhost={"backend": "spdk", "diskMib": 1024, "cpuMask": "[0-5]", "hugepageSize": "1Gi"},
        vm={"vcpus": 12, "memoryMib": 8192, "hugepageSize": "1Gi", "accel": "kvm", "diskSlots": 24},
    )
    worker1, master = needs(config, "worker1", "spdk"), needs(config, "master", "spdk")
    assert worker1["HUGEPAGES"] == "1Gi=9", "the target's buffers and the VM: disks in memory are on ordinary pages"
    assert int(worker1["MEMORY_MIB"]) == 25 * 1024 + 8192 + 512
    assert (worker1["CPUS"], worker1["ACCEL"]) == ("7", "kvm")
    assert worker1["VMS"] == "10.1.2.13=DE:AD:BE:EF:01:41=machines.worker2"
    assert "6443" in master["PORTS"].split()
    assert "5000" in master["PORTS"].split()
    assert "5000" not in worker1["PORTS"].split()
    assert "HUGEPAGES" not in master
    assert worker1["REGISTRY"] == "10.1.2.11:5000"
    assert worker1["MEDIA_DIR"] == ""
    assert worker1["NETWORKS"] == "podCidr=10.244.0.0/16 serviceCidr=10.96.0.0/16"
    own = needs(loaded(numinst=24, machines=servers(), video={"mediaDir": "/srv/movies"}), "worker1", "spdk")
    assert (own["MEDIA_DIR"], own["PLAYLISTS"]) == ("/srv/movies", "24")


# --- any number of storage hosts and VMs -----------------------------------------------------------------------------


def key(letter: str) -> str:
    """A host key of its own."""
    return HOST_KEY[:-1] + letter


def rack(**changes: object) -> dict[str, Any]:
    """Two storage hosts, one with two VMs, one with one. changes: "0.vms.1.name" -> value; None removes the key."""
    host = {"user": "admin", "privateKey": PRIVATE_KEY}
    storage: list[Any] = [
        {
            **{"name": "worker1", "address": "10.1.2.12", "hostKey": key("B"), **host},
            "vms": [
                {"name": "worker2", "address": "10.1.2.13", "gateway": "10.1.2.1"},
                {"name": "worker3", "address": "10.1.2.14", "gateway": "10.1.2.2", "nameservers": ["10.1.2.53"]},
            ],
        },
        {
            **{"name": "worker4", "address": "10.1.2.15", "hostKey": key("C"), **host},
            "vms": [{"name": "worker5", "address": "10.1.2.16"}],
        },
    ]
    for path, value in changes.items():
        *parts, last = (int(part) if part.isdigit() else part for part in path.split("."))
        at: Any = storage
        for part in parts:
            at = at[part]
        at[last] = value
        if value is None:
            del at[last]
    return {"kind": "ssh", "master": servers()["master"], "storage": storage}


def test_a_list_of_one_host_with_one_vm_is_the_stack_of_two_servers() -> None:
    pair = servers()
    alone = {**pair["worker1"], "name": "worker1", "vms": [{**pair["worker2"], "name": "worker2"}]}
    listed = {"kind": "ssh", "master": pair["master"], "storage": [alone]}
    one, other = (run_program(machines=machines, vhost=TARGET) for machines in (pair, listed))
    assert one.keys() == other.keys()
    for path, resource in one.items():
        assert unkeyed(resource.inputs) == unkeyed(other[path].inputs), path


def unkeyed(inputs: dict[str, Any]) -> str:
    """Without the time, the config keys that errors name, and the quotes that brackets need."""
    text = re.sub(r"NOW=\d+", "", json.dumps(inputs, sort_keys=True))
    text = re.sub(r"machines\.(worker\d|storage\[0\](\.vms\[0\])?)", "KEY", text)
    return re.sub(r"""['"\\\\]""", "", text)


def test_vms_take_from_the_first_what_they_do_not_say() -> None:
    machines = loaded(machines=rack()).machines
    assert isinstance(machines, Ssh)
    assert [str(machines.gateway(vm)) for vm in ("worker2", "worker3", "worker5")] == [
        "10.1.2.1",
        "10.1.2.2",
        "10.1.2.1",
    ]
    assert [machines.nameservers(vm) for vm in ("worker3", "worker5")] == [["10.1.2.53"], ["10.1.2.1"]]
    assert str(machines.network) == "10.1.2.0/24"


@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        (
            {"1.address": "10.1.2.12"},
            'machines.storage[1].address = "10.1.2.12": must be an address of its own',
            "pulumi config set --path 'machines.storage[1].address' 10.1.2.",
        ),
        (
            {"1.vms.0.address": "10.1.2.12"},
            'machines.storage[1].vms[0].address = "10.1.2.12": must be an address of its own',
            "'machines.storage[1].vms[0].address' 10.1.2.",
        ),
        (
            {"1.hostKey": f"{key('B')} root@rack2"},
            "is that of machines.storage[0] too, so either could pass for the other",
            "--path 'machines.storage[1].hostKey' \"$(ssh-keyscan",
        ),
        ({"1.hostKey": HOST_KEY}, "is that of machines.master too", "'machines.storage[1].hostKey'"),
        (
            {"1.name": "worker1"},
            "is the name of machines.storage[0] too: each node is listed once",
            "'machines.storage[1].name' worker4",
        ),
        ({"1.vms.0.name": "worker2"}, "is the name of machines.storage[0].vms[0] too", "vms[0].name' worker5"),
        ({"1.name": "rack2"}, "must be worker and a number from 1 to 99", "'machines.storage[1].name' worker3"),
        ({"1.name": None}, "machines.storage[1].name: is required", "'machines.storage[1].name' worker3"),
        ({"1.usr": "x"}, "did you mean spdk-k8s:machines.storage[1].user?", "rm --path 'machines.storage[1].usr'"),
        ({"0.vms": [], "1.vms": []}, "some storage host must have a VM", "'machines.storage[0].vms[0].address'"),
        (
            {"0.vms.1.prefix": 24, "1.vms.0.prefix": 25},
            "all nodes share one network",
            "rm --path 'machines.storage[1].vms[0].prefix'",
        ),
        (
            {"0.vms.0.gateway": None, "0.vms.1.gateway": None},
            "one VM must name the gateway",
            "'machines.storage[0].vms[0].gateway'",
        ),
        ({"0.vms.0.since": 3, "0.vms.1.since": 3, "1.vms.0.since": 2}, "one VM must be there", "[1].vms[0].since'"),
        (
            {"1.privateKey": None},
            "is required, except in a preview",
            "--secret --path 'machines.storage[1].privateKey'",
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_named_with_its_remedy(
    changes: dict[str, object], named: str, remedy: str
) -> None:
    found = problems(machines=rack(**changes))
    assert any(named in problem and remedy in problem for problem in found), found


def test_the_two_forms_do_not_mix_and_one_must_be_there() -> None:
    both = problems(machines={**rack(), "worker1": servers()["worker1"]})
    assert "machines.worker1: does not go together with machines.storage" in both[0]
    assert both[0].endswith("mend: pulumi config rm --path machines.worker1")
    none = problems(machines={"kind": "ssh", "master": servers()["master"]})
    assert [problem.partition(";")[0] for problem in none] == [
        f"spdk-k8s:machines.{name}: is required where machines.storage lists no hosts"
        for name in ("worker1", "worker2")
    ]


def test_each_storage_host_needs_what_its_own_vms_need() -> None:
    sizes = {"diskMib": 1024, "hugepageSize": "1Gi", "backend": "spdk"}
    config = loaded(numinst=3, machines=rack(), vhost=sizes, vm={"memoryMib": 4096, "hugepageSize": "1Gi"})
    two, one = needs(config, "worker1", "spdk"), needs(config, "worker4", "spdk")
    assert int(two["MEMORY_MIB"]) - int(one["MEMORY_MIB"]) == 4096 + 1024, "a VM, and its disk"
    pages = [int(of["HUGEPAGES"].removeprefix("1Gi=")) for of in (two, one)]
    assert pages[0] - pages[1] == 4
    assert (two["AT"], one["AT"]) == ("machines.storage[0]", "machines.storage[1]")
    assert one["VMS"] == "10.1.2.16=DE:AD:BE:EF:01:44=machines.storage[1].vms[0]"
    first, second = budgets.in_words(config, "spdk").splitlines()
    assert first.startswith("budget of worker1: ")
    assert "2 VMs, each 4096 MiB" in first
    assert second.startswith("budget of worker4: ")
    assert "VM 4096 MiB" in second


def test_devices_are_those_of_the_host_or_of_all() -> None:
    bdev = {"backend": "spdk", "bdev": "nvme", "hugepageSize": "2Mi"}
    shared = [f"0000:7{n}:00.0" for n in range(4)]
    own = ["0000:5e:00.0", "0000:5f:00.0"]
    config = loaded(machines=rack(**{"1.devices": own}), vhost={**bdev, "devices": shared})
    assert config.devices("worker1") == tuple(shared)
    assert config.devices("worker4") == tuple(own)
    made = run_program(machines=rack(**{"1.devices": own}), vhost={**bdev, "source": "images", "devices": shared})
    assert "0000:5e:00.0 0000:5f:00.0" in made["cluster/cluster-worker4-devices"].inputs["stdin"]
    assert "0000:70:00.0" in made["cluster/cluster-worker1-devices"].inputs["stdin"]
    (few,) = problems(numinst=6, machines=rack(**{"1.devices": own[:1]}), vhost={**bdev, "devices": shared})
    assert few.startswith("spdk-k8s:machines.storage[1].devices = ")
    assert "each of a host's 2 instances needs a device of its own; mend: pulumi config set numinst 5" in few
    (mixed,) = problems(
        machines=rack(**{"1.devices": ["/dev/disk/by-id/wwn-0x5000c50000000001"]}), vhost={"bdev": "aio"}
    )
    assert "other storage hosts have none (worker1): all disks are on devices, or all in files" in mixed


def test_hosts_and_vms_have_names_numbers_and_disks_of_their_own() -> None:
    made = run_program(numinst=5, machines=rack(), vhost={"backend": "qemu-storage-daemon"})
    (stack,) = of_type(made, "pulumi:pulumi:Stack")
    assert stack.outputs["targets"] == {"cb-vhost-p0": [0, 1, 3, 4], "cb-vhost-p0-worker4": [2]}
    assert [disk["node"] for disk in stack.outputs["disks"]] == ["worker2", "worker3", "worker5", "worker2", "worker3"]
    assert [page.split("/")[2] for page in stack.outputs["pages"]] == [
        "10.1.2.13:8080", "10.1.2.14:8081", "10.1.2.16:8082", "10.1.2.13:8083", "10.1.2.14:8084"
    ]  # fmt: skip
    values = {
        vm: dict(re.findall(r"^(VM|MAC|TAP)=(\S+)$", made[f"{vm}/{vm}-vm"].inputs["stdin"].partition("TEXT=")[2], re.M))
        for vm in ("worker2", "worker3", "worker5")
    }
    assert {vm: found["VM"] for vm, found in values.items()} == {"worker2": "vm", "worker3": "vm-2", "worker5": "vm"}
    assert [found["MAC"][-2:] for found in values.values()] == ["41", "42", "44"]
    at = {vm: made[f"{vm}/{vm}-vm"].inputs["connection"]["host"] for vm in values}
    assert at == {"worker2": "10.1.2.12", "worker3": "10.1.2.12", "worker5": "10.1.2.15"}


def test_a_storage_host_may_have_no_vm_yet() -> None:
    bare = rack(**{"0.vms": [], "1.vms.0.gateway": "10.1.2.1"})
    made = run_program(machines=bare, vhost={"backend": "qemu-storage-daemon"})
    (stack,) = of_type(made, "pulumi:pulumi:Stack")
    assert stack.outputs["targets"] == {"cb-vhost-p0": [], "cb-vhost-p0-worker4": [0, 1, 2]}
    assert stack.outputs["accel"] == "tcg"
    config = loaded(machines=bare)
    assert needs(config, "worker1", "spdk")["AT"] == "machines.storage[0]"
    assert "no VM" in budgets.in_words(config, "spdk")


def test_others_notice_nothing_of_a_host_or_vm_that_comes_or_goes() -> None:
    """Their VMs, disks and targets keep every input; only routes name the new node."""
    more = {"name": "worker7", "address": "10.1.2.18", "user": "admin", "privateKey": PRIVATE_KEY, "hostKey": key("D")}
    vm = {"name": "worker8", "address": "10.1.2.19", "since": 5}
    whole = rack()
    grown = {**whole, "storage": [{**more, "vms": [vm]}, *whole["storage"]]}
    second = rack(**{"1.vms": [{"name": "worker6", "address": "10.1.2.17", "since": 5}, *whole["storage"][1]["vms"]]})
    drained = {**rack(**{"0.vms": whole["storage"][0]["vms"][:1]}), "moved": {"1": "worker5/1", "4": "worker5/2"}}
    quiet = {"numinst": 5, "vhost": {"backend": "qemu-storage-daemon"}}
    before = run_program(machines=whole, **quiet)
    for other, itself in ((grown, {"worker7", "worker8"}), (second, {"worker6"}), (drained, {"worker3"})):
        after = run_program(machines=other, **quiet)
        for path in before.keys() ^ after.keys():
            assert any(name in path for name in itself), path
        for path in before.keys() & after.keys():
            name = before[path].name
            if name.endswith(("-vm", "-drained")) or (path.startswith("video/video-disk-") and other is not drained):
                assert before[path].inputs == after[path].inputs, path
            cni = [
                re.findall("^CNI_CONFIG=.*?(?=^[A-Z_]+=)", of[path].inputs.get("stdin", ""), re.M | re.S)
                for of in (before, after)
            ]
            assert cni[0] == cni[1], path


# --- program ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> dict[str, Registered]:
    return run_program(machines=servers(), vhost=TARGET)


def test_servers_get_the_same_steps_as_containers(lab: dict[str, Registered]) -> None:
    of_lab, of_dev = (
        {r.name.removeprefix(f"{where}-") for r in of_type(of, STEP)}
        for where, of in (("lab", lab), ("dev", run_program(vhost=TARGET)))
    )
    assert of_lab - of_dev == {"master-preflight", "worker1-preflight", "worker1-behind"}
    assert not of_dev - of_lab
    assert not of_type(lab, "docker:index/container:Container")


def test_whatever_changes_a_server_is_undone(lab: dict[str, Registered]) -> None:
    for step in of_type(lab, STEP):
        of_cluster = step.path.startswith("cluster/") and "ready" in step.name
        if of_cluster or step.name.endswith(("-preflight", "-behind", "-drained", "-answers", "-disks", "-released")):
            assert "delete" not in step.inputs, step.path
        else:
            assert step.inputs["delete"].endswith("bash -s down"), step.path
        if step.inputs["connection"]["host"] == "10.1.2.13":
            assert step.deleted_with == "worker2/worker2-vm", step.path  # the VM is deleted as a whole
        else:
            assert step.deleted_with == "", step.path


def test_a_server_keeps_what_undoes_a_step_and_no_secret_with_it(lab: dict[str, Registered]) -> None:
    """Pulumi cannot undo a step whose `up` failed. The undo of ready.sh does."""
    for step in of_type(lab, STEP):
        _, keeps, kept = f"\n{step.inputs['stdin']}".partition("\nTEXT='")
        assert bool(keeps) == ("delete" in step.inputs and step.deleted_with == ""), step.path
        assert not keeps or f"UNDO={step.name}\n" in kept
        assert "PRIVATE" not in kept, step.path
    assert "PRIVATE" in lab["cluster/cluster-worker1-join"].inputs["stdin"]
    of_dev = run_program(vhost=TARGET)
    assert not any("\nTEXT='" in f"\n{step.inputs['stdin']}" for step in of_type(of_dev, STEP)), "it goes as a whole"


def test_nothing_changes_on_a_server_before_all_may_serve(lab: dict[str, Registered]) -> None:
    for name in ("master", "worker1"):
        assert lab[f"lab/lab-{name}-ready"].dependencies >= {"lab/lab-master-preflight", "lab/lab-worker1-preflight"}
        assert f"lab/lab-{name}-reach" in lab[f"lab/lab-{name}-preflight"].dependencies


def test_a_user_with_sudo_is_enough_and_preflight_needs_not_even_that(lab: dict[str, Registered]) -> None:
    for step in of_type(lab, STEP):
        connection = step.inputs["connection"]
        if connection["host"] == "10.1.2.13":  # the VM, which the program creates
            assert connection["user"] == "root"
        else:
            assert connection["user"] == "admin"
            looks = step.name.endswith(("-preflight", "-behind"))
            assert ("sudo -n " in step.inputs["create"]) != looks, step.path


def test_a_jump_host_leads_to_the_server_and_its_vm(lab: dict[str, Registered]) -> None:
    ways = [step.inputs["connection"] for step in of_type(lab, STEP)]
    through = {way["host"]: way.get("proxy", {}).get("host") for way in ways}
    assert through == {"10.1.2.11": None, "10.1.2.12": "10.9.9.9", "10.1.2.13": "10.9.9.9", "10.9.9.9": None}
    assert all(way["proxy"]["hostKey"] and way["proxy"]["port"] == 2222 for way in ways if "proxy" in way)
    first, behind = (lab[f"lab/lab-worker1-{look}"] for look in ("reach", "behind"))
    assert first.inputs["stdin"].startswith("ADDRESS=10.9.9.9\nAT=machines.worker1.jumpHost\n")
    assert behind.inputs["stdin"].startswith("ADDRESS=10.1.2.12\nAT=machines.worker1\n")
    assert (behind.inputs["connection"]["host"], behind.dependencies) == ("10.9.9.9", {"lab/lab-worker1-reach"})
    assert "lab/lab-worker1-behind" in lab["lab/lab-worker1-preflight"].dependencies


def test_private_keys_are_secret_wherever_they_are(lab: dict[str, Registered]) -> None:
    for resource in lab.values():
        for name, value in resource.inputs.items():
            assert "s3cret" not in json.dumps(value) or name in resource.secret_inputs, (resource.path, name)


def test_the_clock_is_compared_once_and_changes_nothing_later(lab: dict[str, Registered]) -> None:
    for step in of_type(lab, STEP):
        looks = step.name.endswith(("-preflight", "-behind"))
        assert ("NOW=" in step.inputs["create"]) == looks
        assert list(step.request.ignoreChanges) == (["create"] if looks else [])
        assert "NOW=" not in step.inputs["update"]


@pytest.mark.parametrize("shown", ["container", "machine"])
def test_what_suits_only_a_container_is_asked_of_the_machine(monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    from tests.unit import recorder

    monkeypatch.setitem(recorder.STDOUT, "-ready", shown)
    made = recorder.record(recorder.main, {"machines": servers(), "vhost": TARGET})
    for step in ("cluster/cluster-control-plane", "cluster/cluster-worker1-join"):
        assert ("SystemVerification" in made[step].inputs["stdin"]) == (shown == "container")
    assert "SystemVerification" not in made["cluster/cluster-worker2-join"].inputs["stdin"]
