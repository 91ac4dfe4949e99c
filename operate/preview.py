"""What `up` would do, in plain text for people: the same in a terminal, a file and a pull request's comment.

usage: preview.py STACK [--json] [--save FILE] [--against FILE] [options of pulumi preview]
--json prints all of it for programs. --save keeps what the preview shows. --against shows how it differs from one that
was kept, that of the main branch say: where no stack is up, every preview would create everything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from operate import cli, impact, pages, recover
from operate.cli import NO_PULUMI, POLICY_PACK, ROOT, Stack, explain, session, set_for_this_run
from operate.difference import State, Step, between, by_number
from operate.impact import Cause, Impact

SIGNS = {"create": "+", "update": "~", "replace": "±", "delete": "-", "same": " "}
DONE = {"create": "created", "update": "changed", "replace": "replaced", "delete": "deleted", "same": "unchanged"}
MOST = 12  # lines of one resource
ALIKE = 3  # further resources of which the same can be said, from which they are one line
NAMED = 4  # resources in a line


@dataclass
class Preview:
    """steps: by URN. notes: what the program says about its choices. before, after: the stack's outputs.

    keys: of the config, that differ from what runs. refusals: why `up` will not do this.
    """

    steps: dict[str, Step] = field(default_factory=dict[str, Step])
    notes: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])
    violations: list[str] = field(default_factory=list[str])
    policies: set[str] = field(default_factory=set[str])
    before: dict[str, Any] = field(default_factory=dict[str, Any])
    after: dict[str, Any] = field(default_factory=dict[str, Any])
    keys: Sequence[impact.Change] = ()
    refusals: Sequence[str] = ()
    code: int = 0

    def add(self, event: dict[str, Any]) -> None:
        if "resourcePreEvent" in event:
            step = event["resourcePreEvent"]["metadata"]
            if step["op"] in SIGNS:
                differs = step.get("detailedDiff") or step.get("diffs") or ()
                self.steps[step["urn"]] = Step(step["op"], step["old"] or {}, step["new"] or {}, tuple(differs))
        elif "resOutputsEvent" in event:
            step = event["resOutputsEvent"]["metadata"]
            if _is_stack(step["urn"]):
                old: State = step.get("old") or {}
                new: State = step.get("new") or {}
                self.before, self.after = old.get("outputs") or {}, new.get("outputs") or {}
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

    @property
    def whole(self) -> bool:
        """Whether the engine got to its end; it does where a policy does not hold."""
        return not self.errors and (self.code == 0 or bool(self.violations))

    @property
    def idle(self) -> bool:
        """Whether `up` would do nothing at all."""
        same = all(step.op == "same" for step in self.steps.values())
        same &= self.before.get("config") == self.after.get("config")
        return same and self.code == 0 and not (self.errors or self.violations or self.refusals)

    def kept(self) -> dict[str, State]:
        states = {urn: step.new for urn, step in self.steps.items() if step.op != "delete"}
        config = {"outputs": {"config": self.after.get("config")}}
        return {urn: {**state, **config} if _is_stack(urn) else state for urn, state in states.items()}

    def against(self, kept: dict[str, State]) -> None:
        """Make the steps those that lead from `kept` to what this preview would make."""
        now = self.kept()
        self.steps = {}
        for urn in [*now, *(kept.keys() - now.keys())]:
            old, new = kept.get(urn, {}), now.get(urn, {})
            differs = between(old.get("inputs") or {}, new.get("inputs") or {})
            same = not (differs.lines or differs.unknown)
            op = "create" if not old else "delete" if not new else "same" if same else "update"
            self.steps[urn] = Step(op, old, new)
            if _is_stack(urn):
                self.before = old.get("outputs") or {}

    def judge(self) -> None:
        """Find the keys that differ from the config that runs, and why `up` will not do this."""
        old, new = self.before.get("config"), self.after.get("config")
        if old and new and old != new:
            from settings import changes  # the models take half a second to load

            self.keys, self.refusals = changes.compare(old, new), changes.refusals(old, new)
        if new and not new["registry"]["tls"]:
            from operate import engine
            from settings.models import Settings

            try:
                engine.refuse_unable_to_push(Settings.model_validate(new))
            except SystemExit as refused:
                self.refusals = [*self.refusals, str(refused)]

    def impact(self, seconds: Mapping[Cause, float]) -> Impact:
        return impact.of(self.steps, seconds=seconds, keys=self.keys)


def _is_stack(urn: str) -> bool:
    return "::pulumi:pulumi:Stack::" in urn


def short_violation(found: dict[str, Any]) -> str:
    """The engine's policyEvent in a line."""
    resource = found.get("resourceUrn", "").rpartition("::")[2]
    return f"{found['policyName']}: {resource}: {' '.join(found['message'].split())}"


