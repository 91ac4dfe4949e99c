"""What the dev stack made in the Docker engine and no state knows any more: found by its labels, or by its names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from operate.cli import ROOT
from settings.names import CHECKOUT_LABEL, STACK_LABEL

LISTS = {"container": "ps --all", "volume": "volume ls", "network": "network ls"}  # in the order in which they can go
NAMES = {  # as they are made by components/dev_machines.py; before they had labels, names were all
    "container": r"spdk-k8s-{stack}-(master|worker\d+)",
    "volume": r"spdk-k8s-{stack}-(master|worker\d+)-var",
    "network": r"spdk-k8s-{stack}",
}


@dataclass(frozen=True)
class Leftover:
    kind: str
    name: str
    checkout: str = ""  # the folder of the checkout that made it; empty: made before there were labels

    @property
    def elsewhere(self) -> bool:
        """Whether another checkout made it that is still there, with a state of its own maybe."""
        if not self.checkout or Path(self.checkout).resolve() == ROOT.resolve():  # reached by a link, maybe
            return False
        return (Path(self.checkout) / "Pulumi.yaml").exists()


def parse(kind: str, listed: str, stack: str) -> Iterator[Leftover]:
    """listed: lines of name, stack's label and checkout's label, with tabs between."""
    for line in listed.splitlines():
        name, of, checkout = line.split("\t")
        if of == stack or (not of and re.fullmatch(NAMES[kind].format(stack=re.escape(stack)), name)):
            yield Leftover(kind, name, checkout)


def find(stack: str) -> list[Leftover]:
    """Everything of `stack` in the Docker engine, containers first; nothing where no engine answers."""

    def listed(kind: str) -> list[Leftover]:
        name = "{{.Names}}" if kind == "container" else "{{.Name}}"
        form = f'{name}\t{{{{.Label "{STACK_LABEL}"}}}}\t{{{{.Label "{CHECKOUT_LABEL}"}}}}'
        try:
            done = subprocess.run(["docker", *LISTS[kind].split(), "--format", form], capture_output=True, text=True)
        except FileNotFoundError:
            return []
        return list(parse(kind, done.stdout, stack)) if done.returncode == 0 else []

    with ThreadPoolExecutor(len(LISTS)) as each:
        return [found for kind in each.map(listed, LISTS) for found in kind]


def refuse(stack: str, found: list[Leftover]) -> None:
    """End a run that would meet `found`."""
    if not found:
        return
    listed = "".join(f"  {item.kind} {item.name}\n" for item in found)
    elsewhere = sorted({item.checkout for item in found if item.elsewhere})
    if elsewhere:
        where, remedy = f", of the checkout in {elsewhere[0]},", f"make -C {elsewhere[0]} down STACK={stack}"
    else:
        where, remedy = "", f"make down STACK={stack}, which deletes them and their data"
    raise SystemExit(
        f"what an earlier stack {stack} made{where} is still in the Docker engine, and this state does not know it;"
        f" nothing was started:\n{listed}remedy: {remedy}"
    )
