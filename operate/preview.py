"""What `up` would do, in plain text for people: the same in a terminal, a file and a pull request's comment.

usage: preview.py STACK [--save FILE] [--against FILE] [options of pulumi preview]
--save keeps what the preview shows. --against shows how it differs from one that was kept, that of the main branch say:
where no stack is up, every preview would create everything.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from operate import cli, recover
from operate.cli import POLICY_PACK, ROOT, Stack, session, set_for_this_run

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # the engine's word for a string that only `up` will know
SIGNS = {"create": "+", "update": "~", "replace": "±", "delete": "-", "same": " "}
DONE = {"create": "created", "update": "changed", "replace": "replaced", "delete": "deleted", "same": "unchanged"}
LONGEST = 60  # characters of a value

State = dict[str, Any]  # of a resource, in the engine's words: type, parent, inputs


@dataclass
class Preview:
    """steps: URN -> operation, state before and after it. notes: what the program says about its choices."""

    steps: dict[str, tuple[str, State, State]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    policies: set[str] = field(default_factory=set)

    def add(self, event: dict[str, Any]) -> None:
        if "resourcePreEvent" in event:
            step = event["resourcePreEvent"]["metadata"]
            if step["op"] in SIGNS:
                self.steps[step["urn"]] = (step["op"], step["old"] or {}, step["new"] or {})
        elif "diagnosticEvent" in event:
            said, severity = event["diagnosticEvent"]["message"].strip(), event["diagnosticEvent"]["severity"]
            if severity == "error" and said != "preview failed":
                self.errors.append(said)
            # a plugin on PATH is how a provider is found that this machine could not download
            elif severity in ("info", "warning") and "from $PATH" not in said and said not in ("", *self.notes):
                self.notes.append(said)
        elif "policyEvent" in event:
            self.violations.append(short_violation(event["policyEvent"]))
        for kind in ("policyAnalyzeSummaryEvent", "policyAnalyzeStackSummaryEvent"):
            self.policies |= set(event.get(kind, {}).get("passed") or [])

    def whole(self, code: int) -> bool:
        """Whether the engine got to its end; it does where a policy does not hold."""
        return not self.errors and (code == 0 or bool(self.violations))

    def kept(self) -> dict[str, State]:
        return {urn: after for urn, (op, _, after) in self.steps.items() if op != "delete"}

    def against(self, kept: dict[str, State]) -> None:
        """Make the steps those that lead from `kept` to what this preview would make."""
        now = self.kept()
        self.steps = {}
        for urn in [*now, *(kept.keys() - now.keys())]:
            old, new = kept.get(urn, {}), now.get(urn, {})
            op = "create" if not old else "delete" if not new else "update" if list(changes(old, new)) else "same"
            self.steps[urn] = (op, old, new)


def short_violation(found: dict[str, Any]) -> str:
    """The engine's policyEvent in a line."""
    resource = found.get("resourceUrn", "").rpartition("::")[2]
    return f"{found['policyName']}: {resource}: {' '.join(found['message'].split())}"


