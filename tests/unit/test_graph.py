"""The relations between the program's resources: dependencies, deleted_with, providers, secrets."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components import hosts, images
from tests.unit.recorder import STACK, Registered, main, of_type, record, run_program

pytestmark = pytest.mark.unit

QEMU = {"backend": "qemu-storage-daemon"}
LAYOUTS: dict[str, dict[str, object]] = {
    "dev": {"vhost": QEMU},
    "two hosts of two VMs": {
        "numinst": 5,
        "machines": {"kind": "containers", "storageHosts": 2, "vmsPerHost": 2},
        "vhost": QEMU,
    },
    "spdk on hugepages": {
        "vhost": {"backend": "spdk", "source": "images", "hugepageSize": "2Mi", "memoryMib": 1024},
        "vm": {"hugepageSize": "2Mi"},
    },
    "devices, plain HTTP": {
        "vhost": {
            **QEMU,
            "bdev": "aio",
            "devices": [
                "/dev/disk/by-id/wwn-0x5000c50000000001",
                "/dev/disk/by-id/wwn-0x5000c50000000002",
                "/dev/disk/by-id/wwn-0x5000c50000000003",
            ],
        },
        "registry": {"tls": False},
    },
}
SERVER = {"user": "admin", "hostKey": "ssh-ed25519 AAAA", "privateKey": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA"}
LAYOUTS["lab"] = {
    "vhost": QEMU,
    "machines": {
        "kind": "ssh",
        "master": {"address": "10.1.2.11", **SERVER},
        "worker1": {
            "address": "10.1.2.12",
            **SERVER,
            "hostKey": "ssh-ed25519 AAAAB",
            "jumpHost": {"address": "10.9.9.9", **SERVER},
        },
        "worker2": {"address": "10.1.2.13", "gateway": "10.1.2.1"},
    },
}
LAYOUTS["lab of two storage hosts, with two VMs and one"] = {
    "numinst": 5,
    "vhost": QEMU,
    "machines": {
        "kind": "ssh",
        "master": {"address": "10.1.2.11", **SERVER},
        "storage": [
            {
                **{"name": "worker1", "address": "10.1.2.12", **SERVER, "hostKey": "ssh-ed25519 AAAAB"},
                "vms": [
                    {"name": "worker2", "address": "10.1.2.13", "gateway": "10.1.2.1"},
                    {"name": "worker3", "address": "10.1.2.14"},
                ],
            },
            {
                **{"name": "worker4", "address": "10.1.2.15", **SERVER, "hostKey": "ssh-ed25519 AAAAC"},
                "vms": [{"name": "worker5", "address": "10.1.2.16"}],
            },
        ],
    },
}
GOLDEN = Path(__file__).parent / "golden"
STEP, IMAGE = "command:remote:Command", "docker:index/image:Image"

Graph = dict[str, Registered]


@pytest.fixture(scope="module", params=LAYOUTS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return run_program(**LAYOUTS[request.param])


def waits_for(graph: Graph, name: str) -> set[str]:
    """All direct and indirect dependencies of `name`, those of its provider included."""
    found: set[str] = set()
    to_do = [name]
    while to_do:
        of = graph[to_do.pop()]
        more = {*of.dependencies, of.provider} - found - {""}
        found |= more
        to_do += more
    return found


def host_of(graph: Graph, step: Registered) -> str:
    """Name of the machine that a remote step runs on."""
    address = step.inputs["connection"]["host"]
    (stack,) = of_type(graph, STACK)
    return next((name for name, at in stack.outputs["nodes"].items() if at == address), "jump host")


@pytest.mark.parametrize("layout", ["dev", "lab"])
def test_names_types_and_parents_stay(request: pytest.FixtureRequest, layout: str) -> None:
    """A resource with another URN would be deleted and created again in every running stack."""
    urns = "".join(f"{urn}\n" for urn in sorted(r.urn for r in run_program(**LAYOUTS[layout]).values() if r.parent))
    golden = GOLDEN / f"urns-{layout}"
    if request.config.getoption("--golden"):
        golden.write_text(urns)
    assert urns == golden.read_text()


def test_everything_is_part_of_a_component(graph: Graph) -> None:
    loose = {r.path for r in graph.values() if r.request.custom and "/" not in r.path}
    assert loose == {"engine", "namespace"}


def test_children_are_named_after_their_component(graph: Graph) -> None:
    """So that a program can have two of a component."""
    for path, resource in graph.items():
        component, inside, _ = path.rpartition("/")
        assert not inside or f"{resource.name}-".startswith(f"{graph[component].name}-"), path


def test_no_resource_has_a_default_provider_of_docker_or_kubernetes(graph: Graph) -> None:
    for resource in graph.values():
        package = resource.typ.partition(":")[0]
        if package in ("docker", "kubernetes"):
            owner = {"docker": "engine", "kubernetes": "cluster/cluster-provider"}[package]
            assert resource.provider == owner, resource.path


def test_every_step_waits_for_its_machine_to_answer(graph: Graph) -> None:
    for step in of_type(graph, STEP):
        if (host := host_of(graph, step)) == "jump host":
            continue  # it only runs a check
        gate = f"{host}/{host}-answers"  # of a VM
        if gate not in graph:
            gate = f"{machines(graph)}/{machines(graph)}-{host}-ready"
        before = waits_for(graph, step.path)
        assert gate in {step.path, *before} or step.path in waits_for(graph, gate), step.path


def machines(graph: Graph) -> str:
    """The component of the machines: "dev" creates containers, "lab" uses servers."""
    return "dev" if "dev" in graph else "lab"


def test_nothing_is_changed_on_a_server_before_all_of_them_may_serve() -> None:
    graph = run_program(**LAYOUTS["lab"])
    checks = {f"lab/lab-{name}-preflight" for name in ("master", "worker1")}
    for name in ("master", "worker1"):
        assert f"lab/lab-{name}-reach" in waits_for(graph, f"lab/lab-{name}-preflight"), (
            "no login before the host key is seen"
        )
        assert checks <= waits_for(graph, f"lab/lab-{name}-ready")


def test_the_order_from_bare_machines_to_videos(graph: Graph) -> None:
    first_to_last = [
        f"{machines(graph)}/{'dev' if 'dev' in graph else 'lab-master'}-preflight",
        f"{machines(graph)}/{machines(graph)}-master-ready",
        "registry/registry",
        "registry/registry-trust",
        "images/images-node-bundle",
        "cluster/cluster-master-node",
        "cluster/cluster-control-plane",
        "cluster/cluster-worker1-join",
        "cluster/cluster-worker1-ready",
        "vhost/vhost",
        "worker2/worker2-disks",
        "video/video-disk-0",
        "video/video",
    ]
    for before, after in itertools.pairwise(first_to_last):
        assert before in waits_for(graph, after), f"{after} does not wait for {before}"
    all_there = waits_for(graph, "video/video")
    vms = [r.name for r in of_type(graph, "spdk-k8s:index:WorkerVm")]
    assert {f"cluster/cluster-{vm}-ready" for vm in vms} <= all_there
    volumes = of_type(graph, "kubernetes:core/v1:PersistentVolume")
    assert {v.path for v in volumes} <= all_there


def test_the_vm_boots_while_the_cluster_is_made(graph: Graph) -> None:
    """The VM's boot is the longest wait. It must not depend on anything in the cluster."""
    before = waits_for(graph, "worker2/worker2-answers")
    assert "cluster/cluster-worker1-node" in before
    assert not {"cluster/cluster-control-plane", "vhost/vhost"} & before


