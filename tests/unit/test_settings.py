"""Loading a config: good values pass; every bad value is reported with its remedy, all at once."""

import json

import pytest

from settings import budgets, models
from settings.load import ConfigError
from settings.load import load as load_raw

pytestmark = pytest.mark.unit


def load(**keys: object) -> models.Settings:
    return load_raw({f"spdk-k8s:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in keys.items()})


def problems(**keys: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**keys)
    assert "nothing was started" in str(caught.value)
    return caught.value.problems


def test_an_empty_config_is_the_dev_stack() -> None:
    config = load()
    assert config.numinst == 3
    assert isinstance(config.machines, models.Containers)
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
        ({"vm": {"accel": "fast"}}, "must be auto, kvm or tcg", "pulumi config set --path vm.accel auto"),
        ({"vm": {"queues": 4}}, "must not exceed vm.vcpus (2)", "pulumi config set --path vm.queues 2"),
        (
            {"numinst": 127, "vm": {"diskSlots": 128, "memoryMib": 4608}, "video": {"cpuRequest": "10m"}},
            "127 disks need more interrupt vectors",
            "pulumi config set --path vm.vcpus 3",
        ),
        (
            {"numinst": 40},
            "must be at least 40, the instances of the fullest VM",
            "pulumi config set --path vm.diskSlots 40",
        ),
        ({"machines": {"kind": "cloud"}}, "spdk-k8s:machines.kind", "--path machines.kind containers"),
        ({"machines": {"subnet": "172.30.97.9/24"}}, "has host bits set", "--path machines.subnet 172.30.97.0/24"),
        ({"machines": {"subnet": "172.30.97.0/29"}}, "/28 or larger", "--path machines.subnet"),
        ({"machines": {"subnet": "10.244.3.0/24"}}, "must not overlap spdk-k8s:cluster.podCidr", "machines.subnet"),
        ({"cluster": {"podCidr": "10.96.0.0/16"}}, "must not overlap spdk-k8s:cluster.serviceCidr", "podCidr"),
        ({"video": {"httpPort": 1936}}, "overlap the HTTP ports", "--path video.rtmpPort"),
        ({"video": {"httpPort": 6442}}, "[6443], which a node itself needs", "--path video.httpPort 8080"),
        ({"video": {"rtmpPort": 65534}}, "go beyond 65535", "--path video.rtmpPort 1935"),
        ({"registry": {"port": 6443}}, "a port that a node itself needs", "--path registry.port 5000"),
        ({"vhost": {"memoryMib": 300}}, "buffers for 32 disks must fit: 512 MiB", "--path vhost.memoryMib 512"),
        (
            {"vhost": {"hugepageSize": "1Gi", "memoryMib": 4608}},
            "multiple of vhost.hugepageSize (1Gi)",
            "--path vhost.memoryMib 5120",
        ),
        ({"vm": {"hugepageSize": "2Mi", "memoryMib": 2049}}, "multiple of vm.hugepageSize", "--path vm.memoryMib 2050"),
        ({"vhost": {"cpuMask": "0-5"}}, 'spdk-k8s:vhost.cpuMask = "0-5"', "--path vhost.cpuMask 0x1"),
        (
            {"vhost": {"devices": ["/dev/disk/by-id/wwn-0x5000c50000000001"]}},
            "bdev malloc uses no devices",
            "config rm --path vhost.devices",
        ),
        (
            {"vhost": {"bdev": "aio", "devices": ["/dev/disk/by-id/wwn-0x5000c50000000001"]}},
            "each of a host's 3 instances",
            "config set numinst 1",
        ),
        ({"vhost": {"bdev": "aio", "devices": ["/dev/sdb"]}}, "must be like /dev/disk/by-id/wwn", "'vhost.devices[0]'"),
        (
            {"vhost": {"bdev": "aio", "devices": ["sdb"]}},
            "must be like /dev/disk/by-id/wwn-0x5000c50000000001",
            "--path 'vhost.devices[0]' /dev/disk/by-id/wwn-0x5000c50000000001",
        ),
        (
            {
                "numinst": 2,
                "vhost": {
                    "bdev": "aio",
                    "devices": ["/dev/disk/by-id/wwn-0x5000c50000000001", "/dev/disk/by-id/wwn-0x5000c50000000001"],
                },
            },
            "is listed twice",
            "devices[1]' /dev/disk/by-id/wwn-0x5000c50000000002",
        ),
        ({"vhost": {"bdev": "nvme"}}, "only SPDK serves bdev nvme", "--path vhost.backend spdk"),
        ({"vhost": {"bdev": "nvme", "backend": "spdk"}}, "need memory on hugepages", "--path vhost.hugepageSize 2Mi"),
        ({"vhost": {"bdev": "nvme"}}, "needs the PCI addresses of its devices", "'vhost.devices[0]' 0000:5e:00.0"),
        (
            {"vhost": {"bdev": "nvme", "devices": ["/dev/disk/by-id/wwn-0x5000c50000000001"]}},
            "must be like 0000:5e:00.0",
            "[0]' 0000:5e:00.0",
        ),
        ({"vhost": {"qos": {"iops": 0}}}, "vhost.qos.iops = 0: must be a multiple of 1000", "rm --path vhost.qos.iops"),
        (
            {"vhost": {"qos": {"iops": -2000}}},
            "= -2000: must be a multiple of 1000 from 1000",
            "rm --path vhost.qos.iops",
        ),
        ({"vhost": {"qos": {"iops": 1}}}, "vhost.qos.iops = 1: must be", "the nearest: 1000; mend: pulumi config set"),
        ({"vhost": {"qos": {"iops": 1600}}}, "the nearest: 1000 and 2000", "set --path vhost.qos.iops 2000"),
        ({"vhost": {"qos": {"iops": 10**9}}}, "no disk is faster", "set --path vhost.qos.iops 10000000"),
        ({"vhost": {"qos": {"iops": True}}}, "= true: must be a multiple of 1000", "rm --path vhost.qos.iops"),
        ({"vhost": {"qos": {"mibPerSecond": 1.5}}}, "= 1.5: must be a whole number from 1", "qos.mibPerSecond"),
        ({"vhost": {"qos": {"readMibPerSecond": "fast"}}}, '= "fast": must be a whole', "vhost.qos.readMibPerSecond"),
        ({"vhost": {"qos": {"writeIops": 1000}}}, "there is no such key", "rm --path vhost.qos.writeIops"),
        ({"vhost": {"qos": {"disks": []}}}, "must be a map of ordinals to limits", "rm --path vhost.qos.disks"),
        (
            {"vhost": {"qos": {"disks": {"2": {"iops": 2500}}}}},
            "vhost.qos.disks.2.iops = 2500: must be",
            "set --path vhost.qos.disks.2.iops 2000",
        ),
        (
            {"vhost": {"qos": {"disks": {"3": {"iops": 2000}}}}},
            'vhost.qos.disks.3 = {"iops": 2000}: there is no disk 3: numinst is 3, so the disks are 0 to 2',
            "rm --path vhost.qos.disks.3",
        ),
        ({"vhost": {"qos": {"disks": {"02": {}}}}}, "there is no disk 02", "rm --path vhost.qos.disks.02"),
        (
            {"vhost": {"qos": {"mibPerSecond": 9, "readMibPerSecond": 5}}},
            "qemu-storage-daemon cannot keep both",
            "rm --path vhost.qos.mibPerSecond",
        ),
        (
            {"vhost": {"qos": {"mibPerSecond": 9, "disks": {"0": {"writeMibPerSecond": 5}}}}},
            "vhost.qos.disks.0.mibPerSecond = 9: a disk has either this limit or",
            "set --path vhost.qos.disks.0.mibPerSecond none",
        ),
        ({"vhost": {"cpuMask": "0x0"}}, "must name at least one core", "--path vhost.cpuMask 0x1"),
        ({"vhost": {"cpuMask": "[0-99999]"}}, "must be a mask (0x3f) or a list ([0-5])", "--path vhost.cpuMask 0x1"),
        ({"vhost": {"blockSize": 1024}}, "must be 512 or 4096", "--path vhost.blockSize 4096"),
        ({"vhost": {"diskMib": 1 << 21}}, "from 16 to 1048576", "--path vhost.diskMib 128"),
        ({"vhost": {"files": "disks"}}, "folder in /mnt or /srv", "--path vhost.files /var/lib/spdk-k8s/disks"),
        (
            {"vhost": {"devices": [1]}},
            "vhost.devices[0] = 1: must be text",
            "--path 'vhost.devices[0]' /dev/disk/by-id/wwn-0x5000c50000000001",
        ),
        ({"vhost": {"files": "/data/disks"}}, "folder in /mnt or /srv", "--path vhost.files /var/lib/spdk-k8s/disks"),
        ({"vhost": {"files": "/srv/../etc"}}, "folder in /mnt or /srv", "--path vhost.files"),
        ({"vhost": {"bdev": "aio", "files": "/srv/b"}}, "must be below /var", "vhost.files /var/lib/spdk-k8s/disks"),
        ({"vhost": {"files": "/mntfoo"}}, "folder in /mnt or /srv", "--path vhost.files"),
        ({"video": {"mediaDir": "/srv/movies"}}, "needs machines.kind ssh", "config rm --path video.mediaDir"),
        ({"video": {"mediaDir": "movies"}}, "must be an absolute path", "config rm --path video.mediaDir"),
        ({"video": {"cpuRequest": "1"}}, "must fit into the VM's 2 vCPUs", "--path video.cpuRequest 600m"),
        ({"video": {"cpuRequest": "half"}}, "whole CPUs (2) or thousandths of a CPU (500m)", "video.cpuRequest 50m"),
        ({"video": {"cpuLimit": "40m"}}, "not be less than video.cpuRequest (50m)", "--path video.cpuLimit 50m"),
        ({"video": {"httpPort": 80}}, "from 1024 to 65535", "--path video.httpPort 8080"),
        ({"video": {"rtmpPort": 8081}}, "overlap the HTTP ports 8080-8082", "--path video.rtmpPort 1935"),
        ({"registry": {"port": 0}}, "from 1024 to 65535", "--path registry.port 5000"),
        ({"registry": {"tls": "yes"}}, "must be true or false", "config rm --path registry.tls"),
        ({"vm": {"mac": "01:00:5E:00:00:01"}}, "must be a unicast MAC address", "--path vm.mac DE:AD:BE:EF:01:41"),
        ({"vm": {"vnc": "5902"}}, "must be a VNC display", "config rm --path vm.vnc"),
        ({"vm": {"vnc": ":543"}}, "its port is 6443: one that a node itself needs", "--path vm.vnc :2"),
        ({"vm": {"vnc": ":60000"}}, "its port is 65900: beyond 65535", "--path vm.vnc :2"),
        ({"vm": {"vnc": ":2"}, "machines": {"vmsPerHost": 2}}, "a host has several VMs", "rm --path vm.vnc"),
        ({"vm": {"memoryMib": 1536, "diskSlots": 64}, "numinst": 64}, "64 pods x 32 MiB", "--path vm.memoryMib 2560"),
        ({"vm": 3}, "spdk-k8s:vm", "must be a map of keys; mend: pulumi config rm vm"),
        ({"machines": 3}, "spdk-k8s:machines", "must be a map of keys; mend: pulumi config rm machines"),
        ({"machines": {"subnet": "127.0.0.0/24"}}, "a network of ordinary addresses", "machines.subnet 172.30.97.0/24"),
        ({"machines": {"subnet": "10.0.0.0/7"}}, "/8 or smaller", "--path machines.subnet 172.30.97.0/24"),
        ({"machines": {"subnet": "300.1.1.0/24"}}, "Octet 300", "--path machines.subnet 172.30.97.0/24"),
        ({"machines": {"subnet": 5}}, "must be an IPv4 network such as", "--path machines.subnet 172.30.97.0/24"),
        ({"machines": {"storageHosts": 9}}, "from 1 to 8", "--path machines.storageHosts 1"),
        (
            {"cluster": {"podCidr": "172.16.0.0/12"}},
            "must not overlap spdk-k8s:cluster.podCidr = 172.16.0.0/12",
            "--path machines.subnet 192.168.97.0/24",
        ),
        (
            {"cluster": {"podCidr": "10.244.0.0/20"}, "machines": {"storageHosts": 8, "vmsPerHost": 4}},
            "a /24 for each of 41 nodes (/18 or larger)",
            "--path cluster.podCidr 10.244.0.0/16",
        ),
        ({"cluster": {"podCidr": "10.244.0.0/24"}}, "/20 or larger", "--path cluster.podCidr 10.244.0.0/16"),
        ({"cluster": {"serviceCidr": "10.96.0.0/30"}}, "from /12 to /28", "cluster.serviceCidr 10.96.0.0/16"),
        (
            {"numinst": 40, "machines": {"vmsPerHost": 2}, "vm": {"memoryMib": 4096}},
            "must be at least 40, the instances of the fullest storage host: SPDK has buffers for no more",
            "--path vm.diskSlots 40",
        ),
        (
            {"machines": {"vmsPerHost": 2, "since": {"worker9": 3}}},
            "spdk-k8s:machines.since.worker9 = 3: there is no such VM: the VMs are worker2, worker3",
            "config rm --path machines.since.worker9",
        ),
        (
            {"machines": {"vmsPerHost": 2, "since": {"worker2": 1, "worker3": 3}}},
            "one VM must be there from the first instance on",
            "config rm --path machines.since.worker2",
        ),
        (
            {"machines": {"vmsPerHost": 2, "since": {"worker3": 129}}},
            "spdk-k8s:machines.since.worker3 = 129: must be a whole number from 0 to 128",
            "config rm --path machines.since.worker3",
        ),
        (
            {"machines": {"vmsPerHost": 2, "since": {"worker3": 33}}, "numinst": 34, "vm": {"memoryMib": 4096}},
            "must be at least 33, the instances of the fullest VM",
            "--path vm.diskSlots 40",
        ),
        (
            {"machines": {"since": 3}},
            "must be a map: a whole number from 0 to 128 for each name",
            "config rm --path machines.since",
        ),
        (
            {"vhost": {"hugepageSize": "1Gi", "memoryMib": 100}},
            "must fit: 1024 MiB",  # the remedy is in whole pages
            "--path vhost.memoryMib 1024",
        ),
    ],
)
def test_a_broken_rule_names_key_and_remedy(keys: dict[str, object], named: str, remedy: str) -> None:
    found = problems(**keys)
    assert any(named in problem and remedy in problem for problem in found), found


