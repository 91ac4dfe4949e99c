"""A QMP monitor, of QEMU or of qemu-storage-daemon, with a bound on every wait."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # what it says is said in the exceptions too

GREETS_WITHIN = 5.0  # seconds


class Refused(Exception):
    """The other side answered with an error; in its own words."""


class Silent(Exception):
    """The other side did not answer in time, answered garbage, or went away meanwhile."""


class Monitor:
    """Connected from `open` until `close`, or until the other side goes away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._client = QMPClient(path.name)

    async def open(self) -> None:
        """Raises ConnectionError or FileNotFoundError where nobody listens, Silent where nobody greets."""
        ours = socket.socket(socket.AF_UNIX)
        ours.setblocking(False)
        try:
            # not by qemu.qmp, which hides why it could not connect
            async with asyncio.timeout(GREETS_WITHIN):
                await asyncio.get_running_loop().sock_connect(ours, str(self.path))
                await self._client.connect(ours)
        except (ConnectionRefusedError, FileNotFoundError):
            ours.close()
            raise
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            ours.close()
            raise Silent(f"{self.path} does not greet: {_words(error)}") from None

    async def ask(self, command: str, arguments: Mapping[str, object] | None = None, seconds: float = 10) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise Refused(f"{command}: {error}") from None
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise Silent(f"{self.path} does not answer {command}: {_words(error)}") from None

    async def follow(self, tell: Callable[[str], None]) -> None:
        """`tell` the name of each of its events, until it goes away."""
        gone = asyncio.ensure_future(self._client.runstate_changed())
        got: asyncio.Future[Any] = asyncio.ensure_future(self._client.events.get())
        try:
            while not gone.done():
                await asyncio.wait({got, gone}, return_when=asyncio.FIRST_COMPLETED)
                if got.done():
                    tell(str(got.result()["event"]))
                    got = asyncio.ensure_future(self._client.events.get())
        finally:
            gone.cancel()
            got.cancel()

    async def close(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(2):
                await self._client.disconnect()


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
