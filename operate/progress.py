"""What `up` and `down` print where stdout is no terminal: a line per changed resource, and one per 20 s of waiting.

It is made from the engine's events (`pulumi up --json`). What failed is shown in full, with its step's stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from operate.cli import Stack
from operate.preview import kind, short_violation

EVERY = 20.0  # seconds without a line of another kind
KEPT = 2000  # lines of what a step says, in case that it fails
NAMED = 3  # resources that a line of waiting names
SIGNS = {
    "create": ("+", "created"),
    "update": ("~", "changed"),
    "create-replacement": ("±", "replaced"),
    "delete": ("-", "deleted"),
    "import": ("+", "imported"),
}
COUNTED = {"create": "created", "update": "changed", "replace": "replaced", "delete": "deleted", "same": "unchanged"}


@dataclass
class Step:
    """A resource's operation that is under way."""

    name: str
    begun: float
    said: deque[str] = field(default_factory=lambda: deque[str](maxlen=KEPT))


@dataclass
class Progress:
    """Takes the engine's events as lines of JSON."""

    out: IO[str] = field(default_factory=lambda: sys.stdout)
    now: Callable[[], float] = time.monotonic
    steps: dict[str, Step] = field(default_factory=dict[str, Step])
    shown: set[str] = field(default_factory=set[str])
    failed: bool = False
    program: list[str] = field(default_factory=list[str])  # what the program wrote to stderr
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.begun = self.last = self.now()

    def line(self, text: str) -> None:
        """A line of the engine's output; what is no event is passed on."""
        if not text.startswith("{"):
            if text.strip():
                self._print(text.rstrip())
            return
        event = json.loads(text)
        if "diagnosticEvent" in event:
            self._diagnostic(event["diagnosticEvent"])
        elif "resourcePreEvent" in event:
            about = event["resourcePreEvent"]["metadata"]
            if about["op"] != "same" and _is_real(about):
                self.steps[about["urn"]] = Step(_name(about["urn"]), self.now())
        elif "resOutputsEvent" in event:
            self._done(event["resOutputsEvent"]["metadata"])
        elif "resOpFailedEvent" in event:
            about = event["resOpFailedEvent"]["metadata"]
            step = self.steps.pop(about["urn"], Step(_name(about["urn"]), self.now()))
            self.failed = True
            self._print(f"✗ {step.name:<35} {kind(about['type'])}: failed after {self._since(step)}")
        elif "policyEvent" in event:
            self.failed = True
            self._print(f"✗ {short_violation(event['policyEvent'])}")
        elif "summaryEvent" in event:
            self.counts = event["summaryEvent"].get("resourceChanges") or {}

    def tick(self) -> None:
        """Say what is waited for, when nothing else was said for a while."""
        now = self.now()
        if now - self.last < EVERY:
            return
        oldest = sorted(self.steps.values(), key=lambda step: step.begun)
        names = ", ".join(f"{step.name} ({self._since(step)})" for step in oldest[:NAMED])
        more = f" and {len(oldest) - NAMED} more" if len(oldest) > NAMED else ""
        said = f": {oldest[0].said[-1].strip()}" if oldest and oldest[0].said else ""
        self._print(f"  … {now - self.begun:.0f} s, waiting for {names or 'the engine'}{more}{said}"[:160].rstrip())

    def finish(self, code: int) -> None:
        """The last line: what was done; where nothing else told why it failed, the program's own words."""
        if code and not self.failed and self.program:
            self._print("".join(self.program).rstrip())
        parts = [f"{self.counts[op]} {word}" for op, word in COUNTED.items() if self.counts.get(op)]
        head = "failed" if code else "done"
        self._print(f"{head} after {self.now() - self.begun:.0f} s{': ' if parts else ''}{', '.join(parts)}")

    def _diagnostic(self, about: dict[str, Any]) -> None:
        urn, severity, text = about.get("urn", ""), about["severity"], about["message"].rstrip()
        step = self.steps.get(urn)
        if severity == "debug" or not text.strip() or "from $PATH" in text:
            return
        if severity == "info#err":
            self.program.append(about["message"])
        elif severity == "error":
            if text in ("update failed", "destroy failed", "preview failed"):
                return
            self.failed = True
            before = [line for line in step.said if line.strip() not in text] if step else []
            self._print("\n".join([*before, f"error: {_name(urn) + ': ' if urn else ''}{text}"]))
            if step:
                step.said.clear()
        elif step and severity == "info":
            step.said.extend(text.splitlines())
        elif severity == "warning" or not (urn or about.get("ephemeral")):  # without a URN: the program, of its choices
            text = f"warning: {text}" if severity == "warning" else text
            if text not in self.shown:
                self.shown.add(text)
                self._print(text)

    def _done(self, about: dict[str, Any]) -> None:
        step = self.steps.pop(about["urn"], None)
        if step and about["op"] in SIGNS:
            sign, word = SIGNS[about["op"]]
            self._print(f"{sign} {step.name:<35} {kind(about['type'])}: {word} in {self._since(step)}")

    def _since(self, step: Step) -> str:
        return f"{self.now() - step.begun:.0f} s"

    def _print(self, text: str) -> None:
        self.last = self.now()
        print(text, file=self.out, flush=True)


def show(stack: Stack, *command: str) -> int:
    """Run a long command of the CLI, with its own display in a terminal; its exit code."""
    if sys.stdout.isatty():
        return stack.watch(*command, each_line=None, beat=lambda: None)
    progress = Progress()
    code = stack.watch(*command, "--json", each_line=progress.line, beat=progress.tick)
    progress.finish(code)
    return code


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def _is_real(about: dict[str, Any]) -> bool:
    """Whether a provider makes it: a component is only a name above its children."""
    state: dict[str, Any] = about.get("new") or about.get("old") or {}
    return bool(state.get("custom"))