def test_an_exception_replaces_single_limits_of_the_default() -> None:
    exceptions = {"0": {"iops": "none"}, "2": {"iops": 2000, "writeMibPerSecond": 20}}
    qos = load(vhost={"qos": {"iops": 5000, "readMibPerSecond": 50, "disks": exceptions}}).vhost.qos
    assert [qos.of(i) for i in range(3)] == [
        {"readMibPerSecond": 50},
        {"iops": 5000, "readMibPerSecond": 50},
        {"iops": 2000, "readMibPerSecond": 50, "writeMibPerSecond": 20},
    ]
    assert load().vhost.qos.of(0) == {}


def test_all_broken_rules_come_at_once() -> None:
    found = problems(numinst=0, vm={"vcpus": 0, "cpus": 1}, vhost={"diskMib": 1})
    assert len(found) == 4


def test_rules_over_several_keys_come_with_those_about_one() -> None:
    first, second = problems(numinst="three", vm={"vcpus": 2, "queues": 4})
    assert "pulumi config set numinst 3" in first
    assert "must not exceed vm.vcpus (2)" in second


@pytest.mark.parametrize(
    ("vhost", "cpus", "named", "remedy"),
    [
        ({"cpuMask": "[0-5]"}, 4, "its cores are 0 to 3", "vhost.cpuMask 0x1"),
        ({"cpuMask": "0x3"}, 2, "must leave at least one of this machine's 2 CPUs", "vhost.cpuMask 0x1"),
        ({"cpuMask": "0x1"}, 1, "this machine has only one CPU", "vhost.backend qemu-storage-daemon"),
    ],
)
def test_spdk_polls_on_cores_that_the_machine_can_spare(
    vhost: dict[str, str], cpus: int, named: str, remedy: str
) -> None:
    raw = {"spdk-k8s:vhost": json.dumps({"backend": "spdk", **vhost})}
    with pytest.raises(ConfigError) as caught:
        load_raw(raw, cpus=cpus)
    (problem,) = caught.value.problems
    assert named in problem
    assert remedy in problem
    assert load_raw(raw, cpus=8).vhost.cores, "8 CPUs are enough"
    assert load_raw(raw).vhost.cores, "other hosts' CPUs are not known here"
    assert load_raw({"spdk-k8s:vhost": json.dumps(vhost)}, cpus=cpus).vhost.cores, "auto does without SPDK"


