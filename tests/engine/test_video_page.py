"""The video pod's image, run by the Docker engine as the pod's template runs it, watched in Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from components import images
from tests.e2e.browser import chromium
from tests.engine.test_images import BUILDS, build

pytestmark = pytest.mark.engine

KEY = "0123456789abcdef" * 3
USER = 10001
PLAYS = ["a.mp4", "b.MP4", "c.m4v", "d.mov", "e.webm", "f.mkv", "series/g.mp4", 'odd \\ \n "%41#?&é.mp4']
BROKEN = ["hevc.mp4", "empty.mp4", "noise.mp4", "no-index.mp4"]
T = TypeVar("T")


def ffmpeg(*words: str | Path) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-y", *words], check=True, timeout=120)


def make_movies(folder: Path) -> None:
    """Six seconds of a test picture and a tone, in every container, whole and damaged."""
    source = [
        *("-f", "lavfi", "-i", "testsrc=size=320x180:rate=10:duration=6"),
        *("-f", "lavfi", "-i", "sine=duration=6"),
    ]
    h264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    for name in ("series", "img", "flv"):
        (folder / name).mkdir(parents=True)
    ffmpeg(*source, *h264, "-movflags", "+faststart", folder / "a.mp4")
    for name in ("b.MP4", "c.m4v", "series/g.mp4", PLAYS[-1]):
        shutil.copy(folder / "a.mp4", folder / name)
    for name in ("d.mov", "f.mkv"):
        ffmpeg("-i", folder / "a.mp4", "-c", "copy", folder / name)
    vp8 = ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libvorbis"]
    ffmpeg(*source, *vp8, folder / "e.webm")
    x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", "-tag:v", "hvc1"]
    ffmpeg(*source, *x265, "-c:a", "aac", folder / "hevc.mp4")
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(os.urandom(20_000))
    half = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(half[: len(half) // 2])
    ffmpeg("-i", folder / "a.mp4", "-c", "copy", folder / "whole.mp4")  # its index is at the end
    half = (folder / "whole.mp4").read_bytes()
    (folder / "no-index.mp4").write_bytes(half[: len(half) // 2])
    (folder / "whole.mp4").unlink()
    (folder / "a.en.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:06.000\nHello\n")
    ffmpeg("-i", folder / "a.mp4", "-frames:v", "1", folder / "img" / "a.jpg")
    (folder / "notes.txt").write_text("not a movie")
    for byte in set(range(1, 256)) - set(b"/."):
        name = os.fsdecode(b"byte " + bytes([byte]) + b".")
        (folder / "series" / f"{name}mp4").write_bytes(bytes([byte]))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


@dataclass(frozen=True)
class Pod:
    name: str
    address: str

    @property
    def page(self) -> str:
        return f"http://{self.address}:8080/"

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.page + path, timeout=20) as response:
            return response.read()

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def hls(self) -> list[str]:
        done = subprocess.run(["docker", "exec", self.name, "ls", "/hls"], capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    def publish(self, stream: str, *, quality: str = "30") -> subprocess.Popen[bytes]:
        source = ["-re", "-f", "lavfi", "-i", "testsrc=size=320x180:rate=10", "-f", "lavfi", "-i", "sine"]
        codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac", "-ar", "44100"]
        keys = ["-force_key_frames", "expr:gte(t,n_forced)", "-qp", quality]
        url = f"rtmp://{self.address}:1935/live/{stream}"
        return subprocess.Popen(
            ["ffmpeg", "-nostdin", "-loglevel", "quiet", *source, *codecs, *keys, "-t", "90", "-f", "flv", url]
        )


def started(root: Path, image: str, name: str, hls: str = "48m") -> Pod:
    (root / "key").write_text(KEY)
    (root / "key").chmod(0o644)
    (root / "data").mkdir()
    os.chown(root / "data", USER, USER)
    private = f"uid={USER},gid={USER},mode=0700"
    run = [
        *("docker", "run", "--detach", "--name", name, "--read-only", "--cap-drop", "ALL", "--memory", "128m"),
        *("--tmpfs", f"/tmp:size=16m,{private}", "--tmpfs", f"/hls:size={hls},{private}"),
        *("--volume", f"{root}/media:/media:ro", "--volume", f"{root}/data:/data"),
        *("--volume", f"{root}/key:/run/publish/key:ro"),
        *("--env", "POD_NAME=app-vs-p2-0", "--env", "POD_IP=127.0.0.1", image),
    ]
    subprocess.run(run, capture_output=True, check=True, timeout=120)
    look = ["docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name]
    pod = Pod(name, subprocess.check_output(look, text=True, timeout=60).strip())
    until(30, "the pod's address in its log", lambda: "127.0.0.1:8080 rtmp:1935" in pod.log())
    until(30, "a healthy pod", lambda: b"ordinal" in pod.get("healthz"))
    return pod


def until(seconds: float, what: str, seen: Callable[[], T]) -> T:
    end = time.monotonic() + seconds
    while True:
        try:
            if found := seen():
                return found
        except urllib.error.URLError:
            pass
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def image() -> str:
    return os.environ.get("VIDEO_IMAGE") or build(images.ROOT / "video", *BUILDS["video"])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pod")
    root.chmod(0o755)
    make_movies(root / "media" / "mp4-1")
    return root


@pytest.fixture(scope="module")
def pod(image: str, media: Path) -> Iterator[Pod]:
    name = f"spdk-k8s-page-{os.getpid()}"
    try:
        yield started(media, image, name)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60)


def test_every_name_is_served(pod: Pod) -> None:
    page = json.loads(pod.get("playlist.json"))
    single = [movie["url"] for movie in page["movies"] if movie["url"].startswith("series/byte")]
    assert len(single) == 253
    assert {pod.get(url) for url in single} == {bytes([b]) for b in range(1, 256) if b not in b"/."}


def measured(pod: Pod) -> dict[str, int]:
    lines = pod.get("metrics").decode().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def test_metrics_name_the_disk_and_count_viewers_of_pages_and_streams(pod: Pod) -> None:
    before = measured(pod)
    (disk,) = [name for name in before if name.startswith("video_disk_info")]
    assert re.fullmatch(r'video_disk_info\{ordinal="0",device="[^/"]\S*"\}', disk)
    assert before["video_disk_created_time_seconds"] <= before["video_start_time_seconds"] + 1 <= time.time() + 1
    assert before["video_connections"] >= 1
    assert not [name for name in before if name.startswith("video_stream_clients")]
    publisher = pod.publish(f"metrics?key={KEY}")
    try:
        until(20, "the stream", lambda: 'video_stream_clients{stream="metrics"}' in measured(pod))
    finally:
        publisher.kill()
        publisher.wait()
    after = measured(pod)
    assert after["video_http_requests_total"] > before["video_http_requests_total"]
    assert after['video_rtmp_bytes_total{direction="in"}'] > before['video_rtmp_bytes_total{direction="in"}']
    until(20, "the end of the stream", lambda: 'video_stream_clients{stream="metrics"}' not in measured(pod))


STATE = """
const video = document.querySelector('video');
return {
  title: document.getElementById('title').textContent,
  hash: location.hash,
  error: document.getElementById('error').innerText,
  time: video.readyState > 2 && !video.paused && video.videoWidth ? video.currentTime : 0,
  paused: video.paused, muted: video.muted, volume: video.volume,
  streams: [...document.querySelectorAll('#movies li')].filter((li) => li.parentElement.previousElementSibling
    && li.parentElement.previousElementSibling.textContent === 'Live').map((li) => li.textContent),
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as opened:
        yield opened


def state(browser: Chrome) -> dict[str, Any]:
    return browser.execute_script(STATE)


def address(pod: Pod, name: str, more: str = "") -> str:
    page = json.loads(pod.get("playlist.json"))
    (url,) = [movie["url"] for movie in page["movies"] if movie["name"] == name]
    return f"{pod.page}#movie={url}{more}"


def opened(browser: Chrome, url: str) -> None:
    browser.get("about:blank")  # else only the hash changes
    browser.get(url)


@pytest.mark.parametrize("name", PLAYS)
def test_every_container_and_name_plays(pod: Pod, browser: Chrome, name: str) -> None:
    opened(browser, address(pod, name))
    seen = until(20, f"{name} to play", lambda: (now := state(browser))["time"] > 0.5 and now)
    assert not seen["error"]
    assert seen["muted"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_movie_that_cannot_be_played_is_named_and_skipped_after_3_s(pod: Pod, browser: Chrome, name: str) -> None:
    opened(browser, address(pod, name))
    before = state(browser)["title"]
    until(10, f"{name} to be named", lambda: f"{name} cannot be played" in state(browser)["error"])
    named = time.monotonic()
    until(10, "the next movie", lambda: state(browser)["title"] != before)
    assert time.monotonic() - named < 4.5


def test_a_movie_that_ends_too_early_is_left(pod: Pod, browser: Chrome) -> None:
    opened(browser, address(pod, "cut.mp4"))
    until(20, "the next movie", lambda: state(browser)["title"] not in ("", "cut"))


def test_what_belongs_to_a_movie(pod: Pod, browser: Chrome) -> None:
    opened(browser, address(pod, "a.mp4", "&t=0:04"))
    seen = until(20, "the movie to play", lambda: (now := state(browser))["time"] > 0 and now)
    assert seen["time"] >= 4
    tracks = browser.execute_script(
        "return Array.from(videojs.getPlayers().player.textTracks())"
        ".filter((track) => track.kind === 'subtitles').map((track) => track.language)"
    )
    assert tracks == ["en"]
    for control in ("vjs-playback-rate", "vjs-picture-in-picture-control", "vjs-subs-caps-button"):
        assert browser.find_element(By.CLASS_NAME, control).is_displayed(), control
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "1 file is not listed" in text
    assert "KEY" in browser.find_element(By.ID, "publish").get_attribute("textContent")
    assert KEY not in browser.page_source


def test_the_keyboard_chooses_a_movie_and_the_volume_is_remembered(pod: Pod, browser: Chrome) -> None:
    opened(browser, address(pod, "a.mp4"))
    until(20, "the movie to play", lambda: state(browser)["time"] > 0)
    browser.find_element(By.CSS_SELECTOR, "#movies button").send_keys(Keys.TAB)
    chosen = browser.switch_to.active_element
    assert chosen.tag_name == "button"
    chosen.send_keys(Keys.ENTER)
    until(5, "the chosen movie", lambda: chosen.get_attribute("aria-current") == "true")
    browser.execute_script("const p = videojs.getPlayers().player; p.muted(false); p.volume(0.3);")
    until(5, "the volume", lambda: browser.execute_script("return localStorage.getItem('volume')"))
    opened(browser, pod.page)
    until(20, "the movie to play", lambda: state(browser)["time"] > 0)
    assert state(browser)["volume"] == pytest.approx(0.3)
    browser.execute_script("localStorage.clear()")


def test_a_narrow_window_shows_all_of_the_page_and_nothing_leaves_the_pod(pod: Pod) -> None:
    with chromium("--window-size=500,800", "--force-prefers-reduced-motion") as browser:
        browser.get(address(pod, "a.mp4"))
        until(20, "the page", lambda: state(browser)["title"])
        time.sleep(1)
        assert state(browser)["paused"], "it moves before it is asked to"
        width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert asked
        assert [url for url in asked if not url.startswith((pod.page, "blob:", "data:"))] == []


def test_a_live_stream_comes_plays_and_goes(pod: Pod, browser: Chrome) -> None:
    opened(browser, pod.page)
    until(20, "the page", lambda: state(browser)["title"])
    began = time.monotonic()
    publisher = pod.publish(f"cam?key={KEY}")
    try:
        until(10, "the stream on the page", lambda: state(browser)["streams"] == ["cam"])
        browser.execute_script("[...document.querySelectorAll('#movies button')][0].click()")
        until(20, "the stream to play", lambda: state(browser)["title"] == "cam" and state(browser)["time"] > 0)
        delay = until(
            20,
            "the delay",
            lambda: browser.execute_script(
                "const p = videojs.getPlayers().player; return p.liveTracker.isLive() && p.currentTime()"
            ),
        )
        print(f"delay: {time.monotonic() - began - delay:.1f} s")
        second = pod.publish(f"cam?key={KEY}")
        assert second.wait(20) != 0, "a second publisher of a name"
        assert state(browser)["streams"] == ["cam"]
    finally:
        publisher.kill()
    until(15, "the stream to leave the page", lambda: not state(browser)["streams"])
    until(15, "the next movie", lambda: state(browser)["title"] != "cam")
    until(30, "an empty folder", lambda: not pod.hls())
    assert KEY not in pod.log()
    assert KEY not in pod.get("stat").decode()


@pytest.mark.parametrize("stream", ["cam", "cam?key=", "cam?key=0123", f"cam?key={KEY}0", f"a.b?key={KEY}"])
def test_nobody_publishes_without_the_key(pod: Pod, stream: str) -> None:
    assert pod.publish(stream).wait(20) != 0
    assert pod.hls() == []


def test_a_key_can_be_tried_by_a_publisher_only(pod: Pod) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        pod.get(f"publish?name=cam&key={KEY}")
    assert refused.value.code == 403


def test_a_publisher_that_vanishes_leaves_the_page(pod: Pod) -> None:
    publisher = pod.publish(f"gone?key={KEY}")
    try:
        until(20, "the stream", lambda: b"<publishing/>" in pod.get("stat"))
        publisher.send_signal(19)  # it says nothing more, and does not close its connection
        until(10, "the stream to end", lambda: b"<publishing/>" not in pod.get("stat"))
    finally:
        publisher.kill()


def test_streams_that_fill_the_memory_stop_nothing_else(image: str, media: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "media" / "mp4-1").mkdir(parents=True)
    shutil.copy(media / "media" / "mp4-1" / "a.mp4", tmp_path / "media" / "mp4-1")
    name = f"spdk-k8s-page-full-{os.getpid()}"
    try:
        pod = started(tmp_path, image, name, hls="128k")
        publisher = pod.publish(f"cam?key={KEY}", quality="5")
        try:
            used = ["docker", "exec", name, "df", "--output=pcent", "/hls"]
            until(60, "a full folder", lambda: int(re.findall(rb"(\d+)%", subprocess.check_output(used))[0]) > 90)
            assert b"ordinal" in pod.get("healthz")
            assert pod.get("a.mp4")
        finally:
            publisher.kill()
        subprocess.run(["docker", "kill", "--signal", "KILL", name], capture_output=True, check=True, timeout=60)
        subprocess.run(["docker", "start", name], capture_output=True, check=True, timeout=60)
        until(30, "the pod after a restart", lambda: b"ordinal" in pod.get("healthz"))
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60)
