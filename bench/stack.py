"""The benchmark's own stack: brought up, asked, and always taken down again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from kubernetes import client, config  # type: ignore[import-untyped]

from bench import timeline
from bench.figures import Figure
from bench.programs import Project
from settings.names import NAMESPACE, VIDEO
from tests.pulumi_cli import ROOT, Stack

OUT = Path(__file__).parent / "out"
SUBNET = "172.30.92.0/24"
DEFAULT = "qemu-storage-daemon"  # the backend of every part but the comparison of both


def spdk_source() -> dict[str, str] | None:
    """Config for SPDK's backend; None where its source cannot be had."""
    if folder := os.environ.get("SPDK_SOURCE"):
        return {"vhost.source": str(Path(folder).resolve())}
    return {} if os.environ.get("SPDK_RELEASE") else None


class Bench:
    """The stack `bench`, up with `count` instances (0: down). figures: what was measured so far. part: measured now."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.part = ""
        self.count = 0
        self._backend = self._made_in = ""
        self._stack = Stack("bench", OUT / "state")

    def __enter__(self) -> Bench:
        self._clear()  # what a killed run left
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._stack.state.exists():
            self._stack.run("destroy", "--yes", "--skip-preview")
            self._stack.remove()
            shutil.rmtree(self._stack.state)
        self.count = 0

    def add(self, name: str, value: float | None, unit: str, goal: float | None = None, note: str = "") -> None:
        self.figures.append(Figure(self.part, name, value, unit, goal, note))
        print(f"{name}: {value if value is None else round(value, 2)} {unit} {note}", flush=True)

    def ensure(self, count: int, backend: str = DEFAULT) -> None:
        """Up with that many instances on that backend, however it comes there."""
        if (self.count, self._backend) != (count, backend):
            self.down()
            self.up(count, backend)

    def up(self, count: int, backend: str = DEFAULT) -> tuple[float, timeline.Log]:
        """`pulumi up` from whatever is there to `count` instances: its seconds and its event log."""
        if not self.count:
            self._clear()
            self._made_in = self.part
            self._stack.init(
                **{
                    "machines.kind": "containers",
                    "machines.subnet": SUBNET,
                    "vhost.backend": backend,
                    **((spdk_source() or {}) if backend == "spdk" else {}),
                }
            )
        self._stack.run("config", "set", "numinst", str(count))
        log = OUT / "state" / "events.json"
        os.environ["PULUMI_DEBUG_COMMANDS"] = "true"  # shows --event-log
        began = time.monotonic()
        self.count, self._backend = count, backend
        self._stack.run("up", "--yes", "--skip-preview", "--event-log", str(log), timeout=2400)
        seconds = time.monotonic() - began
        self.outputs: dict[str, Any] = self._stack.outputs()
        config.load_kube_config_from_dict(yaml.safe_load(self.outputs["kubeconfig"]))
        self.core = client.CoreV1Api()
        key = OUT / "state" / "key"
        key.touch(mode=0o600)
        key.write_text(self.outputs["sshKey"])
        with log.open() as lines:
            return seconds, timeline.read(lines)

    def down(self) -> None:
        """Destroy, measured, if anything is up."""
        if not self.count:
            return
        began, name = time.monotonic(), f"destroy, N = {self.count}, {self._backend}"
        self._stack.run("destroy", "--yes", "--skip-preview")
        self.figures.append(Figure(self._made_in, name, time.monotonic() - began, "s", 60))
        self._clear()

    @property
    def project(self) -> Project:
        """For the CLI as it is."""
        return Project(ROOT, self._stack.name, self._stack.environment)

    def machine(self, name: str, command: str, stdin: bytes | None = None) -> str:
        """Run in a shell on a dev machine."""
        return _run("docker", "exec", "-i", self.container(name), "bash", "-ec", command, stdin=stdin)

    def container(self, name: str) -> str:
        return f"spdk-k8s-{self._stack.name}-{name}"

    def guest(self, command: str, timeout: float = 300) -> str:
        """Run in the worker VM, by SSH."""
        address = self.outputs["nodes"]["worker2"]
        return _run("ssh", "-i", str(OUT / "state" / "key"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
                    "-o", "LogLevel=ERROR", "-o", "UserKnownHostsFile=/dev/null", f"root@{address}", command,
                    timeout=timeout)  # fmt: skip

    def pods(self) -> list[Any]:
        return list(self.core.list_namespaced_pod(NAMESPACE).items)

    def pod_starts(self) -> list[float]:
        """Seconds from a video pod's creation to Ready, of each; the API server keeps whole ones."""
        return [
            (condition.last_transition_time - pod.metadata.creation_timestamp).total_seconds()
            for pod in self.pods()
            if pod.metadata.labels.get("app") == VIDEO
            for condition in pod.status.conditions
            if condition.type == "Ready" and condition.status == "True"
        ]


def _run(*command: str, stdin: bytes | None = None, timeout: float = 300) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()[-2000:]}")
    return done.stdout.decode()


@contextmanager
def memory_watch() -> Iterator[list[float]]:
    """Puts into its list what the stack's containers took at most, MiB, as the engine counts: without idle cache.

    All of the stack is in them: control plane, registry, target with its disks, QEMU with the guest.
    """

    def taken() -> float:
        ids = _run("docker", "ps", "-q", "--filter", "name=^spdk-k8s-bench-").split()
        if not ids:
            return 0  # `docker stats` would show all there are
        usages = _run("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", *ids)
        return sum(mebibytes(line.partition(" / ")[0]) for line in usages.splitlines())

    def watch() -> None:
        while not done.wait(1):
            peak[0] = max(peak[0], taken())

    peak, done = [0.0], threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def mebibytes(size: str) -> float:
    """Of "1.5GiB", "12.3MiB", "456KiB", "0B"."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?i?B)", size).groups()  # type: ignore[union-attr]
    return float(number) * 1024 ** ("KMGT".find(unit[0]) - 1) if unit != "B" else float(number) / 2**20
