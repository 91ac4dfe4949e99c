"""Servers that cannot be used are refused at once, with what to do, and nothing is changed on any."""

from __future__ import annotations

import base64
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.hosts import script
from render.registry import registry_hosts
from tests.plain_machines import USER, Machine, PlainMachines, key_pair
from tests.pulumi_cli import ROOT, Stack, free_subnet

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainMachines]:
    """Of the two, the second is part of somebody's cluster, and its sudo asks for a password."""
    machines = PlainMachines("spdk-k8s-labrefused", free_subnet(93), tmp_path_factory.mktemp("plain"))
    try:
        machines.start("rack1", 2)
        other = machines.start("rack2", 3, sudo=f"{USER} ALL=(ALL) ALL")
        other.shell("mkdir -p /etc/kubernetes && echo 'server: https://elsewhere:6443' >/etc/kubernetes/kubelet.conf")
        yield machines
    finally:
        machines.remove()


@pytest.fixture
def stack(plain: PlainMachines, tmp_path: Path) -> Iterator[Stack]:
    made = Stack("labrefused", tmp_path / "state")
    made.init(**plain.config())
    for name in ("master", "worker1"):
        made.set_secret(f"machines.{name}.privateKey", plain.private_key)
    yield made
    made.run("destroy", "--yes", "--skip-preview")
    made.remove()


def refused(stack: Stack, plain: PlainMachines) -> tuple[str, float]:
    """What `up` says, words separated by single spaces, and the seconds that it took."""
    began = time.monotonic()
    code, output = stack.try_run("up", "--yes", "--skip-preview", timeout=180)
    assert code != 0
    assert "PRIVATE KEY" not in output
    for machine in plain.machines:
        assert machine.shell("ls -d /var/lib/spdk-k8s 2>/dev/null || echo untouched").strip() == "untouched"
    return re.sub(r"\s+", " ", output), time.monotonic() - began


def test_every_obstacle_on_a_host_comes_in_one_table(stack: Stack, plain: PlainMachines) -> None:
    output, _ = refused(stack, plain)
    assert f"rack2 ({plain.machines[1].address}) CHECK RESULT FOUND REMEDY" in output
    assert "cluster FAIL belongs to another Kubernetes cluster another host" in output
    assert f"sudo FAIL it asks {USER} for a password visudo -f /etc/sudoers.d/{USER}" in output
    assert "cannot serve: 2 checks failed; nothing was changed" in output


