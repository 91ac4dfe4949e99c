"""The pod's own disk: whose it is, and the playlist on it.

The pod may be stopped at any point and started again: what is on the disk is compared with the playlist by sha256, and
only what differs is copied or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from video.playlist import Folder, look, shown

MARKER = ".spdk-k8s.json"
SUMS = "media.sha256"


class Refused(Exception):
    """The pod cannot serve; the text says why and what helps."""


def device(disk: Path) -> str:
    """The block device that is mounted there."""
    longest, source = 0, "?"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted = Path(before.split()[4])
        if (disk == mounted or mounted in disk.parents) and len(mounted.parts) >= longest:
            longest, source = len(mounted.parts), after.split()[1]
    return source


def stamp(disk: Path, *, pod: str, ordinal: int, playlist: str, life: str) -> str:
    """Write the marker, which says whose disk this is. Returns what is to be said, or nothing.

    It is written before the playlist, so other files without it are somebody else's.
    life: id of the disk's life; empty: the one in the marker, or a new one.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]*", life):
        raise Refused(f"LIFE='{life}': only letters, digits, dot, underscore and hyphen")
    marker, said = disk / MARKER, ""
    if marker.exists():
        text = marker.read_bytes().replace(b"\0", b"").decode(errors="replace")
        found = re.search(r'"ordinal": (\d+),', text)
        if not found:
            raise Refused(
                f"{marker}: not readable as a marker; the disk lost its content: format it, or delete the file to use"
                " it anew"
            )
        if int(found[1]) != ordinal:
            raise Refused(
                f"this is the disk of ordinal {found[1]}, not {ordinal}: nothing is changed on it; check which"
                f" PersistentVolume is bound to {pod}, or delete {marker} to give the disk to {ordinal}"
            )
        if not life or f'"life": "{life}"' in text:
            return said
        said = f"disk {ordinal} is from an earlier life: kept, as every file on it is checked"
    else:
        ours = re.compile(rf"lost\+found|{re.escape(MARKER)}.*|media.*")
        others = sorted(path.name for path in disk.iterdir() if not ours.fullmatch(path.name))
        if others:
            raise Refused(
                f"{disk} holds somebody's files ({shown(others[0])}) and no marker: nothing is changed"
                f" on it; give {pod} a blank disk"
            )
    life = life or Path("/proc/sys/kernel/random/uuid").read_text().strip()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f'{{"ordinal": {ordinal}, "playlist": "{playlist}", "created": "{created}", "life": "{life}"}}'
    new = disk / f"{MARKER}.new"
    # one whole block, for nginx reads only whole ones past the page cache
    new.write_text(f"{text:<4095}\n")
    new.replace(marker)
    return said


def copy(source: Path, folder: Folder, disk: Path, *, ordinal: int) -> str:
    """Make disk/media what `folder` of `source` is. Returns what is to be said, or nothing."""
    room = os.statvfs(disk)
    # before anything is read: that takes long for what can never fit
    _fits(source, folder.files, room.f_blocks * room.f_frsize, "in all", disk, ordinal)
    to = disk / "media"
    to.mkdir(exist_ok=True)
    wanted, found = _state(source, folder), _state(to, look(to))
    sums = b"".join(sorted(_line(path, state) for path, state in wanted.items() if path in folder.files))
    complete = disk / SUMS
    if wanted == found and complete.exists() and complete.read_bytes() == sums:
        return ""
    complete.unlink(missing_ok=True)
    # what should not be there goes first: it makes room
    _keep_only({path for path, state in found.items() if wanted.get(path) == state}, to)
    missing = [path for path, state in sorted(wanted.items()) if found.get(path) != state]
    room = os.statvfs(disk)
    _fits(source, missing, room.f_bavail * room.f_frsize, "free", disk, ordinal)
    for path in missing:
        target = to / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in folder.links:
            target.symlink_to(_link(path, folder.links[path]))
        elif _copied(source / path, target) != wanted[path]:
            raise Refused(f"{source}: {shown(path)} changed while it was copied: starting again mends it")
    # written last: it says that the copy is complete
    new = disk / f"{SUMS}.new"
    new.write_bytes(sums)
    synced = os.posix_spawnp("sync", ["sync", "-f", str(disk)], os.environ)
    if os.waitpid(synced, 0)[1] != 0:
        raise Refused(f"disk {ordinal} ({device(disk)}): cannot be written to its end; see the node's kernel log")
    new.replace(complete)
    return (
        f"{source.name} is on disk {ordinal} ({device(disk)}): {len(wanted)} files, {len(missing)} of them copied now"
    )


def _fits(source: Path, paths: Iterable[str], size: int, kind: str, disk: Path, ordinal: int) -> None:
    need = sum((source / path).lstat().st_size // 4096 + 1 for path in paths)
    if need > size // 4096:
        raise Refused(
            f"disk {ordinal} ({device(disk)}): no room for {source.name}: {need // 256 + 1} MiB to copy,"
            f" {size >> 20} MiB {kind}; raise vhost.diskMib, or make the playlist smaller"
        )


def _state(root: Path, folder: Folder) -> dict[str, str]:
    """Path -> what is there: a file's sha256, or where a link leads."""
    state = {path: "-> " + _link(path, target) for path, target in folder.links.items()}
    for path in folder.files:
        with (root / path).open("rb") as file:
            state[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return state


def _link(path: str, target: str) -> str:
    """The text of a link, which leads from `path` to `target` on every disk."""
    return os.path.relpath(target, PurePosixPath(path).parent)


def _line(path: str, digest: str) -> bytes:
    """As sha256sum writes it, and reads it with --check."""
    name = os.fsencode(path)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + digest.encode() + b"  " + escaped + b"\n"


def _keep_only(right: set[str], root: Path) -> None:
    """Remove every file and link but these, and the folders that are empty then."""
    for folder, folders, files in os.walk(root, topdown=False):
        for path in (Path(folder, name) for name in folders + files):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # it holds what stays
                    path.rmdir()
            elif str(path.relative_to(root)) not in right:
                path.unlink()


def _copied(source: Path, target: Path) -> str:
    """Copy a file. Returns the sha256 of what was written."""
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as out:
        while piece := file.read(1 << 20):
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()
