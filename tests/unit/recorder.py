"""A mock engine that writes down all that a program asks for: inputs, and what relates resources to one another."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import mocks, rpc, set_all_config
from pulumi.runtime.mocks import MockCallArgs, MockMonitor, MockResourceArgs
from pulumi.runtime.proto.resource_pb2 import RegisterResourceRequest

ROOT = Path(__file__).parents[2]
PROJECT, STACK = "spdk-k8s", "pulumi:pulumi:Stack"
KEYS = {
    name: {"private": "PRIVATE", "public": "ssh-ed25519 AAAA"}
    for name in ("client", "master", *(f"worker{i}" for i in range(1, 9)))
}
MADE = {"ca": "CA", "certificate": "CERT", "key": "KEY", "password": "p4ss", "kubeconfig": "k", "caHash": "sha256:0"}


@dataclass(frozen=True)
class Registered:
    """One registration as the engine sees it. Other resources are named as "type::name"."""

    urn: str
    inputs: dict[str, Any]
    """Plain, secrets unwrapped."""
    secret_inputs: frozenset[str]
    request: RegisterResourceRequest = field(repr=False)
    parent: str
    provider: str
    """Empty: a default one."""
    dependencies: frozenset[str]
    """With those of all inputs."""
    deleted_with: str
    """Its own or, as the engine has it, its parent's."""
    replace_with: frozenset[str]
    outputs: dict[str, Any] = field(default_factory=dict)
    """Of a component or the stack: what it registers as its outputs, secrets unwrapped."""
    secret_outputs: set[str] = field(default_factory=set)

    @property
    def typ(self) -> str:
        return self.request.type

    @property
    def name(self) -> str:
        return self.request.name


def short(urn: str) -> str:
    """ "type::name" of a URN, or of a reference to a provider."""
    kinds, name = urn.split("::")[2:4] if urn else ("", "")
    return f"{kinds.rpartition('$')[2]}::{name}" if urn else ""


class Recorder(mocks.Mocks):
    """What providers answer."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        outputs = dict(args.inputs)
        if args.typ.startswith("command:"):
            outputs["stdout"] = json.dumps(KEYS if "keys" in args.name else MADE)
        if args.typ == "docker:index/image:Image":
            outputs["repoDigest"] = f"{str(args.inputs['imageName']).rpartition(':')[0]}@sha256:{'0' * 64}"
        return args.name, outputs

    def call(self, args: MockCallArgs) -> dict[Any, Any]:
        return {}


class Monitor(MockMonitor):
    """The engine's end of the wire."""

    def __init__(self) -> None:
        super().__init__(Recorder())
        self.recorded: dict[str, Registered] = {}  # by URN

    def make_urn(self, parent: str, type_: str, name: str) -> str:
        """As the engine makes it: types of all ancestors, without the stack."""
        kinds = parent.split("::")[2] if parent else STACK
        kinds = type_ if kinds == STACK else f"{kinds}${type_}"
        return f"urn:pulumi:dev::{PROJECT}::{kinds}::{name}"

    def RegisterResource(self, request: RegisterResourceRequest) -> Any:
        response = super().RegisterResource(request)
        inputs, secret = plain(request.object)
        dependencies = {*request.dependencies, *(u for p in request.propertyDependencies.values() for u in p.urns)}
        parent = self.recorded.get(request.parent)
        self.recorded[response.urn] = Registered(
            urn=response.urn,
            inputs=inputs,
            secret_inputs=frozenset(secret),
            request=request,
            parent=short(request.parent),
            provider=short(request.provider),
            dependencies=frozenset(map(short, dependencies)),
            deleted_with=short(request.deletedWith) or (parent.deleted_with if parent else ""),
            replace_with=frozenset(map(short, request.replace_with)),
        )
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:
        outputs, secret = plain(request.outputs)
        self.recorded[request.urn].outputs.update(outputs)
        self.recorded[request.urn].secret_outputs.update(secret)
        return super().RegisterResourceOutputs(request)


def plain(struct: Any) -> tuple[dict[str, Any], set[str]]:
    """A message's properties, and the names of those that are secret, wholly or somewhere inside."""

    def unwrapped(value: Any) -> tuple[Any, bool]:
        if rpc.is_rpc_secret(value):
            return unwrapped(rpc.unwrap_rpc_secret(value))[0], True
        if isinstance(value, dict):
            pairs = {key: unwrapped(item) for key, item in value.items()}
            return {key: item for key, (item, _) in pairs.items()}, any(s for _, s in pairs.values())
        if isinstance(value, list):
            items = [unwrapped(item) for item in value]
            return [item for item, _ in items], any(s for _, s in items)
        return value, False

    found = {key: unwrapped(value) for key, value in rpc.deserialize_properties(struct).items()}
    return {key: value for key, (value, _) in found.items()}, {key for key, (_, secret) in found.items() if secret}


def record(program: Callable[[], object], config: Mapping[str, object] | None = None) -> dict[str, Registered]:
    """Everything that `program` registers, by "type::name"."""
    monitor = Monitor()
    mocks.set_mocks(monitor.mocks, project=PROJECT, stack="dev", preview=False, monitor=monitor)
    set_all_config({f"{PROJECT}:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in (config or {}).items()})

    @pulumi.runtime.test
    def run() -> None:
        program()

    run()
    return {f"{r.typ}::{r.name}": r for r in monitor.recorded.values()}


def run_program(**config: object) -> dict[str, Registered]:
    """Everything that __main__.py registers with this config, by "type::name"."""
    return record(lambda: runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__"), config)


def of_type(resources: Mapping[str, Registered], token: str) -> list[Registered]:
    return [r for r in resources.values() if r.typ == token]
