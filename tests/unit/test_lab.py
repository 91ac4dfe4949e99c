"""The program on existing servers: the same steps as in containers, each with an undo, none before the preflight."""

from __future__ import annotations

import json
from typing import Any

import pytest

from render.preflight import needs
from settings.load import ConfigError, load
from settings.models import Settings, Ssh
from tests.unit.recorder import Registered, of_type, run_program

pytestmark = pytest.mark.unit

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
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
        "worker1": {"address": "10.1.2.12", **host, "jumpHost": {"address": "10.9.9.9", "port": 2222, **host}},
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
    assert machines.worker1.jump_host
    assert machines.worker1.jump_host.port == 2222
    assert machines.nameservers("worker1") == ["10.1.2.1"]
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
    assert worker1["HUGEPAGES"] == "1Gi=33"
    assert int(worker1["MEMORY_MIB"]) == 25 * 1024 + 8192 + 512
    assert (worker1["CPUS"], worker1["ACCEL"], worker1["VMS"]) == ("7", "kvm", "10.1.2.13")
    assert "6443" in master["PORTS"].split()
    assert "5000" in master["PORTS"].split()
    assert "5000" not in worker1["PORTS"].split()
    assert "HUGEPAGES" not in master
    assert worker1["REGISTRY"] == "10.1.2.11:5000"
    assert worker1["MEDIA_DIR"] == ""
    assert worker1["NETWORKS"] == "podCidr=10.244.0.0/16 serviceCidr=10.96.0.0/16"
    own = needs(loaded(numinst=24, machines=servers(), video={"mediaDir": "/srv/movies"}), "worker1", "spdk")
    assert (own["MEDIA_DIR"], own["PLAYLISTS"]) == ("/srv/movies", "24")


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
        if of_cluster or step.name.endswith(("-preflight", "-behind", "-answers", "-disks", "-released")):
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
