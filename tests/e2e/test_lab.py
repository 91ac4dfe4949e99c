"""The lab path: two plain servers that exist already become the whole system, and are plain servers again."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from components.hosts import script
from render.placement import vm_mac
from tests.e2e.test_stack import get
from tests.plain_machines import USER, Machine, PlainMachines
from tests.pulumi_cli import Stack, free_subnet

pytestmark = pytest.mark.e2e

# What a purge leaves by Debian's own rules, and what any use of a server changes. The rest must be as it was.
IGNORED = (
    "/var/log/",  # logs
    "/var/cache/",  # apt's, debconf's and ldconfig's
    "/var/lib/apt/",  # lists of the mirror
    "/var/lib/dpkg/",  # dpkg's own books; the packages themselves are compared by name and version
    "/var/lib/systemd/",  # its timers' and deb-systemd-helper's notes
    "/var/backups/",
    "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid", "/etc/.pwd.lock",
    # packages leave their system users, so that no other user gets the number of files that might remain
    "/etc/ld.so.cache",
)  # fmt: skip


def files(machine: Machine) -> dict[str, str]:
    """Path -> kind, mode, owner, size, and of what is in /etc the content."""
    tops = "/boot /etc /home /opt /root /srv /usr /var"
    listed = machine.shell(f"find {tops} -xdev -printf '%p\\t%y %m %U %G %l\\n'")
    found = dict(line.split("\t", 1) for line in listed.splitlines())
    sums = machine.shell("find /etc -xdev -type f -exec sha256sum {} +")
    for line in sums.splitlines():
        digest, _, path = line.partition("  ")
        found[path] += f" {digest}"
    return {path: about for path, about in found.items() if not path.startswith(IGNORED)}


def state(plain: PlainMachines, machine: Machine) -> dict[str, Any]:
    """What of a server a stack could change, by where it would be seen."""
    return {
        "packages": machine.shell("dpkg-query -W").splitlines(),
        "files": files(machine),
        "units": machine.shell("systemctl list-unit-files --no-legend --no-pager").splitlines(),
        "mounts": sorted(machine.shell("cut -d' ' -f2-3 /proc/self/mounts").splitlines()),
        "processes": sorted(
            set(machine.shell("cat /proc/[0-9]*/comm 2>/dev/null || true").split()) - {"bash", "cat", "(sd-pam)"}
        ),
        "sysctl": machine.shell("cd /proc/sys && grep . net/ipv4/ip_forward vm/overcommit_memory kernel/panic").split(),
        "links": unnumbered(plain.look(machine, "ip -br link; ip -br addr")),
        "routes": unnumbered(plain.look(machine, "ip route; ip rule; ip -6 route")),
        "rules": unnumbered(plain.look(machine, "nft list ruleset")),
    }


def unnumbered(text: str) -> list[str]:
    """Without what counts, or is another one after a restart: peers of links, packets, the engine's DNS ports."""
    numbers = r"@if\d+|packets \d+ bytes \d+|(?<=sport )\d+|(?<=127\.0\.0\.11:)\d+|expires \d+sec"
    return [re.sub(r" +$", "", line) for line in re.sub(numbers, "", text).splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainMachines]:
    """Two servers with other names than their nodes'."""
    machines = PlainMachines("spdk-k8s-labtest", free_subnet(93), tmp_path_factory.mktemp("plain"))
    try:
        machines.start("rack1", 2)
        machines.start("rack2", 3)
        yield machines
    finally:
        machines.remove()


@pytest.fixture(scope="module")
def before(plain: PlainMachines) -> dict[str, dict[str, Any]]:
    return {machine.container: state(plain, machine) for machine in plain.machines}


@dataclass(frozen=True)
class Lab:
    stack: Stack
    outputs: dict[str, Any]
    core: client.CoreV1Api