def test_hugepages_and_devices_come_first() -> None:
    """They are undone last: a target that still holds a device would block it, so the node is reset before."""
    pages, devices = (run_program(**LAYOUTS[name]) for name in ("spdk on hugepages", "devices, plain HTTP"))
    assert "cluster/cluster-worker1-hugepages" in waits_for(pages, "cluster/cluster-worker1-node")
    assert "cluster/cluster-worker1-devices" in waits_for(devices, "cluster/cluster-worker1-join") & waits_for(
        devices, "vhost/vhost"
    )
    # else the agent would serve devices that nothing has checked
    assert "cluster/cluster-worker1-devices" in waits_for(devices, "vhost/vhost-config")


def mounts(container: dict[str, Any]) -> dict[str, str]:
    """Path in the container -> volume."""
    return {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}


def test_only_a_pod_with_devices_is_privileged(graph: Graph) -> None:
    (target,) = run_program(**LAYOUTS["devices, plain HTTP"])["vhost/vhost"].inputs["spec"]["template"]["spec"][
        "containers"
    ]
    assert mounts(target)["/dev"] == "devices"
    assert target["securityContext"]["privileged"]
    for target in containers_of_targets(graph):
        assert ("/dev" in mounts(target)) == target["securityContext"].get("privileged", False)


