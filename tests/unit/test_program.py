"""The whole program against mocks: what it would ask the engine for, without an engine."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime import mocks, set_all_config
from pulumi.runtime.mocks import MockCallArgs, MockResourceArgs

pytestmark = pytest.mark.unit

KEYS = {
    name: {"private": "PRIVATE", "public": "ssh-ed25519 AAAA"} for name in ("client", "master", "worker1", "worker2")
}
MADE = {"ca": "CA", "certificate": "CERT", "key": "KEY", "password": "p4ss", "kubeconfig": "k", "caHash": "sha256:0"}


class Recorder(mocks.Mocks):
    def __init__(self) -> None:
        self.resources: dict[str, MockResourceArgs] = {}

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.resources[f"{args.typ}::{args.name}"] = args
        outputs = dict(args.inputs)
        if args.typ.startswith("command:"):
            outputs["stdout"] = json.dumps(KEYS if "keys" in args.name else MADE)
        if args.typ == "docker:index/image:Image":
            outputs["repoDigest"] = f"{str(args.inputs['imageName']).rpartition(':')[0]}@sha256:{'0' * 64}"
        return args.name, outputs

    def call(self, args: MockCallArgs) -> dict[Any, Any]:
        return {}


@pytest.fixture(scope="module", params=[1, 3, 24])
def program(request: pytest.FixtureRequest) -> tuple[int, dict[str, MockResourceArgs]]:
    recorder = Recorder()
    mocks.set_mocks(recorder, project="spdk-k8s", stack="dev", preview=False)
    set_all_config({"spdk-k8s:numinst": str(request.param)})

    @pulumi.runtime.test
    def run() -> None:
        runpy.run_path(str(Path(__file__).parents[2] / "__main__.py"), run_name="__main__")

    run()
    return request.param, recorder.resources


def of_type(resources: dict[str, MockResourceArgs], token: str) -> list[MockResourceArgs]:
    return [r for r in resources.values() if r.typ == token]


def test_every_instance_has_a_disk_and_a_volume(program: tuple[int, dict[str, MockResourceArgs]]) -> None:
    count, resources = program
    assert len(of_type(resources, "kubernetes:core/v1:PersistentVolume")) == count
    assert len([r for r in of_type(resources, "command:remote:Command") if "worker2-disk-" in r.name]) == count


def test_every_remote_step_names_a_host_key_and_a_time_limit(program: tuple[int, dict[str, MockResourceArgs]]) -> None:
    steps = of_type(program[1], "command:remote:Command")
    assert len(steps) > 8
    for step in steps:
        assert "timeout -k 10 " in step.inputs["create"], step.name
        connection = step.inputs["connection"]
        assert (connection.get("value") or connection)["hostKey"], step.name


def test_no_command_line_holds_a_secret(program: tuple[int, dict[str, MockResourceArgs]]) -> None:
    for resource in program[1].values():
        for line in ("create", "update", "delete"):
            text = str(resource.inputs.get(line, ""))
            assert "PRIVATE" not in text
            assert "p4ss" not in text
