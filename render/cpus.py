"""The CPU plan of a storage host, which scripts/host/cpus reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from settings.cores import numbers, ranges
from settings.models import Cpus


def roles(cpus: Cpus) -> str:
    """The plan as scripts/lib.sh checks it on a machine: "target=0-5 vms[0]=12-23"."""
    return " ".join(f"{role}={cores}" for role, cores in cpus.roles.items())


def pinned(cpus: Cpus, vms: Sequence[str]) -> dict[str, str]:
    """The VMs of a host that have cores: name on the host -> the cores of its vCPUs. vms: these names, in order.

    No cores: all threads of the VM are on the emulator's.
    """
    found = {name: cpus.of_vm(i) for i, name in enumerate(vms)}
    return {name: cores for name, cores in found.items() if cores or cpus.emulator}


def cpu_plan(cpus: Cpus, vms: Sequence[str]) -> str:
    """The plan of a host with these VMs, as JSON.

    kept: cores of VMs that are yet to come. An empty system or emulator is what the machine has beside the others.
    """
    return json.dumps(
        {
            "target": cpus.target or "",
            "vms": pinned(cpus, vms),
            "kept": ranges(core for cores in cpus.vms[len(vms) :] for core in numbers(cores)),
            "emulator": cpus.emulator or "",
            "system": cpus.system or "",
        }
    )
