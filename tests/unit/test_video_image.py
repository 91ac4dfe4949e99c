"""The video pod's program, run on temporary folders; nginx is a stand-in that prints how it was started."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from components.images import NOT_BUILT

pytestmark = pytest.mark.unit

IMAGE = Path(__file__).parents[2] / "images" / "video"
MOVIE = "movie 1.mp4"
KEY = "0123456789abcdef" * 3


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> content of each file, links followed."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Pod:
    root: Path

    @property
    def disk(self) -> Path:
        return self.root / "data"

    @property
    def media(self) -> Path:
        return self.root / "media" / "mp4-3"

    @property
    def marker(self) -> Path:
        return self.disk / ".spdk-k8s.json"

    def start(self, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-m", "video"],
            env={
                "PYTHONPATH": str(IMAGE),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PUBLISH_KEY": str(self.root / "key"),
                "HLS": str(self.root / "hls"),
                "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
                "POD_NAME": "app-vs-p2-2",
                "POD_IP": "10.12.90.141",
                "MEDIA": str(self.root / "media"),
                "MEDIA_WAIT": "0",
                "DISK": str(self.disk),
                "TMPDIR": str(self.root / "tmp"),
                "TEMPLATE": str(IMAGE / "nginx.conf"),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    def serves(self, **env: str) -> str:
        run = self.start(**env)
        assert run.returncode == 0, run.stderr
        assert tree(self.disk / "media") == tree(self.media)
        return run.stdout

    def listing(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The movies on the page, and what is not listed: name -> reason."""
        page = json.loads((self.root / "tmp" / "playlist.json").read_text())
        return page["movies"], {file["name"]: file["why"] for file in page["unlisted"]}

    def refuses(self, **env: str) -> str:
        run = self.start(**env)
        assert run.returncode == 1
        assert "nginx" not in run.stdout
        return run.stderr

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    pod = Pod(tmp_path)
    for folder in ("bin", "data", "tmp", "hls", "media/mp4-3/img", "media/mp4-3/flv"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "key").write_text(f"{KEY}\n")
    (pod.media / MOVIE).write_bytes(b"movie" * 4000)
    (pod.media / "img" / "movie 1.jpg").write_bytes(b"thumbnail")
    (pod.media / "flv" / "$movie's.flv").write_bytes(b"flv")
    pod.program("nginx", 'echo nginx "$@"')
    return pod


def test_a_blank_disk_gets_marker_playlist_and_sums_then_nginx_starts(pod: Pod) -> None:
    *_, address, nginx = pod.serves().splitlines()
    assert address == "10.12.90.141:8082 rtmp:1937"
    assert nginx == f"nginx -e /dev/null -c {pod.root / 'tmp' / 'nginx.conf'}"
    marker = json.loads(pod.marker.read_text())
    assert (marker["ordinal"], marker["playlist"]) == (2, "mp4-3")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", marker["created"])
    assert marker["life"]
    assert pod.marker.stat().st_size == 4096  # nginx reads whole blocks past the page cache
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "../media.sha256"], cwd=pod.disk / "media", check=True
    )


def test_the_config_has_this_pods_values(pod: Pod) -> None:
    pod.serves(HTTP_BASE="9000", RTMP_BASE="3000")
    conf = (pod.root / "tmp" / "nginx.conf").read_text()
    assert not re.search(r"@[A-Z_]+@", conf)
    assert "listen 9002;" in conf
    assert "listen 3002;" in conf
    assert f"play {pod.disk}/media/flv;" in conf
    assert (pod.root / "tmp" / "first-movie").read_bytes() == (pod.media / MOVIE).read_bytes()


def test_a_restart_copies_nothing_and_keeps_the_marker(pod: Pod) -> None:
    pod.serves()
    marker, written = pod.marker.read_text(), (pod.disk / "media" / MOVIE).stat().st_mtime_ns
    assert pod.serves().splitlines()[0] == "10.12.90.141:8082 rtmp:1937"
    assert pod.marker.read_text() == marker
    assert (pod.disk / "media" / MOVIE).stat().st_mtime_ns == written


