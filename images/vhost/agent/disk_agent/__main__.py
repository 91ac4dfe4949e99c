"""disk-agent qemu-storage-daemon|spdk --kind "malloc 128 4096 1" [-- ARGUMENT of SPDK…]"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from disk_agent.agent import Agent
from disk_agent.config import Kind
from disk_agent.qsd import StorageDaemon
from disk_agent.supervise import Supervisor
from disk_agent.target import RUN, Target

ENDS_WITHIN = 50  # seconds that another agent of this host has to end


class CannotStart(Exception):
    pass


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="disk-agent", description=__doc__)
    parser.add_argument("backend", choices=["qemu-storage-daemon", "spdk"])
    parser.add_argument("--kind", required=True, help="of the disks: BDEV MIB BLOCK_SIZE QUEUES")
    parser.add_argument("--config", type=Path, default=Path("/etc/vhost/vhost.json"))
    parser.add_argument("--sockets", type=Path, default=Path("/run/spdk-k8s"))
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--port", type=int, default=9301)
    ours = words[: words.index("--")] if "--" in words else words
    asked = parser.parse_args(ours)
    asked.target = words[len(ours) + 1 :]
    return asked


def own(folder: Path) -> None:
    """The sockets' folder is ours alone: who could write there would be given the guests' memory."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise CannotStart(f"{folder} is user {found.st_uid}'s, not {os.geteuid()}'s: delete it, and it is made anew")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def alone(folder: Path, seconds: float = ENDS_WITHIN) -> int:
    """One agent at a time: a pod that is made anew starts while the old one ends, and that one's target, as it ends,
    removes the sockets by their names. The target inherits the lock, so it lasts as long as either."""
    try:
        lock = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"{folder} cannot be written to: {error.strerror}") from None
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > end:
                raise CannotStart(f"another agent still serves {folder} after {seconds:.0f} s") from None
            time.sleep(0.1)


def target_of(asked: argparse.Namespace, kind: Kind) -> Target:
    if asked.backend == "spdk":
        from disk_agent.spdk import Spdk

        return Spdk(kind, asked.sockets, asked.target, asked.run)
    return StorageDaemon(kind, asked.sockets, asked.run)


async def run(asked: argparse.Namespace) -> int:
    bdev, *numbers = asked.kind.split()
    kind = Kind(bdev, *map(int, numbers))
    own(asked.sockets)
    lock = alone(asked.sockets)
    target = target_of(asked, kind)
    supervisor = Supervisor(target, inherit=[lock])
    agent = Agent(asked.config, kind, asked.sockets, target, supervisor)
    supervisor.changed = agent.look_again
    work: list[asyncio.Task[object]] = [asyncio.create_task(supervisor.run())]
    from disk_agent import web  # the target starts meanwhile

    work.append(asyncio.create_task(agent.run()))
    work.append(asyncio.create_task(web.serve(agent, asked.port, asked.sockets / "agent.sock")))
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    work.append(asyncio.create_task(told.wait()))
    done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    for task in work:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*work, return_exceptions=True)
    await agent.close()
    for task in done:
        task.result()  # an error of ours is not hidden
    if not supervisor.ever_up:  # what Kubernetes shows as the container's last words
        print(supervisor.said, file=sys.stderr)
        return 1
    return 0


def main() -> int:
    os.umask(0o077)
    try:
        return asyncio.run(run(arguments(sys.argv[1:])))
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
