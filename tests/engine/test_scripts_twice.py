"""The scripts on a host of their own, a container that boots systemd: each is run twice, and its undo twice.

The second run must change nothing: same files with the same times, same processes, same addresses, routes and rules.
What needs a cluster or a guest (control_plane, join, node_ready, vm_answers, worker_vm) is run by the stack's tests;
here only their undo, on a host where they never ran, as after an interrupted `up`. That all of them together leave
nothing on a host is the end-to-end tests' matter.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from components.cluster import PACKAGES
from components.hosts import script
from components.images import content_tag
from render.cni import cni_config, routes
from render.registry import registry_config, registry_hosts
from settings.pins import PINS
from tests.pulumi_cli import ROOT

pytestmark = pytest.mark.engine

BASE = f"debian:{PINS['DEBIAN']}-slim"
IMAGE = f"spdk-k8s/machine:{content_tag('node', BASE, 'machine')}"  # that of the dev stack's machines
VOLATILE = ["/var/log", "/var/cache", "/var/tmp", "/var/lib/systemd", "/var/lib/containerd"]
STATE = f"""
find /boot /etc /home /opt /root /srv /usr/local /var \\( {" -o ".join(f"-path {p}" for p in VOLATILE)} \\) -prune \\
  -o -type d -printf '%M %u %p\\n' -o -printf '%M %u %s %T@ %p %l\\n' | sort
systemctl show -p Id,MainPID '*.service' | awk -v RS= '{{print $2, $1}}' | grep -v 'MainPID=0' | sort
systemctl list-unit-files --state=enabled --no-legend | sort
ip -o link | sed 's/ state .*//' | sort; ip -o -4 addr | sort; ip route; nft -s list ruleset
sysctl net.ipv4.ip_forward
"""


def docker(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *command], input=text, capture_output=True, text=True, timeout=600)


@dataclass(frozen=True)
class Machine:
    name: str

    def run(self, *command: str, text: str = "") -> str:
        done = docker("exec", "-i", self.name, *command, text=text)
        assert done.returncode == 0, f"{' '.join(command)[:300]}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def step(self, name: str, action: str, undo: str = "", **values: str) -> str:
        """As Host.run has it run; undo: as on a machine that will be given back."""
        return self.run("timeout", "-k", "10", "120", "bash", "-s", action, text=script(name, values, undo=undo))

    def state(self) -> list[str]:
        """Everything on it that a step may change, a line each."""
        return self.run("bash", "-c", STATE).splitlines()

    def twice(self, name: str, **values: str) -> None:
        """Up, up again, down, down again."""
        self.step(name, "up", **values)
        first = self.state()
        self.step(name, "up", **values)
        assert changes(first, self.state()) == []
        self.undone_twice(name, **values)

    def undone_twice(self, name: str, **values: str) -> None:
        self.step(name, "down", **values)
        first = self.state()
        self.step(name, "down", **values)
        assert changes(first, self.state()) == []


def changes(before: list[str], after: list[str]) -> list[str]:
    """Lines that came (+) or went (-); the folder of the steps' own notes goes with the last of all steps."""
    came, went = set(after) - set(before), set(before) - set(after)
    lines = sorted([f"+ {line}" for line in came] + [f"- {line}" for line in went])
    return [line for line in lines if not line.endswith(" root /var/lib/spdk-k8s")]


