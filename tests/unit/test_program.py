"""The whole program against a mock engine: what it registers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from settings.pins import PINS
from tests.unit.recorder import Registered, of_count, of_type, run_program

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=[1, 2, 3, 24, 128])
def program(request: pytest.FixtureRequest) -> tuple[int, dict[str, Registered]]:
    return request.param, of_count(request.param, storageHosts=1, vmsPerHost=1)


def test_every_instance_has_a_disk_and_a_volume(program: tuple[int, dict[str, Registered]]) -> None:
    count, resources = program
    assert len(of_type(resources, "kubernetes:core/v1:PersistentVolume")) == count
    (waits,) = (r for r in of_type(resources, "command:remote:Command") if r.name == "worker2-disks")
    assert f"DISKS={','.join(map(str, range(count)))}\n" in waits.inputs["stdin"]


def test_every_remote_step_names_a_host_key_and_a_time_limit(program: tuple[int, dict[str, Registered]]) -> None:
    steps = of_type(program[1], "command:remote:Command")
    assert len(steps) > 8
    for step in steps:
        assert "timeout -k 10 " in step.inputs["create"], step.name
        assert step.inputs["connection"]["hostKey"], step.name


@pytest.mark.parametrize("name", ["Pulumi.yaml", "policy/PulumiPolicy.yaml"])
def test_a_released_language_host_finds_its_tools(name: str) -> None:
    """With toolchain uv, or none named and a uv.lock at hand, it ends where uv is not on PATH; a set-up's is not."""
    options = yaml.safe_load((Path(__file__).parents[2] / name).read_text())["runtime"]["options"]
    assert options["toolchain"] == "pip"


def test_one_more_instance_only_adds() -> None:
    few, many = run_program(numinst=3), run_program(numinst=4)
    assert set(many) - set(few) == {"video/video-disk-3"}
    assert not set(few) - set(many)
    # updated: the list of disks, the number of pods, and the check of this machine's memory
    changed = {name for name in few if few[name].inputs != many[name].inputs}
    assert changed == {
        "dev/dev-preflight",
        "vhost/vhost-config",
        "worker2/worker2-disks",
        "worker2/worker2-disks-released",
        "video/video",
    }


def test_several_hosts_and_vms_share_the_instances() -> None:
    resources = run_program(numinst=5, machines={"kind": "containers", "storageHosts": 2, "vmsPerHost": 2})
    volumes = {v.name: v.inputs["spec"] for v in of_type(resources, "kubernetes:core/v1:PersistentVolume")}
    at = {
        name: (
            spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"][0],
            spec["local"]["path"],
        )
        for name, spec in volumes.items()
    }
    first, second = "/dev/disk/by-path/pci-0000:01:00.0", "/dev/disk/by-path/pci-0000:02:00.0"
    assert at == {
        "video-disk-0": ("worker2", first),
        "video-disk-1": ("worker3", first),
        "video-disk-2": ("worker5", first),
        "video-disk-3": ("worker6", first),
        "video-disk-4": ("worker2", second),
    }
    served = {
        c.name: [
            (disk["ordinal"], disk["vm"], disk["port"]) for disk in json.loads(c.inputs["data"]["vhost.json"])["disks"]
        ]
        for c in of_type(resources, "kubernetes:core/v1:ConfigMap")
    }
    assert served == {
        "vhost-config": [(0, "vm", 0), (1, "vm-2", 0), (4, "vm", 1)],
        "vhost-worker4-config": [(2, "vm", 0), (3, "vm-2", 0)],
    }


@pytest.mark.parametrize("backend", ["spdk", "qemu-storage-daemon"])
def test_hugepages_are_the_targets_limit_and_reserved_before_the_node_is_made(backend: str) -> None:
    resources = run_program(vhost={"backend": backend, "hugepageSize": "2Mi", "memoryMib": 1024, "source": "images"})
    target = resources["vhost/vhost"].inputs["spec"]["template"]["spec"]["containers"][0]
    limits = {name: size for name, size in target["resources"]["limits"].items() if name != "ephemeral-storage"}
    reserved = [r.inputs["stdin"] for r in of_type(resources, "command:remote:Command") if "hugepages" in r.name]
    if backend == "spdk":
        assert limits == {"memory": "8832Mi", "hugepages-2Mi": "1024Mi"}
        assert "HUGEPAGES=2Mi=512\n" in "".join(reserved)
    else:
        assert limits == {"memory": "21632Mi"}
        assert not reserved


@pytest.mark.parametrize(("mode", "polls"), [(None, False), ("interrupt", False), ("poll", True)])
def test_spdk_sleeps_on_a_dev_stack_unless_it_is_to_poll(mode: str | None, polls: bool) -> None:
    resources = run_program(vhost={"backend": "spdk", "source": "images"} | ({"mode": mode} if mode else {}))
    (target,) = resources["vhost/vhost"].inputs["spec"]["template"]["spec"]["containers"]
    assert ("--interrupt-mode" in target["args"]) is not polls
    assert target["resources"]["requests"]["cpu"] == ("1" if polls else "100m")


def test_spdks_source_is_the_pinned_release_unless_a_folder_is_named() -> None:
    spdk = {"backend": "spdk"}
    release, folder = (run_program(vhost=v)["images/images-spdk-source"] for v in (spdk, {**spdk, "source": "images"}))
    assert release.inputs["build"]["args"]["SPDK_COMMIT"] == PINS["SPDK_COMMIT"]
    assert release.inputs["skipPush"]
    assert folder.inputs["environment"]["FOLDER"] == "images"