HOST = {"address": "192.0.2.1", "hostKey": "ssh-ed25519 AAAA", "privateKey": "s3cret"}


@pytest.mark.parametrize(
    "machines",
    [
        {"kind": "ssh", "master": {**HOST, "privateKey": ["s3cret"]}},
        {"kind": "ssh", "master": {**HOST, "privatKey": "s3cret"}},
        {"kind": "ssh", "master": [HOST]},
        {"kind": "ssh", "master": "s3cret"},
        {"kind": "ssh", "storage": HOST},
        {"kind": "ssh", "storage": ["s3cret"]},
        {"kind": "ssh", "storage": "s3cret"},
        {"kind": "ssh", "storage": [{**HOST, "privateKey": ["s3cret"], "vms": HOST}]},
        {"kind": "cloud", "master": HOST},
        {"kind": 3, "master": HOST},
        [HOST],
        '{"kind": "ssh", "master": {"privateKey": "s3cret"',
    ],
)
def test_a_secret_is_not_shown_in_an_error(machines: object) -> None:
    found = problems(machines=machines)
    assert found
    assert "s3cret" not in "".join(found)


def test_other_namespaces_are_left_alone() -> None:
    assert load_raw({"pulumi:disable-default-providers": "[]"}).numinst == 3


@pytest.mark.parametrize("count", [1, 2, 3, 24, 32])
def test_the_memory_budget_holds_all_disks(count: int) -> None:
    config = load(numinst=count)
    assert budgets.vhost_disks_mib(config, "spdk") >= count * config.vhost.disk_mib


