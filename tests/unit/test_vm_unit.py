"""The systemd unit of a VM: a changed definition restarts QEMU, and systemd hears of QEMU as long as it answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from components.hosts import SCRIPTS, script

pytestmark = pytest.mark.unit

SYSTEMCTL = """
echo "$*" >>"$ROOT/log"
case "$*" in
"show -P MainPID spdk-k8s-vm") cat "$ROOT/pid" ;;
"stop spdk-k8s-vm "*) echo 0 >"$ROOT/pid" ;;
esac
"""
PATHS = {
    "/var/lib/spdk-k8s": "state",
    "/usr/local/lib/spdk-k8s": "lib",
    "/etc/": "etc/",
    "install -d -m 0700 /run/spdk-k8s": "true",
    "/proc/": "proc/",
}


@dataclass
class StorageHost:
    root: Path

    def __post_init__(self) -> None:
        (self.root / "bin").mkdir()
        (self.root / "bin/systemctl").write_text(f"#!/bin/bash\n{SYSTEMCTL}")
        (self.root / "bin/systemctl").chmod(0o755)
        for folder in ("state/vm", "lib", "etc", "proc/7"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "state/vm/accel").write_text("tcg\n")
        (self.root / "pid").write_text("0\n")

    def qemu(self, definition: str) -> None:
        """QEMU runs as process 7."""
        (self.root / "pid").write_text("7\n")
        words = ["qemu-system-x86_64", "-m", "1024", "-name", definition, ""]
        (self.root / "proc/7/cmdline").write_text("\0".join(words))

    def units(self, definition: str = "vm-1", call: str = "units") -> list[str]:
        """What the step's function `call` does by systemctl."""
        values = {
            "VM": "vm", "MEDIA_DIR": "/srv/media", "DEFINITION": definition, "ALIVE_SCRIPT": "alive",
            "QEMU_ARGS": f"-machine\nq35\n@ACCEL@\n-name\n{definition}",
            "KVM_ARGS": "-accel\nkvm", "TCG_ARGS": "-accel\ntcg",
        }  # fmt: skip
        text = script("worker_vm", values).rpartition('main "$@"')[0]
        for path, here in PATHS.items():
            text = text.replace(path, here if here == "true" else str(self.root / here) + "/" * here.endswith("/"))
        (self.root / "log").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-s"], input=f"{text}\n{call}", capture_output=True, text=True, timeout=30,
            env=os.environ | {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT": str(self.root)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        changes = ("start", "stop", "restart", "daemon-reload")
        return [call for call in (self.root / "log").read_text().splitlines() if call.split()[0] in changes]


RUN = ["daemon-reload", "start spdk-k8s-vm-media", "start --no-block spdk-k8s-vm"]


@pytest.fixture
def host(tmp_path: Path) -> StorageHost:
    return StorageHost(tmp_path)


def test_a_vm_starts_and_a_running_one_is_left_alone(host: StorageHost) -> None:
    assert host.units() == RUN
    started = (host.root / "lib/vm").read_text()
    assert "  -accel \\\n  tcg \\\n" in started
    assert "kvm" not in started
    host.qemu("vm-1")
    assert host.units() == RUN


def test_a_changed_definition_boots_the_guest_anew(host: StorageHost) -> None:
    """U16. The guest powers down by the unit that it was started with, before systemd reads the new one."""
    host.units("vm-1")
    host.qemu("vm-1")
    assert host.units("vm-2") == ["stop spdk-k8s-vm spdk-k8s-vm-media", *RUN]
    assert host.units("vm-2") == RUN, "a step that was cut off after the stop starts it"


def test_systemd_may_kill_a_qemu_that_is_silent_and_writes_no_core(host: StorageHost) -> None:
    host.units()
    unit = (host.root / "etc/systemd/system/spdk-k8s-vm.service").read_text()
    lines = set(unit.splitlines())
    assert {"Type=notify", "NotifyAccess=all", "WatchdogSec=30", "WatchdogSignal=SIGKILL", "Restart=always"} <= lines
    (ready_within,) = [int(line.partition("=")[2]) for line in lines if line.startswith("TimeoutStartSec=")]
    assert ready_within >= 120, "QEMU touches all of a big guest's memory before it answers"


def test_the_guest_cannot_write_to_the_media_whatever_virtiofsd_knows(host: StorageHost) -> None:
    """Ubuntu 24.04's has no --readonly."""
    host.units()
    lines = (host.root / "etc/systemd/system/spdk-k8s-vm-media.service").read_text().splitlines()
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert "--shared-dir=/srv/media" in start
    assert "--readonly" not in start
    assert "ReadOnlyPaths=/srv/media" in lines


@pytest.mark.parametrize("installed", [True, False])
def test_needrestart_leaves_the_vms_alone_until_they_are_given_back(host: StorageHost, installed: bool) -> None:
    """Ubuntu's server has it: a VM would boot anew when a library of QEMU's was updated."""
    config = host.root / "etc/needrestart/conf.d/spdk-k8s.conf"
    if installed:
        config.parent.mkdir(parents=True)
    host.units()
    assert config.exists() == installed
    if installed:
        perl = "our %nrconf = (override_rc => {qr(^dbus) => 0}); do $ARGV[0]; die $@ if $@; "
        perl += "for my $unit (@ARGV[1..3]) { print grep({ $unit =~ /$_/ } keys %{$nrconf{override_rc}}) ? 0 : 1 }"
        asked = ["perl", "-e", perl, config, "spdk-k8s-vm.service", "spdk-k8s-vm-2-media.service", "ssh.service"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "001"
    host.units(call="down")
    assert not config.exists()


# socat's part, in Python: the tests need no socat
SOCAT = r"""#!/usr/bin/python3 -IS
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[2].partition(":")[2])
    s.sendall(sys.stdin.buffer.read())
    while data := s.recv(4096):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
"""


@dataclass
class Qmp:
    """A monitor that answers, unless it is mute; its greeting and its events say nothing of the main loop."""

    path: Path
    mute: bool = False
    asked: list[str] = field(default_factory=list[str])

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                client.sendall(b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\n')
                text = client.recv(4096).decode()
                self.asked.append(text)
                client.sendall(b'{"return": {}}\n{"event": "NIC_RX_FILTER_CHANGED"}\n')
                if not self.mute and "query-status" in text:
                    client.sendall(json.dumps({"return": {"status": "running"}}).encode())
                client.recv(1)


@dataclass
class Watched:
    root: Path
    qmp: Qmp

    @property
    def told(self) -> list[str]:
        log = self.root / "told"
        return log.read_text().split() if log.exists() else []

    def tells_more(self, seconds: float = 8) -> bool:
        before, end = len(self.told), time.monotonic() + seconds
        while time.monotonic() < end:
            if len(self.told) > before:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "bin").mkdir()
    # the first time, systemd is too busy to confirm it
    notify = f'#!/bin/sh\nc={tmp_path}/called; [ -e $c ] || {{ touch $c; exit 1; }}\necho "$*" >>{tmp_path}/told\n'
    alive = (
        (SCRIPTS / "host/alive").read_text().replace("seconds=1 ", "seconds=0.5 ").replace("seconds=5", "seconds=0.5")
    )
    for name, text in {"socat": SOCAT, "systemd-notify": notify, "alive": alive}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    running = subprocess.Popen([tmp_path / "bin/alive", tmp_path / "s"], env=environment, start_new_session=True)
    yield Watched(tmp_path, Qmp(tmp_path / "s"))
    os.killpg(running.pid, 9)
    running.wait()


def test_systemd_hears_of_qemu_as_long_as_its_main_loop_answers(watched: Watched) -> None:
    """U23: a QEMU that stood still was never started anew."""
    assert not watched.tells_more(0.7), "nobody listens yet"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(watched.qmp.path))
        listening.listen()
        watched.qmp.mute = True
        threading.Thread(target=watched.qmp.serve, args=[listening], daemon=True).start()
        assert not watched.tells_more(1.5), "QEMU has not started yet: it greets, and answers nothing"
        watched.qmp.mute = False
        assert watched.tells_more()
        assert watched.tells_more()
        assert watched.told[:2] == ["READY=1", "WATCHDOG=1"]
        watched.qmp.mute = True
        watched.tells_more(1)  # the question that was under way
        assert not watched.tells_more(1.5)
        watched.qmp.mute = False
        assert watched.tells_more(), "a host that was short of CPU for a while"
        listening.shutdown(socket.SHUT_RDWR)