@pytest.fixture(scope="module")
def lab(
    plain: PlainMachines, before: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    stack = Stack("labtest", tmp_path_factory.mktemp("state"))
    master = plain.machines[0]
    # the second host is reached through the first
    jump = {f"machines.worker1.jumpHost.{key}": value
            for key, value in (("address", master.address), ("user", USER), ("hostKey", master.host_key))}  # fmt: skip
    stack.init(**plain.config(**jump))
    for key in ("master", "worker1", "worker1.jumpHost"):
        stack.set_secret(f"machines.{key}.privateKey", plain.private_key)
    try:
        began = time.monotonic()
        stack.run("up", "--yes", "--skip-preview", timeout=1200)
        print(f"\nup took {time.monotonic() - began:.0f} s")
        outputs = stack.outputs()
        kubeconfig = yaml.safe_load(outputs["kubeconfig"])
        yield Lab(stack, outputs, client.CoreV1Api(config.new_client_from_config_dict(kubeconfig)))
    finally:
        code, output = stack.try_run("destroy", "--yes", "--skip-preview")
        stack.remove()
        assert code == 0, output[-3000:]


def test_nodes_are_ready_under_the_stacks_names(lab: Lab) -> None:
    nodes = {n.metadata.name: n for n in lab.core.list_node().items}
    assert set(nodes) == {"master", "worker1", "worker2"}
    for name, node in nodes.items():
        assert {c.type: c.status for c in node.status.conditions}["Ready"] == "True", name
        assert node.metadata.labels["type1"] == name


@pytest.mark.parametrize("ordinal", [0, 1])
def test_each_page_answers_from_its_own_disk(lab: Lab, ordinal: int) -> None:
    page = lab.outputs["pages"][ordinal]
    assert get(page)[0] == 200
    _, marker = get(f"{page}marker")
    assert f'"ordinal": {ordinal}' in marker.decode()


def test_the_private_key_is_nowhere_in_the_state(lab: Lab, plain: PlainMachines) -> None:
    exported = lab.stack.run("stack", "export", "--stack", lab.stack.name)
    assert "PRIVATE KEY" not in exported
    line = plain.private_key.splitlines()[2]  # of a key, every line is another
    for machine in plain.machines:
        assert machine.shell(f"grep -rlsF {line} /etc /home /root /tmp /run /var || true") == ""


def test_a_second_up_changes_nothing(lab: Lab) -> None:
    output = lab.stack.run("up", "--yes", "--skip-preview")
    assert re.search(r"Resources:\s+\d+ unchanged", output), output[-2000:]
    assert not re.search(r"\d+ (created|updated|replaced|deleted)", output)


def test_the_remedy_for_a_refused_login_makes_the_registry_anew(lab: Lab) -> None:
    """scripts/node.sh names it."""
    output = re.sub(r"\s+", " ", lab.stack.run("preview", "--replace", "**::registry"))
    assert "command:remote:Command registry replace" in output


@pytest.mark.parametrize("owner", ["spdk-k8s/labtest", "spdk-k8s/other"])
def test_preflight_passes_on_a_host_of_this_stack_and_refuses_another_stacks(
    lab: Lab, plain: PlainMachines, owner: str
) -> None:
    machine = plain.machines[1]
    needs = {
        "OWNER": owner, "ADDRESS": machine.address, "REGISTRY": lab.outputs["registry"], "PORTS": "10250", "CPUS": "2",
        "MEMORY_MIB": "1000", "DISK_MIB": "1000", "AT": "machines.worker1",
        "VMS": f"{plain.address(4)}={vm_mac('DE:AD:BE:EF:01:41', 'worker2')}=machines.worker2",
    }  # fmt: skip
    looked = subprocess.run(
        ["docker", "exec", "-i", "-u", USER, machine.container, "bash", "-s", "up"],
        input=script("preflight", needs), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if owner == "spdk-k8s/labtest":
        assert looked.returncode == 0, looked.stderr
        assert "FAIL" not in looked.stderr
    else:
        assert looked.returncode != 0
        assert re.search(r"cluster +FAIL +belongs to stack spdk-k8s/labtest +pulumi destroy", looked.stderr)


def test_a_server_that_restarts_comes_back_with_its_vm_and_videos(lab: Lab, plain: PlainMachines) -> None:
    subprocess.run(["docker", "restart", "-t", "30", plain.machines[1].container], check=True, capture_output=True)
    end = time.monotonic() + 300
    while not all(answers(page) for page in lab.outputs["pages"]):
        assert time.monotonic() < end, "the pages do not answer again"
        time.sleep(2)


def answers(page: str) -> bool:
    try:
        return get(page)[0] == 200
    except OSError:
        return False


def test_destroy_gives_the_servers_back_though_the_cluster_does_not_answer(
    lab: Lab, plain: PlainMachines, before: dict[str, dict[str, Any]]
) -> None:
    plain.machines[0].shell("rm /etc/kubernetes/manifests/kube-apiserver.yaml")
    lab.stack.run("destroy", "--yes", "--skip-preview", timeout=600)
    left = []
    for machine in plain.machines:
        after = state(plain, machine)
        for where, was in before[machine.container].items():
            left += [f"{machine.container} {where} {line}" for line in difference(was, after[where])]
    assert not left, "\n".join(left)


def difference(before: Any, after: Any) -> list[str]:
    """Lines that came or went."""
    was, now = (
        [f"{key} {value}" for key, value in sorted(of.items())] if isinstance(of, dict) else of
        for of in (before, after)
    )
    return [line for line in unified_diff(was, now, n=0, lineterm="") if line[:2] not in ("--", "++", "@@")]
