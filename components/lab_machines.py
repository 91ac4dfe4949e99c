"""The machines of the lab stack: existing hosts, reached by SSH. All are checked before any of them is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pulumi
from pulumi_command import local, remote

from components.hosts import Host, Keys, script
from settings.models import SshHost, SshServer

FIRST_DIALS = 3  # attempts to connect: an existing host answers soon, or the user must repair something
DIALS = 10  # attempts after the first success: sshd refuses some of many connections at once (MaxStartups)


@dataclass(frozen=True)
class LabMachinesArgs:
    hosts: Mapping[str, SshHost]
    """Host name -> address and login."""
    needs: Mapping[str, Mapping[str, str]]
    """Host name -> requirements that scripts/preflight.sh checks there: see render.preflight.needs."""
    guests: Sequence[str] = ()
    """Names of the VMs that will run on the hosts. This component makes their SSH keys."""
    holding: Collection[str] = ()
    """Names of the hosts whose disk files a destroy would delete. They are protected: see `Settings.holding`."""


class LabMachines(pulumi.ComponentResource):
    """Existing servers. The component checks the requirements of all of them before it changes any.

    hosts: name -> Host. keys: the SSH keys of the VMs.

    ```python
    from ipaddress import IPv4Address

    import pulumi

    from components.lab_machines import LabMachines, LabMachinesArgs
    from settings.models import SshHost

    server = SshHost(
        address=IPv4Address("192.0.2.11"),
        user="admin",
        hostKey="ssh-ed25519 AAAA",
        privateKey=None,  # from an SSH agent
    )
    needs = {"ADDRESS": "192.0.2.11", "REGISTRY": "192.0.2.11:5000", "PORTS": "5000", "CPUS": "2"}
    machines = LabMachines(
        "lab",
        LabMachinesArgs(
            hosts={"master": server}, needs={"master": {**needs, "MEMORY_MIB": "1700", "DISK_MIB": "6144"}}
        ),
    )
    machines.hosts["master"].run("hello", "ready", parent=machines)
    ```
    """

    hosts: dict[str, Host]

    def __init__(self, name: str, args: LabMachinesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:LabMachines", name, None, opts)
        owner = f"{pulumi.get_project()}/{pulumi.get_stack()}"
        reached = {
            machine: replace(_host(machine, how), after=self._reach(f"{name}-{machine}", machine, how))
            for machine, how in args.hosts.items()
        }
        checked = [
            host.run(
                f"{name}-{machine}-preflight",
                "preflight",
                {**args.needs[machine], "OWNER": owner},
                parent=self,
                timeout=120,
                undo="never",
                looks_only=True,
            )
            for machine, host in reached.items()
        ]
        self.keys = Keys(name, args.guests, parent=self, depends_on=checked)
        self.hosts = {
            machine: replace(host, after=checked, dial_attempts=DIALS).gated(
                f"{name}-{machine}-ready", parent=self, protect=machine in args.holding
            )
            for machine, host in reached.items()
        }
        self.register_outputs({"hosts": {machine: host.address for machine, host in self.hosts.items()}})

    def _reach(self, prefix: str, machine: str, how: SshHost) -> list[pulumi.Resource]:
        """Check that host and jump host answer with the right host key. A failed login would give a worse message."""
        key, jump = f"machines.{machine}", how.jump_host
        first = local.Command(
            f"{prefix}-reach",
            create="exec bash -s up",
            stdin=script("reach", _look(f"{key}.jumpHost", jump) if jump else _look(key, how)),
            logging=local.Logging.STDERR,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self),
        )
        if not jump:
            return [first]
        behind = replace(_host(f"{machine}-jump", jump), after=[first]).run(
            f"{prefix}-behind", "reach", _look(key, how), parent=self, timeout=60, undo="never", looks_only=True
        )
        return [first, behind]


def _look(key: str, server: SshServer) -> dict[str, str]:
    return {"AT": key, "ADDRESS": str(server.address), "PORT": str(server.port), "HOST_KEY": server.host_key}


def _host(name: str, how: SshServer) -> Host:
    jump = how.jump_host if isinstance(how, SshHost) else None
    return Host(
        name=name,
        address=str(how.address),
        host_key=how.host_key,
        private_key=_private_key(how),
        user=how.user,
        port=how.port,
        via=remote.ProxyConnectionArgs(
            host=str(jump.address),
            port=jump.port,
            user=jump.user,
            host_key=jump.host_key,
            private_key=_private_key(jump),
            per_dial_timeout=15,
            dial_error_limit=DIALS,
        )
        if jump
        else None,
        dial_attempts=FIRST_DIALS,
    )


def _private_key(server: SshServer) -> pulumi.Output[str] | None:
    return pulumi.Output.secret(server.private_key) if server.private_key else None
