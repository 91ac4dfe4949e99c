"""The Pulumi CLI as `make up` and `make down` call it: its errors, its environment, its output and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from operate import cli
from operate.cli import Stack
from settings import proxy

pytestmark = pytest.mark.unit

SECRET = {cli.SPECIAL: "1b47061264138c4ac30d75fd1eb44270", "plaintext": '{"a": [1]}'}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(cli, "STATE", tmp_path / ".state")
    (tmp_path / "Pulumi.yaml").write_text("name: tiny\n")
    for name in (*proxy.NAMES, "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE", "VHOST_BACKEND", "SPDK_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def pulumi(checkout: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """A CLI of a few lines; the file that it logs its arguments to."""
    program = checkout / "bin/pulumi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$*" >>"{checkout}/log"\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return checkout / "log"


def test_outputs_are_read_from_the_exported_state() -> None:
    stack = {"type": "pulumi:pulumi:Stack", "outputs": {"n": 3, "secret": SECRET, "list": [SECRET, "x"]}}
    exported = {"deployment": {"resources": [{"type": "other"}, stack]}}
    assert cli.outputs(exported) == {"n": 3, "secret": {"a": [1]}, "list": [{"a": [1]}, "x"]}
    assert cli.outputs({"deployment": {}}) == {}


def test_an_existing_stack_is_exported_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pulumi(checkout, monkeypatch, """echo '{"deployment": {}}'""")
    assert Stack("dev").open() == {"deployment": {}}
    assert log.read_text() == "--non-interactive --color never stack export --stack dev --show-secrets\n"


def test_a_new_stack_gets_a_salt_of_its_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pulumi(
        checkout, monkeypatch, """[ "$5" = init ] || { echo "error: no stack named 'dev' found" >&2; exit 6; }"""
    )
    config = checkout / "Pulumi.dev.yaml"
    config.write_text("# mine\nencryptionsalt: v1:old\nconfig: {}\n")
    assert Stack("dev").open()["deployment"] == {}
    assert config.read_text() == "# mine\nconfig: {}\n"
    assert log.read_text().splitlines()[-1].endswith("stack init dev")


def test_a_salt_that_an_encrypted_value_needs_stays(checkout: Path) -> None:
    config = checkout / "Pulumi.dev.yaml"
    text = "encryptionsalt: v1:old\nconfig:\n  a:b:\n    secure: v1:x\n"
    config.write_text(text)
    Stack("dev").drop_salt()
    assert config.read_text() == text
    Stack("none").drop_salt()
    assert not (checkout / "Pulumi.none.yaml").exists()


def test_the_state_goes_in_by_stdin_only(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pulumi(checkout, monkeypatch, f'cat >"{checkout}/in"')
    Stack("dev").put({"deployment": {"x": "hidden"}})
    assert "hidden" in (checkout / "in").read_text()
    assert "hidden" not in log.read_text()


WRONG = "error: getting stack configuration: get stack secrets manager: incorrect passphrase"


@pytest.mark.parametrize(
    ("variable", "file", "said"),
    [
        (
            "PULUMI_CONFIG_PASSPHRASE",
            False,
            "remedy: set PULUMI_CONFIG_PASSPHRASE to the passphrase that the stack was",
        ),
        ("PULUMI_CONFIG_PASSPHRASE", True, "remedy: unset PULUMI_CONFIG_PASSPHRASE if the stack was made with /"),
        ("own", True, "/.state/passphrase holds another passphrase"),
    ],
)
def test_another_passphrase_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, variable: str, file: bool, said: str
) -> None:
    own = checkout / ".state/passphrase"
    own.parent.mkdir()
    if file:
        own.write_text("x")
    if variable == "own":
        monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(own))
    else:
        monkeypatch.setenv(variable, "the secret itself")
    pulumi(checkout, monkeypatch, f"echo '{WRONG}' >&2; exit 1")
    with pytest.raises(SystemExit) as ended:
        Stack("dev").export()
    text = str(ended.value)
    assert text.startswith(WRONG)
    assert "holds another passphrase than the one that this stack was made with" in text
    assert said in text
    assert "the secret itself" not in text


def test_a_locked_stack_of_a_backend_elsewhere_has_a_remedy() -> None:
    text = cli.explain("error: the stack is currently locked by 1 lock(s). …")
    assert "another run works on this stack" in text
    assert "remedy: wait until it ends" in text
    assert cli.explain("error: something else\n") == "error: something else"


def test_without_the_cli_there_is_a_remedy(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    for call in (lambda: Stack("dev").export(), lambda: watch(Stack("dev"), "up")):
        with pytest.raises(SystemExit, match="the Pulumi CLI is not on PATH; remedy: make setup"):
            call()


def watch(stack: Stack, *arguments: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    return stack.watch(*arguments, each_line=lines.append, beat=lambda: None), lines


def test_lines_come_whole_and_stderr_is_passed_on_with_a_remedy(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pulumi(checkout, monkeypatch, f"printf 'o'; sleep 0.1; printf 'ne\\ntwo\\nend'; echo '{WRONG}' >&2; exit 3")
    assert watch(Stack("dev"), "up") == (3, ["one\n", "two\n", "end"])
    said = capfd.readouterr().err
    assert said.count(WRONG) == 1
    assert "remedy: " in said


def test_a_child_that_outlives_the_cli_is_not_waited_for(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulumi(checkout, monkeypatch, "sleep 30 & echo $!; echo left")
    code, lines = watch(Stack("dev"), "up")
    os.kill(int(lines[0]), signal.SIGKILL)
    assert (code, lines[1]) == (0, "left\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_the_cli_end_its_steps(checkout: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A terminal sends Ctrl-C to both; SIGTERM is passed on."""
    body = f"trap 'echo ended; exit 1' INT; touch {checkout}/begun; while :; do sleep 0.05; done"
    pulumi(checkout, monkeypatch, body)
    lines: list[str] = []

    def interrupt() -> None:
        while not (checkout / "begun").exists():
            pass
        if number == signal.SIGINT:
            child = subprocess.run(["pgrep", "-P", str(os.getpid()), "pulumi"], capture_output=True, text=True)
            os.kill(int(child.stdout.split()[0]), number)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Stack("dev").watch("up", each_line=lines.append, beat=lambda: None)
    assert lines == ["ended\n"]


