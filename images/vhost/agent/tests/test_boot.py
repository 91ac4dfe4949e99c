"""The boot of a guest alone: it is reset when it hangs, and only then."""

from __future__ import annotations

from disk_agent.boot import FIRST_LIMIT, LAST_LIMIT, Boot
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 5), st.booleans(), st.booleans()), max_size=40))
def test_a_guest_that_boots_is_not_reset_and_one_that_hangs_is(looks: list[tuple[float, int, bool, bool]]) -> None:
    """Looks at any distance, with so many more reads, at a card that is open or not, and resets by others."""
    boot, now, reads = Boot(0.0), 0.0, 0
    for pause, more, card_open, by_others in looks:
        if by_others:
            boot = boot.restarted(now)
            assert not boot.up
        now += pause
        reads += more
        before, boot = boot, boot.seen(reads, card_open=card_open)
        if more and card_open and before.before is not None:
            assert boot.up
        if boot.hangs(now):
            assert not boot.up
            assert now - boot.since >= FIRST_LIMIT
            boot = boot.reset(now)
            assert not boot.hangs(now), "it is given time again"
        assert bool(boot.why(now)) != boot.up
        assert FIRST_LIMIT <= boot.limit <= LAST_LIMIT


def test_a_slow_machine_gets_twice_as_long_each_time() -> None:
    boot, now, waited = Boot(0.0), 0.0, list[float]()
    for _ in range(7):
        boot = boot.seen(0, card_open=False)
        while not boot.hangs(now):
            now += 1
        waited.append(now - boot.since)
        boot = boot.reset(now)
    assert waited == [30, 60, 120, 240, 480, 480, 480]
    assert "resets so far: 7" in boot.why(now)


def test_fewer_reads_than_before_are_another_qemus() -> None:
    boot = Boot(0.0, before=900).seen(3, card_open=True)
    assert (boot.up, boot.before) == (False, 3)
    assert boot.seen(4, card_open=True).up


def test_a_guest_that_hangs_between_its_root_disk_and_its_network_is_reset_too() -> None:
    """Its systemd has not begun to feed the watchdog device: nobody else would notice."""
    boot = Boot(0.0).seen(3, card_open=False)
    assert not boot.hangs(119)
    assert boot.hangs(120)
    assert "has not opened its network card" in boot.why(120)
    assert boot.reset(120).hangs(150.0) is False


def test_a_guest_that_was_there_before_the_agent_may_have_closed_its_card() -> None:
    assert Boot(0.0, from_start=False).seen(3, card_open=False).up
