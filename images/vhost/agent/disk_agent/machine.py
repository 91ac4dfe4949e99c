"""The state machine of one disk: what is wanted and what is seen give the next action. A pure function.

A disk has a *life*: twelve hexadecimal digits that name what it really is (a file's inode, a device's WWN, one piece of
memory). The target carries the life of what it serves, and QEMU carries, in the device's id, the life that it was
plugged in with. So nothing is remembered that could be wrong: both sides are asked.

The rule above all others: a VM that has a disk of one life never reaches another one through the same socket. Where the
life has changed, the target serves a *scrap* disk at that socket: an empty throw-away file that answers what the guest
has in flight. Then the guest can let go of the device, and a new one takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from disk_agent.config import NO_LIMITS, Disk, Limits

SCRAP = "scrap"


class State(StrEnum):
    """In the order in which a disk passes through them; docs/disk-agent.md has the picture."""

    REFUSED = "refused"
    """Its file or device cannot be served; the reason says why."""
    MISSING = "missing"
    """The target does not serve it."""
    SERVED = "served"
    """The target serves it, no VM has it."""
    PLUGGED = "plugged"
    """Its VM has it, and the target serves the life that it was plugged in with."""
    SWAPPING = "swapping"
    """A VM has a life of it that is no more: out it goes, through a scrap disk."""
    LEAVING = "leaving"
    """Nobody wants it any more."""
    GONE = "gone"


class Do(StrEnum):
    SERVE = "serve"
    SERVE_SCRAP = "serve scrap"
    STOP = "stop serving"
    FREE = "free its memory"
    LIMIT = "limit"
    PLUG = "plug in"
    UNPLUG = "unplug"
    FORGET = "remove its chardev"


@dataclass(frozen=True)
class Device:
    """What a VM has of a disk. whole: the device itself; else only the chardev that a broken-off step left."""

    vm: str
    id: str
    port: int
    life: str
    whole: bool


@dataclass(frozen=True)
class Seen:
    """life: what the disk is now; None: memory or a file that is not made yet. refusal: why it cannot be served.
    served: the life that the target serves at its socket, SCRAP, or None. limits: those that the target holds it to.
    devices: what VMs have of it.
    silent: VMs that may have it and do not say. absent: VMs without a QEMU. released: whoever used it has let go of it
    (a pod's volume is unmounted): it may leave its VM while its life goes on."""

    life: str | None = None
    refusal: str = ""
    served: str | None = None
    limits: Limits = NO_LIMITS
    devices: tuple[Device, ...] = ()
    silent: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    released: bool = False


@dataclass(frozen=True)
class Step:
    """state: where the disk is. do: the next action; None: it is where it should be, or waits. why: the reason."""

    state: State
    do: Do | None
    why: str
    device: Device | None = None


def step(disk: Disk, seen: Seen, *, wanted: bool = True, in_memory: bool = False) -> Step:
    """The next step of `disk`. wanted: the ConfigMap lists it."""
    now = seen.life or (seen.served if seen.served != SCRAP else None)
    for device in seen.devices:
        if not device.whole:
            return Step(State.SWAPPING, Do.FORGET, f"{device.vm} has half of it: {device.id}", device)
    rightful, kept, strangers = _sort(disk, now, seen, wanted)
    if rightful or kept:
        return _held(disk, now, seen, rightful, kept, strangers)
    if strangers:
        return _swap(now, seen, strangers[0])
    if not wanted:
        return _leave(now, seen, in_memory)
    return _serve(disk, now, seen)


def _sort(disk: Disk, now: str | None, seen: Seen, wanted: bool) -> tuple[list[Device], list[Device], list[Device]]:
    """The devices that are as wanted, those of this life that may not be taken away yet, and those that must go."""
    rightful, kept, strangers = list[Device](), list[Device](), list[Device]()
    for device in seen.devices:
        if device.life != now:
            strangers.append(device)
        elif wanted and (device.vm, device.port) == (disk.vm, disk.port):
            rightful.append(device)
        elif seen.released:
            strangers.append(device)
        else:
            kept.append(device)
    strangers.sort(key=lambda d: d.life != seen.served)  # the one that is served can let go first
    return rightful, kept, strangers


def _held(
    disk: Disk, now: str | None, seen: Seen, rightful: list[Device], kept: list[Device], strangers: list[Device]
) -> Step:
    """A VM has the disk as it is now: the target serves exactly that, whatever else is to be done."""
    if seen.served is None:
        if seen.refusal:
            return Step(State.REFUSED, None, seen.refusal)
        if strangers:  # whichever connects first would have it; only hands make two
            vm = strangers[0].vm
            return Step(
                State.SWAPPING, None, f"{vm} has an earlier life of it too; mend: systemctl restart spdk-k8s-{vm}"
            )
        return Step(State.MISSING, Do.SERVE, f"{(rightful or kept)[0].vm} has it and waits for the target")
    if seen.served != now and not any(d.life == seen.served for d in strangers):
        return Step(State.SWAPPING, Do.STOP, "the target serves another disk at its socket")
    if strangers:
        return Step(State.SWAPPING, Do.UNPLUG, f"{strangers[0].vm} has an earlier life of it", strangers[0])
    if not rightful:
        why = f"{kept[0].vm} has it at root port {kept[0].port}, and its user has not let go of it yet"
        return Step(State.LEAVING, None, why)
    if seen.limits != disk.limits:
        return Step(State.PLUGGED, Do.LIMIT, _other_limits(disk, seen))
    return Step(State.PLUGGED, None, "")


def _swap(now: str | None, seen: Seen, stranger: Device) -> Step:
    """Out of the VM with a device that is not to be there."""
    if seen.served is None:
        if seen.refusal:
            return Step(State.REFUSED, None, seen.refusal)
        why = f"{stranger.vm} has an earlier life of it, and waits for answers"
        return Step(State.SWAPPING, Do.SERVE_SCRAP, why)
    if seen.served in (SCRAP, stranger.life):
        return Step(State.SWAPPING, Do.UNPLUG, f"{stranger.vm} has not let go of it yet", stranger)
    return Step(State.SWAPPING, Do.STOP, f"{stranger.vm} has an earlier life of it, which must not reach this one")


def _leave(now: str | None, seen: Seen, in_memory: bool) -> Step:
    if seen.silent:
        return Step(State.LEAVING, None, f"{_names(seen.silent)} may have it and does not answer")
    if seen.served is not None:
        return Step(State.LEAVING, Do.STOP, "nobody wants it")
    if in_memory and now is not None:
        return Step(State.LEAVING, Do.FREE, "nobody wants it")
    return Step(State.GONE, None, "")


def _serve(disk: Disk, now: str | None, seen: Seen) -> Step:
    """No VM has it, as far as they say."""
    if seen.served is not None and seen.served != now:
        return Step(State.SWAPPING, Do.STOP, "the target serves another disk at its socket")
    if seen.served is None:
        if seen.silent:
            return Step(State.MISSING, None, f"{_names(seen.silent)} may have it and does not answer")
        if seen.refusal:
            return Step(State.REFUSED, None, seen.refusal)
        return Step(State.MISSING, Do.SERVE, "the target does not serve it yet")
    if not seen.silent and disk.vm not in seen.absent:  # first of all: SPDK may refuse other limits until it has a user
        return Step(State.SERVED, Do.PLUG, f"{disk.vm} does not have it yet")
    if seen.limits != disk.limits:
        return Step(State.SERVED, Do.LIMIT, _other_limits(disk, seen))
    if seen.silent:
        return Step(State.SERVED, None, f"{_names(seen.silent)} may have it and does not answer")
    return Step(State.SERVED, None, f"QEMU of {disk.vm} does not run")


def _other_limits(disk: Disk, seen: Seen) -> str:
    return f"its limits are {seen.limits}, and are to be {disk.limits}"


def _names(vms: frozenset[str]) -> str:
    return " and ".join(sorted(vms))