@pytest.mark.parametrize(
    ("keys", "cpus", "release", "backend", "reason"),
    [
        ({}, 2, True, "spdk", "in interrupt mode it needs no core of its own"),
        ({"mode": "poll"}, 8, True, "spdk", "of 8 CPUs one can be spared"),
        ({}, 8, False, "qemu-storage-daemon", "vhost.source names no folder"),
        ({"mode": "poll"}, 2, True, "qemu-storage-daemon", "2 CPUs are less than 4"),
        ({"mode": "poll", "cpuMask": "0x3f"}, 8, True, "qemu-storage-daemon", "8 CPUs are less than 9"),
        ({"mode": "poll", "cpuMask": "0x3f"}, 9, True, "spdk", "of 9 CPUs 6 can be spared"),
        ({"cpuMask": "[9]"}, 8, True, "qemu-storage-daemon", "names core 9, and 8 CPUs end at 7"),
        ({"source": "/usr/src/spdk"}, 4, False, "spdk", "can be had"),
        ({"backend": "spdk"}, 1, False, "spdk", "it is configured"),
    ],
)
def test_auto_chooses_spdk_where_it_can_run(
    keys: dict[str, object], cpus: int, release: bool, backend: str, reason: str
) -> None:
    chosen, why = budgets.choose_backend(load(vhost=keys), cpus=cpus, release=release)
    assert chosen == backend
    assert reason in why


