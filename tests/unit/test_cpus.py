"""The CPU plan: what is refused, what it makes of the program's resources, and how a storage host keeps it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from components.hosts import SCRIPTS, script
from operate import check, status, view
from render.cpus import cpu_plan, pinned
from render.preflight import needs
from settings import budgets, cores
from settings.load import ConfigError, load
from settings.models import Cpus, Settings
from tests.unit.fake_cluster import FakeCluster, made
from tests.unit.recorder import Registered, run_program
from tests.unit.test_graph import SERVER, assignments

pytestmark = pytest.mark.unit

QEMU = {"backend": "qemu-storage-daemon"}
LAB = {
    "kind": "ssh",
    "master": {"address": "10.1.2.11", **SERVER},
    "worker1": {"address": "10.1.2.12", **SERVER, "hostKey": "ssh-ed25519 AAAAB"},
    "worker2": {"address": "10.1.2.13", "gateway": "10.1.2.1"},
}
# the original system's
SPDK = {"backend": "spdk", "source": "images", "hugepageSize": "1Gi", "memoryMib": 30720}
ORIGINAL: dict[str, Any] = {
    "machines": LAB,
    "cpus": {"target": "0-5", "vms": ["12-23"], "system": "6-11"},
    "vhost": SPDK,
    "vm": {"vcpus": 12, "memoryMib": 8192, "hugepageSize": "1Gi", "diskSlots": 24},
}


def loaded(count: int | None = None, **config: object) -> Settings:
    """count: CPUs of this machine."""
    return load({f"spdk-k8s:{key}": json.dumps(value) for key, value in config.items()}, cpus=count)


def problems(count: int | None = None, **config: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(count, **config)
    return caught.value.problems


# --- the config ------------------------------------------------------------------------------------------------------


def test_lists_of_cores() -> None:
    assert cores.numbers("0-2,7,5") == [0, 1, 2, 7, 5]
    assert cores.ranges([7, 5, 1, 0, 2]) == "0-2,5,7"
    assert cores.ranges([]) == ""


def test_a_core_may_be_a_number_as_pulumi_stores_it() -> None:
    plan = loaded(2, cpus={"vms": [1], "system": 0}, vm={"vcpus": 1}).cpus
    assert plan.roles == {"vms[0]": "1", "system": "0"}


@pytest.mark.parametrize(
    ("plan", "vcpus", "said", "mend"),
    [
        ({"target": "0-3,2"}, 2, 'cpus.target = "0-3,2": names core 2 twice', "config rm --path cpus.target"),
        ({"target": "5-2"}, 2, "5-2 must begin with the lower core", "config rm --path cpus.target"),
        ({"target": "0x3"}, 2, "must be a list of CPU cores such as 0-5", "config rm --path cpus.target"),
        ({"target": "0-5", "vms": ["5-6"]}, 2, "core 5 is also in spdk-k8s:cpus.target", "rm --path cpus.vms"),
        ({"target": "0-1", "system": "1-3"}, 2, "core 1 is also in spdk-k8s:cpus.target", "cpus.system 2-3"),
        ({"vms": ["1-2", "2-3"]}, 2, "core 2 is also in spdk-k8s:cpus.vms[0]", "rm --path cpus.vms"),
        ({"vms": ["1-2"], "emulator": "2"}, 2, "core 2 is also in spdk-k8s:cpus.vms[0]", "rm --path cpus.emulator"),
        ({"vms": ["1-3"]}, 4, "must name 4 cores, one for each vCPU (vm.vcpus)", "'cpus.vms[0]' 1-4"),
        ({"vms": ["1-5"]}, 4, "must name 4 cores, one for each vCPU (vm.vcpus)", "'cpus.vms[0]' 1-4"),
        ({"vms": ["1-2"], "system": "0,3-7"}, 4, "must name 4 cores", "rm --path cpus.vms"),
        ({"target": "8"}, 2, "names core 8, which this machine does not have: its cores are 0 to 7", "cpus.target"),
        ({"target": "0-3", "vms": ["4-7"]}, 4, "leaves none of this machine's 8 cores for the system", "cpus.vms"),
        ({"sytem": "0"}, 2, "did you mean spdk-k8s:cpus.system?", "rm --path cpus.sytem"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(plan: dict[str, Any], vcpus: int, said: str, mend: str) -> None:
    found = problems(8, cpus=plan, vm={"vcpus": vcpus}, vhost=QEMU)
    assert any(said in problem and mend in problem.partition("; mend: ")[2] for problem in found), found


def test_the_plan_takes_the_place_of_the_mask() -> None:
    (found,) = problems(cpus={"target": "0-5"}, vhost={**SPDK, "cpuMask": "0x1"}, machines=LAB)
    assert 'vhost.cpuMask = "0x1": names other cores than cpus.target (0-5)' in found
    assert found.endswith("mend: pulumi config rm --path vhost.cpuMask")
    same = loaded(cpus={"target": "0-5"}, vhost={**SPDK, "cpuMask": "[0-5]"}, machines=LAB)
    assert same.target_mask == "[0-5]"
    assert loaded(**ORIGINAL).target_cores == frozenset(range(6))


def test_spdk_polls_on_cores_of_the_plan() -> None:
    (found,) = problems(8, cpus={"system": "1-7"}, vhost={"backend": "spdk"})
    assert "cpus.target: is required in a plan with SPDK" in found
    assert found.endswith("pulumi config set --path cpus.target 0")
    backend, reason = budgets.choose_backend(loaded(8, cpus={"system": "1-7"}), cpus=8, release=True)
    assert (backend, reason) == ("qemu-storage-daemon", "the CPU plan has no cores for SPDK (cpus.target)")
    assert budgets.choose_backend(loaded(8, cpus={"target": "0"}), cpus=8, release=True)[0] == "spdk"


def test_two_storage_hosts_on_one_machine_have_no_plan() -> None:
    (found,) = problems(8, cpus={"system": "0"}, machines={"storageHosts": 2}, vhost=QEMU)
    assert "2 storage hosts on one machine would have the same cores" in found


def test_a_server_needs_every_core_of_the_plan() -> None:
    config = loaded(**ORIGINAL)
    assert budgets.storage_host_cpus(config, "spdk") == 24
    assert needs(config, "worker1", "spdk")["ROLES"] == "target=0-5 vms[0]=12-23 system=6-11"
    assert "ROLES" not in needs(loaded(machines=LAB), "worker1", "spdk")
    assert "ROLES" not in needs(config, "master", "spdk")
    tight = loaded(machines=LAB, cpus={"target": "0-1", "vms": ["2-3"]}, vhost=QEMU)
    assert budgets.storage_host_cpus(tight, "qemu-storage-daemon") == 5, "one is the system's"


def test_hugepages_are_beside_their_cores() -> None:
    assert budgets.hugepages(loaded(**ORIGINAL), "spdk", "worker1") == {"1Gi@12-23": 8, "1Gi@0-5": 30}
    half = loaded(**{**ORIGINAL, "cpus": {"target": "0-5"}})
    assert budgets.hugepages(half, "spdk", "worker1") == {"1Gi": 8, "1Gi@0-5": 30}


def test_what_the_host_is_told() -> None:
    plan = Cpus(target="0-5", vms=("12-15", "16-19", "20-23"))
    assert json.loads(cpu_plan(plan, ["vm", "vm-2"])) == {
        "target": "0-5", "vms": {"vm": "12-15", "vm-2": "16-19"}, "kept": "20-23", "emulator": "", "system": "",
    }  # fmt: skip
    assert pinned(Cpus(emulator="1"), ["vm", "vm-2"]) == {"vm": "", "vm-2": ""}, (
        "vCPUs without cores are with QEMU's own threads"
    )
    assert pinned(Cpus(vms=("2-3",)), ["vm", "vm-2"]) == {"vm": "2-3"}
    assert plan.no_pods == "12-23"


# --- the program's resources -----------------------------------------------------------------------------------------


def values(graph: dict[str, Registered], path: str) -> dict[str, str]:
    text = graph[path].inputs["stdin"]
    if text.endswith('\neval "$TEXT"\n'):  # a step that leaves its undo on the machine
        text = next(word for word in shlex.split(text) if word.startswith("TEXT=")).removeprefix("TEXT=")
    return assignments(text)


def test_the_original_plan_in_the_programs_resources() -> None:
    graph = run_program(**ORIGINAL)
    step = values(graph, "cluster/cluster-worker1-cpus")
    assert (step["VMS"], step["ROLES"]) == ("vm", "target=0-5 vms[0]=12-23 system=6-11")
    assert "cluster/cluster-worker1-cpus" in graph["cluster/cluster-worker1-node"].dependencies
    assert values(graph, "cluster/cluster-worker1-node")["RESERVED_CPUS"] == "12-23"
    assert "RESERVED_CPUS" not in values(graph, "cluster/cluster-master-node")
    assert values(graph, "cluster/cluster-worker1-hugepages")["HUGEPAGES"] == "1Gi@12-23=8 1Gi@0-5=30"
    vm = values(graph, "worker2/worker2-vm")
    assert vm["CORES"] == "12-23"
    assert "hugetlbsize=1G@NUMA@\n" in vm["QEMU_ARGS"]
    pod = graph["vhost/vhost"].inputs["spec"]["template"]["spec"]
    (target,) = pod["containers"]
    assert target["args"][target["args"].index("-m") + 1] == "[0-5]"


@pytest.mark.parametrize("config", [ORIGINAL, {"cpus": {"target": "1"}, "vhost": QEMU}])
def test_the_targets_pod_is_guaranteed_and_no_quota_stops_a_reactor(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (target,) = run_program(**config)["vhost/vhost"].inputs["spec"]["template"]["spec"]["containers"]
    requests, limits = (target["resources"][key] for key in ("requests", "limits"))
    for resource in ("cpu", "memory"):
        assert requests[resource] == limits[resource]
    assert int(limits["cpu"]) == len(cores.numbers(config["cpus"]["target"])) + 1


def test_without_a_plan_nothing_is_pinned_and_no_text_differs() -> None:
    graph = run_program(vhost=QEMU)
    assert not [path for path in graph if path.endswith("-cpus")]
    assert "CORES" not in values(graph, "worker2/worker2-vm")
    assert "NUMA" not in values(graph, "worker2/worker2-vm")["QEMU_ARGS"]
    assert "RESERVED_CPUS" not in values(graph, "cluster/cluster-worker1-node")
    (target,) = graph["vhost/vhost"].inputs["spec"]["template"]["spec"]["containers"]
    assert "cpu" not in target["resources"]["limits"]


def test_a_vm_that_may_come_has_its_cores_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    config: dict[str, Any] = {"cpus": {"vms": ["2-3", "4-5"]}, "vhost": QEMU}
    one = run_program(**config)
    two = run_program(**config, machines={"vmsPerHost": 2, "since": {"worker3": 3}})
    assert one["vhost/vhost"].inputs == two["vhost/vhost"].inputs
    assert values(one, "worker2/worker2-vm") == values(two, "worker2/worker2-vm"), "the first VM is left alone"
    assert values(two, "worker3/worker3-vm")["CORES"] == "4-5"


def test_every_pod_has_requests_and_limits_of_what_it_can_use_up() -> None:
    graph = run_program(vhost=QEMU)
    for path in ("vhost/vhost", "video/video"):
        (container,) = graph[path].inputs["spec"]["template"]["spec"]["containers"]
        requests, limits = (container["resources"][key] for key in ("requests", "limits"))
        assert requests["ephemeral-storage"] == "16Mi"
        assert limits["ephemeral-storage"] == "128Mi"
        assert {"cpu", "memory"} <= requests.keys()
        assert "memory" in limits


# --- the checks on a machine -----------------------------------------------------------------------------------------


class Machine:
    """/sys of a machine of 8 cores: hyperthreads 0+4, 1+5, 2+6, 3+7; NUMA node 0 has the cores 0, 1, 4, 5."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for core in range(8):
            folder = root / f"devices/system/cpu/cpu{core}"
            (folder / "topology").mkdir(parents=True)
            (folder / "topology/thread_siblings_list").write_text(f"{core % 4},{core % 4 + 4}\n")
            (folder / f"node{core % 4 // 2}").mkdir()
        for node in range(2):
            for size in ("2048", "1048576"):
                (root / f"devices/system/node/node{node}/hugepages/hugepages-{size}kB").mkdir(parents=True)
        self.write(online="0-7", isolated="")

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.root / "devices/system/cpu" / name).write_text(f"{text}\n")

    def run(self, call: str, **given: str) -> list[str]:
        text = script("hugepages", {"SYS": str(self.root), **given}).rpartition('main "$@"')[0]
        done = subprocess.run(["bash", "-c", f"{text}\n{call}"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def flaws(self, roles: str) -> list[str]:
        return self.run("plan_flaws", ROLES=roles)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_plan_that_fits_a_machine(machine: Machine) -> None:
    assert machine.flaws("target=1,5 vms[0]=0,4 system=2-3,6-7") == []
    assert machine.flaws("target=2-3,6-7") == []


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("target=8", "FAIL|cpus.target names core 8, which is not there|cores of 0-7"),
        ("vms[0]=0-1,2", "FAIL|cpus.vms[0] is on the NUMA nodes 0 1|cores of one of them"),
        ("target=1-2", "FAIL|cpus.target is on the NUMA nodes 0 1|cores of one of them"),
        ("system=0-7", ""),
        ("vms[0]=0,1,4,5 vms[1]=2,3,6,7", "FAIL|the plan leaves no core for the system|fewer cores in cpus.vms"),
        (
            "target=0,1 vms[0]=4 system=2-3",
            "warn|hyperthreads of one core in two roles: 0 (cpus.target) and 4 (cpus.vms[0])|",
        ),
        (
            "target=0,4 vms[0]=2,6",
            "warn|cpus.vms[0] is on NUMA node 1, cpus.target on 0|each I/O of this VM crosses nodes",
        ),
        ("vms[0]=2", "warn|hyperthreads of one core in two roles: 2 (cpus.vms[0]) and 6 (cpus.system)|"),
    ],
)
def test_what_is_wrong_with_a_plan_on_a_machine(machine: Machine, roles: str, said: str) -> None:
    found = machine.flaws(roles)
    assert any(line.startswith(said) for line in found) if said else not found, found


