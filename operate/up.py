"""`make up`: mend what differs, say what the change costs, let Pulumi make it, wait until it is so, and show it.

usage: python -m operate.up STACK [--numinst N] [--forget HOST]
environment: VHOST_BACKEND and SPDK_SOURCE: for this run only; ALLOW: interrupt, blank, or both with a comma

Exit code 3: the change costs more than ALLOW allows, and was not made. 4: all is as configured, but the preview was
wrong about what it would cost.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from operate import cli, leftovers, pages, preview, recover
from operate.cli import Exported, Stack
from operate.impact import WORDS, Impact
from operate.preview import Preview

if TYPE_CHECKING:
    from operate.running import Running
    from operate.view import Snapshot

NOT_ALLOWED, PREVIEW_WAS_WRONG = 3, 4


def allowed(text: str) -> frozenset[str]:
    """The words of ALLOW."""
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    if strange := sorted(words - set(WORDS)):
        raise SystemExit(
            f"ALLOW = {text!r}: {strange[0]!r} is none of {', '.join(WORDS)}; nothing was changed; "
            f"remedy: make up ALLOW={','.join(WORDS)}, or one of them"
        )
    return words


def consent(needs: Mapping[str, str], words: Collection[str], remedy: str) -> bool:
    """Whether the change may be made. needs: word of ALLOW -> why the change needs it. words: that were given."""
    missing = {word: why for word, why in needs.items() if word not in words}
    if not missing:
        return True
    print(
        "This change needs your consent:", *(f"  {word}: {why}" for word, why in missing.items()), sep="\n", flush=True
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return input("Make it? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False
    print(f"the change was not made; remedy: {remedy} ALLOW={','.join(needs)}", file=sys.stderr)
    return False


def config_of(stack: Stack) -> str:
    """The config file's text; the CLI itself may add a salt to it."""
    text = stack.config.read_text() if stack.config.exists() else ""
    return re.sub(r"^encryptionsalt:.*\n?", "", text, flags=re.MULTILINE)


def planned(
    stack: Stack, exported: Exported, options: list[str], *, changed: bool
) -> tuple[Running | None, Preview | None, list[str]]:
    """The running stack, mended; what Pulumi would do to it; options of the `up` that follows.

    No preview where no `up` has ended yet: nothing runs that could be interrupted. changed: `exported` must go back.
    """
    from operate import engine, running

    if running.outputs(exported) is None:
        if (settings := cli.settings_of(stack.config)) is not None:  # otherwise the program says what is wrong with it
            engine.refuse_unable_to_push(settings)
        before, more = running.mended(stack, exported, changed=changed)
        return before, None, more
    if not changed:
        with preview.begun(stack, options) as previewed:  # while the cluster is looked at
            if before := running.undisturbed(stack, exported):
                return before, previewed(), []
    before, more = running.mended(stack, exported, changed=changed)
    with preview.begun(stack, [*options, *more]) as previewed:
        return before, previewed(), more


def up(stack: Stack, numinst: str, words: Collection[str] = (), forget: str = "") -> int:
    recover.refuse_second_run(stack.name)
    exporting = stack.exporting()
    # the client of Kubernetes takes a second to load: meanwhile
    from operate import check, running, settle, status, view

    exported = exporting()
    changed = exported is not None and recover.clear(exported)
    if forget and exported is not None:
        gone = recover.forget(stack, exported, forget)
        if made := running.outputs(exported):
            running.forget_nodes(view.connect(made), gone)
        changed = True
    if exported is None or not running.has_machines(exported):
        leftovers.refuse(stack.name, leftovers.find(stack.name))
    if exported is None:
        exported = stack.init()
    selecting = stack.select()
    config = config_of(stack)
    before, plan, more = planned(stack, exported, cli.set_for_this_run(stack, numinst), changed=changed)
    costs: Impact | None = None
    if plan:
        seconds = pages.record(stack.name)
        costs = plan.impact(seconds)
        if not plan.whole or plan.violations or plan.refusals:
            print(preview.report(stack.name, plan, seconds, against=False), flush=True)
            return plan.code or 1
        print(*costs.text(), sep="\n", flush=True)
        again = f"make up STACK={stack.name}{f' NUMINST={numinst}' if numinst else ''}"
        if not consent(costs.needs, words, again):
            return NOT_ALLOWED
        if config_of(stack) != config:
            raise SystemExit(
                f"{stack.config.name} was edited after this run's preview; the change was not made; remedy: {again}"
            )
    if numinst:
        stack.run("config", "set", "--stack", stack.name, "--", "numinst", numinst)
    if plan and plan.idle and before and not before.drifts:
        selecting.wait()
        print()
        return status.show(before.cluster, before.seen)
    if before and costs and costs.moved:
        more = list(dict.fromkeys([*more, *running.let_go(before, costs.moved)]))
    with running.watched(before, costs, plan.after if plan else {}) as watch:
        code = 0
        if not (plan and plan.idle):
            code = running.pulumi(stack, before, *more, *cli.set_for_this_run(stack))
        selecting.wait()
        after = running.Running.look(stack.open())
        if after is None:
            return code
        if code:
            status.show(after.cluster, after.seen)
            return code
        if before:  # a VM is deleted without a word to the cluster
            running.forget_nodes(after.cluster, before.seen.made.nodes.keys() - after.seen.made.nodes.keys())
        due = running.due(before, costs)
        settled = settle.wait(after.cluster, after.seen.made, before.seen if before else None, due=due)
    print()
    shown = status.show(after.cluster, settled.seen)
    check.report(settled.drifts)
    if settled.drifts or shown:
        return 1
    return compared(stack.name, costs, before, settled.seen, watch.longest) if costs and before else 0


def compared(stack: str, costs: Impact, before: Running, after: Snapshot, longest: Mapping[int, float]) -> int:
    """Keep how long pages were away, and hold what the preview said against what happened; the exit code."""
    from operate import outcome

    if longest:
        worst = max(longest, key=lambda i: longest[i])
        print(f"\npages were away for at most {longest[worst]:.0f} s (page {worst})", flush=True)
        causes = {costs.pages[i].cause for i in longest}
        pages.note(stack, {c: max(longest[i] for i in longest if costs.pages[i].cause is c) for c in causes})
    if before.drifts:  # what was mended restarted more than the change did
        return 0
    differences = [*outcome.unsaid(costs, before.seen, after), *outcome.undone(costs, before.seen, after)]
    for difference in differences:
        print(f"the preview was wrong: {difference}", file=sys.stderr)
    return PREVIEW_WAS_WRONG if differences else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring a stack up.", allow_abbrev=False)
    parser.add_argument("stack")
    parser.add_argument("--numinst", default="")
    parser.add_argument("--forget", default="")
    chosen = parser.parse_args()
    words = allowed(os.environ.get("ALLOW", ""))
    with cli.session(chosen.stack) as stack:
        return up(stack, chosen.numinst, words, chosen.forget)


if __name__ == "__main__":
    cli.main(main)