def test_an_interrupted_copy_is_completed(pod: Pod) -> None:
    pod.serves()
    (pod.disk / "media" / MOVIE).write_bytes(b"mov")
    (pod.disk / "media" / "img" / "movie 1.jpg").unlink()
    (pod.disk / "media.sha256").rename(pod.disk / "media.sha256.new")
    assert "3 files, 2 of them copied now" in pod.serves()
    assert (pod.disk / "media.sha256").exists()


def test_a_changed_playlist_is_followed(pod: Pod) -> None:
    pod.serves()
    (pod.media / MOVIE).write_bytes(b"other" * 4000)
    (pod.media / "flv" / "$movie's.flv").rename(pod.media / "new movie.mp4")
    pod.serves()


def test_another_ordinals_disk_is_refused_untouched(pod: Pod) -> None:
    pod.marker.write_text('{"ordinal": 7, "playlist": "mp4-8", "created": "", "life": ""}\n')
    before = tree(pod.disk)
    error = pod.refuses()
    assert "ordinal 7, not 2" in error
    assert "PersistentVolume is bound to app-vs-p2-2" in error
    assert tree(pod.disk) == before


def test_somebodys_files_are_left_alone(pod: Pod) -> None:
    (pod.disk / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in pod.refuses()
    assert tree(pod.disk) == {"thesis.tex": b"years of work"}


def test_a_blanked_marker_is_refused(pod: Pod) -> None:
    pod.marker.write_bytes(b"\0" * 4096)
    assert "not readable as a marker" in pod.refuses()


def test_a_disk_of_an_earlier_life_is_stamped_anew(pod: Pod) -> None:
    pod.serves(LIFE="first")
    assert "earlier life" in pod.serves(LIFE="second")
    assert json.loads(pod.marker.read_text())["life"] == "second"


def test_no_room_is_told_before_anything_is_copied(pod: Pod) -> None:
    with (pod.media / "large.mp4").open("wb") as large:
        large.truncate(1 << 43)  # a hole: larger than any disk, and nobody reads it
    error = pod.refuses()
    assert re.search(r"disk 2 \(\S+\): no room for mp4-3: 8388609 MiB to copy, \d+ MiB in all", error)
    assert "vhost.diskMib" in error
    assert not (pod.disk / "media").exists()


def test_a_disk_without_enough_free_space_is_told_too(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(IMAGE)
    from video import disk, playlist

    sizes = iter([1 << 20, 8192])  # of the disk in all, and free
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_frsize=1, f_bavail=(size := next(sizes)), f_blocks=size)
    )
    with pytest.raises(disk.Refused, match=r"no room for mp4-3: 1 MiB to copy, 0 MiB free; raise vhost.diskMib"):
        disk.copy(pod.media, playlist.look(pod.media), pod.disk, ordinal=2)
    assert tree(pod.disk / "media") == {}


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("POD_NAME", "video", "must end in the pod's ordinal"),
        ("POD_IP", "", "must be an IP address"),
        ("HTTP_BASE", "80", "at least 1024"),
        ("HTTP_BASE", "http", "must be a port"),
        ("RTMP_BASE", "65534", "at most 65535"),
        ("LIFE", 'a"b', "only letters"),
        ("PUBLISH_KEY", "/nowhere", "mount the secret"),
        ("PUBLISH_KEY", "/proc/sys/kernel/ostype", "hexadecimal digits"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(pod: Pod, key: str, value: str, rule: str) -> None:
    error = pod.refuses(**{key: value})
    assert f"{key}='{value}'" in error or f"{key}={value}:" in error
    assert rule in error


def test_a_missing_playlist_is_named(pod: Pod) -> None:
    assert "media/mp4-6: no such folder after 0 s" in pod.refuses(POD_NAME="app-vs-p2-5")


def test_a_playlist_without_movies_is_refused(pod: Pod) -> None:
    (pod.media / MOVIE).unlink()
    assert "no movie (.mp4 .m4v .mov .webm .mkv)" in pod.refuses()


def test_every_name_that_a_file_system_allows_is_copied_and_listed(pod: Pod) -> None:
    """Each byte by itself, and in a folder's name."""
    for byte in set(range(1, 256)) - set(b"/."):
        name = os.fsdecode(b"a" + bytes([byte]) + b"b")
        (pod.media / name).mkdir()
        for file in (pod.media / f"{name}.mp4", pod.media / name / f"{name}.MP4"):
            file.write_text(str(byte))
    pod.serves()
    movies, unlisted = pod.listing()
    assert unlisted == {}
    reached = {unquote_to_bytes(movie["url"]) for movie in movies}
    assert reached == {os.fsencode(path) for path in tree(pod.media) if path.lower().endswith(".mp4")}
    assert len(reached) == 1 + 2 * 253
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "../media.sha256"], cwd=pod.disk / "media", capture_output=True
    )
    assert checked.returncode == 0, checked.stderr
    assert pod.serves().count("\n") == 2, "a restart copies nothing"