def test_offline_and_isolated_cores_are_refused(machine: Machine) -> None:
    machine.write(online="0-5,7", isolated="2,3")
    offline, isolated = machine.flaws("target=2 system=0,6")[::-1][-2:]
    assert {offline.split("|")[1], isolated.split("|")[1]} == {
        "cpus.target names core 2, which the kernel isolates",
        "cpus.system names core 6, which is offline",
    }


def test_the_preflight_refuses_and_warns_in_its_table(machine: Machine) -> None:
    """Nothing is changed before: `plan` is one of its checks."""
    values = {"SYS": str(machine.root), "OWNER": "", "ADDRESS": "192.0.2.12", "HUGEPAGES": "1Gi@2=4"}
    for node in range(2):
        (machine.root / f"devices/system/node/node{node}/meminfo").write_text(f"Node {node} MemTotal:  3000000 kB\n")
    text = script("preflight", {**values, "ROLES": "target=9 vms[0]=0 system=1"}).rpartition('main "$@"')[0]
    done = subprocess.run(["bash", "-c", f"{text}\nplan; hugepages; table"], capture_output=True, text=True, timeout=30)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows if row[0] == "plan"] == [["plan", "FAIL"]]
    assert "NUMA node 1 has 2929 MiB, 4 pages of 1Gi are wanted there" in done.stdout
    text = text.replace("target=9", "target=4")
    done = subprocess.run(["bash", "-c", f"{text}\nplan; table"], capture_output=True, text=True, timeout=30)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows if row[0] == "plan"] == [["plan", "warn"], ["plan", "pass"]]


