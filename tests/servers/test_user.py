"""The machine of someone who tries the project: its own kernel, cgroup v2, KVM, and the distribution's Docker.

The tests of this file are the user's day, in its order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machines.machine import LOGIN, Machine, Network
from tests.machines.user import user_machine

pytestmark = pytest.mark.servers

UP_LIMIT = 25 * 60  # seconds, under emulation
TRACES = """
docker ps -a --format '{{.Names}}'; docker network ls --format '{{.Name}}'; docker volume ls -q
ip -o link show type bridge | cut -d: -f2; ip route; ls /etc/docker/certs.d; ls -A spdk-k8s/.state
sysctl fs.inotify.max_user_instances vm.overcommit_memory kernel.panic vm.nr_hugepages
"""


@dataclass(frozen=True)
class User:
    machine: Machine
    login: str
    traces: str

    def run(self, command: str, *, timeout: float = 120) -> str:
        return self.machine.ssh(command, user=self.login, timeout=timeout)

    def make(self, what: str, *, timeout: float = UP_LIMIT) -> str:
        return self.run(f"cd spdk-k8s && make {what} 2>&1", timeout=timeout)

    def pages(self) -> list[str]:
        """Addresses of the pages that answer, as `make status` shows them."""
        status = self.machine.try_ssh("cd spdk-k8s && make status", user=self.login, timeout=120).stdout
        return [word for line in status.splitlines() if " 200 " in line for word in line.split() if "http:" in word]

    def wait_pages(self, count: int, *, limit: float) -> None:
        end = time.monotonic() + limit
        while len(found := self.pages()) < count:
            assert time.monotonic() < end, f"{found} answer after {limit:.0f} s, {count} should"


@pytest.fixture(scope="module", params=["root", LOGIN])
def user(request: pytest.FixtureRequest, network: Network) -> Iterator[User]:
    with user_machine(network, 20, request.param) as machine:
        # what is not there is not listed
        traces = machine.try_ssh(TRACES, user=request.param).stdout
        yield User(machine, request.param, traces)


def test_make_up_brings_three_pages_at_the_first_try(user: User) -> None:
    began = time.monotonic()
    print(f"\n{user.make('up')}\nmake up took {time.monotonic() - began:.0f} s")
    assert len(user.pages()) == 3


def test_the_vm_is_on_kvm(user: User) -> None:
    assert user.run("docker exec spdk-k8s-dev-worker1 cat /var/lib/spdk-k8s/vm/accel").strip() == "kvm"


def test_a_browser_plays_a_page_through_a_forwarded_port(user: User, tmp_path: Path) -> None:
    from tests.e2e.browser import watch

    target = user.pages()[1].removeprefix("http://").rstrip("/")
    with user.machine.forwarded(target, user=user.login) as url:
        assert watch(url, tmp_path / "page.png", timeout=180)["played"] >= 1


def test_two_more_instances(user: User) -> None:
    user.make("up NUMINST=5")
    assert len(user.pages()) == 5


def test_all_is_back_by_itself_after_a_reboot(user: User) -> None:
    before = user.machine.boot_id()
    user.machine.try_ssh("systemctl reboot")
    booted = user.machine.wait_booted(before=before)
    user.wait_pages(5, limit=900)
    print(f"\nSSH {booted:.0f} s after the reboot")
    assert "make up mends" not in user.make("check")


def test_make_down_leaves_nothing(user: User) -> None:
    user.make("down")
    assert user.machine.try_ssh(TRACES, user=user.login).stdout == user.traces
