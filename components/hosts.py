"""Runs scripts on machines: over SSH with a required host key, with a time limit, secrets on stdin only."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pulumi
from pulumi_command import local, remote

SCRIPTS = Path(__file__).parent.parent / "scripts"
# values of steps that are secret; no undo needs them
SECRETS = {"KEY", "KUBECONFIG_TEXT", "PASSWORD", "REGISTRY_HOSTS", "USER_DATA"}


def here(name: str) -> dict[str, str]:
    """Environment of a local command that runs scripts/`name`.sh by `STEP`.

    It holds the script's text, not its path: the working directory does not matter, and a changed script runs again.
    """
    return {"SCRIPT": (SCRIPTS / f"{name}.sh").read_text()}


STEP = 'exec bash -c "$SCRIPT" -'  # append the script's arguments


def script(name: str, values: Mapping[str, str], *, undo: str = "") -> str:
    """The shell text of step `name`: quoted assignments, the shared functions, the step, the call.

    It is read from stdin, so the step itself must not be: `</dev/null`.
    undo: the machine keeps the text, without its SECRETS, under this name from the start of `up` to the end of `down`;
    scripts/ready.sh runs the undo of what is left there. Empty: it is not kept.
    """

    def assigned(some: Mapping[str, str]) -> str:
        return "".join(f"{key}={shlex.quote(value)}\n" for key, value in sorted(some.items()))

    secret = {key: value for key, value in values.items() if key in SECRETS}
    plain = {key: value for key, value in values.items() if key not in SECRETS}
    library, step = ((SCRIPTS / f"{n}.sh").read_text() for n in ("lib", name))
    text = f'{assigned(plain | ({"UNDO": undo} if undo else {}))}{library}\n{step}\nmain "$@" </dev/null\n'
    return f'{assigned(secret)}TEXT={shlex.quote(text)}\neval "$TEXT"\n' if undo else assigned(secret) + text


@dataclass(frozen=True)
class Host:
    """A machine on which scripts run as root.

    user: root, or a user whose sudo asks for no password. private_key: of `user`; None: an SSH agent has it.
    via: the SSH jump host.
    in_container: whether the machine is a container, as scripts/ready.sh finds out.
    dial_attempts: how often to try a connection, a few seconds apart.
    deleted_with: the resource whose deletion removes the whole machine, so that its steps need no undo.
    after: resources that every step on this machine depends on.
    """

    name: str
    address: pulumi.Input[str]
    host_key: pulumi.Input[str]
    private_key: pulumi.Input[str] | None
    user: str = "root"
    port: int = 22
    via: remote.ProxyConnectionArgs | None = None
    in_container: pulumi.Input[bool] = False
    dial_attempts: int = 60
    deleted_with: pulumi.Resource | None = None
    after: Sequence[pulumi.Resource] = field(default=())

    def run(
        self,
        name: str,
        step: str,
        values: Mapping[str, pulumi.Input[str]] | None = None,
        *,
        parent: pulumi.Resource,
        timeout: int = 600,
        undo: Literal["never", "with the machine", "always"] = "with the machine",
        looks_only: bool = False,
        protect: bool = False,
        depends_on: Sequence[pulumi.Resource] = (),
    ) -> remote.Command:
        """Run scripts/`step`.sh on this machine: `up` at create and update, `down` at delete.

        undo: "with the machine": not when the machine itself goes. timeout: seconds for the whole step.
        looks_only: as the plain user; its first run gets the time here (NOW), to compare with the machine's clock.
        protect: it is not undone before `pulumi state unprotect`.
        """
        sudo = "" if self.user == "root" or looks_only else "sudo -n "
        now = f"env NOW={int(time.time())} " if looks_only else ""
        shell = f"{sudo}timeout -k 10 {timeout} bash -s"
        kept = name if undo != "never" and self.deleted_with is None else ""  # the machine outlives the stack
        stdin = pulumi.Output.from_input(dict(values or {})).apply(
            lambda v: script(step, {k: str(x) for k, x in v.items()}, undo=kept)
        )
        return remote.Command(
            name,
            connection=remote.ConnectionArgs(
                host=self.address,
                port=self.port,
                user=self.user,
                private_key=self.private_key,
                host_key=self.host_key,
                per_dial_timeout=15,
                dial_error_limit=self.dial_attempts,
                proxy=self.via,
            ),
            create=f"{now}{shell} up",
            update=f"{shell} up",
            delete=f"{shell} down" if undo != "never" else None,
            stdin=stdin,
            add_previous_output_in_env=False,
            logging=remote.Logging.STDERR,  # progress; stdout is the step's result, and may be secret
            opts=pulumi.ResourceOptions(
                parent=parent,
                depends_on=[*self.after, *depends_on],
                deleted_with=None if undo == "always" else self.deleted_with,
                additional_secret_outputs=["stdout"],
                ignore_changes=["create"] if looks_only else None,
                protect=protect or None,
                delete_before_replace=True,  # the undo of the old step would remove what the new one has made
            ),
        )

    def gated(self, name: str, *, parent: pulumi.Resource, protect: bool = False) -> Host:
        """This machine, whose later steps wait for scripts/ready.sh: it has booted, and belongs to this stack.

        protect: it is not given back, which deletes the data in its STATE, before `pulumi state unprotect`.
        """
        owner = f"{pulumi.get_project()}/{pulumi.get_stack()}"
        ready = self.run(name, "ready", {"OWNER": owner}, parent=parent, protect=protect)
        shown = pulumi.Output.unsecret(ready.stdout)
        return replace(self, after=[ready], in_container=shown.apply(lambda kind: kind == "container"))


class Keys:
    """One SSH key pair for the stack, "client", and a host key for each of `machines`."""

    def __init__(
        self,
        name: str,
        machines: Iterable[str],
        *,
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource] = (),
    ) -> None:
        made = local.Command(
            f"{name}-keys",
            create=f"{STEP} client {' '.join(machines)}",
            environment=here("keys"),
            logging=local.Logging.NONE,
            add_previous_output_in_env=True,  # keys.sh keeps existing keys and adds new ones
            opts=pulumi.ResourceOptions(parent=parent, depends_on=depends_on, additional_secret_outputs=["stdout"]),
        )
        self._keys = pulumi.Output.secret(made.stdout).apply(json.loads)

    def key(self, name: str, part: Literal["private", "public"]) -> pulumi.Output[str]:
        """Half of the key pair of `name` ("client" or a machine), as a secret."""
        return self._keys.apply(lambda k: str(k[name][part]))

    def host(
        self,
        name: str,
        address: pulumi.Input[str],
        *,
        via: remote.ProxyConnectionArgs | None = None,
        deleted_with: pulumi.Resource,
        after: Sequence[pulumi.Resource] = (),
    ) -> Host:
        """A machine with the host key made here, which lets the key "client" in."""
        return Host(
            name,
            address,
            host_key=self.key(name, "public"),
            private_key=self.key("client", "private"),
            via=via,
            deleted_with=deleted_with,
            after=after,
        )
