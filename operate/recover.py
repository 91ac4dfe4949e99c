"""What an earlier run left in the way of the next one: its lock, and operations that it did not finish."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operate import cli
from operate.cli import ROOT, Exported, Stack, program


@dataclass(frozen=True)
class Lock:
    """A lock of the CLI's: it keeps one in the state's folder while it works on a stack."""

    path: Path
    pid: int
    user: str
    host: str
    since: str

    @property
    def dead(self) -> bool:
        """Whether its run was killed; of a run on another machine nobody here can tell."""
        return self.host == socket.gethostname() and program(self.pid) != "pulumi"

    def __str__(self) -> str:
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")
        except OSError:
            words = []
        command = f": {' '.join(words).strip()[:100]}" if words and self.host == socket.gethostname() else ""
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since[:19]} UTC{command}"


def locks(stack: str) -> Iterator[Lock]:
    """Of the stack, where its state is kept in a folder."""
    url = os.environ.get("PULUMI_BACKEND_URL", "")
    if not url.startswith("file://"):
        return
    folder = (ROOT / Path(url.removeprefix("file://").partition("?")[0]).expanduser()) / ".pulumi/locks"
    for path in sorted(folder.glob(f"**/{stack}/*.json")):
        try:
            lock = json.loads(path.read_text())
        except (OSError, ValueError):  # it has just gone, or is just being written
            continue
        since = str(lock.get("timestamp", "an unknown time"))
        yield Lock(path, int(lock["pid"]), lock.get("username", "?"), lock.get("hostname", "?"), since)


def running(stack: str) -> list[Lock]:
    """The locks of runs that still work on the stack; those of killed runs are removed."""
    alive: list[Lock] = []
    for lock in locks(stack):
        if lock.dead:
            lock.path.unlink(missing_ok=True)
            print("removed the lock of a killed run", file=sys.stderr)
        else:
            alive.append(lock)
    return alive


def refuse_second_run(stack: str) -> None:
    if alive := running(stack):
        raise SystemExit(
            f"another run works on stack {stack}; nothing was changed:\n"
            + "".join(f"  {lock}\n" for lock in alive)
            + f"remedy: wait until it ends, or end it with Ctrl-C where it runs, or here: kill -INT {alive[0].pid}"
        )


def unfinished(exported: Exported) -> list[tuple[str, str]] | None:
    """Forget the operations that a killed run left in the state; None where there are none.

    Returns (kind, name) of the Docker objects that it was about to make: they may be there, but nobody knows their ids.
    Scripts and Kubernetes objects adopt what they find; Docker's would be in the way.
    """
    pending = exported["deployment"].pop("pending_operations", None)
    if not pending:
        return None
    found: list[tuple[str, str]] = []
    for operation in pending:
        made, resource = operation["type"] == "creating", operation["resource"]
        kind = re.match(r"docker:index/(container|network|volume):", resource["type"])
        if made and kind:
            found.append((kind[1], resource["inputs"]["name"]))
    return found


def clear(exported: Exported) -> bool:
    """Clear what a killed run left unfinished; whether `exported` must be imported again."""
    found = unfinished(exported)
    if found is None:
        return False
    for kind, name in found:
        if remove(kind, name):
            print(f"removed {kind} {name}, left by a killed run", file=sys.stderr)
    print("cleared the operations that a killed run left unfinished", file=sys.stderr)
    return True


def remove(kind: str, name: str) -> bool:
    """Remove an object of the Docker engine's; False where it is not there."""
    force = [] if kind == "network" else ["--force"]
    return subprocess.run(["docker", kind, "rm", *force, name], capture_output=True).returncode == 0


def forget(stack: Stack, exported: Exported, host: str) -> list[str]:
    """Take the steps of a storage host that is gone for good, and of its VMs, out of the state: Pulumi could not undo
    them. Returns the names of their nodes. Their objects in the cluster stay in the state: Pulumi can delete those.

    Refused for a host that is still in the config, which the same `up` would set up again.
    """
    from settings.changes import settings_of

    before, now = settings_of(cli.outputs(exported).get("config", {})), cli.settings_of(stack.config)
    storage = before.machines.storage if before else {}
    if host not in storage:
        raise SystemExit(
            f"FORGET = {host!r}: the stack has no such storage host; nothing was changed; remedy: FORGET= one of"
            f" {', '.join(storage) or '(none)'}"
        )
    nodes = [host, *storage[host]]
    if now is None or any(node in now.machines.addresses for node in nodes):
        raise SystemExit(
            f"FORGET = {host!r}: the config still names {' or '.join(nodes)}, or cannot be used; nothing was changed;"
            " remedy: remove them from spdk-k8s:machines, and see make preview"
        )
    resources = cli.resources(exported)
    gone = {resource["urn"] for resource in resources if _is_of(resource, nodes)}
    resources[:] = [_without(resource, gone) for resource in resources if resource["urn"] not in gone]
    print(f"forgot {len(gone)} steps of {' and '.join(nodes)}: nobody undoes them there", file=sys.stderr)
    return nodes


def _is_of(resource: dict[str, Any], nodes: Collection[str]) -> bool:
    """Whether it is a step of one of the nodes, or the component of a VM."""
    kind, name = resource["type"], resource["urn"].rpartition("::")[2]
    return (kind.startswith("command:") or kind.endswith(":WorkerVm")) and cli.is_of(name, nodes)


def _without(resource: dict[str, Any], gone: Collection[str]) -> dict[str, Any]:
    """A state in which one resource names another one that is not there is refused by the CLI."""
    kept = {key: value for key, value in resource.items() if key != "deletedWith" or value not in gone}
    if "dependencies" in kept:
        kept["dependencies"] = [urn for urn in kept["dependencies"] if urn not in gone]
    if "propertyDependencies" in kept:
        kept["propertyDependencies"] = {
            name: [urn for urn in urns or () if urn not in gone] for name, urns in kept["propertyDependencies"].items()
        }
    return kept
