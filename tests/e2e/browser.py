"""Watch a video page as a user does: in Chromium, until the movie really plays.

python -m tests.e2e.browser http://10.0.0.1:8080/ page.png
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=1280,1000",
)

# null until the page has shown its first frames; the time must advance between two looks
STATE = """
const video = document.querySelector('video');
if (!video || video.readyState < 3 || video.paused || !video.videoWidth) return null;
return {
  title: document.title,
  source: video.currentSrc,
  currentTime: video.currentTime,
  width: video.videoWidth,
  height: video.videoHeight,
  muted: video.muted,
  playlist: document.querySelectorAll('#movies li').length,
  text: document.body.innerText,
};
"""

# what the wall shows now
WALL = """
const text = (all) => [...all].map((each) => each.innerText);
const number = (value) => parseFloat(value) * (/k/.test(value) ? 1000 : 1) || 0;
return {
  tiles: [...document.querySelectorAll('article')].map((tile) => {
    const video = tile.querySelector('video');
    return {
      pod: tile.dataset.pod,
      playing: video.readyState >= 3 && !video.paused && video.currentTime > 0,
      iops: number(tile.querySelector('dd').innerText),
    };
  }),
  cores: text(document.querySelectorAll('#hosts h2')),
  events: text(document.querySelectorAll('#events li')),
  wrong: text(document.querySelectorAll('#wrong:not([hidden]) li')),
};
"""


@contextmanager
def chromium(*flags: str, timeout: float = 60) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own. timeout: for loading a page, in seconds."""
    with tempfile.TemporaryDirectory(prefix="browser-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = _program("chromium", "google-chrome")
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))
        try:
            browser.set_page_load_timeout(timeout)
            yield browser
        finally:
            browser.quit()


def watch(url: str, screenshot: Path, *, timeout: float = 60) -> dict[str, Any]:
    """Open url, wait until its video plays, and take a screenshot meanwhile.

    Returns what is seen: title, source, currentTime, width, height, muted, playlist (number of entries), text, and
    played (seconds that the video advanced while it was watched).
    """
    with chromium(timeout=timeout) as browser:
        try:
            browser.get(url)
            wait = WebDriverWait(browser, timeout, poll_frequency=0.2)
            first = wait.until(lambda b: b.execute_script(STATE))

            def further(b: webdriver.Chrome) -> dict[str, Any] | None:
                state = b.execute_script(STATE)
                played = _advance(first, state) if state else 0.0
                return {**state, "played": played} if played >= 1 else None

            state = wait.until(further)
            if not browser.save_screenshot(str(screenshot)):
                raise OSError(f"{screenshot}: the screenshot cannot be written")
        except TimeoutException:
            text = browser.execute_script("return document.body ? document.body.innerText : ''")
            raise AssertionError(f"{url}: no video plays after {timeout:g} s; the page reads: {text!r}") from None
        return state


def _advance(before: dict[str, Any], now: dict[str, Any]) -> float:
    """Seconds of video between two looks; the next movie starts at 0."""
    if now["source"] != before["source"]:
        return now["currentTime"]
    return now["currentTime"] - before["currentTime"]


def _program(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(f"{' or '.join(names)} not found: apt-get install chromium chromium-driver")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(json.dumps(watch(sys.argv[1], Path(sys.argv[2])), indent=1))
