"""What emulated machines are made of: disks and kernel, made with the Docker engine and cached by content."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from components.images import tree_digest
from settings.pins import PINS
from tests.plain_machines import run

BASE = f"debian:{PINS['DEBIAN']}-slim"
CACHE = Path(os.environ.get("SPDK_K8S_CACHE") or Path.home() / ".cache/spdk-k8s")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# Docker makes these files in each container, empty in its export: the machine writes its own.
OF_THE_CONTAINER = ".dockerenv etc/hostname etc/hosts etc/resolv.conf"


def qemu_image() -> str:
    """The image that runs QEMU."""
    return image_of("qemu")


def machine_files(target: str, *, gib: int) -> Path:
    """Folder with root.img, vmlinuz and initrd of the Dockerfile's `target`. gib: size of its filesystem."""
    image = image_of(target)
    tools = qemu_image()
    number = run("docker", "image", "inspect", "-f", "{{.Id}}", image).strip().removeprefix("sha256:")[:12]
    folder = CACHE / "machines" / f"{target}-{gib}-{number}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        container = run("docker", "create", image, "true").strip()
        try:
            make = f"mke2fs -q -t ext4 -L root -d - /made/root.img {gib}G"
            script = f"set -o pipefail; tar --delete {OF_THE_CONTAINER} | {make}"
            shell = ["docker", "run", "--rm", "-i", "-v", f"{made}:/made", "--entrypoint", "bash", tools, "-c", script]
            with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
                subprocess.run(shell, stdin=export.stdout, check=True, timeout=600)
            assert export.returncode == 0
        finally:
            run("docker", "rm", container)
        for name, pattern in (("vmlinuz", "/boot/vmlinuz-*"), ("initrd", "/boot/initrd.img-*")):
            with (made / name).open("wb") as file:
                cat = ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", f"cat {pattern}"]
                subprocess.run(cat, stdout=file, check=True, timeout=60)
        for old in folder.parent.glob(f"{target}-{gib}-*"):  # of an earlier recipe
            shutil.rmtree(old)
        made.rename(folder)
    return folder


def disk_image(image: Path, content: Mapping[str, Path | str], *, mib: int) -> Path:
    """A filesystem image for a machine's `disks`. content: path in it -> file, folder or Docker volume."""
    volumes = [f"--volume={source}:/content/{name}:ro" for name, source in content.items()]
    script = f"mke2fs -q -t ext4 -m 0 -d /content /image/{image.name} {mib}M"
    # privileged: others may not read the attributes of overlayfs that are in a Docker engine's folder
    run("docker", "run", "--rm", "--privileged", *volumes, "-v", f"{image.parent}:/image",
        "--entrypoint", "bash", qemu_image(), "-c", script)  # fmt: skip
    return image


@functools.cache
def image_of(target: str) -> str:
    """Build the Dockerfile's `target`. Programs in it trust the certificate authorities that this machine trusts."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        context = Path(temporary)
        for name in ("Dockerfile", "run"):
            shutil.copy(here / name, context)
        (context / "ca").mkdir()
        for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
            shutil.copy(certificate, context / "ca")
        trust = [f"{key}={value}\n" for key, value in sorted(os.environ.items()) if value == BUNDLE]
        (context / "environment").write_text("".join(trust))
        image = f"spdk-k8s-tests/{target}:{tree_digest(context, BASE)}"
        build = ["docker", "build", "-q", "-t", image, "--target", target, "--build-arg", f"BASE={BASE}"]
        done = subprocess.run([*build, temporary], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
    return image
