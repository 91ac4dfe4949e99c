"""The real engine on an empty stack: what a pull request's preview shows, and what bad config is answered."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pulumi_cli import ROOT, Stack, free_subnet

pytestmark = pytest.mark.engine


def test_a_first_preview_shows_every_resource_and_makes_none(stack: Stack) -> None:
    output = stack.run("preview")
    for resource in ("DevMachines", "Registry", "Images", "Cluster", "WorkerVm", "Vhost", "Video", "StatefulSet"):
        assert resource in output
    assert re.search(r"\+ \d+ to create", output)
    assert "error" not in output
    made = subprocess.run(
        ["docker", "ps", "-aq", "--filter", "name=spdk-k8s-engine"], capture_output=True, text=True, check=True
    )
    assert made.stdout == ""


def test_a_preview_says_how_many_hugepages_worker1_must_have(stack: Stack) -> None:
    budget = "budget of worker1: vhost {} disks of 128 MiB, VM 3072 MiB; "
    stack.run("config", "set", "--path", "vhost.bdev", "aio")
    assert budget.format("1280 MiB and up to 128") + "no hugepages" in stack.run("preview")
    budget = budget.format("512 MiB and up to 32")
    wanted = {"vhost.backend": "spdk", "vhost.source": "images", "vhost.hugepageSize": "2Mi", "vm.hugepageSize": "1Gi"}
    for key, value in wanted.items():
        stack.run("config", "set", "--path", key, value)
    assert budget + "3 hugepages of 1Gi and 256 hugepages of 2Mi" in stack.run("preview")
    stack.run("config", "set", "--path", "vm.hugepageSize", "2Mi")
    assert budget + "1792 hugepages of 2Mi" in stack.run("preview")


def test_n_more_instances_are_n_more_volumes(stack: Stack) -> None:
    def to_create() -> int:
        found = re.search(r"\+ (\d+) to create", stack.run("preview"))
        assert found
        return int(found[1])

    three = to_create()
    stack.run("config", "set", "numinst", "24")
    assert to_create() == three + 21  # their disks are the agent's, their pods the StatefulSet's


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("numinst", "three", "must be a whole number from 1 to 128; mend: pulumi config set numinst 3"),
        ("numinst", "1000", "must be a whole number from 1 to 128; mend: pulumi config set numinst 3"),
        ("numinst", "0", "must be a whole number from 1 to 128; mend: pulumi config set numinst 3"),
        ("numnist", "3", "did you mean spdk-k8s:numinst?"),
    ],
)
def test_bad_config_is_refused_before_anything_starts(stack: Stack, key: str, value: str, named: str) -> None:
    stack.run("config", "set", key, "--", value)
    code, output = stack.try_run("preview")
    assert code != 0
    assert named in re.sub(r"\s+", " ", output)
    assert "nothing was started" in output
    assert "Traceback" not in output


def test_what_an_error_tells_to_type_mends_it(stack: Stack) -> None:
    stack.run("config", "set", "numinst", "40")
    wrong = {
        "vm.vcpus": "1",
        "vm.queues": "4",
        "vm.mcpus": "2",
        "video.cpuRequest": "2",
        "vhost.bdev": "ssd",
        "vhost.devices[0]": "/dev/sdb",
        "vhost.cpuMask": "0-5",
        "registry.tls": "yes",
    }
    for key, value in wrong.items():
        stack.run("config", "set", "--path", key, value)
    code, output = stack.try_run("preview")
    assert code != 0
    problems = re.findall(r"^ *- spdk-k8s:.*; mend: pulumi (config .*)$", output, re.MULTILINE)
    assert len(problems) >= len(wrong), output
    for command in problems:
        stack.run(*shlex.split(command))
    assert "to create" in stack.run("preview")


def test_minus_one_is_refused(stack: Stack) -> None:
    stack.run("config", "set", "numinst", "--", "-1")
    code, output = stack.try_run("preview")
    assert code != 0
    assert "spdk-k8s:numinst = -1: must be a whole number from 1 to 128" in output


def preflight(
    subnet: str | None = None, memory: int = 1024, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "preflight_local.sh", subnet or free_subnet(), "spdk-k8s-engine", str(memory), *more],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def other_network() -> Iterator[str]:
    subnet = free_subnet()
    subprocess.run(
        ["docker", "network", "create", "--subnet", subnet, "spdk-k8s-other"], check=True, capture_output=True
    )
    yield subnet
    subprocess.run(["docker", "network", "rm", "spdk-k8s-other"], check=True, capture_output=True)


def test_a_free_machine_passes_preflight() -> None:
    assert preflight().returncode == 0, preflight().stderr


def test_kvm_is_there_where_a_vm_insists_on_it() -> None:
    looked = preflight(None, 1024, "kvm")
    assert (looked.returncode == 0) == Path("/dev/kvm").exists()
    assert ("vm.accel = kvm, and there is no /dev/kvm; remedy: modprobe" in looked.stderr) == bool(looked.returncode)


def test_a_subnet_in_use_is_refused(other_network: str) -> None:
    refused = preflight(other_network.replace(".0/24", ".128/25"))
    assert refused.returncode != 0
    assert f"overlaps {other_network} of Docker network spdk-k8s-other" in refused.stderr
    remedy = re.search(r"pulumi config set --path machines.subnet (\S+)", refused.stderr)
    assert remedy
    assert preflight(remedy[1]).returncode == 0


def test_more_memory_than_the_machine_has_is_refused() -> None:
    refused = preflight(memory=1 << 24)
    assert refused.returncode != 0
    assert "the disks, the VM and the nodes need 16777216 MiB" in refused.stderr
    assert "--path vhost.diskMib" in refused.stderr


def test_a_nearly_full_disk_is_refused() -> None:
    refused = preflight(SPDK_K8S_MIN_DISK_MIB="999999999")
    assert refused.returncode != 0
    assert "MiB free, the dev machines need 999999999 MiB" in refused.stderr


def test_no_docker_engine_is_said_with_a_remedy(stack: Stack) -> None:
    refused = preflight(DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert refused.returncode != 0
    assert "no Docker engine answers; remedy: make setup" in refused.stderr
