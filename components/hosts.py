"""How a script reaches a machine: SSH with a required host key, a ready gate, a time limit, secrets on stdin only."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pulumi
from pulumi_command import remote

SCRIPTS = Path(__file__).parent.parent / "scripts"


def script(name: str, values: Mapping[str, str]) -> str:
    """The shell text of step `name`: quoted assignments, the shared functions, the step, the call.

    It is read from stdin, so the step itself must not be: `</dev/null`.
    """
    assignments = "".join(f"{key}={shlex.quote(value)}\n" for key, value in sorted(values.items()))
    library, step = ((SCRIPTS / f"{n}.sh").read_text() for n in ("lib", name))
    return f'{assignments}{library}\n{step}\nmain() {{ step "$@"; }}\nmain "$@" </dev/null\n'


@dataclass(frozen=True)
class Host:
    """A machine that scripts run on as root.

    `private_key` and every value of a step may be secret: they travel on stdin and are encrypted in the state.
    `deleted_with`: the resource whose deletion makes this machine's own undo steps pointless.
    """

    name: str
    address: pulumi.Input[str]
    host_key: pulumi.Input[str]
    private_key: pulumi.Input[str]
    user: str = "root"
    port: int = 22
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
        dial_attempts: int = 60,
        undo: Literal["never", "with the machine", "always"] = "with the machine",
        depends_on: Sequence[pulumi.Resource] = (),
    ) -> remote.Command:
        """Run scripts/`step`.sh on this machine: `up` at create and update, `down` at delete.

        undo: "with the machine": not when the machine itself goes. timeout: seconds for the whole step.
        dial_attempts: how often a connection is tried, a few seconds apart.
        """
        sudo = "" if self.user == "root" else "sudo -n "
        shell = f"{sudo}timeout -k 10 {timeout} bash -s"
        stdin = pulumi.Output.from_input(dict(values or {})).apply(
            lambda v: script(step, {k: str(x) for k, x in v.items()})
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
                dial_error_limit=dial_attempts,
            ),
            create=f"{shell} up",
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
            ),
        )
