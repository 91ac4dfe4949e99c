"""A target's program: `python target_program.py RUN [die|hang|slow]`. It speaks QMP as qemu-storage-daemon does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fakes import FakeQsd, World


async def main(run: Path, how: str) -> None:
    fake = FakeQsd(run, World())
    print(f"starting, to {how}", file=sys.stderr, flush=True)
    if how == "die":
        print("no memory for this", file=sys.stderr, flush=True)
        sys.exit(3)
    await fake.start()
    if how == "hang":
        await asyncio.sleep(0.2)
        fake.temper = "mute"
    await asyncio.sleep(60)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
