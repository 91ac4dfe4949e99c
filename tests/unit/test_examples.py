"""Each component runs alone, in the example program of its docstring."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest

import components
from tests.unit.recorder import record

pytestmark = pytest.mark.unit

SECRETS = {"key": "PRIVATE", "hostKey": "PRIVATE", "password": "p4ss", "kubeconfig": "k"}
COMPONENTS = [
    found
    for module in pkgutil.iter_modules(components.__path__)
    for found in vars(importlib.import_module(f"components.{module.name}")).values()
    if inspect.isclass(found)
    and issubclass(found, pulumi.ComponentResource)
    and found.__module__ == f"components.{module.name}"
]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.__name__)
def test_the_example_of_a_component_runs_anywhere(
    component: type[pulumi.ComponentResource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the example is not in this checkout
    (example,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(component) or "", re.DOTALL)
    resources = record(lambda: exec(compile(example, "example", "exec"), {}), SECRETS)  # noqa: S102
    (made,) = [r for r in resources.values() if r.typ == f"spdk-k8s:index:{component.__name__}"]
    assert made.outputs, "tells others nothing"
    children = [r for r in resources.values() if r.parent == made.path]
    assert children
    assert all(r.request.custom for r in children)
    for resource in resources.values():
        if build := resource.inputs.get("build"):
            assert Path(build["context"]).is_dir()
            assert Path(build["dockerfile"]).is_file()
        for text in texts(resource.inputs):
            assert "scripts/" not in text.partition("\n")[0], "a file of this checkout, where there is none"


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from texts(below)