def build_image() -> None:
    """Of the machines, where no stack has built it."""
    if docker("image", "inspect", IMAGE).returncode != 0:
        built = docker(
            "build", "-q", "-t", IMAGE, "--target", "machine", "--build-arg", f"BASE={BASE}", str(ROOT / "images/node")
        )
        assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    build_image()
    name = "spdk-k8s-scripts"
    docker("rm", "-fv", name)
    started = docker(
        "run", "-d", "--name", name, "--hostname", "throwaway", "--privileged", "--cgroupns=private", "--network=none",
        "--tmpfs=/run", "--tmpfs=/tmp", "--volume=/var", "--env=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        f"--volume={ROOT}/scripts:/scripts:ro", IMAGE,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    made = Machine(name)
    try:
        made.step("ready", "up", OWNER="test/scripts")
        yield made
    finally:
        docker("rm", "-fv", name)


@pytest.fixture(scope="module")
def certificate(machine: Machine) -> dict[str, str]:
    return json.loads(machine.run("bash", "/scripts/certificate.sh", "127.0.0.1"))


@pytest.fixture(scope="module")
def registry(certificate: dict[str, str]) -> dict[str, str]:
    return {
        "CONFIG": registry_config(port=5000, tls=True),
        "CERTIFICATE": certificate["certificate"],
        "KEY": certificate["key"],
        "CA": certificate["ca"],
        "USER_NAME": "spdk-k8s",
        "PASSWORD": certificate["password"],
        "PORT": "5000",
        "URL": f"https://{REGISTRY}",
    }


REGISTRY = "127.0.0.1:5000"


def test_registry(machine: Machine, registry: dict[str, str]) -> None:
    machine.twice("registry", **registry)


def test_a_service_whose_restart_was_cut_off_is_restarted_by_the_next_run(
    machine: Machine, registry: dict[str, str]
) -> None:
    pid = ("systemctl", "show", "-P", "MainPID", "docker-registry")
    machine.step("registry", "up", **registry)
    first = machine.run(*pid)
    changed = {**registry, "CONFIG": registry["CONFIG"] + "# changed\n"}
    machine.run("tee", "/etc/docker/registry/config.yml", text=changed["CONFIG"] + "\n")
    machine.step("registry", "up", **changed)
    second = machine.run(*pid)
    machine.step("registry", "up", **changed)
    assert first != second == machine.run(*pid)
    machine.step("registry", "down", **changed)


def bundle(folder: Path) -> str:
    """An image like the node bundle, with a kubelet that only sleeps; returns a tar file that containerd imports."""
    archive = folder / "rootfs.tar"
    with tarfile.open(archive, "w") as tar:
        files = {
            "usr/local/bin/kubelet": "#!/bin/sh\nexec sleep infinity\n",
            "usr/local/bin/kubectl": "#!/bin/sh\n",
            "opt/cni/bin/bridge": "#!/bin/sh\n",
            "etc/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/local/bin/kubelet\n"
            "[Install]\nWantedBy=multi-user.target\n",
        }
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if "bin/" in name else 0o644
            tar.addfile(info, BytesIO(content.encode()))
    name = f"{REGISTRY}/node-bundle:test"
    assert docker("import", str(archive), name).returncode == 0
    assert docker("save", "-o", str(folder / "bundle.tar"), name).returncode == 0
    docker("rmi", name)
    return str(folder / "bundle.tar")


@pytest.fixture
def node(machine: Machine, registry: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """A registry that serves, with a bundle in it, and what node.sh is given."""
    machine.step("registry", "up", **registry)
    hosts = registry_hosts(
        f"https://{REGISTRY}", host=REGISTRY, user="spdk-k8s", password=registry["PASSWORD"], tls=True
    )
    assert docker("cp", bundle(tmp_path), f"{machine.name}:/root/bundle.tar").returncode == 0
    digest = machine.run(
        "bash", "-euc",
        """mkdir -p "/root/certs/$1" "/etc/containerd/certs.d/$1"
        cat >"/root/certs/$1/hosts.toml"
        printf %s "$2" >"/etc/containerd/certs.d/$1/ca.crt"
        systemctl start containerd
        ctr images import /root/bundle.tar >&2
        ctr images push --hosts-dir /root/certs "$1/node-bundle:test" >&2
        ctr images ls -q "name==$1/node-bundle:test" >&2
        ctr images ls "name==$1/node-bundle:test" | awk 'END {print $3}'
        ctr images rm "$1/node-bundle:test" >&2
        systemctl stop containerd
        rm -rf /root/certs /root/bundle.tar /etc/containerd/certs.d""",
        "-", REGISTRY, registry["CA"], text=hosts.replace('"resolve"', '"resolve", "push"'),
    ).strip()  # fmt: skip
    yield {
        "REGISTRY": REGISTRY,
        "REGISTRY_CA": registry["CA"],
        "REGISTRY_HOSTS": hosts,
        "BUNDLE": f"{REGISTRY}/node-bundle@{digest}",
        "PAUSE": f"{REGISTRY}/pause@sha256:{'0' * 64}",
        "PACKAGES": PACKAGES,
        "CNI_CONFIG": cni_config(IPv4Network("10.244.0.0/16"), 0),
        "ROUTES": routes(IPv4Network("10.244.0.0/16"), {0: IPv4Address("127.0.0.1")}, 0),
        "NODE_IP": "127.0.0.1",
        "SYNC": "2s",
    }
    machine.step("registry", "down", **registry)


def test_node(machine: Machine, node: dict[str, str]) -> None:
    machine.twice("node", **node)


def test_a_changed_value_is_followed_and_only_it(machine: Machine, node: dict[str, str]) -> None:
    machine.step("node", "up", **node)
    first = machine.state()
    machine.step("node", "up", **{**node, "NODE_IP": "127.0.0.2"})
    touched = {line.split()[-1] for line in changes(first, machine.state())}
    assert touched == {"/etc/default/kubelet"}
    machine.step("node", "down", **node)


def test_the_login_to_a_registry_that_moved_is_not_left_behind(machine: Machine, node: dict[str, str]) -> None:
    logins = ("bash", "-c", "ls /etc/containerd/certs.d")
    machine.step("node", "up", **node)
    assert machine.run(*logins) == f"{REGISTRY}\n"
    with pytest.raises(AssertionError, match="localhost:5000"):  # not one that its own bundle is in
        machine.step("node", "up", **{**node, "REGISTRY": "localhost:5000", "BUNDLE": "localhost:5000/none:1"})
    assert machine.run(*logins) == "localhost:5000\n"
    machine.step("node", "down", **{**node, "REGISTRY": "localhost:5000"})


NOTES, OWNERS = "/var/lib/spdk-k8s", "/etc/containerd/config.toml"
CONFIG = 'version = 2 # mine\n[plugins."io.containerd.internal.v1.opt"]\n  path = "/var/lib/containerd"\n'
OWNERS_FOLDERS = "/etc/containerd /opt/cni/bin /opt/tools /var/lib/cni/networks/mine /var/lib/cni/results"
OWNERS_TOOLS = """
echo mine >/opt/cni/bin/macvlan
echo mine >/opt/tools/kubectl
ln -s /opt/tools/kubectl /usr/local/bin/kubectl
touch /var/lib/cni/networks/mine/192.0.2.1 /var/lib/cni/results/mine-1-eth0
systemctl enable --now containerd
"""
CONTAINERD = "Id=containerd.service"  # its process is another one after its config was another


@pytest.fixture
def given_back(machine: Machine) -> Iterator[Machine]:
    """A machine with a containerd and tools of its owner's, who wants all back as it was."""
    machine.run("bash", "-euc", f"rm -rf {NOTES}; mkdir -p {OWNERS_FOLDERS}; install -m 0640 /dev/stdin {OWNERS}",
                text=CONFIG)  # fmt: skip
    machine.run("bash", "-euc", OWNERS_TOOLS)
    before = machine.state()
    machine.step("ready", "up", undo="throwaway-ready", OWNER="test/scripts")
    yield machine
    assert [line for line in changes(before, machine.state()) if CONTAINERD not in line] == []
    assert machine.run("cat", OWNERS) == CONFIG
    assert machine.run("cat", "/usr/local/bin/kubectl") == "mine\n"
    machine.run("bash", "-c", f"systemctl disable --now containerd; rm -r {OWNERS_FOLDERS} /usr/local/bin/kubectl")
    machine.step("ready", "up", OWNER="test/scripts")


def test_a_step_that_failed_is_undone_with_the_machine(node: dict[str, str], given_back: Machine) -> None:
    """Pulumi has no `down` of it: a resource that could not be created is not in its state."""
    nowhere = f"{REGISTRY}/node-bundle@sha256:{'0' * 64}"
    with pytest.raises(AssertionError, match="failed to resolve reference"):
        given_back.step("node", "up", undo="throwaway-node", **{**node, "BUNDLE": nowhere})
    assert "mine" not in given_back.run("cat", OWNERS), "it failed too soon for this test"
    kept = given_back.run("bash", "-c", f"stat -c '%a %U %n' {NOTES}/undo/* && cat {NOTES}/undo/*")
    assert {line.split()[0] for line in kept.splitlines()[:2]} == {"600"}
    assert node["REGISTRY_HOSTS"].split("Basic ")[1].split('"')[0] not in kept
    given_back.step("ready", "down", undo="throwaway-ready")


def test_what_is_undone_is_not_undone_again(node: dict[str, str], given_back: Machine) -> None:
    given_back.step("node", "up", undo="throwaway-node", **node)
    given_back.step("node", "down", undo="throwaway-node", **node)
    assert given_back.run("ls", f"{NOTES}/undo") == "throwaway-ready\n"
    given_back.step("ready", "down", undo="throwaway-ready")


def test_a_machine_whose_stack_is_lost_can_be_given_back(
    registry: dict[str, str], node: dict[str, str], given_back: Machine
) -> None:
    given_back.step("node", "up", undo="throwaway-node", **node)
    given_back.step("hugepages", "up", undo="throwaway-later", HUGEPAGES="")
    given_back.step("node", "up", undo="throwaway-node", **node)
    kept = given_back.run("ls", "-t", f"{NOTES}/undo").split()
    assert kept == ["throwaway-later", "throwaway-node", "throwaway-ready"], "the newest is undone first"
    given_back.run("bash", "-c", f"bash {NOTES}/undo/*-ready down")  # as scripts/preflight.sh says


def test_hugepages(machine: Machine) -> None:
    pages = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pages.exists():
        pytest.skip("this machine has no hugepages of 2 MiB")
    before, others = machine.state(), int(pages.read_text())
    machine.step("hugepages", "up", HUGEPAGES="2Mi=4")
    assert int(pages.read_text()) == others + 4
    machine.twice("hugepages", HUGEPAGES="2Mi=4")
    assert int(pages.read_text()) == others
    machine.step("hugepages", "up", HUGEPAGES="2Mi=4")
    machine.step("hugepages", "up", HUGEPAGES="2Mi=2")
    assert int(pages.read_text()) == others + 2
    machine.step("hugepages", "down", HUGEPAGES="2Mi=2")
    assert int(pages.read_text()) == others
    assert changes(before, machine.state()) == []


@pytest.fixture
def server(machine: Machine) -> Iterator[Machine]:
    """The machine, which takes itself for a server, with the kernel's view of its hugepages in the folder PAGES."""
    machine.run("install", "-D", "-m", "0755", "/dev/stdin", DETECT, text="#!/bin/sh\nexit 1\n")
    yield machine
    machine.run("rm", "-rf", DETECT, "/tmp/sys")


DETECT = "/usr/local/bin/systemd-detect-virt"
PAGES = "/tmp/sys/kernel/mm/hugepages/hugepages-1048576kB"


def show_pages(machine: Machine, **figures: int) -> None:
    machine.run("mkdir", "-p", PAGES)
    for name, figure in figures.items():
        machine.run("tee", f"{PAGES}/{name}_hugepages", text=f"{figure}\n")


def reserved(machine: Machine, action: str, count: int) -> int:
    """Pages of 1 GiB that there are after the step."""
    machine.step("hugepages", action, HUGEPAGES=f"1Gi={count}", SYS="/tmp/sys")
    return int(machine.run("cat", f"{PAGES}/nr_hugepages"))


def test_a_servers_idle_hugepages_are_taken_first_and_never_given_away(server: Machine) -> None:
    show_pages(server, nr=40, free=10, resv=0, surplus=0)  # of them 30 are in use
    assert reserved(server, "up", 9) == 40
    assert reserved(server, "up", 11) == 41, "ours are idle too, until something runs on them"
    show_pages(server, free=0)
    assert reserved(server, "up", 12) == 42, "it was not the difference that was added"
    assert reserved(server, "up", 11) == 41
    assert reserved(server, "up", 5) == 40
    assert reserved(server, "down", 5) == 40


def test_hugepages_that_cannot_be_had_change_nothing(server: Machine) -> None:
    show_pages(server, nr=2, free=0, resv=0, surplus=0)
    assert reserved(server, "up", 1) == 3
    before = server.state()
    with pytest.raises(AssertionError, match=r"or reserve them at boot \(hugepagesz=1G hugepages="):
        reserved(server, "up", 999999999)
    with pytest.raises(AssertionError, match="hugepages of 2Mi: throwaway has none"):
        server.step("hugepages", "up", HUGEPAGES="2Mi=1", SYS="/tmp/sys")
    assert changes(before, server.state()) == []
    assert reserved(server, "down", 1) == 2


def test_hugepages_are_added_at_boot_to_those_that_are_there(server: Machine) -> None:
    show_pages(server, nr=3, free=1, resv=0, surplus=0)
    assert reserved(server, "up", 2) == 4
    server.run("systemctl", "start", "spdk-k8s-hugepages")
    assert server.run("cat", f"{PAGES}/nr_hugepages") == "4\n", "it was no boot of the machine"
    server.run("tee", "/var/lib/spdk-k8s/hugepages.boot", text="another boot\n")
    show_pages(server, nr=7, free=1)  # others have more now
    server.run("systemctl", "start", "spdk-k8s-hugepages")
    assert server.run("cat", f"{PAGES}/nr_hugepages") == "8\n"
    server.run("systemctl", "stop", "spdk-k8s-hugepages")
    assert reserved(server, "down", 2) == 7
    assert reserved(server, "up", 2) == 8
    server.run("tee", "/var/lib/spdk-k8s/hugepages.boot", text="another boot\n")
    assert reserved(server, "down", 2) == 8, "at this boot nothing was added"


@pytest.mark.parametrize("kind", ["container", "server"])
def test_hugepages_of_others_stay_theirs(machine: Machine, request: pytest.FixtureRequest, kind: str) -> None:
    """Of 6, somebody has written to 2, has mapped 2, and 2 are idle: only a server's idle ones may be taken."""
    pages = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not os.access(pages, os.W_OK):
        pytest.skip("this machine has no hugepages of 2 MiB, or does not let us reserve them")
    if kind == "server":
        request.getfixturevalue("server")
    found = int(pages.read_text())
    pages.write_text(str(found + 6))
    try:
        assert int(pages.read_text()) == found + 6
        with mmap.mmap(-1, 4 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB) as theirs:
            theirs[0] = theirs[1 << 21] = 7
            machine.step("hugepages", "up", HUGEPAGES="2Mi=5")
            assert int(pages.read_text()) == found + 6 + (5 if kind == "container" else 3)
            with pytest.raises(
                AssertionError, match=r"999999.* are wanted beside the .*mend: give it more free memory"
            ):
                machine.step("hugepages", "up", HUGEPAGES="2Mi=999999999")
            machine.step("hugepages", "down", HUGEPAGES="2Mi=5")
            assert int(pages.read_text()) == found + 6
            theirs[2 << 21] = theirs[3 << 21] = 7
            assert [theirs[i << 21] for i in range(4)] == [7] * 4
    finally:
        pages.write_text(str(found))


MAP_HUGETLB = 0x40000


ALLOWED = """
for unit in init.scope systemd-journald dbus; do
  for pid in $(cat /sys/fs/cgroup/systemd/$unit/cgroup.procs /sys/fs/cgroup/$unit/cgroup.procs \\
    /sys/fs/cgroup/{systemd/,}system.slice/$unit.service/cgroup.procs 2>/dev/null); do
    taskset -cp $pid | sed 's/.*: //'
  done
done | sort -u
"""


def test_cpus(machine: Machine) -> None:
    """systemd and its services leave the planned core, and have it back afterwards."""
    first, second, *_ = [*sorted(os.sched_getaffinity(0)), None]
    if second is None:
        pytest.skip("one core")
    plan = {"target": f"{second}", "vms": {}, "kept": "", "emulator": "", "system": f"{first}"}
    values = {
        "PLAN": json.dumps(plan), "ROLES": f"target={second} system={first}", "VMS": "",
        "CPUS_SCRIPT": (ROOT / "scripts/host/cpus").read_text(),
    }  # fmt: skip
    before, everywhere = machine.state(), machine.run("bash", "-c", ALLOWED)
    machine.step("cpus", "up", **values)
    reported = "until [ -s /run/spdk-k8s/cpus.json ]; do sleep 0.1; done; cat /run/spdk-k8s/cpus.json"
    report = json.loads(machine.run("timeout", "20", "bash", "-c", reported))
    assert report["astray"] == []
    assert report["roles"]["system"]["threads"] > 1
    assert machine.run("bash", "-c", ALLOWED) == f"{first}\n" != everywhere
    machine.twice("cpus", **values)
    assert changes(before, machine.state()) == []
    assert machine.run("bash", "-c", ALLOWED) == everywhere
    with pytest.raises(AssertionError, match=r"cpus\.target names core 999, which is not there"):
        machine.step("cpus", "up", **values | {"ROLES": "target=999"})
    assert changes(before, machine.state()) == []


def test_engine_trust(machine: Machine) -> None:
    before = machine.state()
    for _ in range(2):
        machine.run("bash", "/scripts/engine_trust.sh", "up", REGISTRY, text="CA")
    assert machine.run("cat", f"/etc/docker/certs.d/{REGISTRY}/ca.crt") == "CA\n"
    for _ in range(2):
        machine.run("bash", "/scripts/engine_trust.sh", "down", REGISTRY)
    assert changes(before, machine.state()) == []


def test_a_certificate_is_made_without_a_trace_and_its_cas_key_is_thrown_away(machine: Machine) -> None:
    before = machine.state()
    made = json.loads(machine.run("bash", "/scripts/certificate.sh", "192.0.2.11"))
    assert set(made) == {"ca", "certificate", "key", "password"}
    for part in ("ca", "certificate"):
        machine.run("tee", f"/tmp/{part}", text=made[part])
    machine.run("openssl", "verify", "-CAfile", "/tmp/ca", "-verify_ip", "192.0.2.11", "/tmp/certificate")
    public = machine.run("openssl", "pkey", "-pubout", text=made["key"])
    assert public != machine.run("openssl", "x509", "-pubkey", "-noout", text=made["ca"]), "the CA's key is handed out"
    machine.run("rm", "/tmp/ca", "/tmp/certificate")
    assert machine.run("find", "/tmp", "-type", "f") == ""
    assert changes(before, machine.state()) == []


def test_keys_are_made_without_a_trace(machine: Machine) -> None:
    before = machine.state()
    made = json.loads(machine.run("bash", "/scripts/keys.sh", "client", "master"))
    for pair in made.values():
        public = machine.run("bash", "-c", "umask 077; cat >/tmp/key; ssh-keygen -yf /tmp/key; rm /tmp/key",
                             text=pair["private"])  # fmt: skip
        assert public.split()[:2] == pair["public"].split()[:2]
    assert machine.run("find", "/tmp", "-type", "f") == ""
    assert changes(before, machine.state()) == []


AGENT = r"""
mkdir -p /run/spdk-k8s
cat >/run/agent.sh <<'END'
read -r line
printf '%s' "$line" | tr -d '\r' >>/run/agent.log
echo >>/run/agent.log
case $line in
*disks=0,7*) body='disk 7 is not in vm: missing: the target does not serve it yet
' code=504 ;;
*) body='' code=200 ;;
esac
printf 'HTTP/1.1 %s x\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' $code ${#body} "$body"
END
systemd-run --unit=agent --quiet socat UNIX-LISTEN:/run/spdk-k8s/agent.sock,fork SYSTEM:'bash /run/agent.sh'
"""


def test_vm_disks(machine: Machine) -> None:
    """With an agent that only writes down what it is asked."""
    machine.run("bash", "-euc", AGENT)
    before = machine.state()
    values = {"VM": "vm", "DISKS": "0,1", "CONFIG": "abc", "TARGET": "cb-vhost-p0", "WHICH": "plugged"}
    machine.step("vm_disks", "up", **values)
    machine.step("vm_disks", "up", **values | {"WHICH": "released"})
    asked = [line.split()[:2] for line in machine.run("cat", "/run/agent.log").splitlines() if "started" not in line]
    assert asked == [
        ["GET", "/wait?vm=vm&config=abc&seconds=170&disks=0,1"],
        ["POST", "/release?vm=vm&config=abc&seconds=170&keep=0,1"],
    ]
    with pytest.raises(AssertionError, match="disk 7 is not in vm: missing: the target does not serve it yet"):
        machine.step("vm_disks", "up", **values | {"DISKS": "0,7"})
    machine.undone_twice("vm_disks", **values)
    assert changes(before, machine.state()) == []
    machine.run("bash", "-c", "systemctl stop agent; rm -r /run/spdk-k8s /run/agent.*")


STAND_INS = r"""
mkdir -p /usr/libexec /var/lib/spdk-k8s/vm /srv/media
cd /usr/local/bin
printf '#!/bin/sh\nprintf "{\\"status\\": 1}"\nexec cat >/dev/null\n' >answers
printf '#!/bin/sh\nsocat UNIX-LISTEN:/run/spdk-k8s/vm.alive,fork,unlink-early EXEC:answers &\nwait\n' >qemu
mv qemu qemu-system-x86_64
printf '#!/bin/sh\nexec systemd-socket-activate -l /run/spdk-k8s/vm-media.sock cat\n' >/usr/libexec/virtiofsd
chmod +x answers qemu-system-x86_64 /usr/libexec/virtiofsd
bridge=/etc/systemd/system/spdk-k8s-vm-bridge.service
printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n' >$bridge
echo tcg >/var/lib/spdk-k8s/vm/accel
"""
MUTE = r"""
mkdir -p /etc/systemd/system/spdk-k8s-vm.service.d
printf '[Service]\nWatchdogSec=12\n' >/etc/systemd/system/spdk-k8s-vm.service.d/test.conf
systemctl daemon-reload
systemctl restart spdk-k8s-vm
printf '#!/bin/sh\nexec cat >/dev/null\n' >/usr/local/bin/answers
"""
GIVE_BACK = (
    "rm -r /usr/local/bin/{answers,qemu-system-x86_64} /usr/libexec/virtiofsd /srv/media"
    " /etc/systemd/system/spdk-k8s-vm.service.d"
)
RESTARTED = "until systemctl show -P NRestarts spdk-k8s-vm | grep -qx 1; do sleep 0.2; done"


def test_a_vm_boots_anew_when_its_definition_changes_and_when_qemu_falls_silent(machine: Machine) -> None:
    """With stand-ins for QEMU and virtiofsd: only the units are made."""
    machine.run("bash", "-euc", STAND_INS)
    values = {
        "VM": "vm", "MEDIA_IMAGE": "", "MEDIA_DIR": "/srv/media", "KVM_ARGS": "-accel\nkvm", "TCG_ARGS": "-accel\ntcg",
        "ALIVE_SCRIPT": (ROOT / "scripts" / "host" / "alive").read_text(),
    }  # fmt: skip

    def process() -> str:
        machine.run("timeout", "30", "bash", "-c", "until systemctl is-active -q spdk-k8s-vm; do sleep 0.1; done")
        return machine.run("systemctl", "show", "-P", "MainPID", "spdk-k8s-vm").strip()

    def units(name: str) -> str:
        text = script("worker_vm", values | {"DEFINITION": name, "QEMU_ARGS": f"@ACCEL@\n-name\n{name}"})
        machine.run("bash", "-s", "up", text=text.replace('\nmain "$@"', "\nunits"))
        return process()

    first = units("vm-1")
    assert machine.run("stat", "-c", "%a", "/run/spdk-k8s").strip() == "700", "S1"
    assert units("vm-1") == first
    second = units("vm-2")
    assert second != first
    assert "vm-2" in machine.run("cat", f"/proc/{second}/cmdline")
    assert units("vm-2") == second
    machine.run("bash", "-euc", MUTE)
    machine.run(
        "timeout", "40", "bash", "-c", "until systemctl show -P NRestarts spdk-k8s-vm | grep -qx 1; do sleep 0.2; done"
    )
    machine.step("worker_vm", "down", **values)
    machine.run("bash", "-euc", GIVE_BACK)
    assert machine.run("bash", "-c", "ls -d /run/spdk-k8s /etc/tmpfiles.d/spdk-k8s.conf 2>/dev/null || true") == ""


NETWORK = """
ip link add nic0 type veth peer name nic1
ip addr add 192.0.2.12/24 brd + dev nic0
ip link set nic0 up
ip route add default via 192.0.2.1 dev nic0
"""


@pytest.fixture
def card(machine: Machine) -> Iterator[None]:
    machine.run("bash", "-euc", NETWORK)
    yield
    machine.run("ip", "link", "del", "nic0")


@pytest.mark.usefixtures("card")
def test_bridge(machine: Machine) -> None:
    """The host's address and routes move to the bridge and back, for one VM and for two."""
    before = machine.state()
    up, down = (("bash", "/scripts/host/bridge", action, "br0", "nic0") for action in ("up", "down"))
    machine.run(*up, "tap0", "DE:AD:BE:EF:01:41")
    first = machine.state()
    assert any("br0" in line and "192.0.2.12/24" in line for line in first)
    machine.run(*up, "tap0", "DE:AD:BE:EF:01:41")
    assert changes(first, machine.state()) == []
    machine.run(*up, "tap1", "DE:AD:BE:EF:01:42")
    machine.run(*down, "tap1")
    assert changes(first, machine.state()) == [], "the first VM lost something"
    for _ in range(2):
        machine.run(*down, "tap0")
    assert changes(before, machine.state()) == []


# networkd waits for udev, which a container does not have, unless /sys is read-only.
NETWORKD = r"""
mount -o remount,ro,bind /sys
printf '[Match]\nName=nic0\n[Network]\nAddress=192.0.2.12/24\nGateway=192.0.2.1\n' >/etc/systemd/network/nic0.network
systemctl unmask systemd-networkd
systemctl start systemd-networkd
ip link set nic1 up
timeout 20 sh -c 'until networkctl --no-legend | grep -q "nic0 .*configured"; do sleep 0.2; done'
"""
WITHOUT_NETWORKD = """
systemctl stop systemd-networkd
systemctl mask systemd-networkd
rm /etc/systemd/network/nic0.network
mount -o remount,rw,bind /sys
"""
ADDRESSES = "ip -4 -o address show scope global | awk '{print $2, $4}'; ip -4 route show default"


@pytest.fixture
def networkd(card: None, machine: Machine) -> Iterator[Machine]:
    machine.run("bash", "-euc", NETWORKD)
    yield machine
    machine.run("bash", "-euc", WITHOUT_NETWORKD)


def test_networkd_leaves_the_card_to_the_bridge_until_it_is_given_back(networkd: Machine) -> None:
    """As on Ubuntu's servers: it would take the card out of the bridge, and give it the addresses again."""
    up, down = (("bash", "/scripts/host/bridge", action, "br0", "nic0", "tap0") for action in ("up", "down"))
    before = networkd.run("bash", "-c", ADDRESSES)
    assert "nic0 192.0.2.12/24" in before
    networkd.run(*up, "DE:AD:BE:EF:01:41")
    bridged = networkd.run("bash", "-c", f"{ADDRESSES}; ip -o link show master br0 | cut -d: -f2")
    assert "br0 192.0.2.12/24" in bridged
    cable = "ip link set nic1 down; sleep 1; ip link set nic1 up"
    for event in (cable, "networkctl reconfigure nic0", "systemctl restart systemd-networkd"):
        networkd.run("bash", "-c", f"{event}; sleep 1")
        now = networkd.run("bash", "-c", f"{ADDRESSES}; ip -o link show master br0 | cut -d: -f2")
        assert now.replace(" linkdown", "") == bridged, event
    networkd.run(*down, "DE:AD:BE:EF:01:41")
    networkd.run("bash", "-c", "networkctl reconfigure nic0; sleep 1")
    assert networkd.run("bash", "-c", ADDRESSES) == before


# A network that sends each port its own frames back, as Docker's does where userland-proxy is off. On it: the machine,
# whose card is nic0, with the VM on tap0, and another machine. Nobody listens at port 9: whoever is reached refuses.
LOOPED = r"""
for name in net vm other; do ip netns add $name; done
ip -n net link add name sw type bridge
ip -n net link set sw up
ip link set nic1 netns net
ip -n net link add name port type veth peer name card netns other
for port in nic1 port; do
  ip -n net link set $port master sw up
  bridge -n net link set dev $port hairpin on
done
ip -n other link set card up
ip -n other addr add 192.0.2.13/24 dev card
ip link add name tap0 type veth peer name card netns vm
ip -n vm link set card address de:ad:be:ef:01:41 up
ip -n vm addr add 192.0.2.14/24 dev card
bash /scripts/host/bridge up br0 nic0 tap0 DE:AD:BE:EF:01:41
reaches() {
  said=$(timeout 5 ip netns exec "$1" bash -c "exec 3<>/dev/tcp/$2/9" 2>&1) || true
  [[ "$said" != *refused* ]] || echo "$1 reaches $2"
}
reaches vm 192.0.2.13
reaches vm 192.0.2.12
reaches other 192.0.2.14
bash /scripts/host/bridge down br0 nic0 tap0 DE:AD:BE:EF:01:41
for name in net vm other; do ip netns del $name; done
"""


@pytest.fixture
def looped(machine: Machine) -> Iterator[Machine]:
    machine.run("bash", "-euc", NETWORK)
    yield machine
    machine.run(
        "bash", "-c", "for name in net vm other; do ip netns del $name; done; ip link del nic0; ip link del br0; true"
    )


def test_the_vm_is_reached_on_a_network_that_sends_its_frames_back(looped: Machine) -> None:
    reached = looped.run("bash", "-euc", LOOPED).splitlines()
    assert reached == ["vm reaches 192.0.2.13", "vm reaches 192.0.2.12", "other reaches 192.0.2.14"]


NOWHERE = f"127.0.0.1:1/image@sha256:{'0' * 64}"
VM = {
    "REGISTRY": "127.0.0.1:1", "GUEST": NOWHERE, "BUNDLE": NOWHERE, "PRELOAD": NOWHERE, "DISK_GIB": "1",
    "MEDIA_IMAGE": "", "MEDIA_DIR": "/srv/media", "ACCEL": "tcg", "VM": "vm", "QEMU_ARGS": "", "QUEUES": "1",
    "USER_DATA": "", "META_DATA": "", "NETWORK_CONFIG": "",
    "BRIDGE": "br0", "TAP": "tap0", "MAC": "DE:AD:BE:EF:01:41", "NIC": "", "HOST_ADDRESS": "192.0.2.12",
    "BRIDGE_SCRIPT": (ROOT / "scripts" / "host" / "bridge").read_text(),
}  # fmt: skip


@pytest.mark.usefixtures("card")
def test_a_vm_whose_images_cannot_be_had_holds_up_nothing(machine: Machine) -> None:
    """What such a step has begun ends with it, so that the next one need not wait; its undo takes back what it did."""
    before = machine.state()
    for _ in range(2):
        with pytest.raises(AssertionError, match="connection refused"):
            machine.step("worker_vm", "up", **VM)
        assert machine.run("bash", "-c", "grep -l '[v]m-preload' /proc/[0-9]*/cmdline || true") == ""
    assert changes(before, machine.state()) != []
    machine.undone_twice("worker_vm", **VM)
    assert changes(before, machine.state()) == []


@pytest.mark.usefixtures("card")
def test_a_vm_that_failed_is_undone_though_its_host_is_no_node_any_more(
    node: dict[str, str], given_back: Machine
) -> None:
    """Pulumi undoes what it knows of first, the node; the bridge has the host's address then."""
    given_back.step("node", "up", undo="throwaway-node", **node)
    with pytest.raises(AssertionError, match="connection refused"):
        given_back.step("worker_vm", "up", undo="throwaway-vm", **VM)
    given_back.step("node", "down", undo="throwaway-node", **node)
    assert "br0" in given_back.run("ip", "-4", "addr", "show", "to", "192.0.2.12")
    given_back.step("ready", "down", undo="throwaway-ready")


@pytest.mark.usefixtures("card")
def test_the_card_of_a_vm_cannot_change_under_it(machine: Machine) -> None:
    before = machine.state()
    with pytest.raises(AssertionError, match="connection refused"):
        machine.step("worker_vm", "up", **VM)
    first = machine.state()
    with pytest.raises(AssertionError, match=r"connected to nic0 of .*; mend: nic0 as this server's nic in"):
        machine.step("worker_vm", "up", **{**VM, "NIC": "lo"})
    assert changes(first, machine.state()) == []
    machine.step("worker_vm", "down", **VM)
    assert changes(before, machine.state()) == []


NEVER_RAN = {
    "cpus": {},
    "control_plane": {"NODE": "n", "CONFIG": ""},
    "devices": {"BDEV": "nvme", "DEVICES": "0000:ff:1f.7"},
    "hugepages": {"HUGEPAGES": "2Mi=2"},
    "join": {"NODE": "n", "CONFIG": "", "KUBECONFIG_TEXT": ""},
    "node": {"REGISTRY": REGISTRY},
    "registry": {},
    "vm_disks": {"VM": "vm", "DISKS": "0"},
    "worker_vm": {"VM": "vm", "MEDIA_IMAGE": "", "MEDIA_DIR": "/srv/media"},
}


@pytest.mark.parametrize("step", NEVER_RAN)
def test_undo_where_it_never_ran(machine: Machine, step: str) -> None:
    machine.undone_twice(step, **NEVER_RAN[step])