def test_the_preflight_of_a_dev_stack_refuses_before_anything_starts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    config: dict[str, Any] = {"cpus": {"target": "1", "system": "0"}, "vhost": QEMU}
    preflight = run_program(**config)["dev/dev-preflight"].inputs
    assert preflight["environment"].keys() == {"SCRIPT", "ROLES", "LIB"}
    assert run_program(vhost=QEMU)["dev/dev-preflight"].inputs["environment"].keys() == {"SCRIPT"}
    machine.write(online="0,2-7")
    environment = os.environ | preflight["environment"] | {"SYS": str(machine.root)}
    command = ["bash", "-c", environment.pop("SCRIPT"), "-", "192.0.2.0/24", "none", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "  - cpus.target names core 1, which is offline; remedy: echo 1 >" in done.stderr


def test_pages_are_on_the_node_of_their_cores(machine: Machine) -> None:
    assert machine.run("wants", HUGEPAGES="1Gi=3 1Gi@2,3=5 2Mi@1=7 2Mi@1-2=9") == [
        "1Gi 3",
        "1Gi@1 5",
        "2Mi@0 7",
        "2Mi 9",
    ]
    (folder,) = machine.run("hugepages_folder 1Gi@1")
    assert folder.endswith("devices/system/node/node1/hugepages/hugepages-1048576kB")


def test_a_machine_of_one_node_has_no_places(machine: Machine) -> None:
    (machine.root / "devices/system/node/node1").rename(machine.root / "gone")
    assert machine.run("wants", HUGEPAGES="1Gi@2,3=5") == ["1Gi 5"]


# --- the program that keeps the plan ---------------------------------------------------------------------------------


def program() -> Any:
    loader = SourceFileLoader("host_cpus", str(SCRIPTS / "host/cpus"))
    loader_spec = spec_from_loader("host_cpus", loader)
    assert loader_spec
    module = module_from_spec(loader_spec)
    sys.modules["host_cpus"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def host() -> Any:
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        return program()
    finally:
        sys.dont_write_bytecode = before


def test_the_system_has_what_the_plan_does_not_name(host: Any) -> None:
    plan = {"target": "0-1", "vms": {"vm": "3,2"}, "kept": "4", "emulator": "", "system": ""}
    parsed = host.Plan.parse(json.dumps(plan), "0-7\n")
    assert parsed.system == parsed.emulator == {5, 6, 7}
    assert parsed.vms["vm"] == [3, 2], "vCPU 0 is on the core that is named first"
    assert host.ranges(parsed.cores("pods")) == "0-1,5-7"
    parsed = host.Plan.parse(json.dumps({**plan, "emulator": "5", "system": "6"}), "0-7\n")
    assert (parsed.emulator, parsed.system) == ({5}, {6})


@pytest.mark.parametrize(
    ("cgroup", "guaranteed"),
    [
        ("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope\n", True),
        ("5:cpuset:/kubepods/pod1/2\n1:name=systemd:/kubepods/pod1/2\n", True),
        ("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-2.scope\n", False),
        ("5:cpuset:/kubepods/besteffort/pod1/2\n", False),
        ("0::/system.slice/containerd.service\n", False),
    ],
)
def test_the_targets_pod_is_known_by_its_class(host: Any, cgroup: str, guaranteed: bool) -> None:
    assert bool(host.GUARANTEED.search(cgroup)) is guaranteed


# a QEMU of two vCPUs, as far as this is concerned: threads, and a monitor that names them
QEMU_PROGRAM = """
import json, os, socket, sys, threading, time
ids = []
def vcpu():
    ids.append(threading.get_native_id())
    time.sleep(60)
for _ in range(2):
    threading.Thread(target=vcpu, daemon=True).start()
while len(ids) < 2:
    time.sleep(0.01)
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1] + ".new")
listening.listen()
os.rename(sys.argv[1] + ".new", sys.argv[1])  # who sees it can connect
while True:
    client, _ = listening.accept()
    with client:
        client.sendall(b'{"QMP": {}}\\n')
        client.recv(999)
        client.sendall(b'{"return": {}}\\n')
        client.recv(999)
        cpus = [{"cpu-index": 1 - i, "thread-id": tid} for i, tid in enumerate(ids)]
        for said in ({"event": "RTC_CHANGE"}, {"return": cpus}):
            client.sendall(json.dumps(said).encode() + b"\\n")
"""


@pytest.fixture
def qemu(tmp_path: Path, host: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Only this process and the others that a test starts are seen: no thread of the machine is moved."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    running = subprocess.Popen([sys.executable, "-c", QEMU_PROGRAM, tmp_path / "vm.end.qmp"])
    end = time.monotonic() + 10
    while not (tmp_path / "vm.end.qmp").exists() and time.monotonic() < end:
        time.sleep(0.02)
    monkeypatch.setattr(host, "processes", lambda: {running.pid})
    yield running
    running.kill()
    running.wait()


def affinities(pid: int) -> dict[int, set[int]]:
    return {int(t.name): os.sched_getaffinity(int(t.name)) for t in Path(f"/proc/{pid}/task").iterdir()}


def plan_of(host: Any, **roles: Any) -> Any:
    empty = {"target": "", "vms": {}, "kept": "", "emulator": "", "system": ""}
    return host.Plan.parse(json.dumps(empty | roles), host.ranges(os.sched_getaffinity(0)))


def test_each_vcpu_is_on_its_core_and_the_rest_of_qemu_on_its_own(
    host: Any, qemu: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    keeper = host.Keeper(plan_of(host, vms={"vm": f"{second}"}, system=f"{first}"), tmp_path)
    report = keeper.look()
    (known,) = keeper.qemus.values()
    vcpu = {index: tid for tid, index in known.vcpus.items()}
    now = affinities(qemu.pid)
    assert now.pop(vcpu[0]) == {second}
    assert set(map(frozenset, now.values())) == {frozenset({first})}, "a vCPU without a core is with QEMU's threads"
    assert report["roles"]["vm"] == {"cores": f"{second}", "threads": 1}
    assert report["astray"] == []
    host.release(keeper.plan)
    assert all(cores == os.sched_getaffinity(0) for cores in affinities(qemu.pid).values())


def test_a_qemu_that_started_anew_is_asked_again(host: Any, qemu: subprocess.Popen[bytes], tmp_path: Path) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    keeper = host.Keeper(plan_of(host, vms={"vm": f"{second}"}, system=f"{first}"), tmp_path)
    keeper.qemus["vm"] = host.Qemu(qemu.pid, "an earlier process", {1: 0})
    assert keeper.look()["roles"]["vm"]["threads"] == 1
    qemu.kill()
    qemu.wait()
    assert keeper.look()["roles"]["vm"]["threads"] == 0, "nobody answers, and nothing is wrong with the host"


def test_threads_of_the_system_leave_planned_cores_and_keep_a_choice_of_their_own(
    host: Any, qemu: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    keeper = host.Keeper(plan_of(host, target=f"{second}", system=f"{first}"), tmp_path)
    assert keeper.look()["roles"]["system"] == {"cores": f"{first}", "threads": 3}
    assert all(cores == {first} for cores in affinities(qemu.pid).values())


def test_a_thread_that_cannot_be_moved_is_reported(
    host: Any, qemu: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    keeper = host.Keeper(plan_of(host, target=f"{second}", system=f"{first}"), tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(host.os, "sched_setaffinity", refuse)
    astray = keeper.look()["astray"]
    assert len(astray) == 3
    assert f"not {first}: Invalid argument" in astray[0]


def test_a_monitor_that_is_silent_does_not_stop_the_rest(host: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "vm.end.qmp"))
        listening.listen()
        threading.Thread(target=lambda: listening.accept()[0].close(), daemon=True).start()
        with pytest.raises((OSError, ValueError)):
            host.ask(tmp_path / "vm.end.qmp")


# --- what people see -------------------------------------------------------------------------------------------------

REPORT: dict[str, Any] = {
    "age": 1.5,
    "roles": {
        "target": {"cores": "0-5", "threads": 6},
        "vm": {"cores": "12-23", "threads": 12},
        "emulator": {"cores": "6-11", "threads": 4},
        "system": {"cores": "6-11", "threads": 200},
    },
    "astray": [],
}


def planned(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> FakeCluster:
    cluster = FakeCluster(monkeypatch)
    plan = {"target": "0-5", "vms": ["12-23"], "system": "6-11"}
    cluster.made = view.Outputs.parse({**made(), "config": {"cpus": plan}})
    cluster.cpus = report
    return cluster


def drifts(cluster: FakeCluster) -> list[check.Drift]:
    return check.find(view.look(cluster.cluster, cluster.made))


def test_a_plan_in_force_is_no_drift_and_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = planned(monkeypatch, REPORT)
    assert drifts(cluster) == []
    assert status.main() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["worker1", "target", "0-5", "6"] in rows
    assert ["worker1", "vCPUs", "of", "vm", "12-23", "12"] in rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"age": 99.0}, "nobody keeps the CPU plan of worker1 for 99 s: spdk-k8s-cpus does not run"),
        ({"astray": ["sshd (7) may run on 0-23, not 6-11: …"]}, "worker1: sshd (7) may run on 0-23, not 6-11: …"),
        ({"target": {"cores": "0-3", "threads": 4}}, "the cores of cpus.target on worker1 are 0-3, not 0-5"),
        ({"target": {"cores": "0-5", "threads": 0}}, "the vhost target on worker1: 0 threads are on cores 0-5, not 1"),
        ({"vm": {"cores": "12-23", "threads": 11}}, "vCPUs of spdk-k8s-vm on worker1: 11 threads are on cores 12-23"),
    ],
)
def test_where_the_plan_is_not_in_force_check_says_so(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    roles = REPORT["roles"] | {key: value for key, value in change.items() if key in REPORT["roles"]}
    (drift,) = drifts(planned(monkeypatch, {**REPORT, **change, "roles": roles}))
    assert drift.what.startswith(said)
    assert drift.steps == ("cluster-worker1-cpus",)


def test_a_host_that_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (drift,) = drifts(planned(monkeypatch, {}))
    assert drift.what == "nobody keeps the CPU plan of worker1: spdk-k8s-cpus does not run"
