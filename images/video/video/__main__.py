"""Video pod i: copies playlist mp4-(i+1) to its own disk, then serves it: HTTP at HTTP_BASE + i, RTMP at RTMP_BASE + i.

POD_NAME, POD_IP      who we are; the ordinal i is the name's last part
HTTP_BASE, RTMP_BASE  ports of ordinal 0
PUBLISH_KEY           file with the key that a publisher of a live stream needs
MEDIA, DISK           the playlists (read-only), and this pod's own disk
HLS                   folder in memory for live streams
MEDIA_WAIT            seconds to wait for the playlist's folder
LIFE                  id of the disk's life, kept in its marker; default: the marker's, a new one on a blank disk
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

from video import disk as disks
from video import playlist as playlists
from video.disk import Refused


def say(text: str) -> None:
    print(f"video: {text}", flush=True)


def port(key: str, value: str, ordinal: int) -> int:
    if re.fullmatch(r"[0-9]{1,5}", value) and 1024 <= int(value) <= 65535 - ordinal:
        return int(value) + ordinal
    raise Refused(
        f"{key}='{value}': must be a port of at least 1024, and at most 65535 with the ordinal ({ordinal}) added"
    )


def publish_key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except OSError as error:
        raise Refused(f"PUBLISH_KEY={path}: {error.strerror}; mount the secret with the key for live streams") from None
    if not re.fullmatch(r"[0-9a-f]{32,128}", key):
        raise Refused(f"PUBLISH_KEY={path}: must hold 32 to 128 hexadecimal digits; make one by: openssl rand -hex 24")
    return key


def wait_for(folder: Path, seconds: float, ordinal: int) -> None:
    end = time.monotonic() + seconds
    while not folder.is_dir():
        if time.monotonic() >= end:
            raise Refused(
                f"{folder}: no such folder after {seconds:g} s; is the media share mounted on the node, and has it a"
                f" playlist for ordinal {ordinal}?"
            )
        time.sleep(0.5)


def empty(folder: Path) -> None:
    """The segments of a container that was killed outlive it, and would fill the folder's memory in the end."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            empty(path)
            path.rmdir()
        else:
            path.unlink()


def prepare(env: Mapping[str, str]) -> tuple[Path, str]:
    """Fill the disk and write nginx's config. Returns the config's path, and the log's last line."""
    name, address = env.get("POD_NAME", ""), env.get("POD_IP", "")
    of = re.fullmatch(r"[a-z0-9.-]*-([0-9]{1,4})", name)
    if not of:
        raise Refused(f"POD_NAME='{name}': must end in the pod's ordinal, as in app-vs-p2-0; set it from metadata.name")
    if not re.fullmatch(r"[0-9a-fA-F.:]+", address):
        raise Refused(f"POD_IP='{address}': must be an IP address; set it from status.podIP")
    ordinal = int(of[1])
    http = port("HTTP_BASE", env.get("HTTP_BASE", "8080"), ordinal)
    rtmp = port("RTMP_BASE", env.get("RTMP_BASE", "1935"), ordinal)
    key = publish_key(Path(env.get("PUBLISH_KEY", "/run/publish/key")))
    media, disk = Path(env.get("MEDIA", "/media")), Path(env.get("DISK", "/data"))
    tmp, hls = Path(env.get("TMPDIR", "/tmp")), Path(env.get("HLS", "/hls"))
    if not os.access(disk, os.W_OK):
        raise Refused(
            f"DISK={disk}: not writable by user {os.getuid()}; the pod needs fsGroup {os.getgid()}, and the disk a"
            " mount"
        )
    empty(hls)

    source = media / f"mp4-{ordinal + 1}"
    if said := disks.stamp(disk, pod=name, ordinal=ordinal, playlist=source.name, life=env.get("LIFE", "")):
        say(said)
    wait_for(source, float(env.get("MEDIA_WAIT", "60")), ordinal)
    folder = playlists.look(source)
    movies, unlisted = playlists.listing(folder)
    if not movies:
        raise Refused(f"{source}: no movie ({' '.join(playlists.TYPES)}) in it")
    if said := disks.copy(source, folder, disk, ordinal=ordinal):
        say(said)
    for line in playlists.told(unlisted):
        say(line)
    named = [{"name": playlists.shown(path), "why": why} for path, why in sorted(unlisted.items())]
    (tmp / "playlist.json").write_text(json.dumps({"movies": movies, "unlisted": named}))
    first = tmp / "first-movie"
    first.unlink(missing_ok=True)
    first.symlink_to(disk / "media" / os.fsdecode(unquote_to_bytes(movies[0]["url"])))

    device = disks.device(disk)
    values = {
        "POD_NAME": name,
        "ORDINAL": str(ordinal),
        "PLAYLIST": source.name,
        "DEVICE": device,
        "KERNEL_NAME": device.removeprefix("/dev/"),
        "CREATED": str(int((disk / disks.MARKER).stat().st_mtime)),
        "STARTED": str(int(time.time())),
        "DISK": str(disk),
        "TMP": str(tmp),
        "HLS": str(hls),
        "HTTP_PORT": str(http),
        "RTMP_PORT": str(rtmp),
        "PUBLISH_KEY": key,
    }
    template = Path(env.get("TEMPLATE", "/etc/video/nginx.conf")).read_text()
    conf = tmp / "nginx.conf"
    conf.write_text(re.sub(r"@([A-Z_]+)@", lambda word: values[word[1]], template))
    return conf, f"{address}:{http} rtmp:{rtmp}"


def ended(number: int, _: object) -> None:
    """The first process of a container would ignore a signal that it does not handle."""
    sys.exit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, ended)
    os.umask(0o077)
    try:
        conf, addresses = prepare(os.environ)
    except Refused as reason:
        print(f"video: {reason}", file=sys.stderr)
        sys.exit(1)
    # the operator reads the addresses in the last line of the log
    print(addresses, flush=True)
    # what nginx notes before it reads its config is no matter; what keeps it from starting it says all the same
    os.execvp("nginx", ["nginx", "-e", "/dev/null", "-c", str(conf)])  # noqa: S606


if __name__ == "__main__":
    main()
