"""Boots a guest's kernel again and again, and counts the boots that hang: those that do not read their root disk.

usage: python -m bench.boots IMAGE KERNEL [--times 100] [--limit 30] [--append WORDS] [--cpu …] [--accel …] …
  IMAGE   has QEMU: spdk-k8s/machine:TAG (docker images)
  KERNEL  has vmlinuz and initrd: a storage host's container (spdk-k8s-dev-worker1), or a guest image (…/guest:TAG)

QEMU's arguments are those of a worker VM, without its network and its media. --reads 1 is the end of the initrd's first
look at the disk, which is empty: so each boot ends there. The disk agent's own limit is 30 s (disk_agent/boot.py).
The series for U26, one after the other on a quiet machine:
  python -m bench.boots IMAGE KERNEL
  python -m bench.boots IMAGE KERNEL --append tsc=unstable
  python -m bench.boots IMAGE KERNEL --append clocksource=hpet
  python -m bench.boots IMAGE KERNEL --append "nohz=off highres=off"   # a periodic tick: a lost one is made up for
  python -m bench.boots IMAGE KERNEL --append nohz=off
  python -m bench.boots IMAGE KERNEL --append highres=off
  python -m bench.boots IMAGE KERNEL --append nolapic_timer
  python -m bench.boots IMAGE KERNEL --qemu "-machine hpet=off"
  python -m bench.boots IMAGE KERNEL --cpu max,la57=off,-x2apic
  python -m bench.boots IMAGE KERNEL --accel tcg,thread=single,tb-size=512
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from render.vm import ACCEL_ARGS, qemu_args
from settings.names import RUN, STATE

KERNEL = ("vmlinuz", "initrd")
LEFT_OUT = ("-chardev", "-netdev", "-device")  # words before what is not booted with
GONE = ("id=media", "tag=host0", "netdev=net", "id=net")


def arguments(asked: argparse.Namespace) -> list[str]:
    """QEMU's, from those of a worker VM."""
    words = qemu_args(
        vm="vm",
        vcpus=asked.vcpus,
        memory_mib=asked.memory,
        mac="DE:AD:BE:EF:01:41",
        tap="none",
        disk_slots=32,
        vnc=None,
    )
    at = words.index("@ACCEL@")
    words[at : at + 1] = ACCEL_ARGS["tcg"]
    kept: list[str] = []
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in LEFT_OUT and any(gone in value.split(",") for gone in GONE):
            continue
        if any(gone in word.split(",") for gone in GONE):
            continue
        kept.append(word)
    for option, value in (("-cpu", asked.cpu), ("-accel", asked.accel)):
        if value:
            kept[kept.index(option) + 1] = value
    if asked.append:
        kept[kept.index("-append") + 1] += f" {asked.append}"
    return [*kept, *shlex.split(asked.qemu)]


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"docker {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def fetch(source: str, folder: Path) -> None:
    """Kernel and initrd of a storage host's container, or of a guest image."""
    if docker("container", "inspect", source, check=False) not in ("", "[]"):
        for name in KERNEL:
            docker("cp", "--follow-link", f"{source}:{STATE}/vm/{name}", str(folder / name))
        return
    made = docker("create", source, "none")
    try:
        docker("cp", f"{made}:/boot", str(folder))
    finally:
        docker("rm", made)
    for name in KERNEL:
        found = sorted((folder / "boot").glob(f"{'initrd.img' if name == 'initrd' else name}-*"))
        if not found:
            raise SystemExit(f"{source} has no /boot/{name}-*; mend: name a guest image or a storage host's container")
        found[-1].rename(folder / name)


@contextmanager
def machine(image: str, folder: Path) -> Iterator[str]:
    """A container with QEMU. Its files and sockets are in `folder`."""
    mounts = [f"--volume={folder / 'vm'}:{STATE}/vm", f"--volume={folder / 'run'}:{RUN}"]
    started = docker("run", "--detach", "--rm", "--network=none", *mounts, "--entrypoint=sleep", image, "infinity")
    try:
        yield started
    finally:
        docker("rm", "--force", started)


class Monitor:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str) -> Any:
        self._lines.write(json.dumps({"execute": command}) + "\n")
        self._lines.flush()
        while line := self._lines.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise SystemExit(f"{command}: {answer['error']['desc']}")
        raise ConnectionError("QEMU went away")

    def reads(self) -> int:
        return next(d["stats"]["rd_operations"] for d in self.ask("query-blockstats") if d.get("device") == "root")

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class Booted:
    seconds: float
    hung: bool


def boot(container: str, folder: Path, words: list[str], *, limit: float, reads: int) -> Booted:
    path = folder / "run/vm.qmp"
    path.unlink(missing_ok=True)
    log = folder / "qemu.log"
    with log.open("w") as said:
        began = time.monotonic()
        qemu = subprocess.Popen(["docker", "exec", container, "qemu-system-x86_64", *words], stdout=said, stderr=said)
        try:
            monitor = _connect(path, qemu, log)
            try:
                while (took := time.monotonic() - began) < limit:
                    if monitor.reads() >= reads:
                        return Booted(took, hung=False)
                    time.sleep(0.1)
                return Booted(took, hung=True)
            finally:
                monitor.ask("quit")
                monitor.close()
        finally:
            try:
                qemu.wait(20)
            except subprocess.TimeoutExpired:
                qemu.kill()


def _connect(path: Path, qemu: subprocess.Popen[bytes], log: Path) -> Monitor:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if qemu.poll() is not None:
            raise SystemExit(f"QEMU ended: {log.read_text()[-2000:]}")
        try:
            return Monitor(path)
        except OSError:
            time.sleep(0.05)
    raise SystemExit("QEMU did not answer within 60 s")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.boots", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("image")
    parser.add_argument("kernel")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--limit", type=float, default=30, help="seconds after which a boot counts as one that hangs")
    parser.add_argument("--reads", type=int, default=1, help="of the root disk, after which a guest has booted")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=3072, help="MiB")
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    parser.add_argument("--cpu", default="")
    parser.add_argument("--accel", default="")
    parser.add_argument("--qemu", default="", help="more arguments for QEMU")
    asked = parser.parse_args()
    words = arguments(asked)
    taken: list[float] = []
    hung = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boots-")))
        for name in ("vm/seed", "run"):
            (folder / name).mkdir(parents=True)
        fetch(asked.kernel, folder / "vm")
        for name in ("root", "containers"):
            with (folder / f"vm/{name}.img").open("w") as disk:
                disk.truncate(64 << 20)
        container = stack.enter_context(machine(asked.image, folder))
        for i in range(asked.times):
            one = boot(container, folder, words, limit=asked.limit, reads=asked.reads)
            hung += one.hung
            taken += [] if one.hung else [one.seconds]
            print(f"{i + 1}/{asked.times}: {one.seconds:.1f} s{' HUNG' if one.hung else ''}", flush=True)
            if one.hung:
                console = (folder / "vm/console.log").read_text(errors="replace")
                print("  " + "\n  ".join(console.splitlines()[-12:]), flush=True)
    shown = {
        "options": {k: v for k in ("append", "cpu", "accel", "qemu", "vcpus") if (v := getattr(asked, k))},
        "boots": asked.times,
        "hung": hung,
        "median": round(statistics.median(taken), 1) if taken else None,
        "slowest": round(max(taken), 1) if taken else None,
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
