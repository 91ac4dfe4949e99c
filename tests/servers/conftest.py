"""Emulated machines for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.machine import Network
from tests.pulumi_cli import free_subnet


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network("spdk-k8s-tests", free_subnet(60)) as made:
        yield made