@pytest.mark.parametrize(
    ("mask", "cores"), [("0x1", {0}), ("0x3f", {0, 1, 2, 3, 4, 5}), ("[0-2,5]", {0, 1, 2, 5}), ("[2-0]", {0, 1, 2})]
)
def test_a_cpu_mask_is_a_set_of_cores(mask: str, cores: set[int]) -> None:
    assert load(vhost={"cpuMask": mask}).vhost.cores == cores


def test_hugepages_are_those_of_target_and_vm_together() -> None:
    config = load(
        vhost={"hugepageSize": "2Mi", "memoryMib": 1024, "diskMib": 64},
        vm={"hugepageSize": "2Mi", "memoryMib": 2048},
    )
    assert budgets.hugepages(config, "spdk", "worker1") == {"2Mi": 1536}
    assert budgets.hugepages(config, "qemu-storage-daemon", "worker1") == {"2Mi": 1024}
    assert "1536 hugepages of 2Mi" in budgets.in_words(config, "spdk")
    assert budgets.hugepages(load(), "spdk", "worker1") == {}
    assert budgets.hugepages(load(vhost={"hugepageSize": "1Gi"}), "spdk", "worker1") == {"1Gi": 1}


def test_the_machines_memory_holds_all_targets_and_vms() -> None:
    one = budgets.machine_memory_mib(load(), "spdk")
    assert one == 3 * 128 + (256 + 32 * 8) + 3072 + 1536
    assert budgets.machine_memory_mib(load(machines={"storageHosts": 2}), "spdk") == one + (256 + 32 * 8) + 3072
    assert budgets.machine_memory_mib(load(vhost={"bdev": "aio"}), "spdk") == one - 3 * 128
    # hugepages are taken at once, but hold no disks
    on_hugepages = load(vhost={"hugepageSize": "2Mi", "memoryMib": 2048})
    assert budgets.machine_memory_mib(on_hugepages, "spdk") == one + 2048 - (256 + 32 * 8)
    assert budgets.machine_memory_mib(on_hugepages, "qemu-storage-daemon") == one


def test_numbers_that_pulumi_makes_of_digits_are_taken_as_text() -> None:
    assert load(video={"cpuRequest": "20m", "cpuLimit": 1}).video.cpu_limit == "1"
