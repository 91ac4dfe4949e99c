"""worker_vm.sh's look whether a kernel boots on KVM, with stand-ins for QEMU that write to the console as given."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from components.hosts import script

pytestmark = pytest.mark.unit

PANIC = 'echo "Kernel panic - not syncing: VFS: Unable to mount root fs" >>"$console"'


def probe(tmp_path: Path, qemu: str, silence: str = "2", limit: str = "15") -> tuple[bool, float, str]:
    """Whether KVM is taken, the seconds that it took, and what was said."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\nfor console; do :; done\nconsole=${{console#file:}}\n{qemu}\n")
    program.chmod(0o755)
    step = script("worker_vm", {"VM": "vm"}).rpartition('main "$@"')[0].replace("/dev/kvm", "/dev/null")
    call = f"{step}\nvm={tmp_path}\nif kvm_boots; then echo kvm; fi"
    began = time.monotonic()
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    limits = {"PROBE_SILENCE": silence, "PROBE_LIMIT": limit}
    done = subprocess.run(["bash", "-s"], input=call, capture_output=True, text=True, timeout=60,
                          env=os.environ | limits | {"PATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout == "kvm\n", time.monotonic() - began, done.stderr


def test_a_kernel_that_panics_for_want_of_a_root_has_booted(tmp_path: Path) -> None:
    """It need not be waited for: QEMU may take long to end."""
    taken, seconds, _ = probe(tmp_path, f"{PANIC}; exec sleep 60")
    assert taken
    assert seconds < 10


def test_a_slow_kernel_has_as_long_as_it_writes_to_its_console(tmp_path: Path) -> None:
    taken, seconds, _ = probe(tmp_path, f'for i in 1 2 3 4 5; do echo $i >>"$console"; sleep 0.7; done; {PANIC}')
    assert taken
    assert seconds > 2.5


@pytest.mark.parametrize("console", [":", 'echo booting >"$console"'])
def test_a_kernel_that_falls_silent_hangs(tmp_path: Path, console: str) -> None:
    taken, seconds, said = probe(tmp_path, f"{console}; exec sleep 60")
    assert not taken
    assert seconds < 10
    assert "hangs" in said


def test_a_qemu_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    taken, seconds, _ = probe(tmp_path, "exit 1", silence="20")
    assert not taken
    assert seconds < 10


def test_a_console_that_never_ends_is_given_up(tmp_path: Path) -> None:
    taken, seconds, _ = probe(tmp_path, 'while :; do echo again >>"$console"; sleep 0.5; done', limit="3")
    assert not taken
    assert seconds < 15
