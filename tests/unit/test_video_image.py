"""The video pod's entrypoint, run by bash on temporary folders; nginx is a stand-in that prints how it was started."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

IMAGE = Path(__file__).parents[2] / "images" / "video"
MOVIE = "movie 1.mp4"


def tree(folder: Path) -> dict[str, bytes]:
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
            ["bash", str(IMAGE / "video")],
            env={
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
        )

    def serves(self, **env: str) -> str:
        run = self.start(**env)
        assert run.returncode == 0, run.stderr
        assert tree(self.disk / "media") == tree(self.media)
        return run.stdout

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
    for folder in ("bin", "data", "tmp", "media/mp4-3/img", "media/mp4-3/flv"):
        (tmp_path / folder).mkdir(parents=True)
    (pod.media / MOVIE).write_bytes(b"movie" * 4000)
    (pod.media / "img" / "movie 1.jpg").write_bytes(b"thumbnail")
    (pod.media / "flv" / "$movie's.flv").write_bytes(b"flv")
    pod.program("nginx", 'echo nginx "$@"')
    return pod


def test_a_blank_disk_gets_marker_playlist_and_sums_then_nginx_starts(pod: Pod) -> None:
    *_, address, nginx = pod.serves().splitlines()
    assert address == "10.12.90.141:8082 rtmp:1937"
    assert nginx == f"nginx -c {pod.root / 'tmp' / 'nginx.conf'}"
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
    pod.program("df", 'case "$*" in *source*) echo /dev/vdc ;; *) echo 3 ;; esac')
    error = pod.refuses()
    assert "disk 2 (/dev/vdc): no room for mp4-3" in error
    assert "vhost.diskMib" in error
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
    ],
)
def test_a_bad_value_is_named_with_its_rule(pod: Pod, key: str, value: str, rule: str) -> None:
    error = pod.refuses(**{key: value})
    assert f"{key}='{value}'" in error
    assert rule in error


def test_a_missing_playlist_is_named(pod: Pod) -> None:
    assert "media/mp4-6: no such folder after 0 s" in pod.refuses(POD_NAME="app-vs-p2-5")


def test_a_playlist_without_movies_is_refused(pod: Pod) -> None:
    (pod.media / MOVIE).unlink()
    assert "no movie (*.mp4)" in pod.refuses()


def test_what_comes_from_npm_is_pinned_by_hash_and_names_no_host() -> None:
    lock = json.loads((IMAGE / "player" / "package-lock.json").read_text())["packages"]
    assert all("integrity" in package and "resolved" not in package for name, package in lock.items() if name)
    assert re.search(
        r"^npm@[\d.]+\+sha512\.", json.loads((IMAGE / "player" / "package.json").read_text())["packageManager"]
    )
