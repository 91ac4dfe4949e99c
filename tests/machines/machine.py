"""Emulated machines as test hosts: a kernel, cgroups, KVM, an IOMMU, NVMe and NUMA nodes of their own.

Each machine is a QEMU process in a container, and its address is on a Docker network of the tests' own. So the tests
reach a machine from here, a power cut is `docker kill`, and removing the container removes all of the machine.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.machines.image import machine_files, qemu_image
from tests.plain_machines import key_pair, run

LOGIN = "lab"  # a plain user with sudo; in the image `user` also in the group docker
TRANSLATED = 512  # MiB of QEMU's cache of translated code


@dataclass(frozen=True)
class Hardware:
    cpus: int = 2
    memory_mib: int = 2048
    root_gib: int = 8
    nvme_mib: Sequence[int] = ()
    """Sizes of the NVMe devices. Device i has the serial number nvme-i."""
    numa_nodes: int = 1
    disks: Sequence[Path] = ()
    """Images of more disks, /dev/disk/by-id/virtio-disk-0 and so on. What the machine writes does not reach them."""
    kernel: str = ""
    """More arguments of the kernel."""

    def qemu(self) -> list[str]:
        """QEMU's arguments for it."""
        args = ["-machine", "q35,kernel-irqchip=split", "-accel", f"tcg,thread=multi,tb-size={TRANSLATED}"]
        args += ["-cpu", "max,la57=off", "-smp", str(self.cpus), "-m", f"{self.memory_mib}M"]
        args += ["-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc", "-serial", "stdio"]
        args += ["-qmp", "unix:/run/qmp,server=on,wait=off", "-device", "virtio-rng-pci"]
        # an IOMMU must come before the devices behind it
        args += ["-device", "intel-iommu,intremap=on,caching-mode=on"]
        args += ["-drive", "file=/disks/root.qcow2,if=none,id=root,discard=unmap", "-device", "virtio-blk,drive=root"]
        for i in range(len(self.nvme_mib)):
            args += ["-drive", f"file=/disks/nvme{i}.img,format=raw,if=none,id=nvme{i}"]
            args += ["-device", f"nvme,drive=nvme{i},serial=nvme-{i}"]
        for i in range(len(self.disks)):
            args += ["-drive", f"file=/disks/disk{i}.qcow2,if=none,id=disk{i},discard=unmap"]
            args += ["-device", f"virtio-blk,drive=disk{i},serial=disk-{i}"]
        if self.numa_nodes > 1:
            for node in range(self.numa_nodes):
                size = self.memory_mib // self.numa_nodes
                args += ["-object", f"memory-backend-ram,id=memory{node},size={size}M"]
                cpus = f"cpus={node * self.cpus // self.numa_nodes}-{(node + 1) * self.cpus // self.numa_nodes - 1}"
                args += ["-numa", f"node,nodeid={node},{cpus},memdev=memory{node}"]
        return args


