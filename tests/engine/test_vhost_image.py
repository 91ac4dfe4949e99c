"""The vhost image by itself, in a container as its pod runs it: what the agent has the target serve, and what it says
when it cannot. What the agent does with a VM is its own tests'."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from render.vhost import Disks, spdk_args, spdk_config, vhost_config
from settings.names import RUN
from settings.pins import PINS
from tests.pulumi_cli import ROOT

pytestmark = pytest.mark.engine

BASE = f"debian:{PINS['DEBIAN']}-slim"
DISKS = Disks(
    ordinals=range(3),
    slots=8,
    mib=16,
    block_size=4096,
    queues=1,
    places={i: ("vm", i) for i in range(8)},
    vms={"vm": ""},
)


def docker(*command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *command], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module", params=["qemu-storage-daemon", "spdk"])
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both targets pass the same tests; SPDK's from the source folder that SPDK_SOURCE names."""
    target, arguments = str(request.param), []
    if target == "spdk":
        if not (folder := os.environ.get("SPDK_SOURCE")):
            pytest.skip("SPDK_SOURCE names no folder with SPDK's source")
        environment = {**os.environ, "FOLDER": folder, "IMAGE": "spdk-k8s/test-spdk-source"}
        subprocess.run([ROOT / "scripts/spdk_source.sh"], env=environment, check=True, capture_output=True)
        arguments = ["--build-arg", "SPDK_SOURCE=spdk-k8s/test-spdk-source"]
    name = f"spdk-k8s/test-vhost-{target}"
    built = docker(
        "build", "-q", "-t", name, "--target", target, "--build-arg", f"BASE={BASE}", *arguments,
        str(ROOT / "images/vhost"), timeout=1800,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    yield name
    docker("rmi", "--no-prune", name, *(["spdk-k8s/test-spdk-source"] if arguments else []))


@dataclass(frozen=True)
class Target:
    """A container with the disk agent, which has the target as its child."""

    name: str
    image: str
    folder: Path

    @property
    def spdk(self) -> bool:
        return self.image.endswith("spdk")

    def configure(self, disks: Disks) -> None:
        """Changes each file at once, as kubelet does: what reads one meanwhile sees the old or the new, whole."""
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        for name, text in {"spdk.json": spdk_config(disks.slots), "vhost.json": vhost_config(disks)}.items():
            (config / f"{name}.new").write_text(text)
            (config / f"{name}.new").replace(config / name)

    def start(self, disks: Disks, *options: str, without: str = "") -> None:
        """without: the folder that `options` mount in another way."""
        self.configure(disks)
        for made in ("sockets", "disks"):
            (self.folder / made).mkdir(exist_ok=True)
        arguments = ["--kind", disks.kind]
        if self.spdk:
            arguments += ["--", *spdk_args(memory_mib=512, cpu_mask="0x1", polls=False, hugepages=False, pci=False)]
        volumes = {"config": "/etc/vhost:ro", "sockets": RUN, "disks": "/disks"}
        volumes = {name: path for name, path in volumes.items() if name != without}
        started = docker(
            "run", "-d", "--name", self.name, "--network", "none", "--cap-drop", "ALL", "--read-only",
            "--tmpfs=/run/vhost", "--tmpfs=/var/tmp",
            *(f"-v={self.folder / k}:{v}" for k, v in volumes.items()), *options, self.image,
            *arguments,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr

    def asked(self, question: str) -> str:
        """The agent's answer; empty where there is none."""
        agent = self.folder / "sockets/agent.sock"
        done = subprocess.run(
            ["curl", "-s", "--max-time", "5", "--unix-socket", agent, f"http://agent/{question}"],
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    def disks(self) -> dict[int, str]:
        """Ordinal -> its state."""
        told = json.loads(self.asked("disks") or "{}")
        return {d["ordinal"]: d["state"] for d in told.get("disks", [])}

    def why(self, ordinal: int) -> str:
        told = json.loads(self.asked("disks") or "{}")
        return next((d["why"] for d in told.get("disks", []) if d["ordinal"] == ordinal), "")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.name, *command)

    def logs(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def wait(self, what: str, true: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{what} not within {seconds} s:\n{self.asked('disks')}\n{self.logs()}"
            time.sleep(0.2)

    def wait_ready(self) -> None:
        self.wait("every disk is served", lambda: self.asked("ready") == "yes\n")

    def kill_target(self) -> None:
        """Its process alone."""
        (agent,) = docker("inspect", "-f", "{{.State.Pid}}", self.name).stdout.split()
        for target in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
            os.kill(int(target), signal.SIGKILL)

    def accepts(self, ordinal: int) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.folder / f"sockets/vhost.{ordinal}"))
            except OSError:
                return False
            return True


@pytest.fixture
def target(image: str, tmp_path: Path) -> Iterator[Target]:
    made = Target("spdk-k8s-test-vhost", image, tmp_path)
    docker("rm", "-f", made.name)
    yield made
    docker("rm", "-f", made.name)


def test_every_disk_has_a_socket_that_accepts_and_nobody_else_may_reach_it(target: Target) -> None:
    """S1: who could bind such a socket would be given the guest's memory."""
    target.start(DISKS)
    target.wait_ready()
    assert all(target.accepts(i) for i in DISKS.ordinals)
    sockets = target.folder / "sockets"
    assert sockets.stat().st_mode & 0o777 == 0o700
    private = [*sockets.iterdir()]
    assert {p.name for p in private if p.is_file()} == {"agent.json", "agent.lock"}
    assert not [p for p in private if p.stat().st_mode & 0o077], "readable by others"
    # /var/tmp is the container's own, for SPDK's locks; nobody else is in it
    written = target.run("find", "/tmp", "/dev/shm", "-type", "f").stdout
    assert written == "", "in a folder that anybody may write to"


def test_a_stale_socket_is_replaced(target: Target) -> None:
    (target.folder / "sockets").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(target.folder / "sockets/vhost.1"))
    target.start(DISKS)
    target.wait_ready()
    assert target.accepts(1)


def test_disks_are_added_and_removed_while_it_runs(target: Target) -> None:
    target.start(DISKS)
    target.wait_ready()
    for disks in (replace(DISKS, ordinals=range(5)), DISKS):
        target.configure(disks)
        wanted = dict.fromkeys(disks.ordinals, "served")
        target.wait(f"{wanted}", lambda wanted=wanted: target.disks() == wanted)


def test_a_file_outlives_its_disk_and_is_its_users_alone(target: Target) -> None:
    """A smaller N serves it no more, and changes nothing in it; a larger one serves it again as it was."""
    disks = replace(DISKS, bdev="aio")
    target.start(disks)
    target.wait_ready()
    file = target.folder / "disks/vhost.2"
    size = file.stat().st_size
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700), "S4"
    with file.open("r+b") as writing:
        writing.write(b"somebody's data")
    for ordinals in (range(2), range(3)):
        target.configure(replace(disks, ordinals=ordinals))
        wanted = dict.fromkeys(ordinals, "served")
        target.wait(f"{wanted}", lambda wanted=wanted: target.disks() == wanted)
        assert file.stat().st_size == size
        assert file.read_bytes().startswith(b"somebody's data")


