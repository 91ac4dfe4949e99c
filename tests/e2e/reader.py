"""Reads past every cache: runs in the guest, on its Python. usage: reader.py DEVICE SECONDS

Reads blocks of 64 KiB in random order, four at a time. Prints JSON: rates (MiB of each whole second), errors.
"""

import json
import mmap
import os
import random
import sys
import threading
import time

BLOCK, READERS = 1 << 16, 4


def main(path: str, seconds: int) -> dict[str, object]:
    device = os.open(path, os.O_RDONLY | os.O_DIRECT)
    blocks = os.lseek(device, 0, os.SEEK_END) // BLOCK
    done, errors = [0] * READERS, [0] * READERS

    def read(me: int) -> None:
        block = mmap.mmap(-1, BLOCK)  # O_DIRECT wants whole pages
        while True:
            try:
                os.preadv(device, [block], random.randrange(blocks) * BLOCK)  # noqa: S311
                done[me] += 1
            except OSError:
                errors[me] += 1

    for me in range(READERS):
        threading.Thread(target=read, args=(me,), daemon=True).start()
    began, rates = time.monotonic(), list[float]()
    for second in range(1, seconds + 1):
        before = sum(done)
        time.sleep(max(0.0, began + second - time.monotonic()))
        rates.append((sum(done) - before) * BLOCK / (1 << 20))
    return {"rates": rates, "errors": sum(errors)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))), flush=True)
    os._exit(0)  # not held up by reads that wait for a limit