def run(stack: Stack, options: list[str]) -> tuple[int, Preview]:
    """Exit code, and what the engine said; what is no event is passed on."""
    made = Preview()

    def each_line(line: str) -> None:
        if line.startswith("{"):
            # the checkout's folder differs between two previews that are compared, and concerns no reader
            made.add(json.loads(line.replace(str(ROOT), "(checkout)")))
        elif line.strip():
            print(line, end="", file=sys.stderr)

    os.environ["PULUMI_ENABLE_STREAMING_JSON_PREVIEW"] = "true"
    command = ["preview", "--stack", stack.name, "--policy-pack", POLICY_PACK, "--json", *options]
    return stack.watch(*command, each_line=each_line, beat=lambda: None), made


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value with its path, as "spec.replicas"."""
    if isinstance(value, dict):
        for key, below in cast(dict[str, Any], value).items():
            yield from flat(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, below in enumerate(cast(list[Any], value)):
            yield from flat(below, f"{path}[{index}]")
    else:
        # a step that compares clocks is told the time: no difference between two previews
        yield path, "(known at up)" if value == UNKNOWN else re.sub(r"\bNOW=\d+", "NOW=…", str(value))


def changes(old: State, new: State) -> Iterator[str]:
    """A line for each input that differs, "spec.replicas: 3 → 24"; of long values only where they do."""
    before, after = dict(flat(old.get("inputs") or {})), dict(flat(new.get("inputs") or {}))
    for path in sorted(before.keys() | after.keys()):
        a, b = before.get(path, "(none)"), after.get(path, "(none)")
        if a == b:
            continue
        if "\n" in a + b:
            yield f"{path}:"
            for line in list(difflib.unified_diff(a.splitlines(), b.splitlines(), n=0, lineterm=""))[2:]:
                yield f"  {line[:120]}"
        else:
            same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            yield f"{path}: {_around(a, same)} → {_around(b, same)}"


def _around(value: str, at: int) -> str:
    start = 0 if len(value) <= LONGEST else max(0, at - LONGEST // 3)
    end = start + LONGEST
    return ("…" if start else "") + value[start:end] + ("…" if end < len(value) else "")


def kind(token: str) -> str:
    """kubernetes:apps/v1:StatefulSet -> "kubernetes StatefulSet"."""
    package, module, name = [*token.split(":"), "", ""][:3]
    if package == "pulumi":
        return f"{name} provider"
    return {"spdk-k8s": "", "command": f"{module} "}.get(package, f"{package} ") + name


def tree(preview: Preview) -> Iterator[str]:
    """The steps that change something, each below its parent."""
    below: dict[str, list[str]] = {}
    for urn, (_, old, new) in preview.steps.items():
        below.setdefault((new or old).get("parent") or "", []).append(urn)

    def lines(parent: str, depth: int) -> Iterator[str]:
        numbers_as_numbers = [re.split(r"(\d+)", urn) for urn in below.get(parent, [])]
        for urn in map("".join, sorted(numbers_as_numbers, key=lambda p: [int(x) if x.isdigit() else x for x in p])):
            op, old, new = preview.steps[urn]
            inner = list(lines(urn, depth + 1))
            if op != "same" or inner:
                name = "  " * depth + urn.rpartition("::")[2]
                yield f"{SIGNS[op]} {name:<34}  {kind((new or old)['type'])}"
                yield from (f"      {'  ' * depth}{line}" for line in changes(old, new) if op in ("update", "replace"))
                yield from inner

    stack = next((urn for urn in below.get("", []) if "::pulumi:pulumi:Stack::" in urn), "")
    yield from lines(stack, 0)


def report(stack: str, preview: Preview, *, against: bool, code: int = 0) -> str:
    done = {**DONE, "update": "changed or replaced"} if against else DONE  # only the engine of a running stack knows
    counts = Counter(op for urn, (op, _, _) in preview.steps.items() if "::pulumi:pulumi:Stack::" not in urn)
    parts = [f"{counts[op]} to be {done[op]}" for op in SIGNS if op != "same" and counts[op]]
    head = f"Preview of stack {stack}{', compared with the one before' if against else ''}: "
    if not preview.whole(code):
        parts = ["it failed before its end", *parts]
    head += ", ".join(parts) if parts else "nothing changes"
    sections = [[head], preview.notes, list(tree(preview))]
    if preview.violations:
        sections.append(["Policies that do not hold:", *(f"✗ {v}" for v in preview.violations)])
    elif preview.policies:
        sections.append([f"Policies that hold: {', '.join(sorted(preview.policies))}"])
    if preview.errors:
        sections.append(["Errors:", *preview.errors])
    if not (code or preview.violations or preview.errors):
        sections.append([f"Nothing was changed. make up STACK={stack} does what this shows."])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What `up` would do.", allow_abbrev=False)
    parser.add_argument("stack")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    chosen, options = parser.parse_known_args()
    with session(chosen.stack) as stack:
        if not recover.running(stack.name):  # what is unfinished now is that run's own
            exported = stack.open()
            if recover.clear(exported):
                stack.put(exported)
        code, preview = run(stack, [*set_for_this_run(stack), *options])
    if chosen.save and code == 0:
        chosen.save.write_text(json.dumps(preview.kept()))
    compared = bool(chosen.against) and preview.whole(code)
    if compared:
        preview.against(json.loads(chosen.against.read_text()))
    print(report(chosen.stack, preview, against=compared, code=code))
    return code


if __name__ == "__main__":
    cli.main(main)
