"""What a playlist's folder holds, what of it the page lists, and why it does not list the rest.

Paths are relative to the folder. A file name is any bytes but `/` and NUL: Python keeps bytes that are no UTF-8 in
surrogates, and os.fsencode gives them back.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

# ending of a movie's name -> the type for which browsers try it; the content decides whether they play it
TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/webm",
}
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
LANGUAGE = re.compile(r"\.[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
RTMP = "is in flv/, which only the RTMP application vod plays"


# No dataclasses and no subprocess in this program: importing either costs an emulated CPU a quarter of a second.
class Folder:
    def __init__(self) -> None:
        self.files: set[str] = set()
        self.links: dict[str, str] = {}
        """Links to a file or folder of this folder: path -> path of what it leads to, "." for the folder itself."""
        self.unusable: dict[str, str] = {}
        """What cannot be copied: path -> reason."""


def look(root: Path) -> Folder:
    """Links are not followed: each is a path of its own."""
    found, real = Folder(), root.resolve()

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == root:
            raise error
        found.unusable[str(folder.relative_to(root))] = f"cannot be read: {error.strerror}"

    for folder, folders, files in os.walk(root, onerror=unreadable):
        for path in (Path(folder, name) for name in folders + files):
            inside, mode = str(path.relative_to(root)), path.lstat().st_mode
            if stat.S_ISLNK(mode):
                reason, target = _followed(path, real)
                if reason:
                    found.unusable[inside] = reason
                else:
                    found.links[inside] = target
            elif stat.S_ISREG(mode):
                if os.access(path, os.R_OK):
                    found.files.add(inside)
                else:
                    found.unusable[inside] = f"cannot be read by user {os.getuid()}"
            elif not stat.S_ISDIR(mode):
                found.unusable[inside] = "is neither a file nor a folder"
    # a link to what is not copied leads nowhere on the disk
    for link, target in list(found.links.items()):
        if target in found.unusable:
            found.unusable[link] = f"is a link to {shown(target)}, which {found.unusable[target]}"
            del found.links[link]
    return found


def _followed(link: Path, root: Path) -> tuple[str, str]:
    """Why a link is not followed, or empty; and the path that it leads to."""
    text = shown(str(link.readlink()))
    try:
        target = link.resolve()
        there = target.exists()
    except (OSError, RuntimeError):
        return f"is a link to {text}, which leads in a circle", ""
    if not target.is_relative_to(root):
        return f"is a link that leads out of the playlist, to {text}", ""
    return ("" if there else f"is a link to {text}, which is not there"), str(target.relative_to(root))


def listing(folder: Folder) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The movies: url, name, type, and thumbnail and subtitles if there are any. A url is relative to the page.

    And what is not listed: path -> reason.
    """
    paths, unlisted = _reachable(folder)
    unlisted.update(folder.unusable)
    movies: dict[PurePosixPath, list[dict[str, Any]]] = {}  # by path without the ending
    rest: list[PurePosixPath] = []
    for path in map(PurePosixPath, sorted(paths)):
        kind = TYPES.get(path.suffix.lower())
        if path.parts[0] == "flv" and path.suffix.lower() != ".flv":
            unlisted[str(path)] = RTMP
        elif any(part.startswith(".") for part in path.parts):
            unlisted[str(path)] = "is hidden: a name in its path begins with a dot"
        elif kind:
            movie = {"url": _url(path), "name": os.fsencode(path).decode(errors="replace"), "type": kind}
            movies.setdefault(path.with_suffix(""), []).append(movie)
        elif path.parts[0] != "flv":
            rest.append(path)
    for path in rest:
        ending, stem = path.suffix.lower(), path.with_suffix("")
        if ending == ".vtt":
            language = stem.suffix if stem not in movies and LANGUAGE.fullmatch(stem.suffix) else ""
            of = movies.get(stem.with_suffix("") if language else stem, [])
            for movie in of:
                movie.setdefault("subtitles", []).append({"url": _url(path), "language": language[1:]})
            if not of:
                unlisted[str(path)] = "is a subtitle, and no movie beside it has its name"
        elif ending in PICTURES and path.parent.name == "img":
            for movie in movies.get(path.parent.parent / stem.name, []):
                movie["thumbnail"] = _url(path)
        else:
            unlisted[str(path)] = f"is no movie: the page lists {' '.join(TYPES)}"
    return [movie for of_stem in movies.values() for movie in of_stem], unlisted


def _url(path: PurePosixPath) -> str:
    return quote(os.fsencode(path))


def _reachable(folder: Folder) -> tuple[set[str], dict[str, str]]:
    """Every path that leads to a file, links followed; and the links that lead in a circle."""
    paths = folder.files | {link for link, target in folder.links.items() if target in folder.files}
    further: set[str] = set()
    circles: dict[str, str] = {}
    for link, target in folder.links.items():
        if target in folder.files:
            continue
        if target == "." or link.startswith(f"{target}/"):
            circles[link] = "is a link to a folder that it lies in"
        else:
            further |= {link + path[len(target) :] for path in paths if path.startswith(f"{target}/")}
    return paths | further, circles


def shown(path: str) -> str:
    """As text on one line."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def told(unlisted: dict[str, str], most: int = 20) -> Iterator[str]:
    """Lines for the log."""
    for path, reason in sorted(unlisted.items())[:most]:
        yield f"not on the page: {shown(path)} {reason}"
    if len(unlisted) > most:
        yield f"not on the page: {len(unlisted) - most} more, which the page names"