def look(machine: Machine, **needs: str) -> subprocess.CompletedProcess[str]:
    """scripts/preflight.sh as USER on one machine."""
    usual = {
        "OWNER": "spdk-k8s/labrefused", "ADDRESS": machine.address, "REGISTRY": f"{machine.address}:5000",
        "PORTS": "5000 6443 10250", "NETWORKS": "podCidr=10.244.0.0/16",
        "CPUS": "1", "MEMORY_MIB": "100", "DISK_MIB": "100", "AT": "machines.worker1",
    }  # fmt: skip
    now = f"NOW={needs.pop('NOW', int(time.time()))}"
    return subprocess.run(
        ["docker", "exec", "-i", "-u", USER, machine.container, "env", now, "bash", "-s", "up"],
        input=script("preflight", usual | needs), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_plain_server_passes_every_check(plain: PlainMachines) -> None:
    plain.machines[0].shell("mkdir -p /srv/own/mp4-1 && touch /srv/own/mp4-1/a.mp4")
    movies = {"MEDIA_DIR": "/srv/own", "PLAYLISTS": "1"}
    looked = look(plain.machines[0], VMS=plain.address(4), HUGEPAGES="2Mi=4", ACCEL="auto", **movies)
    assert looked.returncode == 0, looked.stderr
    checks = [line.split()[:2] for line in looked.stderr.splitlines()[2:]]
    assert {result for _, result in checks} == {"pass"}
    assert {check for check, _ in checks} >= {
        "system",
        "sudo",
        "memory",
        "containerd",
        "disk",
        "swap",
        "firewall",
        "ports",
        "networks",
        "clock",
        "mirror",
        "media",
    }


@pytest.mark.parametrize(
    ("needs", "row"),
    [
        ({"MEMORY_MIB": "99999999"}, r"memory +FAIL +\d+ MiB are free, 99999999 are needed +more memory"),
        ({"DISK_MIB": "99999999"}, r"disk +FAIL +\d+ MiB are free at /var/lib, 99999999 are needed +make room there"),
        ({"CPUS": "999"}, r"cpus +FAIL +\d+, 999 are needed +a larger machine"),
        ({"PORTS": "22 10250"}, r"ports +FAIL +taken: 22 +end what listens there"),
        ({"NOW": "1000"}, r"clock +FAIL +\d+ s ahead +timedatectl set-ntp true"),
        (
            {"ADDRESS": "192.0.2.1"},
            r"address +FAIL +no card here carries 192\.0\.2\.1 +the address that the host itself",
        ),
        (
            {"NIC": "eth7"},
            r"card +FAIL +there is no eth7 +pulumi config set --path machines\.worker1\.nic to one of: eth0",
        ),
        (
            {"NETWORKS": "podCidr=172.16.0.0/12"},
            r"networks +FAIL +172\.16\.0\.0/12 overlaps a route by eth0 +one that no",
        ),
        ({"NETWORKS": "serviceCidr=GATEWAY/30"}, r"networks +FAIL .* route here leads to: .* cluster\.serviceCidr"),
        ({"VMS": "GATEWAY"}, r"vacant +FAIL +somebody is at \S+ already +a free address for the VM"),
        ({"REGISTRY": "NOBODY:5000"}, r"registry +FAIL +no way to \S+:5000 on master +a route and no firewall"),
        (
            {"MEDIA_DIR": "/srv/movies", "PLAYLISTS": "3"},
            r"media +FAIL +no movie \(\.mp4 \.m4v \.mov \.webm \.mkv\) in 1 of 3 folders, first /srv/movies/mp4-2 +"
            rf"movies there, which {USER} can read, a lower numinst, or samples: "
            r"pulumi config rm --path video\.mediaDir",
        ),
        ({"HUGEPAGES": "16Gi=1"}, r"hugepages +FAIL +the kernel has none of 16Gi +pulumi config set --path vhost"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(plain: PlainMachines, needs: dict[str, str], row: str) -> None:
    at = {"GATEWAY": plain.address(1), "NOBODY": plain.address(99)}
    plain.machines[0].shell("mkdir -p /srv/movies/mp4-{1,2,3/x} && touch /srv/movies/mp4-{1/a.mp4,2/a.txt,3/x/a.MKV}")
    named = {key: re.sub("GATEWAY|NOBODY", lambda m: at[m[0]], value) for key, value in needs.items()}
    looked = look(plain.machines[0], **named)
    assert looked.returncode == 1
    assert re.search(row, looked.stderr), looked.stderr
    assert looked.stderr.count("FAIL") == 1, looked.stderr
    assert "cannot serve: 1 checks failed; nothing was changed" in looked.stderr


def test_a_servers_idle_hugepages_count_as_free_memory(plain: PlainMachines) -> None:
    machine, pages = plain.machines[0], "/tmp/sys/kernel/mm/hugepages/hugepages-1048576kB"
    detect = "/usr/local/bin/systemd-detect-virt"  # for once this container takes itself for a server
    machine.shell(f"mkdir -p {pages}; echo 99999 >{pages}/free_hugepages; echo 1000 >{pages}/resv_hugepages")
    machine.shell(f"printf '#!/bin/sh\\nexit 1\\n' >{detect}; chmod +x {detect}")
    try:
        enough, *others = (
            look(machine, HUGEPAGES=f"1Gi={count}", MEMORY_MIB=str(98000 * 1024), SYS="/tmp/sys")
            for count in (98000, 90000, 110000)
        )
    finally:
        machine.shell(f"rm -r {detect} /tmp/sys")
    assert enough.returncode == 0, enough.stderr
    few, many = (re.findall(r"memory +(\w+) +(\d+) MiB", other.stderr)[0] for other in others)
    assert few[0] == "FAIL", "more than are wanted were counted"
    assert int(many[1]) < (98999 + 900) * 1024, "somebody's pages were counted"


REFUSED = r"FAIL +{}, x86_64 +install Debian 13 or Ubuntu 24\.04"


@pytest.mark.parametrize(
    ("name", "system", "version", "row"),
    [
        ("Other Linux 9", "other", "9", REFUSED),
        ("Debian GNU/Linux 12 (bookworm)", "debian", "12", REFUSED),
        ("Ubuntu 22.04.5 LTS", "ubuntu", "22.04", REFUSED),
        ("Ubuntu 24.04.3 LTS", "ubuntu", "24.04", r"pass +{}, x86_64\n"),
        ("Debian GNU/Linux forky/sid", "debian", "", r"pass +{}, x86_64\n"),
    ],
)
def test_debian_and_ubuntu_serve_and_no_other_system(
    plain: PlainMachines, name: str, system: str, version: str, row: str
) -> None:
    machine = plain.machines[0]
    fields = f'PRETTY_NAME="{name}"\\nID={system}\\n{f"VERSION_ID={version}" if version else ""}\\n'
    machine.shell(f"""
        cp --remove-destination -L /etc/os-release /etc/os-release.kept
        printf '{fields}' >/etc/os-release.new
        mv /etc/os-release.new /etc/os-release""")
    try:
        looked = look(machine)
    finally:
        machine.shell("mv /etc/os-release.kept /etc/os-release")
    expected = row.format(re.escape(name))
    assert re.search(f"system +{expected}", looked.stderr), looked.stderr
    missed = set(re.findall(r"^(\w+) +FAIL", looked.stderr, re.MULTILINE)) - {"components"}  # the sources stay Debian's
    assert missed == ({"system"} if "FAIL" in expected else set[str]())


def test_a_registry_of_the_owners_is_refused_but_not_the_stacks_own(plain: PlainMachines) -> None:
    machine = plain.machines[0]
    machine.shell("mkdir -p /etc/docker/registry /var/lib/docker-registry")
    try:
        looked = look(machine)
        machine.shell("mkdir /var/lib/spdk-k8s && echo spdk-k8s/labrefused >/var/lib/spdk-k8s/owner")
        later = look(machine)
    finally:
        machine.shell("rm -rf /etc/docker /var/lib/docker-registry /var/lib/spdk-k8s")
    assert looked.returncode == 1
    row = r"registry +FAIL +one of its own: /etc/docker/registry /var/lib/docker-registry +another host for master"
    assert re.search(row, looked.stderr), looked.stderr
    assert later.returncode == 0, later.stderr


@pytest.mark.parametrize(("behind", "wrong"), [(False, ""), (True, ".jumpHost"), (True, "")])
def test_a_wrong_host_key_is_refused_at_once(
    stack: Stack, plain: PlainMachines, tmp_path: Path, behind: bool, wrong: str
) -> None:
    """Of a server, of the jump host before one, and of a server behind one."""
    _, other = key_pair(tmp_path, "other")
    jump = "machines.master.jumpHost"
    if behind:
        stack.run("config", "set", "--path", f"{jump}.address", plain.machines[1].address)
        stack.run("config", "set", "--path", f"{jump}.user", USER)
        stack.run("config", "set", "--path", f"{jump}.hostKey", plain.machines[1].host_key)
        stack.set_secret(f"{jump}.privateKey", plain.private_key)
    at = f"machines.master{wrong}"
    server = plain.machines[1 if wrong else 0]
    stack.run("config", "set", "--path", f"{at}.hostKey", " ".join(other.split()[:2]))
    output, seconds = refused(stack, plain)
    assert f"spdk-k8s:{at}.hostKey = {other[:40]}" in output
    assert f"the machine at {server.address}:22 shows another key" in output
    assert f"pulumi config set --path {at}.hostKey '{server.host_key}'" in output
    assert seconds < 60


def test_a_host_that_does_not_answer_is_given_up_soon(stack: Stack, plain: PlainMachines) -> None:
    stack.run("config", "set", "--path", "machines.worker1.address", plain.address(99))
    output, seconds = refused(stack, plain)
    assert (
        f"spdk-k8s:machines.worker1.address = {plain.address(99)}: nobody answers at port 22 (No route to host)"
        in output
    )
    assert "mend: start the machine and its sshd, or: pulumi config set --path machines.worker1.address" in output
    assert seconds < 60


def test_a_login_that_is_refused_is_tried_only_a_few_times(stack: Stack, plain: PlainMachines) -> None:
    stack.run("config", "set", "--path", "machines.master.user", "nobody")
    output, seconds = refused(stack, plain)
    # the last words are "unable to authenticate", or those of a server that has had enough of it
    assert f"{plain.machines[0].address}:22: after 3 failed attempts: ssh: handshake failed" in output
    assert seconds < 60


def test_a_missing_private_key_is_missed_by_up_but_not_by_a_preview(stack: Stack, plain: PlainMachines) -> None:
    stack.run("config", "rm", "--path", "machines.worker1.privateKey")
    assert re.search(r"\+ \d+ to create", stack.run("preview"))
    output, _ = refused(stack, plain)
    assert "spdk-k8s:machines.worker1.privateKey: is required, except in a preview; mend: pulumi config set" in output
    assert "--secret --path machines.worker1.privateKey <~/.ssh/id_ed25519" in output
    assert "nothing was started" in output


def test_the_lab_stack_of_a_clean_clone_previews_and_up_asks_for_keys(tmp_path: Path) -> None:
    made = Stack("labexample", tmp_path / "state")
    made.config_file.unlink(missing_ok=True)
    made.run("stack", "init", "labexample")
    try:
        made.config_file.write_text((ROOT / "Pulumi.lab.yaml").read_text())
        output = made.run("preview")
        for resource in (
            "LabMachines",
            "lab-master-preflight",
            "cluster-worker1-hugepages",
            "worker2-disks",
            "video-disk-23",
        ):
            assert resource in output
        code, output = made.try_run("up", "--yes", "--skip-preview", timeout=120)
        output = re.sub(r"\s+", " ", output)
        assert code != 0
        assert "spdk-k8s:machines.master.privateKey: is required" in output
        assert "nothing was started" in output
    finally:
        made.remove()


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry's door: lets in who says the right password. Its URL."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = f"Basic {base64.b64encode(b'spdk-k8s:right').decode()}"
            self.send_response(200 if self.headers["Authorization"] == right else 401)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def login(url: str, password: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The part of scripts/node.sh that gives a node its access to the registry."""
    at = url.partition("//")[2]
    hosts = registry_hosts(url, host=at, user="spdk-k8s", password=password, tls=False)
    step = script("node", {"REGISTRY": at, "REGISTRY_HOSTS": hosts}).rpartition('main "$@"')[0]
    return subprocess.run(
        ["bash", "-s"], input=f"{step}\ncerts={folder}\nregistry_access </dev/null\n", capture_output=True, text=True
    )


def test_a_registry_login_that_is_right_is_taken(registry: str, tmp_path: Path) -> None:
    done = login(registry, "right", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_registry_login_that_is_wrong_is_said_with_a_remedy_and_not_shown(registry: str, tmp_path: Path) -> None:
    done = login(registry, "wr0ng", tmp_path)
    assert done.returncode != 0
    assert "does not let" in done.stderr
    assert "pulumi up" in done.stderr
    shown = done.stdout + done.stderr
    assert "wr0ng" not in shown
    assert base64.b64encode(b"spdk-k8s:wr0ng").decode() not in shown
