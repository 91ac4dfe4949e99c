"""What a step records is there only when it is done: scripts that are killed half-way, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from components import hosts

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Machine:
    root: Path

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def run(self, step: str, call: str, **values: str) -> subprocess.CompletedProcess[str]:
        """Call a function of a step, its folders below root; `kill -9 0` in a program of it kills it too."""
        text = hosts.script(step, values).rpartition('main "$@"')[0]
        for path in ("/var/lib/spdk-k8s", "/var/log", "/srv/media", "/etc/containerd"):
            text = text.replace(path, str(self.root / path.rpartition("/")[2]))
        return subprocess.run(
            ["bash", "-s"], input=text + call, capture_output=True, text=True, timeout=60, start_new_session=True,
            env={**os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT": str(self.root)},
        )  # fmt: skip

    def runs(self, step: str, call: str, **values: str) -> str:
        done = self.run(step, call, **values)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def killed(self, step: str, call: str, **values: str) -> None:
        assert self.run(step, call, **values).returncode == -signal.SIGKILL

    def text(self, file: str) -> str:
        return (self.root / file).read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "log").mkdir()
    return Machine(tmp_path)


HELD = """[[ " $* " != *" update "* || $(wc -l <"$ROOT/asked") -gt 2 ]] && exit 0
echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 6 (apt-get)" >&2; exit 100"""


def test_the_lists_lock_of_another_apt_is_waited_for(machine: Machine) -> None:
    machine.program("dpkg-query", "echo bash installed")
    machine.program("apt-get", f'echo "$@" >>"$ROOT/asked"; {HELD}')
    machine.runs("node", "packages one")
    asked = machine.text("asked").splitlines()
    assert len([line for line in asked if "update" in line]) == 3
    assert "install" in asked[-1]
    done = machine.run("node", "APT_PATIENCE=0; rm $ROOT/asked; packages two")
    assert done.returncode == 1
    assert "held by process 6" in done.stderr


def test_lists_that_cannot_be_downloaded_are_not_asked_for_again(machine: Machine) -> None:
    machine.program("dpkg-query", "echo bash installed")
    machine.program("apt-get", """echo "$@" >>"$ROOT/asked"; echo "E: Malformed entry 1 in list file" >&2; exit 100""")
    done = machine.run("node", "packages one")
    assert done.returncode == 1
    assert "Malformed entry" in done.stderr
    assert len(machine.text("asked").splitlines()) == 1


def test_packages_of_an_installation_that_was_killed_are_removed_with_the_others(machine: Machine) -> None:
    (machine.root / "installed").write_text("bash\n")
    machine.program("dpkg-query", """sed 's/$/ installed/' "$ROOT/installed" """)
    machine.program("dpkg", """echo "$@" >>"$ROOT/dpkg" """)
    machine.program("apt-get", """[[ " $* " == *" install "* ]] || exit 0; echo half >>"$ROOT/installed"; kill -9 0""")
    machine.killed("node", "packages one two")
    machine.program("apt-get", """[[ " $* " != *" install "* ]] || printf 'one\ntwo\n' >>"$ROOT/installed" """)
    machine.runs("node", "packages one two")
    assert sorted(machine.text("spdk-k8s/packages").split()) == ["half", "one", "two"]
    assert machine.text("dpkg") == "--configure -a\n"
    machine.runs("node", "packages one two")
    assert sorted(machine.text("spdk-k8s/packages").split()) == ["half", "one", "two"]


def test_a_file_that_was_kept_only_in_part_is_kept_again(machine: Machine) -> None:
    owners = machine.root / "config"
    owners.write_text("the owner's\n")
    machine.program("cp", 'head -c 3 "$2" >"$3"; kill -9 0')
    machine.killed("node", f"keep {owners}")
    (machine.root / "bin/cp").unlink()
    machine.runs("node", f"keep {owners}; echo ours >{owners}; give_back {owners}")
    assert owners.read_text() == "the owner's\n"


def test_media_whose_copy_was_cut_off_are_copied_again(machine: Machine) -> None:
    vm = {"VM": "vm", "MEDIA_IMAGE": "registry/media@sha256:1", "MEDIA_DIR": "/srv/media"}
    mount = 'playlist="${@: -1}/media/mp4-1"; mkdir -p "$playlist"; echo movie >"$playlist/a.mp4"'
    machine.program("ctr", f'case "$*" in *" mount "*) {mount} ;; esac')
    machine.program("cp", 'mkdir "$ROOT/media/mp4-1"; kill -9 0')
    values = vm | {"MEDIA_DIR": str(machine.root / "media")}
    machine.killed("worker_vm", "media", **values)
    (machine.root / "bin/cp").unlink()
    machine.runs("worker_vm", "media", **values)
    assert machine.text("media/mp4-1/a.mp4") == "movie\n"
    assert machine.text("media/.image") == "registry/media@sha256:1\n"


