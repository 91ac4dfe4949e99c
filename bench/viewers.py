"""Viewers of all pages at once: how fast they get the movies, and how long they have to wait."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

STALL = 2.0  # seconds without data that a player's buffer covers
MOST = 20_000  # limit of one viewer's requests


@dataclass
class Viewer:
    bytes: int = 0
    worst_gap: float = 0.0
    """Longest time without data, in seconds."""
    stalls: int = 0
    """Number of gaps longer than STALL."""


def watch(page: str, seen: Viewer, stop: threading.Event, pause: float) -> None:
    """Fetch the page's first movie over and over, on one connection, until `stop` is set. pause: in seconds."""
    connection = http.client.HTTPConnection(urlsplit(page).netloc, timeout=60)

    def fetch(path: str) -> http.client.HTTPResponse:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{page}{path}: {response.status}")
        return response

    movie = json.loads(fetch("/playlist.json").read())["movies"][0]["url"]
    for _ in range(MOST):
        if stop.wait(pause):
            break
        last = time.monotonic()
        response = fetch(f"/{movie}")
        while chunk := response.read(1 << 14):
            now = time.monotonic()
            seen.worst_gap = max(seen.worst_gap, now - last)
            seen.stalls += now - last > STALL
            seen.bytes += len(chunk)
            last = now


@contextmanager
def viewers(pages: Sequence[str], pause: float = 0) -> Iterator[list[Viewer]]:
    """Run one viewer for each page while the block runs. The counts are final after the block."""
    stop, seen = threading.Event(), [Viewer() for _ in pages]
    failures: list[BaseException] = []

    def run(page: str, viewer: Viewer) -> None:
        try:
            watch(page, viewer, stop, pause)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(pages, seen, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
