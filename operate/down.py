"""`make down`: destroy the stack, data included; nothing of it stays but the cache, also where its state is lost.

usage: python3 -m operate.down STACK [--again]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys

from operate import cli, leftovers, progress, recover
from operate.cli import ROOT, STATE, Exported, Stack


def tools_are_there() -> bool:
    return bool(shutil.which("pulumi")) and (ROOT / ".venv/bin/python").exists()


def states() -> list[str]:
    """Names of the stacks whose state is in this checkout."""
    return [path.stem for path in (STATE / ".pulumi/stacks").glob("**/*.json")]


def may_be_up(stack: str) -> bool:
    """Without the tools only a state in this checkout can be seen; one in a backend of the user's own cannot."""
    return stack in states() or os.environ.get("PULUMI_BACKEND_URL") != f"file://{STATE}"


def begin_anew(stack: str, *setup: str) -> int:
    """Run set-up, and this program in the environment that it leaves; does not return when that works."""
    done = subprocess.run(["bash", "setup/setup", *setup], cwd=ROOT)
    if done.returncode:
        return done.returncode
    script = 'environment=$(bash setup/env) && eval "$environment" && exec python3 -m operate.down "$@"'
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execvp("bash", ["bash", "-c", script, "down", stack, "--again"])  # noqa: S606


def engine(command: str) -> None:
    if code := subprocess.run(["bash", "setup/engine", command], cwd=ROOT).returncode:
        raise SystemExit(code)


def unprotect(exported: Exported) -> bool:
    """`make down` is the user's word that the data may go; whether anything was protected."""
    found = [resource for resource in cli.resources(exported) if resource.pop("protect", False)]
    return bool(found)


def destroy(stack: Stack) -> int:
    """All of it; a cluster whose machines are gone must not hold up the rest."""
    os.environ["PULUMI_K8S_DELETE_UNREACHABLE"] = "true"
    return progress.show(stack, "destroy", "--stack", stack.name, "--yes", "--skip-preview", "--continue-on-error")


def remove_leftovers(stack: Stack) -> int:
    """Remove what is in the Docker engine and not in the state; how many objects that were."""
    found = leftovers.find(stack.name)
    if elsewhere := sorted({item.checkout for item in found if item.elsewhere}):
        raise SystemExit(
            f"the checkout in {elsewhere[0]} made stack {stack.name}, so it is left as it is; "
            f"remedy: make -C {elsewhere[0]} down STACK={stack.name}"
        )
    for item in found:
        if recover.remove(item.kind, item.name):
            print(f"removed {item.kind} {item.name}, which no state knew", flush=True)
    return len(found)


def tidy(stack: Stack) -> None:
    """Remove what the CLI wrote here on its own account, unless an encrypted value of the user's needs it."""
    stack.drop_salt()
    (STATE / f"{stack.name}.times.json").unlink(missing_ok=True)
    salts = any(re.search("^encryptionsalt:", f.read_text(), re.MULTILINE) for f in ROOT.glob("Pulumi.*.yaml"))
    if not salts and not states():
        shutil.rmtree(STATE, ignore_errors=True)


def down(stack: Stack) -> int:
    recover.refuse_second_run(stack.name)
    exported = stack.export() if shutil.which("pulumi") else None
    if exported is not None:
        engine("start")
        if recover.clear(exported) | unprotect(exported):
            stack.put(exported)
        if code := destroy(stack):
            return code
        stack.run("stack", "rm", "--stack", stack.name, "--yes", "--preserve-config")
    if not remove_leftovers(stack) and exported is None:
        print(f"stack {stack.name} is not up")
    else:
        print(f"stack {stack.name} is down")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Destroy a stack.", allow_abbrev=False)
    parser.add_argument("stack")
    parser.add_argument("--again", action="store_true", help="set-up has run: do not run it once more")
    chosen = parser.parse_args()
    name: str = chosen.stack
    if not chosen.again and not tools_are_there() and may_be_up(name):  # the cache or .venv was deleted
        return begin_anew(name, "--tools")
    with cli.session(name) as stack:
        code = down(stack)
    if code and not chosen.again:  # perhaps for want of a plugin that a newer checkout pins
        return begin_anew(name)
    if not code:
        tidy(stack)
        engine("stop")  # only if a set-up started it and nothing runs in it
    return code


if __name__ == "__main__":
    cli.main(main)
