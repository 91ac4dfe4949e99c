"""What the steps rely on is in the table of both distributions, and what differs is handled or refused by name."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from components.hosts import script
from settings.names import STATE

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
TABLES = (ROOT / "docs/distributions.md").read_text()
STEPS = [*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts/host").iterdir()]
PATH = re.compile(r"(?<![\w$}./:-])/(?:bin|boot|dev|etc|lib|opt|proc|root|run|s?bin|srv|sys|tmp|usr|var)(?:/[\w.@-]+)+")
# made by the steps, or by the image that the path is in
OWN = re.compile(
    r".*spdk-k8s.*|/etc/(cni|kubernetes|default/kubelet)\b.*|/opt/cni\b.*|/root/boot/.*|/usr/libexec/kubernetes"
    r"|/var/lib/(cni|etcd|kubelet)\b.*|/var/log/(pods|containers)|/dev/(tcp|none)"  # bash's own; no root for a kernel
)


def rows(heading: str) -> list[list[str]]:
    """The cells of a table's rows."""
    part = TABLES.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"][2:]


def names(heading: str) -> set[str]:
    return {name for row in rows(heading) for name in re.findall(r"`([^`]+)`", row[0])}


def test_each_package_that_a_server_gets_is_in_the_table() -> None:
    named = set((ROOT / "images/node/packages-node").read_text().split())
    for step in STEPS:
        for call in re.findall(r"^ *packages ([a-z].*)$", step.read_text(), re.MULTILINE):
            named |= set(call.split())
    assert len(named) > 20
    assert names("Packages") == named
    for package, debian, ubuntu, _ in rows("Packages"):
        assert re.match(r"\d", debian), package
        assert re.match(r"\d", ubuntu), package


def test_each_package_of_set_up_is_in_the_table() -> None:
    named: set[str] = set()
    for file in ("packages", "images"):
        text = re.sub('#.*|"[^"]*"', "", (ROOT / f"setup/{file}.sh").read_text())
        for call in re.findall(
            r"\bneeds [\w-]+ ([a-z][\w. -]+)|missing\+=\(([a-z][\w -]+)\)|install_packages ([a-z][\w -]+)", text
        ):
            named |= set("".join(call).split())
    assert len(named) > 12
    assert names("The machine that runs Pulumi") == named


def test_each_path_of_the_system_that_a_step_names_is_in_the_table() -> None:
    listed = names("Files")
    used = {path.rstrip(".") for step in STEPS for path in PATH.findall(step.read_text())}
    system = {path for path in used if not OWN.fullmatch(path)}
    assert len(system) > 30
    unknown = {path for path in system if not any(path == known or path.startswith(f"{known}/") for known in listed)}
    assert not unknown
    unused = {known for known in listed if not any(path == known or path.startswith(f"{known}/") for path in used)}
    assert not unused


