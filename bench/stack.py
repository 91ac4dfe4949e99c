"""The stack of the benchmark. It is always destroyed at the end."""

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
from render.placement import disk_path
from settings.names import NAMESPACE, VIDEO
from tests.pulumi_cli import ROOT, Stack

OUT = Path(__file__).parent / "out"
SUBNET = "172.30.92.0/24"
DEFAULT = "qemu-storage-daemon"  # the backend of every part except the comparison with SPDK


def spdk_source() -> dict[str, str] | None:
    """Config for the SPDK backend. None: SPDK's source is not available."""
    if folder := os.environ.get("SPDK_SOURCE"):
        return {"vhost.source": str(Path(folder).resolve())}
    return {} if os.environ.get("SPDK_RELEASE") else None


class Bench:
    """The stack `bench`. count: its instances; 0: down. figures: measured so far. part: the part that runs now."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.part = ""
        self.count = 0
        self._made_in = ""
        self._made: tuple[str, dict[str, str]] = ("", {})
        self._stack = Stack("bench", OUT / "state")

    def __enter__(self) -> Bench:
        self._clear()  # of a run that was killed
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._stack.state.exists():
            self._destroy()
            self._stack.remove()
            shutil.rmtree(self._stack.state)
        self.count = 0

    def _destroy(self) -> None:
        self._stack.try_run("state", "unprotect", "--all", "--yes")  # machines that hold disk files
        self._stack.run("destroy", "--yes", "--skip-preview")

    def add(self, name: str, value: float | None, unit: str, goal: float | None = None, note: str = "") -> None:
        self.figures.append(Figure(self.part, name, value, unit, goal, note))
        print(f"{name}: {value if value is None else round(value, 2)} {unit} {note}", flush=True)

    def ensure(self, count: int, backend: str = DEFAULT, **config: str) -> None:
        """Make sure that the stack is up with `count` instances on `backend`. config: other keys of it."""
        if (self.count, *self._made) != (count, backend, config):
            self.down()
            self.up(count, backend, **config)

    def up(self, count: int, backend: str = DEFAULT, **more: str) -> tuple[float, timeline.Log]:
        """Run `pulumi up` from the present state to `count` instances. Returns its seconds and its event log.

        more: keys of the config, for a stack that is made anew.
        """
        if not self.count:
            self._clear()
            self._made_in = self.part
            self._stack.init(
                **{
                    "machines.kind": "containers",
                    "machines.subnet": SUBNET,
                    "vhost.backend": backend,
                    **((spdk_source() or {}) if backend == "spdk" else {}),
                    **more,
                }
            )
        self._stack.run("config", "set", "numinst", str(count))
        log = OUT / "state" / "events.json"
        os.environ["PULUMI_DEBUG_COMMANDS"] = "true"  # makes --event-log available
        began = time.monotonic()
        self.count, self._made = count, (backend, more)
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

    def change(self, key: str, value: str) -> None:
        """Set `key` of the running stack's config, and make it so."""
        self._stack.run("config", "set", "--path", key, value)
        backend, more = self._made
        self.up(self.count, backend, **more)

    def down(self) -> None:
        """Destroy the stack if it is up, and add the time as a figure of the part that created it."""
        if not self.count:
            return
        began, name = time.monotonic(), f"destroy, N = {self.count}, {self._made[0]}"
        self._destroy()
        self.figures.append(Figure(self._made_in, name, time.monotonic() - began, "s", 60))
        self._clear()

    @property
    def project(self) -> Project:
        """This stack as a project, to time the CLI on it."""
        return Project(ROOT, self._stack.name, self._stack.environment)

    def machine(self, name: str, command: str, stdin: bytes | None = None) -> str:
        """Run `command` in a shell on dev machine `name`. Returns its stdout."""
        return _run("docker", "exec", "-i", self.container(name), "bash", "-ec", command, stdin=stdin)

    def container(self, name: str) -> str:
        return f"spdk-k8s-{self._stack.name}-{name}"

    def guest(self, command: str, timeout: float = 300) -> str:
        """Run `command` in the worker VM, by SSH. Returns its stdout. timeout: seconds."""
        address = self.outputs["nodes"]["worker2"]
        return _run("ssh", "-i", str(OUT / "state" / "key"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
                    "-o", "LogLevel=ERROR", "-o", "UserKnownHostsFile=/dev/null", f"root@{address}", command,
                    timeout=timeout)  # fmt: skip

    def mounted(self, ordinal: int) -> str:
        """Where the guest has mounted the disk of instance `ordinal`."""
        return self.guest(f"findmnt -nfo TARGET --source $(readlink -f {disk_path(ordinal)})").strip()

    def pods(self) -> list[Any]:
        return list(self.core.list_namespaced_pod(NAMESPACE).items)

    def pod_starts(self) -> list[float]:
        """Seconds from creation to Ready of each video pod. The API server keeps whole seconds."""
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
    """Measure the peak memory of the stack's containers in MiB, as the Docker engine counts it, without idle cache.

    The list holds the peak. The containers hold the whole stack: control plane, registry, vhost target with its disks,
    QEMU with the guest.
    """

    def taken() -> float:
        ids = _run("docker", "ps", "-q", "--filter", "name=^spdk-k8s-bench-").split()
        if not ids:
            return 0  # without names, `docker stats` would show all containers
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
    """A size as Docker writes it ("1.5GiB", "456KiB", "0B"), in MiB."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?i?B)", size).groups()  # type: ignore[union-attr]
    return float(number) * 1024 ** ("KMGT".find(unit[0]) - 1) if unit != "B" else float(number) / 2**20