def test_children_get_a_temporary_folder_that_goes_at_the_end(checkout: Path) -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    left = checkout / f".state/tmp/{ended.pid}"  # by a run that was killed, and whose exit code nobody has asked for
    (left / "config").mkdir(parents=True)
    with cli.session("dev"):
        folder = Path(os.environ["TMPDIR"])
        made = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
        assert Path(made).parent == folder
        assert folder.is_relative_to(checkout / ".state")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ.get("TMPDIR") != str(folder)
    ended.wait()
    assert not (checkout / ".state").exists()


def test_the_folder_of_another_run_stays(checkout: Path) -> None:
    other = checkout / f".state/tmp/{os.getppid()}"
    other.mkdir(parents=True)
    with cli.session("dev"):
        assert other.exists()
    assert other.exists()


@pytest.mark.parametrize(
    "logins",
    [
        {"credsStore": "desktop"},
        {"credHelpers": {"172.30.97.2:5000": "desktop"}},
        {"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpodXNo"}}},
        {},
    ],
)
def test_the_users_docker_logins_are_neither_asked_nor_changed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, logins: dict[str, Any]
) -> None:
    """As Docker's library looks a login up: the config's store, else one of the platform that is installed."""
    users = checkout / "docker"
    (users / "contexts").mkdir(parents=True)
    config = users / "config.json"
    config.write_text(before := json.dumps({**logins, "currentContext": "mine", "proxies": {"default": {}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(users))
    with cli.session("dev"):
        mine = Path(os.environ["DOCKER_CONFIG"])
        assert mine.is_relative_to(os.environ["TMPDIR"]), "gone with the session"
        assert mine.stat().st_mode & 0o077 == 0
        read = json.loads((mine / "config.json").read_text())
        assert (read.pop("currentContext"), read.pop("proxies")) == ("mine", {"default": {}})
        helper = shutil.which(f"docker-credential-{read.pop('credsStore')}")
        assert read == {}, "no login"
        assert helper
        assert subprocess.run([helper, "list"], capture_output=True, text=True, check=True).stdout == "{}\n"
        none = subprocess.run([helper, "get"], input="172.30.97.2:5000", capture_output=True, text=True)
        assert (none.returncode, none.stdout) == (1, "credentials not found in native keychain\n")
        assert (mine / "contexts").resolve() == (users / "contexts").resolve()
    assert config.read_text() == before
    assert (users / "contexts").is_dir()
    assert os.environ["DOCKER_CONFIG"] == str(users)


def test_a_docker_config_that_cannot_be_read_is_left_to_dockers_client(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "config.json").write_text("{")
    monkeypatch.setenv("DOCKER_CONFIG", str(checkout))
    with cli.session("dev"):
        assert os.environ["DOCKER_CONFIG"] == str(checkout)


DEV = {"spdk-k8s:configVersion": "1", "spdk-k8s:machines": {"kind": "containers", "subnet": "172.30.60.0/24"}}


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "http_proxy"])
def test_the_stacks_own_addresses_are_never_asked_through_a_proxy(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (checkout / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"config": DEV}))
    monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "intranet, .corp")
    monkeypatch.setenv("no_proxy", "intranet,other")
    with cli.session("dev"):
        shown = subprocess.run(["printenv", "NO_PROXY", "no_proxy"], capture_output=True, text=True, check=True).stdout
        for spelt in (name.upper(), name.lower()):
            assert os.environ[spelt] == "http://proxy:3128", "downloads need it, whichever case a program reads"
    for line in shown.splitlines():
        entries = line.split(",")
        assert entries[:3] == ["intranet", ".corp", "other"]
        for own in ("127.0.0.1", "172.30.60.0/24", "172.30.60.2", "172.30.60.4", "10.244.0.0/16", "10.96.0.0/16"):
            assert entries.count(own) == 1, own
    assert os.environ["NO_PROXY"] == "intranet, .corp"