@contextmanager
def begun(stack: Stack, options: Sequence[str]) -> Generator[Callable[[], Preview]]:
    """A preview that runs beside other work: what this gives waits for its end. It is ended with this block."""
    command = ["pulumi", "preview", "--stack", stack.name, "--policy-pack", POLICY_PACK, "--json", *options]
    environment = {**os.environ, "PULUMI_ENABLE_STREAMING_JSON_PREVIEW": "true"}
    folder = os.environ.get("TMPDIR")  # this run's own
    with tempfile.TemporaryFile("w+", dir=folder) as out, tempfile.TemporaryFile("w+", dir=folder) as errors:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors
            )
        except FileNotFoundError:
            raise SystemExit(NO_PULUMI) from None

        def result() -> Preview:
            code = process.wait()
            out.seek(0)
            errors.seek(0)
            return _read(out, code, errors.read())

        try:
            yield result
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # then the CLI ends its program and plugins
                process.wait()


def _read(lines: Iterator[str], code: int, errors: str) -> Preview:
    """What the engine said; what is no event is passed on."""
    made = Preview(code=code)
    for line in lines:
        if line.startswith("{"):
            # the checkout's folder differs between two previews that are compared, and concerns no reader
            made.add(json.loads(line.replace(str(ROOT), "(checkout)")))
        elif line.strip():
            print(line, end="", file=sys.stderr)
    if errors.strip():
        print(explain(errors) if code else errors.strip(), file=sys.stderr)
    made.judge()
    return made


def kind(token: str) -> str:
    """kubernetes:apps/v1:StatefulSet -> "kubernetes StatefulSet"."""
    package, module, name = [*token.split(":"), "", ""][:3]
    if package == "pulumi":
        return f"{name} provider"
    return {"spdk-k8s": "", "command": f"{module} "}.get(package, f"{package} ") + name


def tree(preview: Preview) -> Iterator[str]:
    """The steps that change something, each below its parent. What only `up` will know is no change."""
    below: dict[str, list[str]] = {}
    for urn, step in preview.steps.items():
        below.setdefault(step.state.get("parent") or "", []).append(urn)

    def lines(parent: str, depth: int) -> Iterator[str]:
        for _, group in groupby(sorted(below.get(parent, []), key=by_number), key=alike):
            first, *others = group
            step, count = preview.steps[first], len(others)
            if count < ALIKE:
                for urn in (first, *others):
                    yield from of_one(urn, depth)
            elif step.op in ("create", "delete"):
                name = f"{first.rpartition('::')[2]} to {re.findall(r'[0-9]+$', others[-1])[0]}"
                yield _line(step, depth, name, f", {count + 1} of them")
            else:
                yield from of_one(first, depth)
                name = f"{others[0].rpartition('::')[2]}, …"
                yield _line(step, depth, name, f", {count} more: the same values differ")

    def alike(urn: str) -> tuple[str, ...]:
        """The same for resources that one line can stand for: numbered on, or with the same values that differ."""
        step = preview.steps[urn]
        if step.op == "same" or step.difference.perhaps or urn in below:
            return (urn,)
        if step.op in ("create", "delete"):
            return step.op, re.sub(r"\d+$", "", urn)
        return step.op, step.kind, *(line.partition(":")[0] for line in step.difference.lines)

    def of_one(urn: str, depth: int) -> Iterator[str]:
        step = preview.steps[urn]
        inner = list(lines(urn, depth + 1))
        changed = step.op != "same" and not step.difference.perhaps
        if changed or inner:
            shown = step if changed else Step("same", step.old, step.new)
            yield _line(shown, depth, urn.rpartition("::")[2])
            found = step.difference.lines
            more = [f"… and {len(found) - MOST} more lines"] if len(found) > MOST else []
            yield from (f"      {'  ' * depth}{line}" for line in [*found[:MOST], *more])
            yield from inner

    stack = next((urn for urn in below.get("", []) if _is_stack(urn)), "")
    yield from lines(stack, 0)


def _line(step: Step, depth: int, name: str, more: str = "") -> str:
    return f"{SIGNS[step.op]} {'  ' * depth + name:<34}  {kind(step.kind)}{more}"


