"""Which VM each instance is on, and which of the VM's root ports its disk has."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count as numbers
from itertools import filterfalse

Place = tuple[str, int]
"""VM, root port."""


def places(count: int, since: Mapping[str, int], moved: Mapping[int, Place] | None = None) -> list[Place]:
    """VM and root port of the instances 0 to `count` - 1.

    since: VM -> number of instances that there were when the VM came; at least one must be 0. Of VMs that have equally
    few instances, the first one here is taken. moved: places that are fixed.

    Each other instance goes to the VM that has the fewest so far, of those that had come by then, and to its first free
    root port. Moved ones do not count there. So neither further instances, nor a VM that comes, nor one that goes once
    all its instances are moved, changes the place of another one: see docs/decisions/0019.
    """
    fixed = moved or {}
    free = {vm: filterfalse({port for at, port in fixed.values() if at == vm}.__contains__, numbers()) for vm in since}
    taken = dict.fromkeys(since, 0)
    found: list[Place] = []
    for ordinal in range(count):
        if ordinal in fixed:
            found.append(fixed[ordinal])
            continue
        vm = min((vm for vm, first in since.items() if first <= ordinal), key=lambda vm: taken[vm])
        found.append((vm, next(free[vm])))
        taken[vm] += 1
    return found
