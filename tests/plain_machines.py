"""Temporary servers: containers with plain Debian, systemd, sshd and sudo, on a network of their own."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.pulumi_cli import ROOT

USER = "lab"
SUDO = f"{USER} ALL=(ALL) NOPASSWD: ALL"


def run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    return done.stdout


def key_pair(folder: Path, name: str) -> tuple[str, str]:
    """Private and public half of a new SSH key."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name))
    return (folder / name).read_text(), (folder / f"{name}.pub").read_text().strip()


@dataclass(frozen=True)
class Machine:
    container: str
    address: str
    host_key: str

    def shell(self, command: str) -> str:
        """Run `command` as root."""
        return run("docker", "exec", self.container, "bash", "-c", command)


class PlainMachines:
    """The network `name` on `subnet`, and machines in it on which USER can log in with `private_key`."""

    def __init__(self, name: str, subnet: str, folder: Path) -> None:
        self.name, self.subnet, self._folder = name, subnet, folder
        self.machines: list[Machine] = []
        self.private_key, self._public_key = key_pair(folder, "client")
        for target in ("plain", "look"):
            run("docker", "build", "-q", "-t", self.image(target), "--target", target, str(ROOT / "tests" / "plain"))
        run("docker", "network", "create", "--subnet", subnet, name)

    @staticmethod
    def image(target: str) -> str:
        return f"spdk-k8s-tests/{target}"

    def address(self, number: int) -> str:
        return f"{self.subnet.rpartition('.')[0]}.{number}"

    def start(self, hostname: str, number: int, *, sudo: str = SUDO) -> Machine:
        """Start a machine with address `number` of the subnet. sudo: the rule for USER in sudoers."""
        private, public = key_pair(self._folder, hostname)
        container = f"{self.name}-{hostname}"
        machine = Machine(container, self.address(number), " ".join(public.split()[:2]))
        run("docker", "create", "--name", container, "--hostname", hostname, "--privileged", "--cgroupns", "private",
            "--network", self.name, "--ip", machine.address, "--tmpfs", "/run", "--tmpfs", "/tmp",
            "--env", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1", "--volume", f"{container}:/var", self.image("plain"),
        )  # fmt: skip
        self.machines.append(machine)
        run("docker", "start", container)
        end = time.monotonic() + 60
        while machine.shell("systemctl is-system-running || true").strip() not in ("running", "degraded"):
            assert time.monotonic() < end, f"{container} does not boot"
            time.sleep(0.3)
        for path, content, mode, owner in (
            ("/etc/ssh/ssh_host_ed25519_key", private, "0600", "root"),
            (f"/home/{USER}/.ssh/authorized_keys", f"{self._public_key}\n", "0600", USER),
            (f"/etc/sudoers.d/{USER}", f"{sudo}\n", "0440", "root"),
        ):
            install = f"install -D -m {mode} -o {owner} /dev/stdin {path}"
            run("docker", "exec", "-i", container, "bash", "-c", install, stdin=content)
        machine.shell(f"chown {USER}: /home/{USER}/.ssh && systemctl reset-failed ssh; systemctl restart ssh")
        return machine

    def config(self, **changes: str) -> dict[str, str]:
        """Config of a lab stack on the first two machines, without private keys. changes: full key -> value."""
        master, worker1 = self.machines[:2]
        return {
            "numinst": "2",
            "machines.kind": "ssh",
            "machines.master.address": master.address,
            "machines.master.user": USER,
            "machines.master.hostKey": master.host_key,
            "machines.worker1.address": worker1.address,
            "machines.worker1.user": USER,
            "machines.worker1.hostKey": worker1.host_key,
            "machines.worker2.address": self.address(4),
            "machines.worker2.gateway": self.address(1),
            "machines.worker2.nameservers[0]": worker1.address,  # forwards queries to Docker's resolver
            "vhost.backend": "qemu-storage-daemon",
            "vm.accel": "tcg",
            "vm.memoryMib": "2048",
            "vm.diskSlots": "8",
            **changes,
        }

    def look(self, machine: Machine, command: str) -> str:
        """Run a command in the machine's network namespace, with tools that the machine does not have."""
        return run("docker", "run", "--rm", "--privileged", "--network", f"container:{machine.container}",
                   self.image("look"), "bash", "-c", command)  # fmt: skip

    def remove(self) -> None:
        """Remove the network and the machines, as far as they exist."""
        for machine in self.machines:
            subprocess.run(["docker", "rm", "--force", "--volumes", machine.container], capture_output=True)
            subprocess.run(["docker", "volume", "rm", "--force", machine.container], capture_output=True)
        subprocess.run(["docker", "network", "rm", self.name], capture_output=True)
