"""The running stack as `up` finds it: looked at, mended where Pulumi cannot, and watched while Pulumi works."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from operate import check, cli, mend, outcome, pages, progress, settle, view
from operate.cli import POLICY_PACK, Exported, Stack
from operate.impact import Impact

if TYPE_CHECKING:
    from operate.away import Away

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
        made = outputs(exported)
        if made is None:
            return None
        cluster = view.connect(made)
        seen = view.look(cluster, made)
        return cls(cluster, seen, check.find(seen))

    def without(self, absent: Iterable[Away]) -> Running:
        """The same without the steps that would wait for a host that is away."""
        nodes = {node for host in absent for node in host.nodes}
        drifts = [
            replace(drift, steps=tuple(step for step in drift.steps if not cli.is_of(step, nodes)))
            for drift in self.drifts
        ]
        return replace(self, drifts=drifts)


def outputs(exported: Exported) -> view.Outputs | None:
    """None where no `up` has ended yet."""
    try:
        return view.Outputs.parse(cli.outputs(exported))
    except (KeyError, TypeError, ValueError):
        return None


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


def undisturbed(stack: Stack, exported: Exported) -> Running | None:
    """The running stack, where there is nothing to mend."""
    if has_machines(exported):
        found = machines(stack.name)
        stopped = any(state != "running" for state in found.values())
        if stopped or mend.lost_machines(cli.plain(cli.resources(exported)), found.keys()).machines:
            return None
    running = Running.look(exported)
    return None if running is None or running.drifts else running


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
    absent: list[Away] = []
    if running and running.drifts:
        from operate import away  # and with it the models of the config, which take half a second to load

        say(running.drifts)
        absent = away.hosts(cli.settings_of(stack.config), running.drifts)
        for host in absent:
            print(f"away: {host}", file=sys.stderr, flush=True)
        running = running.without(absent)
        changed |= run_again(exported, mend.steps(running.drifts))
    if changed:
        stack.put(exported)
    if running and check.CONTROL_PLANE in mend.steps(running.drifts):  # first: without an API server a refresh fails
        if code := pulumi(stack, None, "--target", f"**::{check.CONTROL_PLANE}"):
            raise SystemExit(code)
        exported = stack.open()
        running = Running.look(exported)
        running = running and running.without(absent)
        if running and run_again(exported, mend.steps(running.drifts)):
            stack.put(exported)
    if not running:
        return None, []
    mend.mend(running.cluster, running.drifts)
    # objects of Kubernetes that are missing or different come again by a refresh
    refresh = any(drift.mend.startswith(check.UP) for drift in running.drifts)
    # where a step of an absent host must run, it fails, and the others go on
    return running, ["--refresh"] * refresh + ["--continue-on-error"] * bool(absent)


def let_go(running: Running, moved: Mapping[int, str]) -> list[str]:
    """Take away the volumes of instances that move to another VM; options of the `up` that makes them anew there.

    Pulumi itself would wait for ever: a volume that is deleted stays until no pod uses it.
    """
    for i, way in moved.items():
        print(f"instance {i} moves: {way}", flush=True)
        try:
            mend.remake(running.cluster, f"vhost-{i}")
        except view.NO_ANSWER as error:
            raise SystemExit(f"instance {i} does not leave its VM: {view.why(error)}; remedy: make up") from None
    return ["--refresh"]


def forget_nodes(cluster: view.Cluster, nodes: Iterable[str]) -> None:
    """Delete the nodes of machines that are gone: the cluster then ends what it believes to run there."""
    for node in nodes:
        try:
            mend.forget_node(cluster, node)
        except view.NO_ANSWER as error:
            raise SystemExit(
                f"node {node} cannot be deleted: {view.why(error)}; remedy: kubectl delete node {node}"
            ) from None


def watched(running: Running | None, costs: Impact | None, after: Mapping[str, Any]) -> pages.Watch:
    """The pages that the change takes away. after: the stack's outputs as the preview has them: pages may move."""
    if running is None or costs is None:
        return pages.Watch({}, answers)
    made = running.seen.made
    moved: list[Any] = after["pages"] if isinstance(after.get("pages"), list) else []
    nodes: dict[str, Any] = after.get("nodes") or {}
    ours = {*made.nodes.values(), *nodes.values()}
    found = {i: [made.pages[i], *moved[i : i + 1]] for i in costs.pages if i < len(made.pages)}
    return pages.Watch(
        {i: [u for u in dict.fromkeys(map(str, urls)) if urlsplit(u).hostname in ours] for i, urls in found.items()},
        answers,
    )


def answers(page: str) -> bool:
    """Whether the page tells what its own disk is, read past every cache."""
    return view.fetch(f"{page}marker", timeout=1).marker is not None


def due(before: Running | None, costs: Impact | None) -> Callable[[view.Snapshot], list[str]]:
    """What the preview said for sure and a later look does not show yet. Nothing where something had to be mended."""
    if before is None or costs is None or before.drifts:
        return settle.nothing
    return lambda after: outcome.undone(costs, before.seen, after)


def say(drifts: list[check.Drift]) -> None:
    for drift in drifts:
        print(f"drift: {drift.what}{'' if drift.mend == check.UP else f'; mend: {drift.mend}'}", flush=True)
