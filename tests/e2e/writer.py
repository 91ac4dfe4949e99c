"""A verified writer: runs in the guest, on its Python. usage: writer.py FILE SECONDS

It writes 4 KiB blocks past every cache, each made of a checksum over its sequence number, then reads back what was
acknowledged. Prints JSON: writes, errors, wrong (blocks that hold something else), longest (seconds of one write).
"""

import hashlib
import json
import mmap
import os
import random
import sys
import time
from pathlib import Path

BLOCK, COUNT = 4096, 1024


def content(sequence: int, at: int) -> bytes:
    return hashlib.sha256(f"{sequence} {at}".encode()).digest() * (BLOCK // 32)


def main(path: str, seconds: float) -> dict[str, float]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_DSYNC, 0o600)
    os.posix_fallocate(file, 0, BLOCK * COUNT)
    block = mmap.mmap(-1, BLOCK)  # O_DIRECT wants a whole page
    acknowledged: dict[int, int] = {}
    writes = errors = wrong = 0
    longest = 0.0
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        at = random.randrange(COUNT)  # noqa: S311
        writes += 1
        block[:] = content(writes, at)
        try:
            os.pwritev(file, [block], at * BLOCK)
            acknowledged[at] = writes
        except OSError:
            errors += 1
            acknowledged.pop(at, None)
        longest = max(longest, time.monotonic() - began)
    for at, sequence in acknowledged.items():
        os.preadv(file, [block], at * BLOCK)
        wrong += block[:] != content(sequence, at)
    Path(path).unlink()
    return {"writes": writes, "errors": errors, "wrong": wrong, "longest": round(longest, 2)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], float(sys.argv[2]))))
