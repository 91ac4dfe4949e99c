"""What the agent tells over HTTP. On the pod's address: kubelet's probes, /disks, /cpus and /metrics. On a socket of
root's own beside the vhost sockets, for the stack's steps on the host, also /wait and /release."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from disk_agent.agent import Agent
from disk_agent.machine import State
from disk_agent.monitor import Refused, Silent
from disk_agent.target import Counts

STUCK_AFTER = 60  # seconds without a pass of the loop
COUNTED_WITHIN = 1  # seconds, of a scrape


class Metrics(Collector):
    """counts: the target's own, asked for before each scrape: to collect is not asynchronous."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.counts = Counts()

    async def count(self) -> None:
        """A target that does not answer at once has counted nothing."""
        self.counts = Counts()
        with suppress(Refused, Silent, TimeoutError):
            async with asyncio.timeout(COUNTED_WITHIN):
                self.counts = await self.agent.target.counts()

    def collect(self) -> Iterator[Metric]:
        agent, report = self.agent, self.agent.report()
        up = GaugeMetricFamily("disk_agent_target_up", "The vhost target answers")
        up.add_metric([], agent.supervisor.up)
        starts = CounterMetricFamily("disk_agent_target_starts", "Starts of the vhost target")
        starts.add_metric([], agent.supervisor.starts)
        started = GaugeMetricFamily("disk_agent_target_start_time_seconds", "When the vhost target was started last")
        started.add_metric([], agent.supervisor.started)
        state = GaugeMetricFamily("disk_agent_disk_state", "1 for the state a disk is in", labels=["disk", "state"])
        limit = GaugeMetricFamily("disk_agent_disk_limit", "A limit that is in force", labels=["disk", "limit"])
        wanted = GaugeMetricFamily("disk_agent_disk_limit_wanted", "A limit of the config's", labels=["disk", "limit"])
        for disk in report["disks"]:
            for each in State:
                if each is not State.GONE:
                    state.add_metric([disk["name"], str(each)], disk["state"] == each)
            for name, value in disk["limitsInForce"].items():
                limit.add_metric([disk["name"], name], value)
            for name, value in disk["limits"].items():
                wanted.add_metric([disk["name"], name], value)
        actions = CounterMetricFamily("disk_agent_actions", "Steps taken with disks", labels=["action", "result"])
        for (action, result), count in agent.actions.items():
            actions.add_metric([action, result], count)
        vms = GaugeMetricFamily("disk_agent_vm_answers", "QEMU of a VM answers", labels=["vm"])
        resets = CounterMetricFamily("disk_agent_vm_resets", "Resets of a guest that hung as it booted", labels=["vm"])
        for name, vm in report["vms"].items():
            vms.add_metric([name], vm["qemu"] == "answers")
            resets.add_metric([name], vm["resets"])
        roles = GaugeMetricFamily("disk_agent_role_threads", "Threads on a role's cores", labels=["role", "cores"])
        for role, found in agent.cpus().get("roles", {}).items():
            roles.add_metric([role, found["cores"]], found["threads"])
        yield from (up, starts, started, state, limit, wanted, actions, vms, resets, roles)
        yield from self._counted()

    def _counted(self) -> Iterator[Metric]:
        labels = ["disk", "direction"]
        requests = CounterMetricFamily("disk_agent_disk_requests", "Requests that the target completed", labels=labels)
        moved = CounterMetricFamily("disk_agent_disk_bytes", "Bytes of these requests", labels=labels)
        seconds = CounterMetricFamily("disk_agent_disk_request_seconds", "Time of all of them together", labels=labels)
        for ordinal, directions in self.counts.disks.items():
            for name, counted in directions.items():
                key = [f"vhost.{ordinal}", name]
                requests.add_metric(key, counted.requests)
                moved.add_metric(key, counted.bytes)
                seconds.add_metric(key, counted.seconds)
        reactor = CounterMetricFamily("disk_agent_reactor_seconds", "Time of a reactor's core", labels=["cpu", "state"])
        for core, time_of in self.counts.reactors.items():
            reactor.add_metric([str(core), "busy"], time_of.busy)
            reactor.add_metric([str(core), "idle"], time_of.idle)
        yield from (requests, moved, seconds, reactor)


