"""A mock engine that records what a program registers: inputs, and the relations between resources."""

from __future__ import annotations

import functools
import hashlib
import json
import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pulumi
from pulumi.runtime import get_root_resource, mocks, rpc, set_all_config
from pulumi.runtime.mocks import MockCallArgs, MockMonitor, MockResourceArgs
from pulumi.runtime.proto.resource_pb2 import RegisterResourceRequest
from pulumi.runtime.settings import set_root_resource
from pulumi.runtime.stack import Stack

ROOT = Path(__file__).parents[2]
PROJECT, STACK = "spdk-k8s", "pulumi:pulumi:Stack"
# Secrets, as steps print them. Each is a text that a test finds wherever it leaks to.
KEYS = {
    name: {"private": f"PRIVATE-{name}", "public": f"ssh-ed25519 AAAA {name}"}
    for name in ("client", "master", *(f"worker{i}" for i in range(1, 9)))
}
STDOUT = {  # end of a step's name -> what it prints
    "-keys": json.dumps(KEYS),
    "-publish-key": "PRIVATE-publish-key",
    "-certificate": json.dumps(
        {"ca": "CA", "certificate": "CERTIFICATE", "key": "PRIVATE-tls", "password": "PRIVATE-password"}
    ),
    "-control-plane": json.dumps({"kubeconfig": "PRIVATE-kubeconfig", "caHash": "sha256:0"}),
    "-vm": "tcg",
    "-ready": "container",
}


@dataclass(frozen=True)
class Registered:
    """A registration as the engine sees it. A resource is named by its path: "component/child"."""

    urn: str
    path: str
    inputs: dict[str, Any]
    """Plain values; secrets are unwrapped."""
    secret_inputs: set[str]
    request: RegisterResourceRequest = field(repr=False)
    parent: str
    provider: str
    """Path of the provider. Empty: a default provider."""
    dependencies: set[str]
    """Paths of depends_on, and of the resources whose outputs are inputs."""
    deleted_with: str
    """Path of the resource; like in the engine, inherited from the parent if it has none of its own."""
    replace_with: set[str]
    outputs: dict[str, Any] = field(default_factory=dict)
    """What a component or the stack registers as outputs. Secrets are unwrapped."""
    secret_outputs: set[str] = field(default_factory=set)

    @property
    def typ(self) -> str:
        return self.request.type

    @property
    def name(self) -> str:
        return self.request.name


class Recorder(mocks.Mocks):
    """The outputs that providers would return."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        outputs = dict(args.inputs)
        if args.typ.startswith("command:"):
            outputs["stdout"] = next((text for end, text in STDOUT.items() if args.name.endswith(end)), "")
        if args.typ.startswith("kubernetes:") and "metadata" in outputs:
            outputs["metadata"] = {"name": args.name, **outputs["metadata"]}
        if args.typ == "docker:index/image:Image":
            name = str(args.inputs["imageName"])
            outputs["repoDigest"] = f"{name.rpartition(':')[0]}@sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        return args.name, outputs

    def call(self, args: MockCallArgs) -> dict[Any, Any]:
        return {}


class Monitor(MockMonitor):
    """The engine's end of the gRPC connection."""

    def __init__(self) -> None:
        super().__init__(Recorder())
        self.recorded: dict[str, Registered] = {}  # by URN

    def make_urn(self, parent: str, type_: str, name: str) -> str:
        """URN as the engine forms it: with the types of all ancestors except the stack."""
        kinds = parent.split("::")[2] if parent else STACK
        kinds = type_ if kinds == STACK else f"{kinds}${type_}"
        return f"urn:pulumi:dev::{PROJECT}::{kinds}::{name}"

    def RegisterResource(self, request: RegisterResourceRequest) -> Any:
        response = super().RegisterResource(request)
        inputs, secret = plain(request.object)
        urns = {*request.dependencies, *(u for p in request.propertyDependencies.values() for u in p.urns)}
        parent = self.recorded.get(request.parent)
        path = f"{parent.path}/{request.name}" if parent and parent.typ != STACK else request.name
        self.recorded[response.urn] = Registered(
            urn=response.urn,
            path=path,
            inputs=inputs,
            secret_inputs=secret,
            request=request,
            parent=parent.path if parent else "",
            provider="".join(self.paths([request.provider.rpartition("::")[0]])),
            dependencies=self.paths(urns),
            deleted_with="".join(self.paths([request.deletedWith])) or (parent.deleted_with if parent else ""),
            replace_with=self.paths(request.replace_with),
        )
        return response

    def paths(self, urns: Iterable[str]) -> set[str]:
        return {self.recorded[urn].path for urn in urns if urn}

    def RegisterResourceOutputs(self, request: Any) -> Any:
        outputs, secret = plain(request.outputs)
        self.recorded[request.urn].outputs.update(outputs)
        self.recorded[request.urn].secret_outputs.update(secret)
        return super().RegisterResourceOutputs(request)


def plain(struct: Any) -> tuple[dict[str, Any], set[str]]:
    """The properties in a message, and the names of those that are secret or contain a secret."""

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
    """Path -> registration, for everything that `program` registers."""
    monitor = Monitor()
    mocks.set_mocks(monitor.mocks, project=PROJECT, stack="dev", preview=False, monitor=monitor)
    set_root_resource(None)  # type: ignore[arg-type]  # else the SDK keeps the root of an earlier program
    Stack()
    raw = {f"{PROJECT}:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in (config or {}).items()}
    set_all_config(
        raw, secret_keys=[f"{PROJECT}:machines"] if "PRIVATE KEY" in raw.get(f"{PROJECT}:machines", "") else []
    )

    @pulumi.runtime.test
    def run() -> None:
        program()
        stack = cast(Stack, get_root_resource())
        stack.register_outputs(stack.outputs)

    run()
    by_path = {r.path: r for r in monitor.recorded.values()}
    assert len(by_path) == len(monitor.recorded), "two resources of one name in one component"
    return by_path


def run_program(**config: object) -> dict[str, Registered]:
    """Path -> registration, for everything that __main__.py registers with this config. Cached: do not change it."""
    return _recorded(json.dumps(config, sort_keys=True))


ROOMY: dict[str, dict[str, object]] = {  # has room for any N
    "vm": {"vcpus": 3, "diskSlots": 128, "memoryMib": 8192},
    "video": {"cpuRequest": "1m"},
    "vhost": {"backend": "qemu-storage-daemon"},
}


def of_count(count: int, **machines: int) -> dict[str, Registered]:
    """The program with `count` instances."""
    return run_program(numinst=count, machines={"kind": "containers", **machines}, **ROOMY)


@functools.cache
def _recorded(config: str) -> dict[str, Registered]:
    return record(main, json.loads(config))


def main() -> None:
    runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")


def of_type(resources: Mapping[str, Registered], token: str) -> list[Registered]:
    return [r for r in resources.values() if r.typ == token]