def known_at_up(preview: Preview) -> list[str]:
    """A line on all values that this preview cannot know."""
    unknown = {urn.rpartition("::")[2]: step for urn, step in preview.steps.items() if step.difference.unknown}
    if not unknown:
        return []
    values = sum(len(step.difference.unknown) for step in unknown.values())
    perhaps = sorted(name for name, step in unknown.items() if step.difference.perhaps)
    line = f"Known at up: {_count(values, 'value')} of {_count(len(unknown), 'resource')}"
    if perhaps:
        more = f" and {len(perhaps) - NAMED} more" if len(perhaps) > NAMED else ""
        line += f"; nothing else differs in {', '.join(perhaps[:NAMED])}{more}"
    return [line]


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def counted(preview: Preview, *, against: bool) -> str:
    """How many resources are created, changed, …"""
    done = {**DONE, "update": "changed or replaced"} if against else DONE  # only the engine of a running stack knows
    steps = [step for urn, step in preview.steps.items() if not _is_stack(urn)]
    counts = Counter(step.op for step in steps if not step.difference.perhaps)
    parts = [f"{counts[op]} to be {done[op]}" for op in SIGNS if op != "same" and counts[op]]
    if perhaps := sum(step.difference.perhaps for step in steps):
        parts.append(f"{perhaps} perhaps")
    if not preview.whole:
        parts = ["it failed before its end", *parts]
    return ", ".join(parts) or "nothing changes"


def report(stack: str, preview: Preview, seconds: Mapping[Cause, float] | None = None, *, against: bool) -> str:
    """seconds: how long a page was away in the stack's last change, by cause."""
    costs = preview.impact(seconds or {})
    head = f"Preview of stack {stack}{', compared with the one before' if against else ''}: "
    sections = [[head + counted(preview, against=against)], costs.text() if preview.whole else []]
    sections += [preview.notes, [*tree(preview), *known_at_up(preview)]]
    if preview.violations:
        sections.append(["Policies that do not hold:", *(f"✗ {v}" for v in preview.violations)])
    elif preview.policies:
        sections.append([f"Policies that hold: {', '.join(sorted(preview.policies))}"])
    if preview.refusals:
        sections.append(["make up refuses this:", *(f"✗ {why}" for why in preview.refusals)])
    if preview.errors:
        sections.append(["Errors:", *preview.errors])
    if not (preview.code or preview.violations or preview.errors or preview.refusals):
        allow = f" ALLOW={','.join(costs.needs)}" if costs.needs else ""
        sections.append([f"Nothing was changed. make up STACK={stack}{allow} does what this shows."])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def as_json(stack: str, preview: Preview, seconds: Mapping[Cause, float], *, against: bool) -> dict[str, Any]:
    """The same for programs; .github/comment makes its table of `impact.rows`."""
    return {
        "stack": stack,
        "whole": preview.whole,
        "impact": preview.impact(seconds).as_json(),
        "steps": [
            {
                "urn": urn,
                "op": step.op,
                "type": step.kind,
                "changes": step.difference.lines,
                "knownAtUp": step.difference.unknown,
            }
            for urn, step in preview.steps.items()
            if step.op != "same"
        ],
        "policies": {"hold": sorted(preview.policies), "violations": preview.violations},
        "refusals": list(preview.refusals),
        "errors": preview.errors,
        "notes": preview.notes,
        "text": report(stack, preview, seconds, against=against),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What `up` would do.", allow_abbrev=False)
    parser.add_argument("stack")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    chosen, options = parser.parse_known_args()
    with session(chosen.stack) as stack:
        if not recover.running(stack.name):  # what is unfinished now is that run's own
            exported = stack.open()
            if recover.clear(exported):
                stack.put(exported)
        with begun(stack, [*set_for_this_run(stack), *options]) as result:
            import_module("settings.changes")  # `judge` needs it: half a second, while the engine works
            preview = result()
    if chosen.save and preview.code == 0:
        chosen.save.write_text(json.dumps(preview.kept()))
    compared = bool(chosen.against) and preview.whole
    if compared:
        preview.against(json.loads(chosen.against.read_text()))
        preview.judge()
    seconds = pages.record(chosen.stack)
    if chosen.json:
        print(json.dumps(as_json(chosen.stack, preview, seconds, against=compared), indent=1))
    else:
        print(report(chosen.stack, preview, seconds, against=compared))
    return preview.code or (1 if preview.refusals else 0)


if __name__ == "__main__":
    cli.main(main)
