"""Disks for the machine of someone who tries the project: set-up's cache, and a Docker engine with its images."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from components.images import tree_digest
from tests.machines.image import BASE, CACHE, disk_image, image_of
from tests.machines.machine import Hardware, Machine, Network
from tests.plain_machines import run
from tests.pulumi_cli import ROOT

SETUP = f"cd {ROOT} && . setup/lib.sh && . setup/images.sh && . setup/pulumi.sh"
ENGINE = "spdk-k8s-tests-engine"


def _setup(command: str, **environment: str) -> str:
    """Run functions of setup/ in a shell."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{SETUP} && {command}"],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout.strip()


def user_machine(network: Network, number: int, login: str) -> Machine:
    """A machine on which `login` has a clone of this checkout in ~/spdk-k8s, and set-up has run before."""
    disks = (engine_disk(), cache_disk(network.new_folder()))
    machine = network.machine("user", number, Hardware(memory_mib=10240, root_gib=16, disks=disks), image="user")
    machine.wait_booted()
    machine.ssh(
        """set -e
        systemctl stop docker docker.socket
        echo '/dev/disk/by-id/virtio-disk-0 /var/lib/docker ext4 defaults 0 2' >>/etc/fstab
        systemctl daemon-reload
        mount /var/lib/docker
        systemctl start docker
        mkdir /mnt/given
        mount -o ro /dev/disk/by-id/virtio-disk-1 /mnt/given""",
        timeout=300,
    )
    machine.ssh(
        """set -e
        mkdir -p ~/.cache/spdk-k8s
        cp -r --preserve=mode,links,timestamps /mnt/given/cache/. ~/.cache/spdk-k8s
        touch ~/.cache/spdk-k8s/complete
        git -c safe.directory='*' clone -q /mnt/given/clone ~/spdk-k8s""",
        user=login,
        timeout=600,
    )
    return machine


def cache_disk(folder: Path) -> Path:
    """A disk with a clone of this checkout (/clone), and what set-up of this checkout keeps (/cache)."""
    kept = [*_setup('echo "pulumi-$PULUMI" "kubernetes-$KUBERNETES" "uv-$UV" "$(plugins)"').split(), "pulumi-home"]
    subprocess.run(["git", "clone", "-q", "--bare", ROOT, folder / "clone"], check=True)
    content = {"clone": folder / "clone", **{f"cache/{name}": CACHE / name for name in kept}}
    return disk_image(folder / "cache.img", content, mib=2048)


def engine_disk() -> Path:
    """A disk with the data of a Docker engine that has built the images of this checkout.

    The machine's own engine builds them here, in a container: in the machine, emulated, that takes over an hour.
    """
    image = image_of("user")
    upstream = [BASE, *_setup('echo "$BINARIES" "${UPSTREAM[@]}"').split()]
    numbers = run("docker", "image", "inspect", "-f", "{{.Id}}", *upstream)
    made = CACHE / "machines" / f"engine-{tree_digest(ROOT / 'images', image, numbers)}.img"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with _engine(image) as host, tempfile.TemporaryDirectory(dir=made.parent) as temporary:
        with subprocess.Popen(["docker", "save", *upstream], stdout=subprocess.PIPE) as save:
            subprocess.run(["docker", "--host", host, "load", "-q"], stdin=save.stdout, check=True, timeout=600)
        assert save.returncode == 0
        said = _setup("images_ahead 3>/dev/null", DOCKER_HOST=host)
        assert said == "built ahead", said
        run("docker", "stop", ENGINE)
        disk = disk_image(Path(temporary) / "engine.img", {"": ENGINE}, mib=24 * 1024)
        for old in made.parent.glob("engine-*.img"):  # of earlier images
            old.unlink()
        shutil.move(disk, made)
    return made


@contextmanager
def _engine(image: str) -> Generator[str]:
    """The Docker engine of `image`, with its data in the volume ENGINE. Yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["docker", "rm", "--force", ENGINE], capture_output=True)
        subprocess.run(["docker", "volume", "rm", "--force", ENGINE], capture_output=True)
        host = f"unix://{folder}/docker.sock"
        run("docker", "run", "--detach", "--privileged", "--name", ENGINE, "--volume", f"{ENGINE}:/var/lib/docker",
            "--volume", f"{folder}:{folder}", image, "dockerd", "--host", host, "--bip", "192.168.250.1/24",
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while subprocess.run(["docker", "--host", host, "version"], capture_output=True).returncode:
                assert time.monotonic() < end, run("docker", "logs", "--tail", "5", ENGINE)
                time.sleep(0.5)
            yield host
        finally:
            subprocess.run(["docker", "rm", "--force", ENGINE], capture_output=True)
            subprocess.run(["docker", "volume", "rm", "--force", ENGINE], capture_output=True)
