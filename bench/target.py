"""The vhost target alone, in a container that runs it as its pod does: the time until every disk has its socket."""

from __future__ import annotations

import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

from bench.inputs import CONFIG
from render.vhost import Disks, spdk_args, spdk_config, vhost_config
from settings.budgets import Backend, vhost_disks, vhost_memory_mib
from settings.names import RUN

NAME = "spdk-k8s-bench-target"


def start(image: str, count: int, spdk: bool) -> float:
    """Seconds from the start of the target in `image` with `count` disks until its last socket exists."""
    backend: Backend = "spdk" if spdk else "qemu-storage-daemon"
    disks = Disks(
        ordinals=range(count),
        slots=vhost_disks(CONFIG, backend),
        mib=CONFIG.vhost.disk_mib,
        block_size=CONFIG.vhost.block_size,
        queues=CONFIG.vm.queues,
        places={i: ("vm", i) for i in range(count)},
        vms={"vm": "vm"},
    )
    memory = vhost_memory_mib(CONFIG, backend)
    arguments = ["--kind", disks.kind]
    if spdk:
        arguments += ["--", *_spdk_args(memory)]
    with tempfile.TemporaryDirectory() as folder:
        config, sockets = Path(folder, "config"), Path(folder, "sockets")
        config.mkdir()
        sockets.mkdir()
        (config / "vhost.json").write_text(vhost_config(disks))
        (config / "spdk.json").write_text(spdk_config(disks.slots))
        docker("run", "-d", "--name", NAME, "--network", "none", "--read-only",
               "--tmpfs", "/run/vhost", "--tmpfs", "/var/tmp", "--tmpfs", "/disks",
               f"-v={config}:/etc/vhost:ro", f"-v={sockets}:{RUN}", image, *arguments)  # fmt: skip
        try:
            end = time.monotonic() + 60
            while len(there := [s for s in sockets.glob("vhost.*") if s.is_socket()]) < count:
                if time.monotonic() > end:
                    raise RuntimeError(f"{len(there)} of {count} sockets after 60 s: {docker('logs', NAME)}")
                time.sleep(0.05)
            began = docker("inspect", "-f", "{{.State.StartedAt}}", NAME)
            return max(s.stat().st_mtime for s in there) - datetime.fromisoformat(began).timestamp()
        finally:
            docker("rm", "-f", NAME)


def _spdk_args(memory_mib: int) -> list[str]:
    mask, polls = CONFIG.vhost.cpu_mask, CONFIG.polls
    return spdk_args(memory_mib=memory_mib, cpu_mask=mask, polls=polls, hugepages=False, pci=False)


def docker(*command: str) -> str:
    done = subprocess.run(["docker", *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(command)}: {done.stderr}")
    return (done.stdout or done.stderr).strip()
