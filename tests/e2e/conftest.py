"""One stack for all end-to-end tests: brought up once, asserted on, brought down at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from tests.pulumi_cli import Stack, free_subnet, show

COUNT = 3
HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@dataclass(frozen=True)
class Running:
    stack: Stack
    outputs: dict[str, Any]
    core: client.CoreV1Api
    key: Path

    def docker(self, machine: str, *command: str) -> str:
        """Run on a dev machine."""
        return self._run("docker", "exec", f"spdk-k8s-{self.stack.name}-{machine}", *command)

    def guest(self, command: str) -> str:
        """Run in the worker VM, as its user would: by SSH."""
        address = self.outputs["nodes"]["worker2"]
        return self._run("ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
                         "-o", "UserKnownHostsFile=/dev/null", f"root@{address}", command)  # fmt: skip

    @staticmethod
    def _run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def traces() -> dict[str, str]:
    """What a stack could leave on this machine, by where it would be seen."""

    def seen(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    # a bridge is seen to have no carrier only a while after its last container went, and columns are as wide as that
    bridges = json.loads(seen("ip", "-json", "link", "show", "type", "bridge"))
    return {
        "containers": seen("docker", "ps", "-a", "--format", "{{.Names}}"),
        "networks": seen("docker", "network", "ls", "--format", "{{.Name}}"),
        "volumes": seen("docker", "volume", "ls", "-q"),
        "links": "\n".join(bridge["ifname"] for bridge in bridges) + seen("ip", "tuntap", "list"),
        "routes": re.sub(r" linkdown\b", "", seen("ip", "route")),
        "mounts": seen("findmnt", "-rno", "TARGET"),
        "hugepages": Path("/proc/sys/vm/nr_hugepages").read_text(),
        "kernel": seen("sysctl", "fs.inotify.max_user_instances", "vm.overcommit_memory", "kernel.panic"),
        "trusted registries": "\n".join(map(str, Path("/etc/docker/certs.d").glob("*"))),
    }


@pytest.fixture(scope="session")
def traces_before() -> dict[str, str]:
    return traces()


@pytest.fixture(scope="session", params=["qemu-storage-daemon", "spdk"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both vhost targets pass the same tests."""
    if request.param == "spdk" and not (os.environ.get("SPDK_SOURCE") or os.environ.get("SPDK_RELEASE")):
        pytest.skip("SPDK's release cannot be reached, and SPDK_SOURCE names no folder with its source")
    return request.param


def on_hugepages(backend: str) -> bool:
    """Whether target and VM are on hugepages: those of the other target are on ordinary ones."""
    return backend == "spdk" and os.access(HUGEPAGES, os.W_OK)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, traces_before: dict[str, str], backend: str) -> Iterator[Stack]:
    """The tests' stack; whatever happens, nothing of it stays."""
    made = Stack("e2e", tmp_path_factory.mktemp("state"))
    made.init(
        **{
            "numinst": str(COUNT),
            "machines.kind": "containers",
            "machines.subnet": free_subnet(),
            "vhost.backend": backend,
            **({"vhost.source": os.environ["SPDK_SOURCE"]} if os.environ.get("SPDK_SOURCE") else {}),
            # as in a lab, where this machine has such pages
            **({"vhost.hugepageSize": "2Mi", "vm.hugepageSize": "2Mi"} if on_hugepages(backend) else {}),
        }
    )
    yield made
    made.try_run("state", "unprotect", "--all", "--yes")
    code, output = made.try_run("destroy", "--yes", "--skip-preview")
    assert code == 0, output[-3000:]
    made.remove()


# Where a Ctrl-C hits: as images are on their way, as the first machine has joined, as the VM has. What is under way at
# a Ctrl-C is still finished, so each is two steps after whatever can be under way at the one before.
INTERRUPTIONS = ("registry-trust created", "cluster-worker1-join created", "cluster-worker2-join created")


def interrupted_up(stack: Stack, after: str) -> None:
    """`up` with a Ctrl-C as soon as it prints `after`."""
    process = stack.start("up", "--yes", "--skip-preview")
    assert process.stdout
    printed: list[str] = []
    for line in process.stdout:
        printed.append(show(line))
        if after in line:
            os.kill(process.pid, signal.SIGINT)
            break
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    assert after in "".join(printed), ("".join(printed) + output)[-3000:]


@pytest.fixture(scope="session")
def running(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """Brought up in several goes: each but the last is interrupted, and nothing is repaired for the next."""
    for after in INTERRUPTIONS:
        interrupted_up(stack, after)
    began = time.monotonic()
    stack.run("up", "--yes", "--skip-preview", timeout=2400)
    print(f"\nup took {time.monotonic() - began:.0f} s")
    outputs = stack.outputs()
    config.load_kube_config_from_dict(yaml.safe_load(outputs["kubeconfig"]))
    key = tmp_path_factory.mktemp("ssh") / "key"
    key.touch(mode=0o600)
    key.write_text(outputs["sshKey"])
    return Running(stack, outputs, client.CoreV1Api(), key)
