"""The benchmark: brings up a stack of its own, measures it, destroys it, and prints the figures with their goals.

usage: python -m bench [PART …] [--json FILE]      (make bench ARGS="bringup grow")
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench import figures
from bench.parts import PARTS
from bench.stack import OUT, Bench
from tests.pulumi_cli import heed_interrupts


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; default: all, in this order")
    parser.add_argument("--json", type=Path, default=OUT / "figures.json", metavar="FILE",
                        help="where the figures are kept; parts that are not measured now keep theirs")  # fmt: skip
    wanted = parser.parse_args()
    if unknown := set(wanted.part) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    OUT.mkdir(exist_ok=True)
    heed_interrupts()
    with Bench() as bench:
        try:
            for name in PARTS:
                if not wanted.part or name in wanted.part:
                    bench.part = name
                    bench.add("load average before", os.getloadavg()[0], "", note=f"{os.cpu_count()} CPUs")
                    PARTS[name](bench)
            bench.down()
        finally:
            every = figures.merge(figures.load(wanted.json), bench.figures)
            every.sort(key=lambda f: list(PARTS).index(f.part))
            figures.save(wanted.json, every)
            print(f"\n{figures.show(every)}\n\ntimeline of the last bring-up: {OUT / 'timeline.svg'}")


if __name__ == "__main__":
    main()
