"""The state machine alone: rules that hold for every disk, whatever is seen of it."""

from __future__ import annotations

import pytest
from disk_agent.config import Disk, Limits
from disk_agent.machine import SCRAP, Device, Do, Seen, State, step
from hypothesis import given
from hypothesis import strategies as st

DISK = Disk(3, "vm", 1, "/disks/vhost.3")
OLD, NOW, SLOW = "0" * 12, "1" * 12, Limits(iops=1000)
lives = st.sampled_from([OLD, NOW])
devices = st.builds(
    Device, vm=st.sampled_from(["vm", "vm-2"]), id=st.just("d"), port=st.integers(0, 1), life=lives, whole=st.booleans()
)
seen = st.builds(
    Seen,
    life=st.none() | lives,
    refusal=st.sampled_from(["", "it is broken"]),
    served=st.none() | lives | st.just(SCRAP),
    limits=st.sampled_from([Limits(), Limits(iops=1000)]),
    devices=st.lists(devices, max_size=2).map(tuple),
    silent=st.frozensets(st.sampled_from(["vm", "vm-2"])),
    absent=st.just(frozenset[str]()),
    released=st.booleans(),
)


@given(seen, st.booleans(), st.booleans())
def test_what_a_vm_has_is_not_taken_away_or_replaced(now: Seen, wanted: bool, in_memory: bool) -> None:
    taken = step(DISK, now, wanted=wanted, in_memory=in_memory)
    whole = [d for d in now.devices if d.whole]
    served = None if now.served == SCRAP else now.served
    if taken.do is Do.STOP:  # never under a device that has just this life
        assert not [d for d in whole if d.life == now.served]
    if taken.do is Do.FREE:
        assert not now.devices
    if taken.do is Do.SERVE:
        assert now.served is None
        assert not [d for d in whole if d.life != now.life], "another life would reach its device"
    if taken.do is Do.SERVE_SCRAP:
        assert not [d for d in whole if d.life == (now.life or served) and not now.released]
    if taken.do is Do.UNPLUG:
        assert taken.device in now.devices
        of_this_life = taken.device is not None and taken.device.life == (now.life or served)
        assert now.released or not of_this_life
    if taken.do is Do.LIMIT:  # only what is served as it is wanted, and nothing more pressing is to be done
        assert taken.state in (State.PLUGGED, State.SERVED)
        assert now.limits != DISK.limits
    if taken.do is Do.PLUG:
        assert not now.devices
        assert now.served == (now.life or now.served) != SCRAP
        assert not now.silent
        assert wanted


@given(seen, st.booleans(), st.booleans())
def test_every_wait_has_a_reason(now: Seen, wanted: bool, in_memory: bool) -> None:
    taken = step(DISK, now, wanted=wanted, in_memory=in_memory)
    assert taken.why or taken.state in (State.PLUGGED, State.GONE)


def device(life: str = NOW, vm: str = "vm", port: int = 1, whole: bool = True) -> Device:
    return Device(vm, f"disk-3-{port}-{life}", port, life, whole)


@pytest.mark.parametrize(
    ("now", "wanted", "state", "do"),
    [
        (Seen(), True, State.MISSING, Do.SERVE),
        (Seen(life=NOW, served=NOW), True, State.SERVED, Do.PLUG),
        (Seen(life=NOW, served=NOW, absent=frozenset({"vm"})), True, State.SERVED, None),
        (Seen(life=NOW, served=NOW, silent=frozenset({"vm-2"})), True, State.SERVED, None),
        (Seen(life=NOW, silent=frozenset({"vm-2"})), True, State.MISSING, None),
        (Seen(life=NOW, served=NOW, devices=(device(),)), True, State.PLUGGED, None),
        (Seen(life=NOW, devices=(device(),)), True, State.MISSING, Do.SERVE),
        # other limits
        (Seen(life=NOW, served=NOW, devices=(device(),), limits=SLOW), True, State.PLUGGED, Do.LIMIT),
        (Seen(life=NOW, served=NOW, limits=SLOW), True, State.SERVED, Do.PLUG),
        (Seen(life=NOW, served=NOW, limits=SLOW, absent=frozenset({"vm"})), True, State.SERVED, Do.LIMIT),
        (Seen(life=NOW, served=NOW, devices=(device(),), limits=SLOW), False, State.LEAVING, None),
        (Seen(refusal="broken"), True, State.REFUSED, None),
        (Seen(refusal="broken", devices=(device(),)), True, State.REFUSED, None),
        (Seen(life=NOW, devices=(device(),), refusal="broken"), True, State.REFUSED, None),
        (Seen(life=NOW, served=NOW, devices=(device(whole=False),)), True, State.SWAPPING, Do.FORGET),
        # the life has changed
        (Seen(life=NOW, devices=(device(OLD),)), True, State.SWAPPING, Do.SERVE_SCRAP),
        (Seen(life=NOW, served=SCRAP, devices=(device(OLD),)), True, State.SWAPPING, Do.UNPLUG),
        (Seen(life=NOW, served=NOW, devices=(device(OLD),)), True, State.SWAPPING, Do.STOP),
        (Seen(life=NOW, served=OLD, devices=(device(OLD),)), True, State.SWAPPING, Do.UNPLUG),
        (Seen(life=NOW, served=SCRAP), True, State.SWAPPING, Do.STOP),
        # another VM has it
        (Seen(life=NOW, served=NOW, devices=(device(vm="vm-2"),)), True, State.LEAVING, None),
        (Seen(life=NOW, served=NOW, devices=(device(vm="vm-2"),), released=True), True, State.SWAPPING, Do.UNPLUG),
        # two devices by hand
        (Seen(life=NOW, served=NOW, devices=(device(), device(OLD))), True, State.SWAPPING, Do.UNPLUG),
        (Seen(life=NOW, served=OLD, devices=(device(),)), True, State.SWAPPING, Do.STOP),
        # nobody wants it
        (Seen(life=NOW, served=NOW, devices=(device(),)), False, State.LEAVING, None),
        (Seen(life=NOW, devices=(device(),)), False, State.MISSING, Do.SERVE),
        (Seen(life=NOW, served=NOW, devices=(device(),), released=True), False, State.SWAPPING, Do.UNPLUG),
        (Seen(life=NOW, served=NOW), False, State.LEAVING, Do.STOP),
        (Seen(life=NOW), False, State.LEAVING, Do.FREE),
        (Seen(served=NOW, silent=frozenset({"vm"})), False, State.LEAVING, None),
        (Seen(), False, State.GONE, None),
    ],
)
def test_each_transition(now: Seen, wanted: bool, state: State, do: Do | None) -> None:
    taken = step(DISK, now, wanted=wanted, in_memory=True)
    assert (taken.state, taken.do) == (state, do)