class Server:
    """A machine's files in a folder, with programs of its own, for a step's functions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bin", "etc", "state", "run", "sys", "usr/bin", "var/log"):
            (root / folder).mkdir(parents=True)
        self.program("dpkg-query", "exit 1")
        self.program("containerd", "exit 1")  # never this machine's own

    def program(self, name: str, text: str) -> None:
        (self.root / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.root / "bin" / name).chmod(0o755)

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def run(self, step: str, call: str, **values: str) -> subprocess.CompletedProcess[str]:
        text = script(step, {"OWNER": "spdk-k8s/lab", "ADDRESS": "192.0.2.12", "VM": "vm", **values}).rpartition(
            'main "$@"'
        )[0]
        text = text.replace(f"STATE={STATE}", f"STATE={self.root}/state")
        for path in ("/etc/", "/run/", "/usr/bin/containerd", "/var/log/"):
            text = text.replace(path, f"{self.root}{path}")
        environment = os.environ | {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "SYS": f"{self.root}/sys"}
        return subprocess.run(
            ["bash", "-s"], input=f"{text}\n{call}", capture_output=True, text=True, timeout=30, env=environment
        )

    def preflight(self, check: str) -> str:
        """A row of its table, words separated by single spaces; empty: the check has nothing to say."""
        done = self.run("preflight", f"{check}; ((!${{#rows[@]}})) || table")
        assert done.returncode == 0, done.stderr
        return re.sub(r" +", " ", "\n".join(done.stdout.splitlines()[2:]))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_all_say_the_same_distributions(server: Server) -> None:
    (heading,) = {line for line in TABLES.splitlines() if line.startswith("| package | Debian") and "for" in line}
    _, first, second, *_ = (cell.strip() for cell in heading.strip("|").split("|"))
    assert (first, second) == ("Debian 13", "Ubuntu 24.04")
    said = f"{first} or {second}, or a later release"
    assert said in TABLES
    assert said in (ROOT / "docs/operating.md").read_text()
    (server.root / "run/systemd/system").mkdir(parents=True)
    for name, version, serves in (
        ("debian", "13", True), ("debian", "14", True), ("debian", "12", False),
        ("ubuntu", "24.04", True), ("ubuntu", "26.04", True), ("ubuntu", "22.04", False), ("fedora", "44", False),
    ):  # fmt: skip
        server.file("etc/os-release", f"ID={name}\nVERSION_ID={version}\n")
        row = server.preflight("system")
        assert row.startswith("system pass" if serves else "system FAIL"), row
        assert serves or row.endswith(f"install {said}")


RULE = "signal (receive) peer=unconfined,\n  signal (receive) peer=runc,"


@pytest.mark.parametrize(
    ("enabled", "profiles", "program", "never"),
    [
        ("Y", ["runc"], "signal (receive) peer=unconfined,", True),
        ("Y", ["runc"], RULE, False),
        ("Y", ["runc", "disable/runc"], "", False),
        ("Y", [], "", False),
        ("N", ["runc"], "", False),
        ("", ["runc"], "", False),
        ("Y", ["runc"], None, False),
    ],
)
def test_a_containerd_that_cannot_end_pods_under_apparmor_is_refused(
    server: Server, enabled: str, profiles: list[str], program: str | None, never: bool
) -> None:
    """Ubuntu 24.04 was released with one; its updates have another."""
    if enabled:
        server.file("sys/module/apparmor/parameters/enabled", f"{enabled}\n")
    for profile in profiles:
        server.file(f"etc/apparmor.d/{profile}")
    if program is not None:
        server.file("usr/bin/containerd", f"\0\0{program}\0")
        server.program("dpkg-query", 'case $* in *Version*" containerd") echo -n 1.7.12-0ubuntu4 ;; *) exit 1 ;; esac')
    row = server.preflight("containerd")
    installs = server.run("node", "packages() { :; }; record_kernel() { exit 7; }; step up", PACKAGES="containerd")
    if never:
        assert row == (
            "containerd FAIL 1.7.12-0ubuntu4, which cannot end pods where AppArmor confines runc"
            " apt-get install --only-upgrade containerd, from the distribution's updates"
        )
        assert installs.returncode == 1
        assert "has containerd 1.7.12-0ubuntu4, which cannot end pods" in installs.stderr
    else:
        assert row.startswith("containerd pass")
        assert installs.returncode == 7, installs.stderr


def test_dockers_containerd_is_refused(server: Server) -> None:
    server.program("dpkg-query", "case $* in *Status-Status*containerd.io) echo -n installed ;; *) exit 1 ;; esac")
    assert server.preflight("containerd").startswith("containerd FAIL containerd.io, which excludes the distribution's")


@pytest.mark.parametrize(
    ("system", "components", "row"),
    [
        ("ubuntu", "main\nuniverse\n", "components pass main and universe"),
        ("ubuntu", "main\nrestricted\n", "components FAIL no source of packages has universe add-apt-repository"),
        ("debian", "main\n", ""),
    ],
)
def test_ubuntu_needs_universe(server: Server, system: str, components: str, row: str) -> None:
    server.file("etc/os-release", f"ID={system}\n")
    server.file("components", components)
    server.program("apt-get", f'[ "$1 $3" = "indextargets \\$(COMPONENT)" ] && cat {server.root}/components')
    assert server.preflight("components").startswith(row)
    assert bool(row) == bool(server.preflight("components"))


@pytest.mark.parametrize(
    ("active", "forwarded", "refused"),
    [("yes", "DROP", True), ("yes", "ACCEPT", False), ("no", "DROP", False), (None, None, False)],
)
def test_a_ufw_that_drops_the_pods_packets_is_refused(
    server: Server, active: str | None, forwarded: str | None, refused: bool
) -> None:
    if active:
        server.file("etc/ufw/ufw.conf", f"# a comment\nENABLED={active}\nLOGLEVEL=low\n")
        server.file("etc/default/ufw", f'IPV6=yes\nDEFAULT_INPUT_POLICY="DROP"\nDEFAULT_FORWARD_POLICY="{forwarded}"\n')
    row = server.preflight("firewall")
    assert row.startswith("firewall FAIL ufw is active" if refused else "firewall pass"), row


STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"


@pytest.mark.parametrize(
    ("text", "resolved", "container", "file"),
    [
        (STUB, True, False, "/run/systemd/resolve/resolv.conf"),
        (STUB, False, False, "/etc/resolv.conf"),
        ("nameserver 192.0.2.1\n", True, False, "/etc/resolv.conf"),
        ("nameserver 192.0.2.1\n", False, False, "/etc/resolv.conf"),
        ("nameserver 127.0.0.11\n", False, True, "/etc/kubernetes/resolv.conf"),
        ("nameserver 192.0.2.1\n", False, True, "/etc/resolv.conf"),
    ],
)
def test_each_nodes_kubelet_hands_out_name_servers_that_pods_reach(
    server: Server, text: str, resolved: bool, container: bool, file: str
) -> None:
    """kubeadm gives the path of the control plane's systemd-resolved to a VM that has none: no pod started there."""
    server.file("etc/resolv.conf", text)
    if resolved:
        server.file("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n")
    call = f"is_container() {{ {str(container).lower()}; }}; enable() {{ :; }}; patches={server.root}; kubelet_config"
    done = server.run("node", call, SYNC="1m", NODE_IP="192.0.2.12")
    assert done.returncode == 0, done.stderr
    patch = (server.root / "kubeletconfiguration+merge.yaml").read_text().splitlines()
    assert [line for line in patch if line.startswith("resolvConf")] == [f"resolvConf: {server.root}{file}"]


