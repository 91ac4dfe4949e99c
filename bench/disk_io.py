"""Disk I/O in the guest: an instance's vhost-user-blk disk compared with a plain virtio-blk disk; both in memory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.inputs import CONFIG
from bench.stack import Bench
from render.placement import disk_path
from settings.pins import PINS

ROUNDS, SECONDS = 3, 4
JOBS = {  # name -> fio's arguments, direction and key of the figure in fio's report, divisor to get the unit, unit
    "sequential read": ("--rw=read --bs=128k", "read", "bw_bytes", 2**20, "MiB/s"),
    "sequential write": ("--rw=write --bs=128k", "write", "bw_bytes", 2**20, "MiB/s"),
    "random read": ("--rw=randread --bs=4k", "read", "iops", 1, "IOPS"),
    "random write": ("--rw=randwrite --bs=4k", "write", "iops", 1, "IOPS"),
}
FIO = "LD_LIBRARY_PATH=/srv/media/fio /srv/media/fio/fio"
PORT = CONFIG.vm.disk_slots - 1  # the plain disk takes the last root port


def compare(bench: Bench) -> dict[str, tuple[float, float]]:
    """Job -> figures of the vhost disk and of the plain disk, in the job's unit: medians of alternating rounds."""
    install_fio(bench)
    vhost = bench.mounted(0)
    plain = plug_plain_disk(bench)
    rounds = [[run(bench, folder) for folder in (vhost, plain)] for _ in range(ROUNDS)]
    bench.guest(f"rm {vhost}/bench.fio")
    return {job: (median(each[0][job] for each in rounds), median(each[1][job] for each in rounds)) for job in JOBS}


def install_fio(bench: Bench) -> None:
    """Put fio into the media share, where the guest sees it. Nothing is installed in the guest."""
    image = "spdk-k8s/bench-fio"
    subprocess.run(
        ["docker", "build", "-q", "-t", image, "--build-arg", f"BASE=debian:{PINS['DEBIAN']}-slim", "-"],
        input=Path(__file__).with_name("fio.Dockerfile").read_bytes(), check=True, capture_output=True,
    )  # fmt: skip
    tar = subprocess.run(["docker", "run", "--rm", image], check=True, capture_output=True).stdout
    bench.machine("worker1", "tar -x -C /srv/media", stdin=tar)


def plug_plain_disk(bench: Bench) -> str:
    """Hot-plug a virtio-blk disk into the running VM, with the size, block size and queues of the vhost disk.

    Returns its mount point in the guest.
    """
    disk, queues = CONFIG.vhost, CONFIG.vm.queues
    bench.machine("worker1", f"truncate -s {disk.disk_mib}M /run/plain.img")
    qmp(
        bench,
        {"execute": "qmp_capabilities"},
        {"execute": "blockdev-add", "arguments": {
            "driver": "file", "node-name": "plain", "filename": "/run/plain.img", "discard": "unmap"}},
        {"execute": "device_add", "arguments": {
            "driver": "virtio-blk-pci", "id": "plain", "drive": "plain", "bus": f"port-{PORT}", "num-queues": queues,
            "logical_block_size": disk.block_size, "physical_block_size": disk.block_size}},
    )  # fmt: skip
    path = disk_path(PORT)
    bench.guest(
        f"udevadm wait --timeout=60 {path} && mkfs.ext4 -q {path} && mkdir -p /mnt/plain && mount {path} /mnt/plain"
    )
    return "/mnt/plain"


def qmp(bench: Bench, *commands: dict[str, Any]) -> None:
    """Send commands to the VM's second QMP monitor: the disk agent keeps the first, which serves one client."""
    socat = ["socat", "-", "UNIX-CONNECT:/run/spdk-k8s/vm.end.qmp"]
    with subprocess.Popen(
        ["docker", "exec", "-i", bench.container("worker1"), *socat], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        for command in commands:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:  # skips the greeting and events
                if "error" in (answer := json.loads(line)):
                    raise RuntimeError(f"{command['execute']}: {answer['error']['desc']}")
                if "return" in answer:
                    break


def run(bench: Bench, folder: str) -> dict[str, float]:
    """Run all jobs in turn on a file in `folder` of the guest, without its page cache. Returns job -> figure."""
    jobs = " ".join(f"--name='{job}' --stonewall {arguments}" for job, (arguments, *_) in JOBS.items())
    report = json.loads(
        bench.guest(
            f"{FIO} --output-format=json --filename={folder}/bench.fio --size=32M --direct=1 --ioengine=libaio"
            f" --iodepth=16 --time_based --runtime={SECONDS} {jobs}"
        )
    )
    return dict(_figures(report))


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for job, (_, direction, key, size, _) in JOBS.items():
        done = next(j for j in report["jobs"] if j["jobname"] == job)
        yield job, done[direction][key] / size
