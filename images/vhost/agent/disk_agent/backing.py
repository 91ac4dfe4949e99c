"""What lies behind a disk: a file in the pod's memory, or a file or block device on the host; and what it really is."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import struct
from pathlib import Path

from disk_agent.config import Disk, Kind
from disk_agent.monitor import Refused
from disk_agent.target import life

FS_IOC_GETVERSION = 0x80087601  # an inode's number is used again, its generation is not


class Backing:
    """The files and devices of one agent.

    Disks in memory are files in the pod's own memory: they outlive the target, not the pod. Their life is in the file's
    name, drawn when it is made. A block device is held open exclusively for as long as it is served: the
    kernel refuses that for one that is mounted, swap, or a part of RAID, LVM, device-mapper multipath or ZFS, and
    refuses all those for one that is held."""

    def __init__(self, kind: Kind, sys: Path = Path("/sys")) -> None:
        self.kind, self.sys = kind, sys
        self._held: dict[str, int] = {}

    def look(self, disk: Disk) -> str | None:
        """The life of `disk`; None where there is no such file yet. Refused, with the remedy."""
        if self.kind.in_memory:
            made = sorted(self._in_memory(disk))
            return made[0].name.rpartition("-")[2] if made else None
        return self._look(disk.path)

    def ready(self, disk: Disk, life: str | None) -> tuple[str, str]:
        """Path and life of `disk`, ready to be served. life: of the last look; None: it is made."""
        if self.kind.in_memory:
            life = life or secrets.token_hex(6)
            path = f"{disk.path}-{life}"
            if not Path(path).exists():
                sparse(Path(path), self.kind.bytes)
            return path, life
        if life is None:
            self._make(disk.path)
        self._hold(disk.path)
        found = self._look(disk.path)
        if found is None or life not in (None, found):
            raise Refused(f"{disk.path} is another disk than a moment ago")
        return disk.path, found

    def free(self, disk: Disk) -> None:
        """Give back the memory of a disk."""
        for file in self._in_memory(disk):
            file.unlink()

    @staticmethod
    def _in_memory(disk: Disk) -> list[Path]:
        return list(Path(disk.path).parent.glob(f"{disk.name}-*"))

    def _look(self, path: str) -> str | None:
        try:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if path.startswith("/dev/"):
                raise Refused(f"{path} does not exist: is the device gone?") from None
            return None
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from None
        try:
            found = os.fstat(opened)
            if stat.S_ISBLK(found.st_mode):
                return self._device(path, opened, found)
            if stat.S_ISREG(found.st_mode):
                return self._file(path, opened, found)
        finally:
            os.close(opened)
        raise Refused(f"{path} is neither a file nor a block device: nothing is changed on it")

    def _file(self, path: str, opened: int, found: os.stat_result) -> str:
        if found.st_size != self.kind.bytes:
            raise Refused(
                f"{path} has {found.st_size} bytes, and vhost.diskMib says {self.kind.bytes}: nothing is changed on it;"
                " set vhost.diskMib to its size, or move the file away"
            )
        folder = Path(path).parent.stat()
        return life(self.kind, "file", folder.st_dev, folder.st_ino, found.st_ino, _generation(opened))

    def _device(self, path: str, opened: int, found: os.stat_result) -> str:
        size = os.lseek(opened, 0, os.SEEK_END)
        if size < self.kind.bytes:
            raise Refused(f"{path} has {size >> 20} MiB, and vhost.diskMib says {self.kind.mib}")
        return life(self.kind, "device", *self.identity(found.st_rdev))

    def identity(self, rdev: int) -> tuple[str, ...]:
        """What a block device really is: its WWN, NVMe namespace id or serial number, and the partition's number; for
        one without any of them what the kernel numbered it when it came."""
        node = (self.sys / f"dev/block/{os.major(rdev)}:{os.minor(rdev)}").resolve()
        partition = _text(node / "partition")
        whole = node.parent if partition else node
        for name in ("wwid", "device/wwid", "dm/uuid", "serial", "device/serial"):
            if found := _text(whole / name):
                return name, found, partition
        return "diskseq", _text(whole / "diskseq") or f"{os.major(rdev)}:{os.minor(rdev)}", partition

    def _make(self, path: str) -> None:
        """A sparse file for a disk that has none; whole, or not there at all."""
        folder = Path(path).parent
        ours = all(entry.name.startswith("vhost.") for entry in folder.iterdir())
        if ours and stat.S_IMODE(folder.stat().st_mode) != 0o700:  # else it is somebody's, for more than our files
            folder.chmod(0o700)
        sparse(Path(path), self.kind.bytes)

    def _hold(self, path: str) -> None:
        if path in self._held or not stat.S_ISBLK(Path(path).stat().st_mode):
            return
        try:
            self._held[path] = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(
                f"{path} is in use ({error.strerror}): mounted, swap, or a part of RAID, LVM or ZFS; see: lsblk {path}"
            ) from None

    def let_go(self, path: str) -> None:
        if (held := self._held.pop(path, None)) is not None:
            os.close(held)


def sparse(file: Path, size: int) -> None:
    """Made beside it and moved: a file of another size is somebody's data, so never a half-made one."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    for old in file.parent.glob(f".{file.name}.*"):  # of a maker that was killed
        old.unlink()
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writing:
        writing.truncate(size)
    new.replace(file)


def _generation(opened: int) -> int:
    try:
        return int(struct.unpack("q", fcntl.ioctl(opened, FS_IOC_GETVERSION, bytes(8)))[0])
    except OSError:  # a filesystem without
        return 0


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
