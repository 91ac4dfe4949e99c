"""`make up`: clear what a killed run left, mend what differs, let Pulumi make the rest, wait until it is so, show it.

usage: python -m operate.up STACK [--numinst N]; VHOST_BACKEND and SPDK_SOURCE in the environment: for this run only
"""

from __future__ import annotations

import argparse
import subprocess
import threading
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from operate import check, cli, leftovers, mend, progress, recover, settle, status, view
from operate.cli import POLICY_PACK, Exported, Stack

MARK = " # drifted"
POLL = 5  # seconds between two looks for volumes that lost their claims while Pulumi works


@dataclass(frozen=True)
class Running:
    """A stack that is up, as it is now."""

    cluster: view.Cluster
    seen: view.Snapshot
    drifts: list[check.Drift]

    @classmethod
    def look(cls, exported: Exported) -> Running | None:
        """None where no `up` has ended yet."""
        try:
            made = view.Outputs.parse(cli.outputs(exported))
        except (KeyError, TypeError, ValueError):
            return None
        cluster = view.connect(made)
        seen = view.look(cluster, made)
        return cls(cluster, seen, check.find(seen))


def machines(stack: str) -> dict[str, str]:
    """dev's machines in the Docker engine: name of the container -> its state, "running" mostly."""
    name = f"name=^spdk-k8s-{stack}-(master|worker[0-9]+)$"
    command = ["docker", "ps", "--all", "--filter", name, "--format", "{{.Names}} {{.State}}"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        raise SystemExit(f"{listed.stderr.strip()}\nremedy: make setup")
    return dict(line.split(" ", 1) for line in listed.stdout.splitlines())


def start_stopped(found: dict[str, str]) -> None:
    """A container that was stopped does not start by itself."""
    if stopped := [name for name, state in found.items() if state != "running"]:
        print(f"starting {', '.join(stopped)}", flush=True)
        subprocess.run(["docker", "start", *stopped], stdout=subprocess.DEVNULL)


def run_again(exported: Exported, steps: Collection[str]) -> bool:
    """Mark `steps` in the state, so that the next `up` runs them; whether there was one.

    The command stays the same one with a comment behind it: policies see it too where it waits for another step.
    """
    marked = False
    for resource in cli.resources(exported):
        inputs: dict[str, Any] = resource.get("inputs") or {}
        if resource["urn"].rpartition("::")[2] in steps and isinstance(inputs.get("update"), str):
            inputs["update"] += MARK
            marked = True
    return marked


def has_machines(exported: Exported) -> bool:
    return any(resource["type"].startswith("docker:index/container:") for resource in cli.resources(exported))


@contextmanager
def volumes_kept_bound(running: Running | None) -> Generator[None]:
    """A StatefulSet that is replaced takes its claims away, and Pulumi waits for pods that wait for their volumes."""
    if running is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL):
            mend.rebind_released(running.cluster)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def pulumi(stack: Stack, running: Running | None, *options: str) -> int:
    command = ["up", "--stack", stack.name, "--policy-pack", POLICY_PACK, "--yes", "--skip-preview", *options]
    with volumes_kept_bound(running):
        return progress.show(stack, *command)


def machines_made_anew(stack: Stack, exported: Exported, lost: mend.Lost) -> Exported:
    """Make containers anew that somebody deleted, and run the steps again that ran on them; the new state."""
    print(f"drift: {', '.join(lost.machines)} is not in the Docker engine", flush=True)
    run_again(exported, lost.steps)
    stack.put(exported)
    if running := Running.look(exported):
        for machine in set(lost.machines) & running.seen.nodes.keys():
            mend.forget_node(running.cluster, machine)
    targets = [option for urn in lost.urns for option in ("--target", urn)]
    forget = ["refresh", "--stack", stack.name, "--yes", "--skip-preview", *targets]
    steps = [option for step in sorted(lost.steps) for option in ("--target", f"**::{step}")]
    if code := progress.show(stack, *forget) or pulumi(stack, None, *targets, *steps):
        raise SystemExit(code)
    return stack.open()


def mended(stack: Stack, exported: Exported, *, changed: bool) -> tuple[Running | None, list[str]]:
    """Mend what Pulumi cannot, and have the rest made again; the running stack, and options of the `up` that follows.

    changed: `exported` is not what the CLI has, and must be imported.
    """
    if has_machines(exported):
        start_stopped(found := machines(stack.name))
        lost = mend.lost_machines(cli.plain(cli.resources(exported)), found.keys())
        if lost.machines:
            exported, changed = machines_made_anew(stack, exported, lost), False
    running = Running.look(exported)
    if running:
        say(running.drifts)
        changed |= run_again(exported, mend.steps(running.drifts))
    if changed:
        stack.put(exported)
    if running and check.CONTROL_PLANE in mend.steps(running.drifts):  # first: without an API server a refresh fails
        if code := pulumi(stack, None, "--target", f"**::{check.CONTROL_PLANE}"):
            raise SystemExit(code)
        exported = stack.open()
        running = Running.look(exported)
        if running and run_again(exported, mend.steps(running.drifts)):
            stack.put(exported)
    if not running:
        return None, []
    mend.mend(running.cluster, running.drifts)
    # objects of Kubernetes that are missing or different come again by a refresh
    refresh = any(drift.mend.startswith(check.UP) for drift in running.drifts)
    return running, ["--refresh"] if refresh else []


def say(drifts: list[check.Drift]) -> None:
    for drift in drifts:
        print(f"drift: {drift.what}{'' if drift.mend == check.UP else f'; mend: {drift.mend}'}", flush=True)


def up(stack: Stack, numinst: str) -> int:
    recover.refuse_second_run(stack.name)
    exported = stack.export()
    changed = exported is not None and recover.clear(exported)
    if exported is None or not has_machines(exported):
        leftovers.refuse(stack.name, leftovers.find(stack.name))
    if exported is None:
        exported = stack.init()
    selecting = stack.select()
    before, options = mended(stack, exported, changed=changed)
    if numinst:
        stack.run("config", "set", "--stack", stack.name, "--", "numinst", numinst)
    options += cli.set_for_this_run(stack)
    code = pulumi(stack, before, *options)
    selecting.wait()
    after = Running.look(stack.open())
    if after is None:
        return code
    if code:
        status.show(after.cluster, after.seen)
        return code
    settled = settle.wait(after.cluster, after.seen.made, before.seen if before else None)
    print()
    shown = status.show(after.cluster, settled.seen)
    check.report(settled.drifts)
    return 1 if settled.drifts else shown


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring a stack up.", allow_abbrev=False)
    parser.add_argument("stack")
    parser.add_argument("--numinst", default="")
    chosen = parser.parse_args()
    with cli.session(chosen.stack) as stack:
        return up(stack, chosen.numinst)


if __name__ == "__main__":
    cli.main(main)
