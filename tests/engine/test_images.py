"""A checkout under umask 077, without exec bits and owned by another user gives the same images."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from components import images
from settings.pins import PINS

pytestmark = pytest.mark.engine

BASE = f"debian:{PINS['DEBIAN']}-slim"
BUILDS = {
    "video": ["--build-arg", f"BASE={BASE}"],
    "node": ["--build-arg", f"BASE={BASE}", "--target", "guest"],
    "bundle": ["--build-arg", f"BASE={BASE}", "--build-arg", f"BINARIES=spdk-k8s/kubernetes:v{PINS['KUBERNETES']}"],
    "monitoring": ["--build-arg", f"BASE={BASE}", "--target", "prometheus"],
    "media": ["--build-arg", f"BASE={BASE}", "--build-arg", "COUNT=2"],
}


def build(context: Path, *options: str) -> str:
    """The image's id."""
    done = subprocess.run(
        ["docker", "build", "-q", *options, str(context)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", BUILDS)
def test_an_image_does_not_depend_on_the_checkout(folder: str, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    other = tmp_path / "an other folder"
    shutil.copytree(images.ROOT / folder, usual)
    shutil.copytree(images.ROOT / folder, other)
    for path in [other, *other.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        if os.geteuid() == 0:
            os.chown(path, 12345, 12345)
    assert build(other, *BUILDS[folder]) == build(usual, *BUILDS[folder])


def test_the_video_pods_user_can_read_and_run_what_is_in_its_image() -> None:
    image = build(images.ROOT / "video", *BUILDS["video"])
    program = "python3 -S -c 'import video.disk, video.playlist'"
    look = f"{program} && cat /etc/video/nginx.conf >/dev/null && find /usr/share/video/www ! -readable"
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", look],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_prometheus_config_and_its_rules_are_right() -> None:
    """images/monitoring/rules_test.yml, run by promtool in the build."""
    assert build(images.ROOT / "monitoring", "--build-arg", f"BASE={BASE}", "--target", "rules-test")


def test_each_sample_playlist_shows_its_own_number() -> None:
    image = build(images.ROOT / "media", *BUILDS["media"], "--target", "ffmpeg")
    probe = "ffprobe -v error -of csv=p=0 -show_entries format=duration:stream=codec_name"
    look = f"cd /media && sha256sum */*.mp4 */*/* && for movie in */*.mp4 */flv/*; do {probe} $movie; done"
    run = ["docker", "run", "--rm", "--network", "none", image, "sh", "-c", look]
    lines = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    sums = dict(line.split()[::-1] for line in lines if "/" in line)
    assert sorted(sums) == sorted(
        f"mp4-{i}/{name}"
        for i in (1, 2)
        for name in ("movie-1.mp4", "movie-2.mp4", "img/movie-1.jpg", "img/movie-2.jpg", "flv/movie-1.flv")
    )
    assert len(set(sums.values())) == len(sums), "two of them are the same"
    shown = [line for line in lines if "/" not in line]
    assert shown.count("h264") == shown.count("aac") == 6
    assert all(5.5 < float(line) < 6.5 for line in shown if line not in ("h264", "aac"))
