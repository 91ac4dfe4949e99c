"""Every shell file of the project is clean under shellcheck, and what is sent to a machine quotes what it is given."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from components import hosts

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def shell_files() -> list[Path]:
    """Everything of ours that a shell reads: it says so in its first line."""
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = [ROOT / name for name in tracked if (ROOT / name).is_file()]
    first_line = re.compile(rb"#!.*\b(ba)?sh\b|# shellcheck shell=")
    return [f for f in files if first_line.match(f.read_bytes()[:60])]


def test_shellcheck() -> None:
    files = shell_files()
    assert len(files) > 10
    run = subprocess.run(["shellcheck", "-x", "-P", "SCRIPTDIR", *map(str, files)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("value", ["plain", "two words", "it's", '"$(touch pwned)"', "`id`", "line\nline", "\\", "é"])
def test_values_reach_a_script_as_they_are(value: str, tmp_path: Path) -> None:
    text = hosts.script("ready", {"VALUE": value}).partition("step() {")[0] + 'printf %s "$VALUE"'
    run = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert run.stdout == value
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize(("machines", "a_steps"), [("", "*"), ("mirror.corp,.lan", "mirror.corp,.lan,*")])
def test_a_step_asks_the_stack_without_the_machines_proxy(name: str, machines: str, a_steps: str) -> None:
    """kubeadm, kubectl and ctr are Go programs; apt-get goes on with what the machine has."""
    text = hosts.script("ready", {}).partition("step() {")[0] + "printenv NO_PROXY no_proxy https_proxy"
    environment = {"PATH": os.environ["PATH"], "https_proxy": "http://proxy:3128", name: machines}
    run = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == [a_steps, a_steps, "http://proxy:3128"]


@pytest.mark.parametrize(
    "step", [p.stem for p in (ROOT / "scripts").glob("*.sh") if p.read_text().startswith("# shellcheck shell")]
)
def test_every_step_parses_as_it_is_sent(step: str) -> None:
    if step == "lib":
        return
    text = hosts.script(step, {})
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    assert "step() {" in text


def test_kernel_settings_are_put_back_as_they_were_found(tmp_path: Path) -> None:
    """A second run finds what kubelet has changed by then: the first one's word holds."""
    found = {"fs/inotify/max_user_instances": "128", "vm/overcommit_memory": "2", "vm/panic_on_oom": "1"}
    found |= {"kernel/panic": "-1", "kernel/panic_on_oops": "0"}
    for name in found:
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)

    def settings(to: dict[str, str]) -> None:
        for name, value in to.items():
            (tmp_path / "sys" / name).write_text(f"{value}\n")

    def run(command: str, before: str = "") -> str:
        environment = {**os.environ, "PROC": str(tmp_path), "IMAGE": "none", "PULUMI_COMMAND_STDOUT": before}
        script = ["bash", ROOT / "scripts/kernel_local.sh", command]
        return subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    settings(found)
    first = run("up")
    settings(dict.fromkeys(found, "7"))
    assert run("up", first) == first
    run("down", first)
    assert {name: (tmp_path / "sys" / name).read_text().strip() for name in found} == found


def test_keys_that_are_there_stay() -> None:
    """More machines, or a changed script, are no reason to replace those that use the keys."""

    def keys(*names: str, before: str = "") -> str:
        environment = {**os.environ, **hosts.here("keys"), **({"PULUMI_COMMAND_STDOUT": before} if before else {})}
        made = ["bash", "-c", f"{hosts.STEP} {' '.join(names)}"]
        return subprocess.run(made, env=environment, capture_output=True, text=True, check=True).stdout

    first = keys("client", "master")
    more = json.loads(keys("client", "master", "worker1", before=first))
    assert {name: more[name] for name in ("client", "master")} == json.loads(first)
    assert more["worker1"]["private"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert len({pair["public"] for pair in more.values()}) == 3
    assert list(json.loads(keys("client", before=first))) == ["client"]


@pytest.mark.parametrize(
    ("ours", "mac", "result"),
    [
        ("1", "de:ad:be:ef:01:44", "pass"),  # the VM of this stack, which runs there
        ("1", "52:54:00:00:00:01", "FAIL"),  # a VM that is added, at the address of another machine
        ("", "de:ad:be:ef:01:44", "FAIL"),  # another stack's VM
    ],
)
def test_a_vms_address_must_be_nobody_elses(ours: str, mac: str, result: str, tmp_path: Path) -> None:
    (tmp_path / "arp").write_text(
        f"IP address HW type Flags HW address Mask Device\n10.1.2.16 0x1 0x2 {mac} * eth0\n10.1.2.1 0x1 0x2 x * eth0\n"
    )
    values = {"VMS": "10.1.2.16=DE:AD:BE:EF:01:44=machines.storage[1].vms[0]"}
    text = hosts.script("preflight", values).partition('\nmain "$@"')[0]
    text += f"""
answers() {{ true; }}
awk() {{ command awk "${{@:1:5}}" {tmp_path}/arp; }}
ours={ours}
vacant
printf '%s\\n' "${{rows[@]}}"
"""
    run = subprocess.run(["bash", "-s"], input=text, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"vacant|{result}|"), run
    assert result == "pass" or "pulumi config set --path machines.storage[1].vms[0].address" in run.stdout


def test_a_route_to_a_node_that_is_no_more_is_removed(tmp_path: Path) -> None:
    (tmp_path / "routes").write_text("ip route replace 10.244.1.0/24 via a\nip route replace 10.244.3.0/24 via c\n")
    text = hosts.script("node", {"ROUTES": "ip route replace 10.244.1.0/24 via a"}).partition('\nmain "$@"')[0]
    (line,) = re.findall(r"^  routed .*grep -vxFf.*$", text, re.MULTILINE)
    line = line.replace("/usr/local/lib/spdk-k8s/routes", str(tmp_path / "routes")).replace("ip route del", "echo gone")
    run = subprocess.run(["bash", "-s"], input=f"{text}\n{line}\n", capture_output=True, text=True, check=True)
    assert run.stdout == "gone 10.244.3.0/24\n"