def test_a_target_that_is_killed_serves_again_within_a_second_or_two(target: Target) -> None:
    """D11: its container does not even restart, ten times in a row."""
    target.start(replace(DISKS, bdev="aio"))
    target.wait_ready()
    for n in range(2, 12):
        target.kill_target()
        target.wait("a new target", lambda n=n: json.loads(target.asked("disks"))["target"]["starts"] == n, 5)
        target.wait("every disk is served", lambda: target.asked("ready") == "yes\n", 5)
    assert docker("inspect", "-f", "{{.RestartCount}}", target.name).stdout.strip() == "0"


def test_a_second_agent_waits_for_the_first_to_end(target: Target) -> None:
    """A pod that is made anew starts while the old one ends, which removes its sockets by their names."""
    target.start(DISKS)
    target.wait_ready()
    second = replace(target, name="spdk-k8s-test-vhost-2")
    try:
        second.start(DISKS)
        time.sleep(1)
        assert "serve" not in second.logs()
        docker("stop", "-t", "5", target.name)
        second.wait("it serves", lambda: "vhost.2: serve" in second.logs())
        second.wait_ready()
        assert all(second.accepts(i) for i in DISKS.ordinals)
    finally:
        docker("rm", "-f", second.name)


def test_one_file_of_another_size_is_refused_and_kept_and_the_others_are_served(target: Target) -> None:
    """D7"""
    file = target.folder / "disks/vhost.1"
    file.parent.mkdir()
    file.write_bytes(b"somebody's data")
    target.start(replace(DISKS, bdev="aio"))
    target.wait("the others are served", lambda: target.disks() == {0: "served", 1: "refused", 2: "served"})
    said = "/disks/vhost.1 has 15 bytes, and vhost.diskMib says 16777216: nothing is changed on it"
    assert said in target.why(1)
    assert file.read_bytes() == b"somebody's data"


