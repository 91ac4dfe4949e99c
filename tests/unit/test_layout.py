"""The folders as docs/architecture.md draws them: which may import which, and which import no provider SDK."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "settings": {"settings"},
    "render": {"render", "settings"},
    "components": {"components", "render", "settings"},
    "operate": {"operate", "settings"},
    "policy": {"policy"},
}
OURS = {*MAY_IMPORT, "bench", "tests", "offline", "setup"}
PLAIN = {"settings", "render", "operate"}  # these import no provider SDK


def imports(folder: str) -> Iterator[tuple[Path, str]]:
    """File and module of every import in the folder, those inside functions included."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    yield from ((path, alias.name) for alias in names)
                case ast.ImportFrom(module=str(module), level=0):
                    yield path, module
                case ast.ImportFrom():
                    yield path, folder
                case _:
                    pass


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_import_runs_back_up(folder: str) -> None:
    found = {(path.name, module.partition(".")[0]) for path, module in imports(folder)}
    assert found, f"{folder}/ has no file"
    wrong = {(name, top) for name, top in found if top in OURS and top not in MAY_IMPORT[folder]}
    assert not wrong, f"{folder}/ may import {MAY_IMPORT[folder]} only"


@pytest.mark.parametrize("folder", sorted(PLAIN))
def test_these_know_no_providers_sdk(folder: str) -> None:
    found = {(path.name, module) for path, module in imports(folder) if module.partition(".")[0].startswith("pulumi")}
    assert not found


def test_the_stack_is_a_table_of_contents() -> None:
    assert len((ROOT / "__main__.py").read_text().splitlines()) <= 160
