"""The target as the agent's child: started again at once when it dies, killed when it hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from disk_agent.monitor import Refused, Silent
from disk_agent.target import Target

HANGS_AFTER = 8  # seconds without an answer
LOOK_EVERY = 2  # seconds
LONGEST_PAUSE = 2  # seconds between two starts of a target that dies at once


class Supervisor:
    """up: the target answers. starts: the count of its lives. started: when the last one began, in seconds since 1970.
    said: its last words, when it has died."""

    def __init__(
        self,
        target: Target,
        changed: Callable[[], None] = lambda: None,
        inherit: Sequence[int] = (),
        hangs_after: float = HANGS_AFTER,
    ) -> None:
        self.target, self.hangs_after = target, hangs_after
        self.up = False
        self.ever_up = False
        self.starts = 0
        self.started = 0.0
        self.said = "it was not started yet"
        self.changed = changed
        self._inherit = tuple(inherit)
        self._child: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=10)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def run(self) -> None:
        """For ever."""
        pause = 0.0
        while True:
            began = time.monotonic()
            try:
                await self._one_life()
            finally:
                self.up = False
                await self._end()
            pause = 0.0 if time.monotonic() - began > 1 else min(LONGEST_PAUSE, pause * 2 + 0.1)
            self.changed()
            await asyncio.sleep(pause)

    async def _one_life(self) -> None:
        # the kernel ends it with the agent, however that ends: never two targets at the same sockets
        command = ["setpriv", "--pdeathsig", "KILL", "--", *self.target.command()]
        self._lines.clear()
        self._child = child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self._inherit,
            # DPDK's own files
            env=os.environ | {"RUNTIME_DIRECTORY": "/run/vhost"},
        )
        self.starts += 1
        self.started = time.time()
        told = asyncio.create_task(self._pass_on(child))
        died = asyncio.create_task(child.wait())
        try:
            if await self._connected(died):
                self.up = self.ever_up = True
                self.changed()
                await self._watch(died)
            if child.returncode is None:
                self.said = f"the target did not answer for {self.hangs_after} s, and was killed"
                print(self.said, file=sys.stderr, flush=True)
                return
            await asyncio.wait({told}, timeout=0.5)
            why = f"signal {-child.returncode}" if child.returncode < 0 else f"code {child.returncode}"
            self.said = f"the target ended with {why}: {' / '.join(self._lines)}"
            print(f"the target ended with {why}; starting it again", file=sys.stderr, flush=True)
        finally:
            died.cancel()
            told.cancel()
            await self.target.close()

    async def _connected(self, died: asyncio.Task[int]) -> bool:
        end = time.monotonic() + 60
        while not died.done() and time.monotonic() < end:
            try:
                await self.target.connect()
            except (ConnectionRefusedError, FileNotFoundError, Silent):
                await asyncio.wait({died}, timeout=0.02)
            else:
                return True
        return False

    async def _watch(self, died: asyncio.Task[int]) -> None:
        """Until it dies, or is silent for too long."""
        answered = time.monotonic()
        while True:
            await asyncio.wait({died}, timeout=LOOK_EVERY)
            if died.done():
                return
            try:
                async with asyncio.timeout(self.hangs_after):
                    await self.target.ping()
                answered = time.monotonic()
            except Refused:
                answered = time.monotonic()
            except (Silent, TimeoutError):
                if time.monotonic() - answered >= self.hangs_after:
                    return
                with suppress(ConnectionError, FileNotFoundError, Silent, TimeoutError):
                    await self.target.close()
                    async with asyncio.timeout(self.hangs_after):
                        await self.target.connect()

    async def _pass_on(self, child: asyncio.subprocess.Process) -> None:
        """What it says goes to the pod's log, and its last lines into the reason of its end."""
        assert child.stderr
        while line := await child.stderr.readline():
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
            self._lines.append(line.decode(errors="replace").strip())

    async def _end(self) -> None:
        child = self._child
        if child and child.returncode is None:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGKILL)
            await child.wait()