def test_a_config_for_another_kind_of_disks_is_left_to_the_next_pod(target: Target) -> None:
    target.start(DISKS)
    target.wait_ready()
    target.configure(replace(DISKS, block_size=512))
    target.wait("it is told", lambda: "another kind" in target.asked("ready"))
    assert target.disks() == dict.fromkeys(range(3), "served")


def test_a_socket_directory_that_cannot_be_written_to_is_named(target: Target) -> None:
    target.start(DISKS, "--tmpfs", f"{RUN}:ro,mode=700", without="sockets")
    said = f"error: {RUN} cannot be written to"
    target.wait(said, lambda: said in target.logs())


def test_what_the_target_refuses_is_said_in_its_own_words(target: Target) -> None:
    file = target.folder / "disks/vhost.1"
    file.parent.mkdir()
    file.touch(mode=0)
    os.truncate(file, 16 << 20)
    os.chown(file, 12345, 12345)
    target.start(replace(DISKS, bdev="aio"))
    target.wait("it is told", lambda: target.why(1) == "/disks/vhost.1: Permission denied")


def test_what_a_target_says_as_it_dies_are_the_containers_last_words(target: Target) -> None:
    """Kubernetes makes them the pod's message."""
    target.start(DISKS, "--tmpfs=/run/vhost:size=0,ro")
    target.wait("it is told", lambda: "the target ended with" in target.logs())
    docker("stop", "-t", "5", target.name)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", target.name).stdout.strip() == "1"


def test_a_device_that_is_gone_is_not_made_up(target: Target) -> None:
    target.start(replace(DISKS, bdev="aio", devices=["/dev/gone0", "/dev/gone1", "/dev/gone2"]))
    target.wait("it is told", lambda: target.why(0) == "/dev/gone0 does not exist: is the device gone?")


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[list[str]]:
    """Three block devices of 16 MiB."""
    made: list[str] = []
    try:
        for i in range(3):
            file = tmp_path / f"device{i}"
            file.touch()
            os.truncate(file, 16 << 20)
            done = subprocess.run(["losetup", "--show", "-f", file], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"no loop devices here: {done.stderr}")
            made.append(done.stdout.strip())
        yield made
    finally:
        for device in made:
            subprocess.run(["losetup", "-d", device], check=True)


def test_block_devices_are_served_and_held_and_more_of_them_while_it_runs(target: Target, devices: list[str]) -> None:
    disks = replace(DISKS, ordinals=range(2), bdev="aio", devices=devices)
    target.start(disks, "--privileged", "-v=/dev:/dev")
    target.wait_ready()
    target.configure(replace(disks, ordinals=range(3)))
    target.wait("all are served", lambda: target.disks() == dict.fromkeys(range(3), "served"))
    assert all(target.accepts(i) for i in range(3))
    with pytest.raises(OSError, match="busy"):  # D3: nobody can mount it meanwhile
        os.open(devices[0], os.O_RDONLY | os.O_EXCL)
