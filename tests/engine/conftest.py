from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pulumi_cli import Stack, free_subnet


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """An empty stack for the real engine, without machines."""
    made = Stack("engine", tmp_path / "state")
    made.init(**{"machines.kind": "containers", "machines.subnet": free_subnet()})
    yield made
    made.remove()