def test_every_container_that_a_browser_may_play_is_listed_with_what_belongs_to_it(pod: Pod) -> None:
    for name in ("b.MP4", "c.m4v", "d.Mov", "e.webm", "series/1.mkv", "series/img/1.PNG"):
        (pod.media / name).parent.mkdir(parents=True, exist_ok=True)
        (pod.media / name).write_text(name)
    for name in ("b.vtt", "b.en.VTT", "series/1.pt-BR.vtt"):
        (pod.media / name).write_text("WEBVTT")
    pod.serves()
    movies, unlisted = pod.listing()
    assert unlisted == {}
    assert {movie["name"]: movie["type"] for movie in movies} == {
        MOVIE: "video/mp4", "b.MP4": "video/mp4", "c.m4v": "video/mp4", "d.Mov": "video/mp4", "e.webm": "video/webm",
        "series/1.mkv": "video/webm",
    }  # fmt: skip
    of = {movie["name"]: movie for movie in movies}
    assert (of[MOVIE]["url"], of[MOVIE]["thumbnail"]) == ("movie%201.mp4", "img/movie%201.jpg")
    assert of["series/1.mkv"]["thumbnail"] == "series/img/1.PNG"
    assert of["series/1.mkv"]["subtitles"] == [{"url": "series/1.pt-BR.vtt", "language": "pt-BR"}]
    assert of["b.MP4"]["subtitles"] == [
        {"url": "b.en.VTT", "language": "en"}, {"url": "b.vtt", "language": ""},
    ]  # fmt: skip


def test_what_is_not_listed_is_named_with_the_reason_in_the_log_and_on_the_page(pod: Pod) -> None:
    for name in ("notes\n.txt", "other.vtt", ".hidden.mp4", "flv/movie.mp4", "img/lone.jpg"):
        (pod.media / name).write_text("text")
    log = pod.serves().splitlines()
    _, unlisted = pod.listing()
    assert set(unlisted) == {"notes\\n.txt", "other.vtt", ".hidden.mp4", "flv/movie.mp4"}
    for name, why in unlisted.items():
        assert f"video: not on the page: {name} {why}" in log
    assert log[-2] == "10.12.90.141:8082 rtmp:1937"


