"""What goes into an image does not depend on how a checkout came about: its modes, its line ends, its owner."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pulumi
import pytest

from components import images
from settings import proxy
from settings.pins import PINS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent.name for path in images.ROOT.glob("*/Dockerfile"))


def private(path: Path) -> None:
    """As under umask 077."""
    path.chmod(path.stat().st_mode & 0o700)


def without_exec_bits(path: Path) -> None:
    if path.is_file():
        path.chmod(0o644)


def open_to_all(path: Path) -> None:
    """As on a file system without modes."""
    path.chmod(0o777)


@pytest.mark.parametrize("change", [private, without_exec_bits, open_to_all])
def test_a_content_tag_does_not_depend_on_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    tags = {folder: images.content_tag(folder) for folder in FOLDERS}
    shutil.copytree(images.ROOT, tmp_path / "images")
    for path in [*(tmp_path / "images").rglob("*")]:
        change(path)
    monkeypatch.setattr(images, "ROOT", tmp_path / "images")
    assert {folder: images.content_tag(folder) for folder in FOLDERS} == tags


def test_a_content_tag_depends_on_every_files_content_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = images.content_tag("node")
    shutil.copytree(images.ROOT / "node", tmp_path / "node")
    monkeypatch.setattr(images, "ROOT", tmp_path)
    assert images.content_tag("node") == tag
    (tmp_path / "node" / "cloud.cfg").rename(tmp_path / "node" / "cloud.config")
    renamed = images.content_tag("node")
    (tmp_path / "node" / "cloud.config").write_text("")
    assert len({tag, renamed, images.content_tag("node")}) == 3


def test_the_digest_of_a_source_that_is_built_notices_a_lost_exec_bit(tmp_path: Path) -> None:
    (tmp_path / "configure").touch(0o755)
    before = images.tree_digest(tmp_path, modes=True)
    (tmp_path / "configure").chmod(0o644)
    assert images.tree_digest(tmp_path, modes=True) != before


def test_files_have_unix_line_ends_where_git_would_convert_them(tmp_path: Path) -> None:
    """The scripts are read by bash, the units by systemd, on machines and in images."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    convert = [
        "git",
        "-c",
        "core.autocrlf=true",
        "-c",
        "core.eol=crlf",
        "checkout-index",
        "-a",
        f"--prefix={tmp_path}/",
    ]
    subprocess.run(convert, cwd=ROOT, check=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"})
    checked = [tmp_path / name for name in names.split("\0") if name and not name.endswith(".png")]
    assert len(checked) > 100
    assert [path.name for path in checked if path.is_file() and b"\r\n" in path.read_bytes()] == []


def test_each_dockerfile_starts_from_the_pinned_distribution() -> None:
    defaults = {
        (folder, base)
        for folder in FOLDERS
        for base in re.findall(r"^ARG BASE=(.*)$", (images.ROOT / folder / "Dockerfile").read_text(), re.MULTILINE)
    }
    assert {base for _, base in defaults} == {f"debian:{PINS['DEBIAN']}-slim"}


def test_with_a_proxy_an_image_is_built_ahead_as_the_provider_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy itself is no input of the resource: nothing changes where the user comes to another network."""
    for name in (*proxy.NAMES, *(name.lower() for name in proxy.NAMES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert images.builds_through_proxy() is None
    plain = images.recipe("node", {"BASE": "debian"}, "guest")

    monkeypatch.setenv("HTTPS_PROXY", "http://user:hush@proxy:3128")
    assert images.recipe("node", {"BASE": "debian"}, "guest") == plain
    hooks = images.builds_through_proxy()
    assert hooks
    assert hooks.before_create == hooks.before_update
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup/build-ahead").write_text('echo "$1 $2" >"${0%/*}/asked"; cat >>"${0%/*}/asked"; exit "$FAILS"')
    monkeypatch.setattr(images, "ROOT", tmp_path / "images")
    warned: list[str] = []
    monkeypatch.setattr(images.pulumi.log, "warn", warned.append)
    inputs = {"build": {"context": "images/node", "target": "guest", "args": {"BASE": "debian"}}}
    for fails in (0, 1):
        monkeypatch.setenv("FAILS", str(fails))
        args = pulumi.ResourceHookArgs("urn", "", "images-guest", "docker:index/image:Image", new_inputs=inputs)
        loop = asyncio.new_event_loop()  # asyncio.run would take away the one that pulumi uses
        loop.run_until_complete(cast(Any, hooks.before_create)[0](args))
        loop.close()
        assert (tmp_path / "setup/asked").read_text() == 'node guest\n{"BASE": "debian"}'
        assert len(warned) == fails, "the provider's own build decides"
