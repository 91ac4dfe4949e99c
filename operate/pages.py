"""How long pages are away while `up` works: watched, and kept in .state for what the next preview says."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from operate import cli
from operate.impact import Cause

EVERY = 0.5  # seconds between two looks at a page
AT_MOST = 16  # pages that are looked at: more of them would slow down what they are to measure


def file(stack: str) -> Path:
    return cli.STATE / f"{stack}.times.json"


def record(stack: str) -> dict[Cause, float]:
    """Seconds of the longest absence of a page in the stack's last change with that cause."""
    try:
        kept = json.loads(file(stack).read_text())
        return {cause: float(kept[cause]) for cause in Cause if cause in kept}
    except (OSError, ValueError, TypeError):
        return {}


def note(stack: str, seconds: Mapping[Cause, float]) -> None:
    """Keep what was measured now, for `record`."""
    kept = {str(cause): round(value, 1) for cause, value in (record(stack) | dict(seconds)).items()}
    cli.STATE.mkdir(mode=0o700, exist_ok=True)  # a backend of the user's own keeps nothing there
    descriptor, name = tempfile.mkstemp(dir=cli.STATE, prefix=".times-")  # readable by its owner only
    with os.fdopen(descriptor, "w") as writing:
        json.dump(kept, writing)
    Path(name).replace(file(stack))


class Watch:
    """Looks at pages in a thread of its own, as long as its block runs.

    pages: ordinal -> addresses of the page: a change may give it another one. answers: whether a page does there.
    longest: ordinal -> seconds from the last answer before its longest absence to the first one after it.
    """

    def __init__(self, pages: Mapping[int, Sequence[str]], answers: Callable[[str], bool]) -> None:
        step = -(-len(pages) // AT_MOST) or 1
        self.pages = {i: pages[i] for i in sorted(pages)[::step]}
        self._answers = answers
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.longest = dict.fromkeys(self.pages, 0.0)

    def __enter__(self) -> Watch:
        now = time.monotonic()
        self._last, self._missed = dict.fromkeys(self.pages, now), set[int]()
        if self.pages:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.pages:
            self._thread.join()
        for i in self._missed:
            self._gap(i)

    def _watch(self) -> None:
        with ThreadPoolExecutor(AT_MOST) as each:
            while not self._ended.wait(EVERY):
                for i, answered in zip(self.pages, each.map(self._look, self.pages), strict=True):
                    if not answered:
                        self._missed.add(i)
                        continue
                    if i in self._missed:
                        self._gap(i)
                    self._missed.discard(i)
                    self._last[i] = time.monotonic()

    def _look(self, i: int) -> bool:
        return any(map(self._answers, self.pages[i]))

    def _gap(self, i: int) -> None:
        self.longest[i] = max(self.longest[i], time.monotonic() - self._last[i])