def test_links_are_followed_inside_the_playlist_and_never_out_of_it(pod: Pod) -> None:
    outside = pod.root / "outside"
    outside.mkdir()
    (outside / "secret.mp4").write_text("secret")
    (pod.media / "series").mkdir()
    (pod.media / "series" / "1.mp4").write_text("one")
    os.mkfifo(pod.media / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(pod.media / "s.mp4"))
    for link, target in {
        "latest.mp4": "series/1.mp4",
        "absolute.mp4": str(pod.media / MOVIE),
        "roundabout.mp4": f"../mp4-3/{MOVIE}",
        "chain.mp4": "latest.mp4",
        "again": "series",
        "out.mp4": "../../outside/secret.mp4",
        "out": str(outside),
        "gone.mp4": "nowhere.mp4",
        "series/circle": "..",
        "self.mp4": "self.mp4",
        "to-pipe.mp4": "pipe.mp4",
    }.items():
        (pod.media / link).symlink_to(target)
    run = pod.start()
    assert run.returncode == 0, run.stderr
    movies, unlisted = pod.listing()
    assert {movie["name"] for movie in movies} == {
        MOVIE, "series/1.mp4", "latest.mp4", "absolute.mp4", "roundabout.mp4", "chain.mp4", "again/1.mp4",
    }  # fmt: skip
    for movie in movies:
        name = movie["name"]
        assert (pod.disk / "media" / name).read_bytes() == (pod.media / name).read_bytes(), name
    assert "leads out of the playlist" in unlisted["out.mp4"]
    assert "leads out of the playlist, to " + str(outside) in unlisted["out"]
    assert "not there" in unlisted["gone.mp4"]
    assert "it lies in" in unlisted["series/circle"]
    assert "neither a file nor a folder" in unlisted["pipe.mp4"]
    assert set(unlisted) == {
        "out.mp4", "out", "gone.mp4", "series/circle", "self.mp4", "pipe.mp4", "s.mp4", "to-pipe.mp4",
    }  # fmt: skip
    assert b"secret" not in b"".join(tree(pod.disk).values())
    assert sum(path.stat().st_size for path in pod.disk.rglob("*.mp4") if not path.is_symlink()) == 20_000 + 3
    again = pod.start()
    assert "copied now" not in again.stdout
    assert again.returncode == 0


def test_a_file_that_becomes_a_folder_or_a_link_is_followed(pod: Pod) -> None:
    (pod.media / "a").write_text("a")
    (pod.media / "b").mkdir()
    (pod.media / "b" / "b.mp4").write_text("b")
    (pod.media / "c.mp4").symlink_to("b/b.mp4")
    pod.serves()
    (pod.media / "a").unlink()
    (pod.media / "a").mkdir()
    (pod.media / "a" / "a.mp4").write_text("a")
    (pod.media / "b" / "b.mp4").unlink()
    (pod.media / "b").rmdir()
    (pod.media / "b").write_text("b")
    (pod.media / "c.mp4").unlink()
    (pod.media / "c.mp4").write_text("c")
    pod.serves()
    assert not (pod.disk / "media" / "c.mp4").is_symlink()


def test_a_playlist_of_two_thousand_movies(pod: Pod) -> None:
    for i in range(2000):
        (pod.media / f"{i}.mp4").write_text(str(i))
    assert "2003 files, 2003 of them copied now" in pod.serves()
    assert len(pod.listing()[0]) == 2001


def test_the_segments_of_a_killed_container_are_removed(pod: Pod) -> None:
    (pod.root / "hls" / "stream-1.ts").write_bytes(b"old")
    pod.serves()
    assert list((pod.root / "hls").iterdir()) == []


def test_the_key_is_in_nothing_but_a_config_that_is_private(pod: Pod) -> None:
    run = pod.start()
    assert KEY not in run.stdout + run.stderr
    conf = pod.root / "tmp" / "nginx.conf"
    assert KEY in conf.read_text()
    assert conf.stat().st_mode & 0o077 == 0
    assert not any(KEY in path.read_text(errors="replace") for path in pod.disk.rglob("*") if path.is_file())
    assert KEY not in (pod.root / "tmp" / "playlist.json").read_text()


def test_what_a_developer_leaves_beside_the_sources_is_not_in_the_image() -> None:
    assert (IMAGE / ".dockerignore").read_text().split() == ["**/__pycache__"]
    assert "__pycache__" in NOT_BUILT


def test_what_comes_from_npm_is_pinned_by_hash_and_names_no_host() -> None:
    lock = json.loads((IMAGE / "player" / "package-lock.json").read_text())["packages"]
    assert all("integrity" in package and "resolved" not in package for name, package in lock.items() if name)
    assert re.search(
        r"^npm@[\d.]+\+sha512\.", json.loads((IMAGE / "player" / "package.json").read_text())["packageManager"]
    )