def credentials(hostname: str, mac: str, address: str, gateway: str, key: str, host_key: str) -> dict[str, str]:
    """What systemd is told at each boot: network and, until they exist, files. key: who may log in."""
    uplink = "[Match]\nDriver=virtio_net\nType=ether\n[Network]\nDHCP=ipv4\n[DHCPv4]\nUseDNS=no\n"
    lan = f"[Match]\nMACAddress={mac}\n[Network]\nAddress={address}/24\n[Route]\nGateway={gateway}\nMetric=2000\n"
    files = {
        "/etc/hostname": (f"{hostname}\n", "0644", "root"),
        "/etc/hosts": (f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost\n", "0644", "root"),
        "/etc/resolv.conf": ("nameserver 10.0.2.3\n", "0644", "root"),  # QEMU's user network
        "/etc/ssh/ssh_host_ed25519_key": (host_key, "0600", "root"),
        "/root/.ssh/authorized_keys": (f"{key}\n", "0600", "root"),
        f"/home/{LOGIN}/.ssh/authorized_keys": (f"{key}\n", "0600", LOGIN),
    }
    lines = [f"d /root/.ssh 0700 root root\nd /home/{LOGIN}/.ssh 0700 {LOGIN} {LOGIN}\n"]
    for path, (text, mode, owner) in files.items():
        lines.append(f"f~ {path} {mode} {owner} {owner} - {base64.b64encode(text.encode()).decode()}\n")
    return {
        "system.hostname": hostname,
        "network.network.10-lan": lan,
        "network.network.20-uplink": uplink,
        "tmpfiles.extra": "".join(lines),
    }


@dataclass
class Network:
    """A network of the tests' own, for machines; leaving it removes the machines on it."""

    name: str
    subnet: str
    machines: list[Machine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="spdk-k8s-machines-")
        _, self.public_key = key_pair(Path(self._folder.name), "client")

    def __enter__(self) -> Self:
        run("docker", "network", "create", "--subnet", self.subnet, self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self.machines:
            machine.remove()
        run("docker", "network", "rm", self.name)
        self._folder.cleanup()

    @property
    def client_key(self) -> Path:
        """The private key that logs in on the machines."""
        return Path(self._folder.name) / "client"

    def new_folder(self) -> Path:
        """A folder that only the tests' user may read, until the network goes."""
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def address(self, number: int) -> str:
        return f"{self.subnet.rpartition('.')[0]}.{number}"

    def machine(
        self, hostname: str, number: int, hardware: Hardware | None = None, *, image: str = "server"
    ) -> Machine:
        """Make and start the machine with address `number` of the subnet. image: a target of the Dockerfile."""
        machine = Machine(self, hostname, number, hardware or Hardware(), image)
        self.machines.append(machine)
        machine.make()
        return machine


class Machine:
    """One machine. Its disks last until it is removed."""

    def __init__(self, network: Network, hostname: str, number: int, hardware: Hardware, image: str) -> None:
        self.network, self.hostname, self.hardware, self._image = network, hostname, hardware, image
        self.address = network.address(number)
        self.container = f"{network.name}-{hostname}"
        self._mac = f"52:54:00:00:00:{number:02x}"
        self._known_hosts = network.new_folder() / "known_hosts"

    def make(self) -> None:
        host_key, public = key_pair(self._known_hosts.parent, self.hostname)
        self.host_key = " ".join(public.split()[:2])
        self._known_hosts.write_text(f"{self.address} {self.host_key}\n")
        root = machine_files(self._image, gib=self.hardware.root_gib)
        told = credentials(
            self.hostname, self._mac, self.address, self.network.address(1), self.network.public_key, host_key
        )
        args = [
            *self.hardware.qemu(),
            *("-kernel", "/machine/vmlinuz", "-initrd", "/machine/initrd"),
            *("-append", f"root=LABEL=root rw console=ttyS0 intel_iommu=on iommu=pt {self.hardware.kernel}"),
            *(
                "-netdev",
                "tap,id=lan,ifname=tap0,script=no,downscript=no",
                "-device",
                f"virtio-net,netdev=lan,mac={self._mac}",
            ),
            *("-netdev", "user,id=uplink", "-device", "virtio-net,netdev=uplink"),
        ]
        for name in told:
            args += ["-fw_cfg", f"name=opt/io.systemd.credentials/{name},file=/credentials/{name}"]
        given = [f"--volume={path}:/given/{i}:ro" for i, path in enumerate(self.hardware.disks)]
        run("docker", "create", "--name", self.container, "--network", self.network.name, "--ip", self.address,
            "--cap-add", "NET_ADMIN", "--device", "/dev/net/tun", f"--volume={root}:/machine:ro", *given,
            "--env", f"ROOT_MIB={self.hardware.root_gib * 1024}",
            "--env", f"NVME_MIB={' '.join(map(str, self.hardware.nvme_mib))}",
            qemu_image(), self.address, *args,
        )  # fmt: skip
        run("docker", "network", "connect", "bridge", self.container)  # what QEMU's user network goes out by
        subprocess.run(["docker", "cp", "-", f"{self.container}:/"], input=_tar("credentials", told), check=True)
        self.start()

    def start(self) -> None:
        """Power on. `wait_booted` waits until SSH answers."""
        run("docker", "start", self.container)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def try_ssh(
        self, command: str, *, user: str = "root", timeout: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` on the machine, in a login shell's environment."""
        command_line = [*self._ssh(user), command]
        return subprocess.run(command_line, input=stdin, capture_output=True, text=True, timeout=timeout)

    def _ssh(self, user: str) -> list[str]:
        options = {
            "UserKnownHostsFile": str(self._known_hosts),
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "10",
        }
        given = [arg for key, value in options.items() for arg in ("-o", f"{key}={value}")]
        return ["ssh", "-i", str(self.network.client_key), *given, f"{user}@{self.address}"]

    def ssh(self, command: str, *, user: str = "root", timeout: float = 60, stdin: str = "") -> str:
        done = self.try_ssh(command, user=user, timeout=timeout, stdin=stdin)
        assert done.returncode == 0, f"{self.hostname}: {command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done.stdout

    @contextmanager
    def forwarded(self, target: str, *, user: str = "root") -> Generator[str]:
        """A port of this machine that leads to `target` ("address:port") as the machine reaches it; yields its URL."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        forward = f"127.0.0.1:{port}:{target}"
        with subprocess.Popen([*self._ssh(user), "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward]) as tunnel:
            try:
                end = time.monotonic() + 30
                while not _listens(port):
                    assert time.monotonic() < end, f"{self.hostname}: no tunnel to {target}"
                    time.sleep(0.2)
                yield f"http://127.0.0.1:{port}/"
            finally:
                tunnel.terminate()

    def boot_id(self) -> str:
        return self.ssh("cat /proc/sys/kernel/random/boot_id").strip()

    def wait_booted(self, *, before: str = "", limit: float = 180) -> float:
        """Wait until the machine answers SSH with another boot id than `before`. Returns the seconds that it took."""
        began = time.monotonic()
        while time.monotonic() - began < limit:
            assert self._running(), f"{self.hostname}: QEMU ended:\n{self.console()[-3000:]}"
            done = self.try_ssh("cat /proc/sys/kernel/random/boot_id")
            if done.returncode == 0 and done.stdout.strip() != before:
                return time.monotonic() - began
            time.sleep(0.5)
        raise AssertionError(f"{self.hostname} does not answer after {limit:.0f} s:\n{self.console()[-3000:]}")

    def console(self) -> str:
        """What the machine printed to its serial console since it was made."""
        done = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    def reset(self) -> None:
        """The reset button: no program of the machine gets a chance to end."""
        self.qmp("system_reset")

    def cut_power(self) -> None:
        run("docker", "kill", self.container)

    def cut_network(self, *, cut: bool = True) -> None:
        """Pull the cable of the card on the tests' network, or plug it in again."""
        self.qmp("set_link", name="lan", up=not cut)

    def qmp(self, command: str, **arguments: Any) -> Any:
        asked = [{"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}]
        text = "".join(f"{json.dumps(line)}\n" for line in asked)
        done = subprocess.run(
            ["docker", "exec", "-i", self.container, "socat", "-t5", "-", "UNIX-CONNECT:/run/qmp"],
            input=text, capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        failed = [answer["error"] for answer in answers if "error" in answer]
        assert not failed, f"{self.hostname}: {command}: {failed}"
        return [answer["return"] for answer in answers if "return" in answer][-1]

    def _running(self) -> bool:
        return run("docker", "inspect", "-f", "{{.State.Running}}", self.container).strip() == "true"

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.container], capture_output=True, timeout=60)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _tar(folder: str, files: dict[str, str]) -> bytes:
    """An archive of `folder` with these files, which only root reads."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode = len(text.encode()), 0o600
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()