def containers_of_targets(graph: Graph) -> list[dict[str, Any]]:
    made = (r for r in of_type(graph, "kubernetes:apps/v1:Deployment") if r.name.startswith("vhost"))
    return [c for r in made for c in r.inputs["spec"]["template"]["spec"]["containers"]]


def test_messages_name_the_vm_and_target_that_they_are_of() -> None:
    graph = run_program(**LAYOUTS["two hosts of two VMs"])
    for name, (vm, target) in {"worker3": ("vm-2", "cb-vhost-p0"), "worker6": ("vm-2", "cb-vhost-p0-worker4")}.items():
        assert f"VM={vm}\n" in graph[f"{name}/{name}-answers"].inputs["stdin"]
        assert f"VM={vm}\n" in graph[f"{name}/{name}-vm"].inputs["stdin"]
        disks = graph[f"{name}/{name}-disks"].inputs["stdin"]
        assert f"VM={vm}\n" in disks
        assert f"TARGET={target}\n" in disks
    for file in (f for f in hosts.SCRIPTS.rglob("*") if f.is_file()):
        assert not re.search(r"cb-vhost-p0|/vm/console", file.read_text()), f"{file} means the first of all"


def test_a_target_has_what_it_needs_and_no_more(graph: Graph) -> None:
    for target in (r for r in of_type(graph, "kubernetes:apps/v1:Deployment") if r.name.startswith("vhost")):
        pod = target.inputs["spec"]["template"]["spec"]
        assert not pod["automountServiceAccountToken"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            # Kubernetes shows the last words of a container that ended
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            if "/dev" not in mounts(container):
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert security["allowPrivilegeEscalation"] is False
                assert security["seccompProfile"] == {"type": "RuntimeDefault"}
                assert "privileged" not in security


def test_nothing_waits_for_monitoring_and_it_may_do_little(graph: Graph) -> None:
    ours = {path for path in graph if path.startswith("monitoring")}
    assert ours
    assert not [path for path in graph if path not in ours and waits_for(graph, path) & ours]
    for path in ours:
        if pod := graph[path].inputs.get("spec", {}).get("template", {}).get("spec"):
            assert not {"hostPID", "hostIPC"} & set(pod)
            assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
            (container,) = pod["containers"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
    exporter = graph["monitoring/monitoring-exporter"].inputs["spec"]["template"]["spec"]
    assert exporter["automountServiceAccountToken"] is False
    rules = graph["monitoring/monitoring-role"].inputs["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert "secrets" not in json.dumps(rules)


def test_monitoring_can_be_left_out() -> None:
    graph = run_program(**LAYOUTS["dev"], monitoring=False)
    assert not [path for path in graph if "monitoring" in path or "prometheus" in path or "exporter" in path]
    (stack,) = of_type(graph, STACK)
    assert "wall" not in stack.outputs


def test_each_probe_of_the_target_asks_its_own_question(graph: Graph) -> None:
    """started: the target has answered once. ready: it serves every disk that can be served. alive: the agent works.
    No probe runs a program in the pod."""
    for target in containers_of_targets(graph):
        probes = {kind: target[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
        assert probes == {
            "startup": {"path": "/started", "port": 9301},
            "readiness": {"path": "/ready", "port": 9301},
            "liveness": {"path": "/alive", "port": 9301},
        }


def test_a_target_is_the_last_to_be_evicted_or_killed() -> None:
    """All VMs of its host use it. On servers all of its memory is reserved."""
    for layout, reserved in (("dev", False), ("lab", True)):
        for target in of_type(run_program(**LAYOUTS[layout]), "kubernetes:apps/v1:Deployment"):
            pod = target.inputs["spec"]["template"]["spec"]
            if target.name.startswith("vhost"):
                assert pod["priorityClassName"] == "system-node-critical"
                resources = pod["containers"][0]["resources"]
                assert (resources["requests"]["memory"] == resources["limits"]["memory"]) is reserved


def test_a_targets_memory_does_not_pay_for_its_guests() -> None:
    """QEMU touches all of the guest's memory itself. The target's limit counts its own memory and the page tables."""
    graph = run_program(**LAYOUTS["lab"])
    assert ",share=on,prealloc=on" in graph["worker2/worker2-vm"].inputs["stdin"]
    small, large = (
        run_program(**LAYOUTS["lab"], vm={"memoryMib": mib})["vhost/vhost"].inputs["spec"]["template"]["spec"][
            "containers"
        ][0]
        for mib in (3072, 6144)
    )
    limits = [int(c["resources"]["limits"]["memory"].removesuffix("Mi")) for c in (small, large)]
    assert limits[1] - limits[0] == 32 * 6  # 8 bytes for each page of 4 KiB, for each of 32 disks


def test_hosts_reserve_hugepages_one_after_the_other() -> None:
    """Containers share the machine's page count. If two add to it at once, one addition is lost."""
    two = run_program(**LAYOUTS["two hosts of two VMs"], vm={"hugepageSize": "2Mi"})
    first, second = (name for name in two if name.endswith("-hugepages"))
    assert first in waits_for(two, second)


def test_an_undo_is_spared_where_its_machine_goes(graph: Graph) -> None:
    carrier = {vm: host for host, vm in vms_and_hosts(graph)}
    for step in of_type(graph, STEP):
        host = host_of(graph, step)
        if machines(graph) == "lab":  # a server stays: only the VM with its disks is deleted
            expected = f"{host}/{host}-vm" if host in carrier else ""
            assert step.deleted_with == expected or not step.inputs.get("delete"), step.path
        elif step.name.endswith(("-hugepages", "-devices")):
            assert step.deleted_with == "", "a container's are those of the machine below it"
        else:
            assert step.deleted_with == f"dev/dev-{carrier.get(host, host)}", step.path


SERVERS = {"machines": LAYOUTS["lab"]["machines"]}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"vhost": {"bdev": "aio"}, "machines": {"storageHosts": 2}}, ["dev/dev-worker1-var", "dev/dev-worker3-var"]),
        ({"vhost": {"bdev": "malloc"}}, []),
        ({"vhost": {**QEMU, "bdev": "aio"}, **SERVERS}, ["lab/lab-worker1-ready"]),
        ({"vhost": {**QEMU, "bdev": "aio", "files": "/srv/disks"}, **SERVERS}, []),  # the user's own folder is kept
    ],
)
def test_machines_that_hold_data_are_not_deleted_without_a_word(config: dict[str, Any], kept: list[str]) -> None:
    assert sorted(r.path for r in run_program(**config).values() if r.request.protect) == kept


def vms_and_hosts(graph: Graph) -> Iterator[tuple[str, str]]:
    """Pairs of a storage host and a VM on it."""
    for vm in of_type(graph, "spdk-k8s:index:WorkerVm"):
        yield host_of(graph, graph[f"{vm.name}/{vm.name}-vm"]), vm.name


def test_what_is_made_in_the_engine_carries_labels_and_is_not_replaced_for_them() -> None:
    """`make down` finds it by them where the state is lost; Docker cannot change labels."""
    kinds = ("container:Container", "network:Network", "volume:Volume")
    made = [resource for kind in kinds for resource in of_type(run_program(), f"docker:index/{kind}")]
    assert len(made) == 5
    for resource in made:
        labels = {item["label"]: item["value"] for item in resource.inputs["labels"]}
        assert labels == {"spdk-k8s.stack": "dev", "spdk-k8s.checkout": str(Path(__file__).resolve().parents[2])}
        assert "labels" in resource.request.ignoreChanges


def test_what_is_in_the_cluster_goes_with_the_control_plane(graph: Graph) -> None:
    inside = [r for r in graph.values() if r.typ.startswith("kubernetes:")]
    assert len(inside) > 8
    for resource in inside:
        assert resource.deleted_with == "cluster/cluster-control-plane", resource.path


def test_a_container_goes_before_its_successor_comes() -> None:
    """Old and new need the same name and the same address."""
    graph = run_program(**LAYOUTS["dev"])
    containers = of_type(graph, "docker:index/container:Container")
    assert containers
    assert all(c.request.deleteBeforeReplace for c in containers)


def test_a_step_made_anew_is_undone_first(graph: Graph) -> None:
    """`pulumi up --replace '**::registry'`: old and new use the same paths on one machine."""
    for step in of_type(graph, STEP):
        assert step.request.deleteBeforeReplace, step.path


def test_a_new_registry_gets_every_image_again(graph: Graph) -> None:
    pushed = [i for i in of_type(graph, IMAGE) if not i.inputs.get("skipPush")]
    assert len(pushed) > 10
    for image in pushed:
        assert image.replace_with == {"registry/registry", "registry/registry-trust"}, image.path


def secrets_in(value: object) -> set[str]:
    """Private keys, passwords, the admin's kubeconfig, and logins made of them: see the recorder."""
    text = json.dumps(value)
    found = {"PRIVATE"} if "PRIVATE" in text else set[str]()
    login = base64.b64encode(b"spdk-k8s:PRIVATE-password").decode()
    return found | ({"login"} if login in text else set[str]())


def test_secrets_are_encrypted_wherever_they_go(graph: Graph) -> None:
    for resource in graph.values():
        for key, value in resource.inputs.items():
            if secrets_in(value):
                assert key in resource.secret_inputs, f"{resource.path}.{key} would be in the state as plain text"
        for key, value in resource.outputs.items():
            if secrets_in(value):
                assert key in resource.secret_outputs, f"output {key} of {resource.path}"


def test_where_secrets_go(graph: Graph) -> None:
    """Else the test above could not fail."""
    carries = {r.path: {k for k, v in r.inputs.items() if secrets_in(v)} for r in graph.values()}
    assert carries.get("dev/dev-master", {"uploads"}) == {"uploads"}
    assert carries["worker2/worker2-vm"] == {"connection", "stdin"}
    assert carries["cluster/cluster-worker1-node"] == {"connection", "stdin"}
    assert carries["cluster/cluster-worker1-join"] == {"connection", "stdin"}
    assert carries["cluster/cluster-provider"] == {"kubeconfig"}
    assert carries["images/images-app-vs-p2"] == {"registry"}
    (stack,) = of_type(graph, STACK)
    assert carries["video/video-publish"] == {"stringData"}
    assert stack.secret_outputs == {"kubeconfig", "publishKey", "sshKey"}


def test_results_of_steps_are_secret_and_stay_out_of_logs(graph: Graph) -> None:
    for step in of_type(graph, STEP):
        assert "stdout" in step.request.additionalSecretOutputs, step.path
        assert step.inputs["logging"] == "stderr", step.path
    for path in (
        f"{machines(graph)}/{machines(graph)}-keys",
        "registry/registry-certificate",
        "video/video-publish-key",
    ):
        made = graph[path]
        assert "stdout" in made.request.additionalSecretOutputs
        assert made.inputs["logging"] == "none"


def test_no_command_line_and_no_environment_carries_a_secret(graph: Graph) -> None:
    commands = [r for r in graph.values() if r.typ.startswith("command:")]
    assert len(commands) > 10
    for command in commands:
        shown = {k: v for k, v in command.inputs.items() if k in ("create", "update", "delete", "environment")}
        assert not secrets_in(shown), command.path
        # keys.sh keeps existing keys: the only secret output that is in a process's environment, on this machine
        remembers = command.path.endswith(("-keys", "/dev-kernel"))
        assert command.inputs["addPreviousOutputInEnv"] is remembers, command.path


# --- what a change touches -------------------------------------------------------------------------------------------


def changed(before: Graph, after: Graph) -> dict[str, set[str]]:
    """Path -> names of the inputs that differ, for every changed resource."""
    assert set(before) == set(after)
    differs = {k: {i for i in after[k].inputs if before[k].inputs.get(i) != after[k].inputs[i]} for k in after}
    return {path: inputs for path, inputs in differs.items() if inputs}


@pytest.mark.parametrize(
    ("step", "reruns"),
    [
        ("vm_disks", {"worker2/worker2-disks", "worker2/worker2-disks-released"}),
        ("control_plane", {"cluster/cluster-control-plane"}),
    ],
)
def test_a_changed_script_reruns_just_that_step(monkeypatch: pytest.MonkeyPatch, step: str, reruns: set[str]) -> None:
    before = run_program(**LAYOUTS["dev"])
    original = hosts.script
    monkeypatch.setattr(hosts, "script", lambda n, v, **k: original(n, v, **k) + "# more\n" * (n == step))
    assert changed(before, record(main, LAYOUTS["dev"])) == {name: {"stdin"} for name in reruns}


@pytest.mark.parametrize(
    ("folder", "touches"),
    [
        # the VM's step runs again and keeps the disks: the list of images is only for a new VM
        ("video", {"images/images-app-vs-p2", "video/video", "worker2/worker2-vm"}),
        ("vhost", {"images/images-cb-vhost-p0", "vhost/vhost"}),
    ],
)
def test_a_changed_image_rolls_just_its_pods(monkeypatch: pytest.MonkeyPatch, folder: str, touches: set[str]) -> None:
    before = run_program(**LAYOUTS["dev"])
    original = images.content_tag
    monkeypatch.setattr(images, "content_tag", lambda f, *m: original(f, *m)[::-1] if f == folder else original(f, *m))
    assert set(changed(before, record(main, LAYOUTS["dev"]))) == touches


@pytest.mark.parametrize("change", [{"vcpus": 4}, {"memoryMib": 4096}, {"diskSlots": 64}, {"accel": "tcg"}])
def test_a_vm_that_changes_is_drained_boots_anew_and_gets_its_pods_back(change: dict[str, Any]) -> None:
    """U16: `up` said that it had changed the VM, and nothing had."""
    config = {"vhost": POD | {"memoryMib": 2048}, "machines": {"kind": "containers", "vmsPerHost": 2}}
    before, after = (run_program(**config, vm=vm) for vm in ({"vcpus": 3}, {"vcpus": 3} | change))
    touched = {path for path, inputs in changed(before, after).items() if "stdin" in inputs}
    for vm in ("worker2", "worker3"):
        order = [f"{vm}/{vm}-drained", f"{vm}/{vm}-vm", f"{vm}/{vm}-answers", f"cluster/cluster-{vm}-ready"]
        assert set(order) <= touched
        for first, then in itertools.pairwise(order):
            assert first in waits_for(after, then)
        assert host_of(after, after[order[0]]) == "master"
        # kubelet and the join stay as they are
        assert not {f"cluster/cluster-{vm}-node", f"cluster/cluster-{vm}-join"} & touched
    assert "video/video" not in changed(before, after)


POD = {"backend": "qemu-storage-daemon", "bdev": "aio", "memoryMib": 1024}  # its memory does not depend on its disks


def pod_template(vm: dict[str, object] | None = None, numinst: int = 3, **vhost: object) -> dict[str, Any]:
    graph = run_program(numinst=numinst, vhost=POD | vhost, vm=vm or {})
    return graph["vhost/vhost"].inputs["spec"]["template"]


def test_n_changes_with_the_target_running() -> None:
    assert pod_template(numinst=24) == pod_template(numinst=3)


@pytest.mark.parametrize("change", [{"diskMib": 64}, {"blockSize": 512}, {"vm": {"queues": 2}}])
def test_what_a_running_target_cannot_change_makes_it_anew(change: dict[str, Any]) -> None:
    """Else the target would serve other disks than the config says, and its next restart would break the guest's."""
    assert pod_template(**change) != pod_template()


def test_a_smaller_n_gives_disks_back_and_deletes_nothing_on_them() -> None:
    """Order: the pod is deleted, then the disk leaves the VM, and claim and volume are deleted."""
    graph = run_program(**LAYOUTS["dev"])
    stateful_set = graph["video/video"].inputs["spec"]
    assert stateful_set["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete"  # else the volume stays
    for volume in of_type(graph, "kubernetes:core/v1:PersistentVolume"):
        assert volume.inputs["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    (storage_class,) = of_type(graph, "kubernetes:storage.k8s.io/v1:StorageClass")
    assert storage_class.inputs["reclaimPolicy"] == "Retain"
    assert "video/video" in waits_for(graph, "worker2/worker2-disks-released")
    assert "video/video-disk-2" in waits_for(graph, "video/video")


# --- a VM that is added ----------------------------------------------------------------------------------------------


def with_vms(numinst: int = 3, vhost: dict[str, object] = QEMU, **machines: object) -> Graph:
    return run_program(numinst=numinst, vhost=vhost, machines={"kind": "containers", **machines})


def assignments(stdin: str) -> dict[str, str]:
    """The variables that a step's script begins with."""
    library = (hosts.SCRIPTS / "lib.sh").read_text()
    return dict(word.split("=", 1) for word in shlex.split(stdin.partition(library)[0]))


@pytest.mark.parametrize(
    ("machines", "added"),
    [
        ({"vmsPerHost": 2, "since": {"worker3": 3}}, {"worker3"}),
        ({"storageHosts": 2, "since": {"worker4": 3}}, {"worker3", "worker4"}),
    ],
    ids=["a VM", "a storage host"],
)
@pytest.mark.parametrize("backend", ["qemu-storage-daemon", "spdk"])
def test_a_vm_that_is_added_touches_nothing_that_runs(backend: str, machines: dict[str, Any], added: set[str]) -> None:
    """The steps that must hear of it: the sum of memory, the routes to the new nodes' pods, the agent's list of VMs and
    the steps that wait for the agent."""
    vhost: dict[str, object] = {"backend": backend}
    before, after = with_vms(vhost=vhost), with_vms(vhost=vhost, **machines)
    assert not set(before) - set(after)
    new = set(after) - set(before)
    assert {path for path in new if not any(name in path for name in added)} == set()

    nodes = {f"cluster/cluster-{name}-node" for name in ("master", "worker1", "worker2")}
    on_host = {"vhost/vhost-config", "worker2/worker2-disks", "worker2/worker2-disks-released"}
    expected = {"dev/dev-preflight", *nodes, *(on_host if "vmsPerHost" in machines else ())}
    differs = {path: before[path].inputs for path in before if before[path].inputs != after[path].inputs}
    assert set(differs) == expected

    for path in nodes:
        old, now = (assignments(graph[path].inputs["stdin"]) for graph in (before, after))
        assert {name for name in now if now[name] != old[name]} == {"ROUTES"}, path
        assert {k: v for k, v in after[path].inputs.items() if k != "stdin"} == {
            k: v for k, v in before[path].inputs.items() if k != "stdin"
        }
    if "vmsPerHost" in machines:
        old, now = (json.loads(graph["vhost/vhost-config"].inputs["data"]["vhost.json"]) for graph in (before, after))
        assert now["disks"] == old["disks"]
        assert now["vms"].pop("vm-2")
        assert now == old
        for path in on_host - {"vhost/vhost-config"}:
            old, now = (assignments(graph[path].inputs["stdin"]) for graph in (before, after))
            assert {name for name in now if now[name] != old[name]} == {"CONFIG"}


def test_instances_that_come_later_go_to_the_new_vm_and_restart_no_other() -> None:
    machines = {"vmsPerHost": 2, "since": {"worker3": 3}}
    few, many = with_vms(3, **machines), with_vms(5, **machines)
    assert few["video/video"].inputs["spec"]["template"] == many["video/video"].inputs["spec"]["template"]
    (stack,) = of_type(many, STACK)
    assert [disk["node"] for disk in stack.outputs["disks"]] == ["worker2"] * 3 + ["worker3"] * 2


@pytest.mark.parametrize("change", [{"memoryMib": 4096}, {"vcpus": 4}, {"diskSlots": 16}, {"hugepageSize": "2Mi"}])
def test_another_vm_is_no_reason_to_restart_the_target_of_a_dev_stack(change: dict[str, object]) -> None:
    before, after = (run_program(vhost=QEMU, vm=vm)["vhost/vhost"].inputs for vm in ({}, change))
    assert before == after


def test_a_target_starts_anew_for_another_start_up_file() -> None:
    """Its buffers are made as it starts: with fewer than its disks need, the guest would hang."""
    spdk = {"backend": "spdk", "memoryMib": 4096}
    few, many = (run_program(vhost=spdk, vm={"diskSlots": slots})["vhost/vhost"].inputs for slots in (16, 32))
    assert few["spec"]["template"] != many["spec"]["template"]
