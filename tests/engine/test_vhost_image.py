"""The vhost image by itself, in a container as its pod runs it: what it serves, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from render.vhost import Disks, spdk_args, spdk_config, vhost_config
from settings.pins import PINS
from tests.pulumi_cli import ROOT

pytestmark = pytest.mark.engine

BASE = f"debian:{PINS['DEBIAN']}-slim"
DISKS = Disks(ordinals=range(3), slots=8, mib=16, block_size=4096, queues=1)


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
    """A container with the target as its first process and, from `reconcile` on, the reconciler beside it."""

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
        for name, text in {"spdk.json": spdk_config(disks), "vhost.json": vhost_config(disks)}.items():
            (config / f"{name}.new").write_text(text)
            (config / f"{name}.new").replace(config / name)

    def start(self, disks: Disks, *options: str, run: Path | None = None) -> None:
        self.configure(disks)
        for made in ("sockets", "disks"):
            (self.folder / made).mkdir(exist_ok=True)
        arguments = spdk_args(memory_mib=512, cpu_mask="0x1", hugepages=False, pci=False) if self.spdk else []
        volumes = {"config": "/etc/vhost:ro", "sockets": "/var/tmp", "disks": "/disks"}
        started = docker(
            "run", "-d", "--name", self.name, "--network", "none", "--cap-drop", "ALL", "--read-only",
            f"-v={run}:/run/vhost" if run else "--tmpfs=/run/vhost",
            *(f"-v={self.folder / k}:{v}" for k, v in volumes.items()), *options, self.image, *arguments,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr

    def reconcile(self) -> None:
        done = docker("exec", "-d", self.name, "sh", "-c", "reconcile >/run/vhost/reconcile.log 2>&1")
        assert done.returncode == 0, done.stderr

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.name, *command)

    def logs(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr + self.run("cat", "/run/vhost/reconcile.log").stdout

    def wait(self, what: str, true: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{what} not within {seconds} s:\n{self.logs()}"
            time.sleep(0.2)

    def wait_ready(self) -> None:
        self.wait("every disk is served", lambda: self.run("probe", "ready").returncode == 0)

    def ended(self) -> bool:
        return docker("inspect", "-f", "{{.State.Running}}", self.name).stdout.strip() == "false"


@pytest.fixture
def target(image: str, tmp_path: Path) -> Iterator[Target]:
    made = Target("spdk-k8s-test-vhost", image, tmp_path)
    docker("rm", "-f", made.name)
    yield made
    docker("rm", "-f", made.name)


def test_every_disk_has_a_socket_that_accepts(target: Target) -> None:
    target.start(DISKS)
    target.reconcile()
    target.wait_ready()
    for i in DISKS.ordinals:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(target.folder / f"sockets/vhost.{i}"))
    modes = target.run("sh", "-c", "stat -c '%n %a' /run/vhost/*.qmp /run/vhost/*.sock 2>/dev/null").stdout.splitlines()
    assert sorted(modes) == (
        ["/run/vhost/rpc.sock 600"] if target.spdk else ["/run/vhost/probes.qmp 600", "/run/vhost/reconcile.qmp 600"]
    )


def test_a_stale_socket_is_replaced(target: Target) -> None:
    (target.folder / "sockets").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(target.folder / "sockets/vhost.1"))
    test_every_disk_has_a_socket_that_accepts(target)


def test_disks_are_added_and_removed_while_it_runs(target: Target) -> None:
    target.start(DISKS)
    target.reconcile()
    target.wait_ready()
    more = replace(DISKS, ordinals=range(5))
    for disks in (more, DISKS):
        target.configure(disks)
        listed = [f"vhost.{i} unused" for i in disks.ordinals]
        target.wait(
            f"{listed}", lambda listed=listed: sorted(target.run("probe", "list").stdout.splitlines()) == listed
        )


def test_a_file_outlives_its_disk(target: Target) -> None:
    """A smaller N serves it no more, and changes nothing in it; a larger one serves it again as it was."""
    disks = replace(DISKS, bdev="aio")
    target.start(disks)
    target.reconcile()
    target.wait_ready()
    file = target.folder / "disks/vhost.2"
    size = file.stat().st_size
    with file.open("r+b") as writing:
        writing.write(b"somebody's data")
    for ordinals in (range(2), range(3)):
        served = replace(disks, ordinals=ordinals)
        target.configure(served)
        listed = [f"vhost.{i} unused" for i in ordinals]
        target.wait(
            f"{listed}", lambda listed=listed: sorted(target.run("probe", "list").stdout.splitlines()) == listed
        )
        assert file.stat().st_size == size
        assert file.read_bytes().startswith(b"somebody's data")


def test_disks_of_another_kind_have_another_life(target: Target) -> None:
    """Also those that are kept: worker1 plugs them in again, or the guest would go on with blocks of the old size."""
    disks, lives = replace(DISKS, bdev="aio"), list[str]()
    for served in (disks, disks, replace(disks, block_size=512), replace(disks, block_size=512, queues=2)):
        target.start(served)
        target.reconcile()
        target.wait_ready()
        lives.append((target.folder / "sockets/vhost.life").read_text())
        docker("rm", "-f", target.name)
    first, again, smaller, wider = lives
    assert first == again == "kept\naio 16 4096 1\n"
    assert (smaller, wider) == ("kept\naio 16 512 1\n", "kept\naio 16 512 2\n")


def test_a_second_target_waits_for_the_first_to_end(target: Target) -> None:
    """A pod that is made anew starts while the old one ends, which removes its sockets by their names."""
    target.start(DISKS)
    target.reconcile()
    target.wait_ready()
    second = replace(target, name="spdk-k8s-test-vhost-2")
    try:
        second.start(DISKS)
        second.reconcile()
        assert second.run("probe", "started").returncode != 0
        docker("stop", "-t", "5", target.name)
        second.wait_ready()
        for i in DISKS.ordinals:
            assert (target.folder / f"sockets/vhost.{i}").is_socket()
    finally:
        docker("rm", "-f", second.name)


def test_a_backing_file_of_another_size_is_refused_and_kept(target: Target) -> None:
    file = target.folder / "disks/vhost.1"
    file.parent.mkdir()
    file.write_bytes(b"somebody's data")
    target.start(replace(DISKS, bdev="aio"))
    if target.spdk:
        target.wait("the target ends", target.ended)
    else:
        target.reconcile()
    said = "/disks/vhost.1 has 15 bytes, and vhost.diskMib says 16777216: nothing is changed on it"
    target.wait(said, lambda: said in target.logs())
    assert file.read_bytes() == b"somebody's data"


def test_a_socket_directory_on_a_full_disk_is_named(target: Target) -> None:
    target.start(DISKS, "--tmpfs", "/var/tmp/full:size=64k,mode=1777")
    config = json.loads(vhost_config(DISKS)) | {"sockets": "/var/tmp/full"}
    (target.folder / "config/vhost.json").write_text(json.dumps(config))
    target.run("sh", "-c", "dd if=/dev/zero of=/var/tmp/full/file bs=4k")
    target.reconcile()
    said = "/var/tmp/full on"
    target.wait(said, lambda: said in target.logs() and "cannot be written to: free some space there" in target.logs())


def test_what_the_target_refuses_is_said_in_its_own_words(target: Target) -> None:
    """An RPC's error is the last thing that the container says: Kubernetes makes it the pod's message."""
    if target.spdk:  # 3 disks of 4 GiB in 512 MiB
        target.start(replace(DISKS, mib=4096))
        target.wait("the target ends", target.ended)
        assert "spdk_zmalloc() failed" in target.logs()
        assert '"message": "Cannot allocate memory"' in target.logs()
    else:
        file = target.folder / "disks/vhost.1"
        file.parent.mkdir()
        file.touch(mode=0)
        os.truncate(file, 16 << 20)
        os.chown(file, 12345, 12345)
        target.start(replace(DISKS, bdev="aio"))
        target.reconcile()
        said = "blockdev-add: Could not open '/disks/vhost.1': Permission denied"
        target.wait(said, lambda: said in target.logs())


def test_a_device_that_is_gone_is_not_made_up(target: Target) -> None:
    target.start(replace(DISKS, bdev="aio", devices=["/dev/gone0", "/dev/gone1", "/dev/gone2"]))
    if target.spdk:
        target.wait("the target ends", target.ended)
    else:
        target.reconcile()
    words = "/dev/gone0] open() failed" if target.spdk else "Could not open '/dev/gone0': No such file or directory"
    target.wait(words, lambda: words in target.logs())


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


def test_block_devices_are_served_and_more_of_them_while_it_runs(target: Target, devices: list[str]) -> None:
    """As in the pod: the reconciler is a container of its own, and the target's alone has the devices."""
    disks = replace(DISKS, ordinals=range(2), bdev="aio", devices=devices)
    run = target.folder / "run"
    target.start(disks, "--privileged", "-v=/dev:/dev", run=run)
    beside = replace(target, name=f"{target.name}-reconcile")
    try:
        beside.start(disks, "--entrypoint=/usr/local/bin/reconcile", run=run)
        target.wait_ready()
        more = replace(disks, ordinals=range(3))
        target.configure(more)
        target.wait_ready()
        for i in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(target.folder / f"sockets/vhost.{i}"))
    finally:
        print(beside.logs())  # shown when it fails
        docker("rm", "-f", beside.name)
