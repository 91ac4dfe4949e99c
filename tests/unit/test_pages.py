"""How long pages are away, watched while `up` works, and what is kept of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from operate import cli, pages
from operate.impact import Cause
from operate.pages import Watch

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "EVERY", 0.01)
    monkeypatch.setattr(cli, "STATE", tmp_path / ".state")


class Pages:
    """Addresses that answer, as long as they are in `up`; asked: how often each was asked."""

    def __init__(self, *up: str) -> None:
        self.up, self.asked, self._round = set(up), dict[str, int](), threading.Condition()

    def __call__(self, url: str) -> bool:
        with self._round:
            self.asked[url] = self.asked.get(url, 0) + 1
            self._round.notify_all()
            return url in self.up

    def rounds(self, url: str, count: int = 3) -> None:
        """Wait until the address was asked so often again."""
        with self._round:
            wanted = self.asked.get(url, 0) + count
            assert self._round.wait_for(lambda: self.asked.get(url, 0) >= wanted, 5)


def test_the_longest_absence_of_each_page_is_measured() -> None:
    found = Pages("a", "b")
    with Watch({0: ["a"], 1: ["b"]}, found) as watch:
        found.rounds("a")
        found.up.discard("a")
        time.sleep(0.2)
        found.rounds("a")
        found.up.add("a")
        found.rounds("a")
        assert 0.2 <= watch.longest[0] < 2
        found.up.discard("a")
        found.rounds("a")
        found.up.add("a")
        found.rounds("a")
    assert 0.2 <= watch.longest[0] < 2
    assert watch.longest[1] == 0


def test_a_page_that_does_not_come_back_is_away_until_the_end() -> None:
    found = Pages()
    with Watch({0: ["a"]}, found) as watch:
        time.sleep(0.1)
        found.rounds("a")
    assert watch.longest[0] >= 0.1


def test_a_page_that_gets_another_address_is_found_there() -> None:
    found = Pages("old")
    with Watch({0: ["old", "new"]}, found) as watch:
        found.rounds("old")
        found.up |= {"new"}
        found.up.discard("old")
        found.rounds("new")
    assert watch.longest[0] == 0


def test_of_many_pages_a_few_are_watched_and_without_one_no_thread_runs() -> None:
    assert len(Watch({i: [str(i)] for i in range(128)}, Pages()).pages) == 16
    before = threading.active_count()
    with Watch({}, Pages()):
        assert threading.active_count() == before


def test_what_was_measured_is_kept_for_its_owner_only() -> None:
    assert pages.record("dev") == {}
    pages.note("dev", {Cause.GUEST: 108.26, Cause.ROLLING: 12})
    pages.note("dev", {Cause.ROLLING: 14})
    assert pages.record("dev") == {Cause.GUEST: 108.3, Cause.ROLLING: 14}
    assert pages.file("dev").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in cli.STATE.iterdir()] == ["dev.times.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"guest": "x"}', "{"])
def test_a_record_that_cannot_be_read_is_none(text: str) -> None:
    cli.STATE.mkdir()
    pages.file("dev").write_text(text)
    assert pages.record("dev") == {}