def test_a_folder_of_the_owners_is_not_taken_for_media(machine: Machine) -> None:
    (machine.root / "media").mkdir()
    (machine.root / "media/thesis").touch()
    values = {"VM": "vm", "MEDIA_IMAGE": "registry/media@sha256:1", "MEDIA_DIR": str(machine.root / "media")}
    refused = machine.run("worker_vm", "media", **values)
    assert refused.returncode == 1
    assert "holds something else; mend: move it" in refused.stderr


def test_a_card_that_was_not_found_is_looked_for_again(machine: Machine) -> None:
    values = {"VM": "vm", "NIC": "", "HOST_ADDRESS": "192.0.2.1"}
    machine.program("ip", ":")
    assert machine.run("worker_vm", "card", **values).stdout.strip() == ""
    machine.program("ip", "echo '2: eth7 inet 192.0.2.1/24'")
    assert machine.runs("worker_vm", "card", **values) == "eth7\n"
    machine.program("ip", "echo '3: br0 inet 192.0.2.1/24'")
    assert machine.runs("worker_vm", "card", **values) == "eth7\n", "the bridge has the address now"


def test_files_have_their_modes_whatever_the_logins_umask_is(machine: Machine) -> None:
    file = machine.root / "etc" / "service" / "config"
    call = f"write 0644 {file} <<<text || true"
    hidden = hosts.script("node", {}).rpartition('main "$@"')[0]
    subprocess.run(["bash", "-s"], input=f"umask 077\n{hidden}{call}", text=True, check=True)
    assert oct(file.stat().st_mode) == "0o100644"
    assert oct(file.parent.stat().st_mode) == "0o40755"
    file.chmod(0o600)
    machine.runs("node", call)
    assert oct(file.stat().st_mode) == "0o100644"


def test_no_key_is_printed_when_one_of_them_cannot_be_made(machine: Machine) -> None:
    """What a command prints is shown when it fails."""
    machine.program("ssh-keygen", 'case "$*" in *worker1*) exit 1 ;; *) exec /usr/bin/ssh-keygen "$@" ;; esac')
    made = subprocess.run(
        ["bash", "-c", f"{hosts.STEP} client master worker1"], capture_output=True, text=True,
        env={**os.environ, **hosts.here("keys"), "PATH": f"{machine.root}/bin:{os.environ['PATH']}"},
    )  # fmt: skip
    assert made.returncode != 0
    assert "KEY" not in made.stdout + made.stderr
    assert made.stdout == ""


@pytest.mark.parametrize("fails", ["x509", "rand", "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj"])
def test_no_key_is_printed_when_the_certificate_cannot_be_made(machine: Machine, fails: str) -> None:
    machine.program(
        "openssl", f'case "$*" in "{fails}"*) echo no entropy >&2; exit 1 ;; esac; exec /usr/bin/openssl "$@"'
    )
    made = subprocess.run(
        ["bash", "-c", f"{hosts.STEP} 192.0.2.1"], capture_output=True, text=True,
        env={**os.environ, **hosts.here("certificate"), "PATH": f"{machine.root}/bin:{os.environ['PATH']}"},
    )  # fmt: skip
    assert made.returncode != 0
    assert made.stdout == ""
    assert "KEY" not in made.stderr
    assert "no entropy" in made.stderr


@pytest.mark.parametrize(("found", "wanted"), [("128", "1024"), ("8192", "8192")])
def test_kernel_settings_are_there_again_after_a_boot(machine: Machine, found: str, wanted: str) -> None:
    """systemd applies the file before kubelet starts. What allows for more already stays."""
    (machine.root / "instances").write_text(f"{found}\n")
    machine.program("modprobe", "")
    machine.program("sysctl", 'echo "$@" >>"$ROOT/asked"')
    there = "s,/etc/,'$ROOT'/etc/,; s,/proc/sys/fs/inotify/max_user_,'$ROOT'/,"
    machine.runs("node", f"""eval "$(declare -f kernel | sed '{there}')"; kernel""")
    settings = machine.text("etc/sysctl.d/90-spdk-k8s.conf")
    assert f"fs.inotify.max_user_instances = {wanted}" in settings
    assert "net.ipv4.ip_forward = 1" in settings
    assert machine.text("asked").strip().endswith("90-spdk-k8s.conf")