def test_a_steps_installation_restarts_no_service_of_the_machines_own(server: Server) -> None:
    server.program("dpkg-query", "echo bash installed")
    server.program("apt-get", f'echo "$NEEDRESTART_SUSPEND" >>{server.root}/suspended')
    done = server.run("registry", "packages curl")
    assert done.returncode == 0, done.stderr
    assert set((server.root / "suspended").read_text().split()) == {"1"}


def test_what_fills_the_vms_images_starts_no_cri_of_containerd_1_or_2(server: Server) -> None:
    kept = server.root / "config.toml"
    server.program("containerd", f"cp $2 {kept}.new; /bin/mv {kept}.new {kept}; exec sleep 20")
    server.program("ctr", f"[ -e {kept} ]")
    for name in ("mke2fs", "mv"):
        server.program(name, "")
    done = server.run("worker_vm", "images_disk", PRELOAD="192.0.2.10:5000/pause", DISK_GIB="1")
    assert done.returncode == 0, done.stderr
    config = tomllib.loads(kept.read_text())
    assert config["version"] == 2
    of_cri = {"grpc.v1.cri", "cri.v1.images", "cri.v1.runtime", "nri.v1.nri"}
    assert set(config["disabled_plugins"]) >= {f"io.containerd.{name}" for name in of_cri}