def test_without_a_proxy_nothing_is_set(checkout: Path) -> None:
    assert cli.without_proxy(checkout / "Pulumi.dev.yaml") == {}


def test_servers_with_encrypted_keys_are_known_and_a_bad_config_is_for_the_program_to_refuse(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    lab = yaml.safe_load((Path(__file__).parents[2] / "Pulumi.lab.yaml").read_text())
    lab["config"]["spdk-k8s:machines"]["master"]["privateKey"] = {"secure": "v1:x"}
    file = checkout / "Pulumi.lab.yaml"
    file.write_text(yaml.safe_dump(lab))
    assert {"192.0.2.11", "192.0.2.13", "192.0.2.0/24"} <= set(cli.own_networks(file))
    good = file.read_text()
    for bad in ("config: {spdk-k8s:numinst: '0'}", "[", "- a", "config: 3"):
        file.write_text(bad)
        assert cli.own_networks(file) == ["localhost", "127.0.0.1", "::1"]
    file.write_text(good)
    monkeypatch.setitem(sys.modules, "yaml", None)  # `make down` without .venv
    assert cli.own_networks(file) == ["localhost", "127.0.0.1", "::1"]


def test_settings_for_one_run_leave_the_config_file_as_it_is(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack("dev")
    assert cli.set_for_this_run(stack) == []
    before = "# mine\nencryptionsalt: v1:x\nconfig:\n  tiny:numinst: '3'\n  tiny:vhost: {diskMib: 64}\n"
    stack.config.write_text(before)
    monkeypatch.setenv("VHOST_BACKEND", "spdk")
    monkeypatch.setenv("SPDK_SOURCE", "../spdk")
    assert cli.set_for_this_run(stack) == ["--config-file", str(checkout / ".state/dev.yaml")]
    vhost = {"diskMib": 64, "backend": "spdk", "source": str(Path("../spdk").resolve())}
    config = {"tiny:numinst": "3", "tiny:vhost": vhost}
    assert yaml.safe_load((checkout / ".state/dev.yaml").read_text()) == {"encryptionsalt": "v1:x", "config": config}
    assert stack.config.read_text() == before


def test_selecting_changes_what_plain_commands_mean(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pulumi(checkout, monkeypatch, ":")
    assert Stack("dev").select().wait() == 0
    assert log.read_text() == "stack select dev\n"


def test_a_home_that_is_not_there_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/not/there")
    with pytest.raises(SystemExit, match="HOME=/not/there is no folder; remedy: set HOME to one that is there"):
        cli.main(lambda: 0)


def test_ctrl_c_is_no_traceback() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    for run, code in ((interrupted, 130), (lambda: 3, 3)):
        with pytest.raises(SystemExit) as ended:
            cli.main(run)
        assert ended.value.code == code


def test_sigterm_empties_the_temporary_folder(checkout: Path) -> None:
    with pytest.raises(SystemExit) as ended, cli.session("dev"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not (checkout / ".state").exists()


def test_the_programs_start_without_third_party_modules() -> None:
    """`make down` also runs where .venv was deleted: with the system's Python."""
    without = "import sys; sys.modules['yaml'] = sys.modules['pydantic'] = sys.modules['kubernetes'] = None"
    subprocess.run([sys.executable, "-c", f"{without}\nimport operate.down"], cwd=Path(__file__).parents[2], check=True)


def test_so_many_instances_for_a_preview_are_in_a_copy_of_the_config(checkout: Path) -> None:
    (checkout / "Pulumi.dev.yaml").write_text("config:\n  tiny:numinst: '3'\n  tiny:vm: {vcpus: 2}\n")
    assert cli.set_for_this_run(Stack("dev"), "5") == ["--config-file", str(cli.STATE / "dev.yaml")]
    copy = yaml.safe_load((cli.STATE / "dev.yaml").read_text())
    assert copy == {"config": {"tiny:numinst": "5", "tiny:vm": {"vcpus": 2}}}
    assert "'3'" in (checkout / "Pulumi.dev.yaml").read_text()
    assert cli.set_for_this_run(Stack("dev")) == []


def test_settings_of_a_config_file_leave_out_its_secrets(checkout: Path) -> None:
    config = checkout / "Pulumi.dev.yaml"
    config.write_text("config:\n  spdk-k8s:numinst: '5'\n  spdk-k8s:vm:\n    vcpus: 3\n")
    found = cli.settings_of(config)
    assert found is not None
    assert (found.numinst, found.vm.vcpus) == (5, 3)
    config.write_text("config:\n  spdk-k8s:numinst: none\n")
    assert cli.settings_of(config) is None
    assert cli.settings_of(checkout / "Pulumi.other.yaml") is None


def test_an_export_runs_beside_other_work(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulumi(
        checkout, monkeypatch, f"""while [ ! -e "{checkout}/go" ]; do sleep 0.01; done; echo '{{"deployment": {{}}}}'"""
    )
    result = Stack("dev").exporting()
    (checkout / "go").touch()
    assert result() == {"deployment": {}}
