"""scripts/host/vm-disks against a QEMU that only notes what it is told: what it plugs, and when it had better not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.hosts import SCRIPTS

pytestmark = pytest.mark.unit

# In socat's place: a monitor's end. One with a file NAME.busy serves somebody else.
QEMU = f"""#!{sys.executable}
import json, pathlib, sys
monitor = pathlib.Path(sys.argv[2].partition(":")[2])
devices = monitor.parent / "devices"
if monitor.with_suffix(".busy").exists():
    sys.stdin.read()
    sys.exit(1)
print('{{"QMP": {{"version": {{"qemu": {{"micro": 0, "minor": 0, "major": 10}}}}}}}}', flush=True)
for line in sys.stdin:
    command = json.loads(line)
    given = command.get("arguments", {{}})
    with (monitor.parent / "told").open("a") as told:
        print(line.strip(), file=told)
    answer = {{}}
    match command["execute"]:
        case "qom-list": answer = [{{"name": device.name}} for device in devices.iterdir()]
        case "device_add": (devices / given["id"]).touch()
        case "device_del": (devices / given["id"]).unlink()
    print(json.dumps({{"return": answer}}), flush=True)
    if command["execute"] == "system_powerdown":
        break
"""


@dataclass(frozen=True)
class Vm:
    """A host's folders with the VM "vm", its disk 0 listed and served."""

    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", self.folder / "vm-disks", "vm", *arguments],
            env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> str:
        started = self.start(*arguments)
        said, _ = started.communicate(timeout=20)
        assert started.returncode == 0, said
        return said

    def told(self, command: str) -> list[dict[str, Any]]:
        """Arguments of each `command` that QEMU got."""
        file = self.folder / "run/told"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line.get("arguments", {}) for line in lines if line["execute"] == command]

    def serve(self, *life: str) -> None:
        """A target with disks of this life."""
        (self.folder / "sockets/vhost.life").write_text("".join(f"{line}\n" for line in life))


@pytest.fixture
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    folder = tmp_path_factory.mktemp("vm")  # a socket's path is short
    for name in ("bin", "etc/vm.disks.d", "run/devices", "sockets"):
        (folder / name).mkdir(parents=True)
    text = (SCRIPTS / "host/vm-disks").read_text()
    for theirs, ours in {"/run/spdk-k8s": folder / "run", "/etc/spdk-k8s": folder / "etc"}.items():
        text = text.replace(theirs, str(ours))
    (folder / "vm-disks").write_text(text)
    (folder / "bin/socat").write_text(QEMU)
    (folder / "bin/socat").chmod(0o755)
    (folder / "etc/vm.disks").write_text(f"TARGET=cb-vhost-p0-worker4 SOCKETS={folder / 'sockets'}")
    (folder / "etc/vm.disks.d/0").write_text("0\n")
    made = Vm(folder)
    made.serve("kept", "aio 128 4096 1")
    with ExitStack() as open_sockets:
        for name in ("run/vm.qmp", "run/vm.end.qmp", "sockets/vhost.0"):
            open_sockets.enter_context(socket.socket(socket.AF_UNIX)).bind(str(folder / name))
        yield made


def test_a_disk_has_as_many_queues_as_the_target_gives_it(vm: Vm) -> None:
    vm.serve("kept", "aio 128 4096 4")
    vm.run()
    (disk,) = vm.told("device_add")
    assert (disk["id"], disk["num-queues"]) == ("disk-0", 4)
    vm.run()
    assert len(vm.told("device_add")) == 1, "it is there already"


def test_a_disk_that_is_to_be_made_anew_is_not_plugged_in_before(vm: Vm) -> None:
    """As after a renewal that gave up: the target would blank it later, when the guest's data are on it."""
    blank = vm.folder / "sockets/vhost.0.blank"
    blank.touch()
    started = vm.start()
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(timeout=1.5)
    assert vm.told("qom-list"), "it has not looked yet"
    assert not vm.told("device_add")
    blank.unlink()
    assert started.wait(timeout=20) == 0
    assert len(vm.told("device_add")) == 1


def test_a_disk_of_an_earlier_life_is_swapped(vm: Vm) -> None:
    vm.run()
    vm.serve("kept", "aio 128 512 1")
    started = vm.start()
    blank = vm.folder / "sockets/vhost.0.blank"
    end = time.monotonic() + 10
    while not blank.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not (vm.folder / "sockets/vhost.0.used").exists()
    blank.unlink()  # as reconcile does
    assert started.wait(timeout=20) == 0
    assert len(vm.told("device_del")) == 1
    assert len(vm.told("device_add")) == 2


def test_the_guest_is_asked_to_power_down_also_while_disks_are_plugged(vm: Vm) -> None:
    """Or QEMU is killed with the guest's filesystems mounted."""
    (vm.folder / "run/vm.busy").touch()
    vm.run("powerdown")
    assert len(vm.told("system_powerdown")) == 1
