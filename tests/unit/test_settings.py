"""What a user of `pulumi config set` meets: good values pass, every bad one is named with its remedy, all at once."""

import json

import pytest

from components import settings

pytestmark = pytest.mark.unit


def load(**keys: object) -> settings.Settings:
    return settings.load({f"spdk-k8s:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in keys.items()})


def problems(**keys: object) -> list[str]:
    with pytest.raises(settings.ConfigError) as caught:
        load(**keys)
    assert "nothing was started" in str(caught.value)
    return caught.value.problems


def test_an_empty_config_is_the_dev_stack() -> None:
    config = load()
    assert config.numinst == 3
    assert isinstance(config.machines, settings.Containers)
    assert str(config.machines.addresses["worker2"]) == "172.30.97.4"


@pytest.mark.parametrize("value", ["0", "-1", "129", "1000", "three", "true", "3.5", '"3"', "[3]"])
def test_numinst_must_be_a_whole_number_from_1_to_128(value: str) -> None:
    (problem,) = problems(numinst=value)
    assert "spdk-k8s:numinst = " in problem
    assert value.strip("[]\"'") in problem
    assert "whole number from 1 to 128" in problem
    assert "pulumi config set numinst 3" in problem


@pytest.mark.parametrize(
    ("keys", "named", "remedy"),
    [
        ({"numnist": 3}, "did you mean spdk-k8s:numinst?", "pulumi config rm numnist"),
        ({"vm": {"memoryMB": 4096}}, "did you mean spdk-k8s:vm.memoryMib?", "pulumi config rm --path vm.memoryMB"),
        ({"vm": {"vcpus": "2"}}, 'spdk-k8s:vm.vcpus = "2"', "pulumi config set --path vm.vcpus 2"),
        ({"vm": {"accel": "fast"}}, "'auto', 'kvm' or 'tcg'", "pulumi config set --path vm.accel auto"),
        ({"vm": {"queues": 4}}, "must not exceed vm.vcpus (2)", "pulumi config set --path vm.queues 2"),
        ({"numinst": 40}, "must be at least numinst (40)", "pulumi config set --path vm.diskSlots 40"),
        ({"machines": {"kind": "cloud"}}, "spdk-k8s:machines.kind", "--path machines.kind containers"),
        ({"machines": {"subnet": "172.30.97.9/24"}}, "has host bits set", "--path machines.subnet 172.30.97.0/24"),
        ({"machines": {"subnet": "172.30.97.0/29"}}, "/28 or larger", "--path machines.subnet"),
        ({"machines": {"subnet": "10.244.3.0/24"}}, "must not overlap spdk-k8s:cluster.podCidr", "machines.subnet"),
        ({"cluster": {"podCidr": "10.96.0.0/16"}}, "must not overlap spdk-k8s:cluster.serviceCidr", "podCidr"),
        ({"video": {"httpPort": 1936}}, "overlap the HTTP ports", "--path video.rtmpPort"),
        ({"video": {"httpPort": 6442}}, "[6443], which a node needs itself", "--path video.httpPort 8080"),
        ({"video": {"rtmpPort": 65534}}, "go beyond 65535", "--path video.rtmpPort 1935"),
        ({"registry": {"port": 6443}}, "a port that a node needs itself", "--path registry.port 5000"),
        ({"vhost": {"memoryMib": 300}}, "3 disks x 128 MiB", "--path vhost.memoryMib 896"),
        (
            {"vhost": {"hugepageSize": "1Gi", "memoryMib": 4608}},
            "multiple of vhost.hugepageSize (1Gi)",
            "--path vhost.memoryMib 5120",
        ),
        ({"vm": {"hugepageSize": "2Mi", "memoryMib": 2049}}, "multiple of vm.hugepageSize", "--path vm.memoryMib 2050"),
        ({"vhost": {"cpuMask": "0-5"}}, 'spdk-k8s:vhost.cpuMask = "0-5"', "--path vhost.cpuMask 0x1"),
        ({"vhost": {"devices": ["/dev/sdb"]}}, "bdev malloc has none", "--path vhost.devices '[]'"),
        ({"vhost": {"bdev": "aio", "devices": ["/dev/sdb"]}}, "each of 3 instances", "--path vhost.devices"),
        ({"vhost": {"bdev": "aio", "devices": ["sdb"]}}, "must be like /dev/sdb", "--path vhost.devices"),
        ({"numinst": 2, "vhost": {"bdev": "aio", "devices": ["/dev/sdb", "/dev/sdb"]}}, "names one twice", "devices"),
        ({"vhost": {"bdev": "nvme"}}, "only SPDK serves bdev nvme", "--path vhost.backend spdk"),
        ({"vhost": {"bdev": "nvme", "backend": "spdk"}}, "need memory on hugepages", "--path vhost.hugepageSize 2Mi"),
        ({"video": {"cpuRequest": "1"}}, "must fit into the VM's 2 vCPUs", "--path video.cpuRequest 600m"),
    ],
)
def test_a_broken_rule_names_key_and_remedy(keys: dict[str, object], named: str, remedy: str) -> None:
    found = problems(**keys)
    assert any(named in problem and remedy in problem for problem in found), found


def test_all_broken_rules_come_at_once() -> None:
    found = problems(numinst=0, vm={"vcpus": 0, "cpus": 1}, vhost={"diskMib": 1})
    assert len(found) == 4


def test_a_secret_is_not_shown_in_an_error() -> None:
    host = {"address": "192.0.2.1", "hostKey": "ssh-ed25519 AAAA", "privateKey": ["s3cret"]}
    found = problems(machines={"kind": "ssh", "master": host, "worker1": host, "worker2": {"address": "192.0.2.3"}})
    assert found
    assert "s3cret" not in "".join(found)


def test_other_namespaces_are_left_alone() -> None:
    assert settings.load({"pulumi:disable-default-providers": "[]"}).numinst == 3


@pytest.mark.parametrize("count", [1, 2, 3, 24, 32])
def test_the_memory_budget_holds_all_disks(count: int) -> None:
    config = load(numinst=count)
    assert config.vhost_memory_mib >= count * config.vhost.disk_mib


@pytest.mark.parametrize(
    ("keys", "cpus", "release", "backend", "reason"),
    [
        ({}, 8, True, "spdk", "of 8 CPUs one can be spared"),
        ({}, 8, False, "qemu-storage-daemon", "vhost.source names no folder"),
        ({}, 2, True, "qemu-storage-daemon", "2 CPUs are less than 4"),
        ({"source": "/usr/src/spdk"}, 4, False, "spdk", "can be had"),
        ({"backend": "spdk"}, 1, False, "spdk", "it is configured"),
    ],
)
def test_auto_chooses_spdk_where_it_can_run(
    keys: dict[str, object], cpus: int, release: bool, backend: str, reason: str
) -> None:
    chosen, why = load(vhost=keys).backend(cpus=cpus, release=release)
    assert chosen == backend
    assert reason in why


@pytest.mark.parametrize(("mask", "cores"), [("0x1", {0}), ("0x3f", {0, 1, 2, 3, 4, 5}), ("[0-2,5]", {0, 1, 2, 5})])
def test_a_cpu_mask_is_a_set_of_cores(mask: str, cores: set[int]) -> None:
    assert load(vhost={"cpuMask": mask}).vhost.cores == cores


def test_hugepages_are_those_of_target_and_vm_together() -> None:
    config = load(
        vhost={"hugepageSize": "2Mi", "memoryMib": 1024, "diskMib": 64},
        vm={"hugepageSize": "2Mi", "memoryMib": 2048},
    )
    assert config.hugepages("spdk") == {"2Mi": 1536}
    assert config.hugepages("qemu-storage-daemon") == {"2Mi": 1024}
    assert "1536 hugepages of 2Mi" in config.budget("spdk")
    assert load().hugepages("spdk") == {}
    assert load(vhost={"hugepageSize": "1Gi"}).hugepages("spdk") == {"1Gi": 5}
