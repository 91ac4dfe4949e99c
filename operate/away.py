"""Storage hosts of a lab stack that do not answer: their steps wait, the rest of the stack goes on without them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from operate import cli
from operate.check import Drift
from settings.models import Settings, Ssh

DIAL = 5  # seconds in which a server that is there answers


@dataclass(frozen=True)
class Away:
    """A storage host at whose SSH port nobody answers. nodes: its own and those of its VMs."""

    name: str
    address: str
    port: int
    nodes: Sequence[str]

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.address}) does not answer at port {self.port}: {' and '.join(self.nodes)} are left as"
            " they are; mend: start it, then make up; if it is gone for good: remove it from spdk-k8s:machines, then"
            f" make up FORGET={self.name}"
        )


def hosts(settings: Settings | None, drifts: Sequence[Drift]) -> list[Away]:
    """The storage hosts that differ from what they should be and do not answer.

    A host behind a jump host is not asked: its own steps find out, in the time that they have for a connection.
    """
    if settings is None or not isinstance(settings.machines, Ssh):
        return []
    asked = [
        Away(host.name, str(host.address), host.port, (host.name, *(vm.name for vm in host.vms)))
        for host in settings.machines.storage_hosts
        if not host.jump_host
    ]
    asked = [host for host in asked if any(cli.is_of(step, host.nodes) for drift in drifts for step in drift.steps)]
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        return [host for host, answers in zip(asked, pool.map(_answers, asked), strict=True) if not answers]


def _answers(host: Away) -> bool:
    try:
        socket.create_connection((host.address, host.port), timeout=DIAL).close()
    except OSError:
        return False
    return True