def app(agent: Agent, *, local: bool) -> Starlette:
    """local: with what only root on this host may ask for."""
    registry, collected = CollectorRegistry(), Metrics(agent)
    registry.register(collected)

    def probe(true: bool, why: str) -> Response:
        return PlainTextResponse("yes\n" if true else f"{why}\n", 200 if true else 503)

    async def started(_: Request) -> Response:
        return probe(agent.supervisor.ever_up, agent.supervisor.said)

    async def ready(_: Request) -> Response:
        waiting = (f"{d['name']}: {d['why']}" for d in agent.report()["disks"] if d["state"] == State.MISSING)
        return probe(agent.ready, agent.problem or "; ".join(waiting) or agent.supervisor.said)

    async def alive(_: Request) -> Response:
        stuck = time.monotonic() - agent.last_pass
        return probe(stuck < STUCK_AFTER, f"the agent has looked at no disk for {stuck:.0f} s")

    async def disks(_: Request) -> Response:
        return JSONResponse(agent.report())

    async def cpus(_: Request) -> Response:
        return JSONResponse(agent.cpus())

    async def metrics(_: Request) -> Response:
        await collected.count()
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def earlier(asked: QueryParams) -> list[str]:
        """The config that the asking step knows is not here yet."""
        here = agent.config.digest if agent.config else ""
        if asked.get("config", here) == here and not agent.problem:
            return []
        return [agent.problem or "kubelet has not passed on the changed config yet"]

    async def wait(request: Request) -> Response:
        """Until VM `vm` has `disks`, as this `config` wants them."""
        asked = request.query_params
        wanted = sorted(ordinals(asked.get("disks", "")))

        def missing() -> list[str]:
            lacks = [i for i in wanted if agent.state(i) != State.PLUGGED or agent.vm_of(i) != asked["vm"]]
            return earlier(asked) or [
                f"disk {i} is not in {asked['vm']}: {agent.state(i)}: {agent.why(i)}" for i in lacks
            ]

        return await _until_none(missing, float(asked.get("seconds", "60")))

    async def release(request: Request) -> Response:
        """The disks of VM `vm` beside `keep` have no user any more; until they are out of it."""
        asked = request.query_params
        keep, seconds = ordinals(asked.get("keep", "")), float(asked.get("seconds", "60"))
        here = await _until_none(lambda: earlier(asked), seconds)
        if here.status_code != 200:
            return here
        agent.release(asked["vm"], keep)

        def still_there() -> list[str]:
            has = agent.vms[asked["vm"]].ordinals if asked["vm"] in agent.vms else set[int]()
            return [
                f"disk {i} is still in {asked['vm']}: {agent.why(i) or 'the config lists it'}"
                for i in sorted(has - keep)
            ]

        return await _until_none(still_there, seconds)

    routes = [Route(f"/{f.__name__}", f) for f in (started, ready, alive, disks, cpus, metrics)]
    if local:
        routes += [Route("/wait", wait), Route("/release", release, methods=["POST"])]
    return Starlette(routes=routes)


def ordinals(text: str) -> set[int]:
    return {int(part) for part in text.split(",") if part.isdecimal()}


async def _until_none(reasons: Callable[[], list[str]], seconds: float) -> Response:
    end = time.monotonic() + seconds
    while left := reasons():
        if time.monotonic() > end:
            return PlainTextResponse("".join(f"{line}\n" for line in left), 504)
        await asyncio.sleep(0.1)
    return PlainTextResponse("")


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """They are the agent's."""
        yield

    async def main_loop(self) -> None:
        """Not ten times a second, as uvicorn's own, which looks at the clock for a header."""
        await asyncio.Event().wait()


async def serve(agent: Agent, port: int, local: Path) -> None:
    """For ever."""
    tcp = socket.create_server(("", port))
    local.unlink(missing_ok=True)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(local))
    servers = [(app(agent, local=False), tcp), (app(agent, local=True), unix)]
    await asyncio.gather(*(_server(made).serve(sockets=[listening]) for made, listening in servers))


def _server(made: Starlette) -> Server:
    return Server(uvicorn.Config(made, lifespan="off", log_level="warning", access_log=False, date_header=False))
