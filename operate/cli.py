"""The Pulumi CLI as `make up`, `down` and `preview` call it: its environment, its commands, a stack's exported state.

Only the standard library is imported at the top: `make down` also runs where .venv was deleted.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, cast

from operate import docker_config
from settings import proxy

if TYPE_CHECKING:
    from settings.models import Settings

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".state"
NAMESPACE = "spdk-k8s"  # of the config's keys
POLICY_PACK = "policy/__main__.py"
SPECIAL = "4dabf18193072939515e22adb298388d"  # the engine's mark of a secret in a state
PLAIN = ("--non-interactive", "--color", "never")  # options of a command whose output is read here
NO_PULUMI = "the Pulumi CLI is not on PATH; remedy: make setup"

Exported = dict[str, Any]  # what `pulumi stack export` prints


def plain(value: Any) -> Any:
    """`value` of an exported state without the engine's marks of secrets."""
    if isinstance(value, list):
        return [plain(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    mapping = cast(dict[str, Any], value)
    if SPECIAL in mapping and "plaintext" in mapping:
        return json.loads(mapping["plaintext"])
    return {key: plain(item) for key, item in mapping.items()}


def is_of(step: str, nodes: Collection[str]) -> bool:
    """Whether a step, by its name such as cluster-worker3-join, is one of these nodes'."""
    return any(part in nodes for part in step.split("-"))


def resources(exported: Exported) -> list[dict[str, Any]]:
    return exported["deployment"].get("resources") or []


def outputs(exported: Exported) -> dict[str, Any]:
    """The stack's outputs, secrets in plain text; empty before the first `up`."""
    for resource in resources(exported):
        if resource["type"] == "pulumi:pulumi:Stack":
            return plain(resource.get("outputs") or {})
    return {}


def explain(said: str) -> str:
    """What the CLI wrote to stderr, with the remedy where it names none that helps here."""
    text = said.strip()
    if "incorrect passphrase" in text:
        own = STATE / "passphrase"
        variable = next(
            (name for name in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE") if os.environ.get(name)), ""
        )
        remedy = "set PULUMI_CONFIG_PASSPHRASE to the passphrase that the stack was made with"
        if os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE") == str(own):
            variable = str(own)
        elif own.exists():
            remedy = f"unset {variable} if the stack was made with {own}; otherwise {remedy}"
        text += (
            f"\n{variable} holds another passphrase than the one that this stack was made with; nothing was changed"
            f"\nremedy: {remedy}; with that one set, it is changed by: pulumi stack change-secrets-provider passphrase"
        )
    if "currently locked" in text:
        text += (
            "\nanother run works on this stack"
            "\nremedy: wait until it ends, or end it with Ctrl-C; if it is known to be dead: pulumi cancel"
        )
    return text


@dataclass(frozen=True)
class Stack:
    """One stack of this checkout, through the CLI."""

    name: str

    @property
    def config(self) -> Path:
        return ROOT / f"Pulumi.{self.name}.yaml"

    def ask(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = ["pulumi", *PLAIN, *arguments]
        try:
            return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
        except FileNotFoundError:
            raise SystemExit(NO_PULUMI) from None

    def run(self, *arguments: str, text: str = "") -> str:
        """The command's stdout; a failure ends this program with the CLI's words and a remedy."""
        done = self.ask(*arguments, text=text)
        if done.returncode:
            raise SystemExit(explain(done.stderr or done.stdout))
        return done.stdout

    def exporting(self) -> Callable[[], Exported | None]:
        """Begin to export the state; what this returns waits for it."""
        command = ["pulumi", *PLAIN, "stack", "export", "--stack", self.name, "--show-secrets"]
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError:
            raise SystemExit(NO_PULUMI) from None

        def result() -> Exported | None:
            out, errors = process.communicate()
            if process.returncode and "no stack named" in errors:
                return None
            if process.returncode:
                raise SystemExit(explain(errors or out))
            exported: Exported = json.loads(out)
            return exported

        return result

    def export(self) -> Exported | None:
        """The state with its secrets in plain text, which no file ever gets; None where there is no such stack."""
        return self.exporting()()

    def init(self) -> Exported:
        """Make the stack; its state."""
        self.drop_salt()  # the salt of an earlier state would not fit the new stack's passphrase
        self.run("stack", "init", self.name)
        return {"version": 3, "deployment": {}}

    def open(self) -> Exported:
        """The state; a stack that is not there is made."""
        exported = self.export()
        return self.init() if exported is None else exported

    def select(self) -> subprocess.Popen[bytes]:
        """Make it the one that plain commands without --stack mean. Nobody need wait for it before the end."""
        command = ["pulumi", "stack", "select", self.name]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def put(self, exported: Exported) -> None:
        """Replace the state; the CLI encrypts the secrets again."""
        self.run("stack", "import", "--stack", self.name, text=json.dumps(exported))

    def drop_salt(self) -> None:
        """Take the passphrase's salt out of the stack's config file, where no encrypted value needs it."""
        if self.config.exists() and "secure:" not in (text := self.config.read_text()):
            without = re.sub(r"^encryptionsalt:.*\n?", "", text, flags=re.MULTILINE)
            if without != text:
                self.config.write_text(without)

    def watch(self, *arguments: str, each_line: Callable[[str], None] | None, beat: Callable[[], None]) -> int:
        """Run a command that takes minutes; its exit code.

        each_line: gets each line of the command's stdout; None: its stdout is the terminal. beat: called about once a
        second. What the command writes to stderr is passed on, and a remedy is added. Ctrl-C reaches the CLI, which
        ends its steps; this program waits for it and then raises KeyboardInterrupt.
        """
        command = ["pulumi", *arguments]
        with _interrupts_reach_only_the_child() as interrupted:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL if each_line else None,
                    stdout=subprocess.PIPE if each_line else None,
                    stderr=subprocess.PIPE,
                )
            except FileNotFoundError:
                raise SystemExit(NO_PULUMI) from None
            interrupted.child = process
            said: list[str] = []

            def pass_on(line: str) -> None:
                said.append(line)
                print(line, end="", file=sys.stderr, flush=True)

            _read(process, each_line, pass_on, beat)
            code = process.wait()
        if interrupted.by:
            raise KeyboardInterrupt
        whole = "".join(said).strip()
        if code and (explained := explain(whole)) != whole:
            print(explained.removeprefix(whole).strip(), file=sys.stderr)
        return code


def _read(
    process: subprocess.Popen[bytes],
    each_line: Callable[[str], None] | None,
    each_error: Callable[[str], None],
    beat: Callable[[], None],
) -> None:
    """Give out the process's lines until it has ended and its pipes are empty."""
    readers: list[tuple[IO[bytes] | None, Callable[[str], None] | None]] = [
        (process.stdout, each_line),
        (process.stderr, each_error),
    ]
    rest: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for pipe, use in readers:
            if pipe and use:
                selector.register(pipe, selectors.EVENT_READ, use)
        while selector.get_map():
            ended = process.poll() is not None  # a program that the CLI left behind may hold the pipe open
            ready = selector.select(0 if ended else 1)
            if ended and not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                *lines, left = (rest.get(key.fd, b"") + chunk).splitlines(keepends=True) or [b""]
                if left.endswith(b"\n") or not chunk:
                    lines, left = [*lines, left], b""
                rest[key.fd] = left
                for line in lines:
                    if line:
                        key.data(line.decode(errors="replace"))
                if not chunk:
                    selector.unregister(key.fileobj)
            beat()
    for pipe, _ in readers:
        if pipe:
            pipe.close()


@dataclass
class _Interrupted:
    child: subprocess.Popen[bytes] | None = None
    by: int = 0


@contextmanager
def _interrupts_reach_only_the_child() -> Generator[_Interrupted]:
    """A terminal sends Ctrl-C to the CLI too, which then ends its steps in order; SIGTERM is passed on as Ctrl-C."""
    seen = _Interrupted()

    def noted(number: int, _: FrameType | None) -> None:
        seen.by = number
        if number == signal.SIGTERM and seen.child:
            seen.child.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def session(stack: str) -> Generator[Stack]:
    """The environment in which the CLI, its plugins and this program talk to the stack; put back at the end."""
    before, terminated = dict(os.environ), signal.signal(signal.SIGTERM, _exit)
    try:
        os.environ.update(without_proxy(ROOT / f"Pulumi.{stack}.yaml"))
        with temporary_folder() as folder:
            os.environ["TMPDIR"] = str(folder)
            os.environ.update(docker_config.without_logins(os.environ, folder))
            yield Stack(stack)
    finally:
        signal.signal(signal.SIGTERM, terminated)
        os.environ.clear()
        os.environ.update(before)


def program(pid: int) -> str:
    """The name of the program that runs as process `pid`; empty where none does, or it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    ended = re.search(r"^State:\s+[ZX]", status, re.MULTILINE)  # nobody has asked for its exit code yet
    return "" if ended else status.partition("\n")[0].partition("\t")[2]


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def temporary_folder() -> Generator[Path]:
    """A folder of this run's own for the CLI's children: a plugin leaves an admin's kubeconfig where TMPDIR is."""
    all_runs = STATE / "tmp"
    all_runs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in all_runs.iterdir():  # by a run that was killed
        if not program(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    mine = all_runs / str(os.getpid())  # a short name: the path of a Unix socket has 108 characters at most
    mine.mkdir(mode=0o700, exist_ok=True)
    try:
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)
        with suppress(OSError):  # another run's folder is there, or the state
            all_runs.rmdir()
            STATE.rmdir()


def without_proxy(config: Path) -> dict[str, str]:
    """Variables that keep the stack with this config file from being asked through a proxy; empty where none is set."""
    own = own_networks(config) if proxy.named(os.environ) else []
    return proxy.for_children(os.environ, own)


def own_networks(config: Path) -> list[str]:
    """This machine, and every address and network of the stack; of a config that the program will refuse, none."""
    here = ["localhost", "127.0.0.1", "::1"]
    settings = settings_of(config)  # only where a proxy is set: to import the models costs half a second
    if settings is None:
        return here
    machines = settings.machines
    networks = [
        machines.subnet if machines.kind == "containers" else machines.network,
        settings.cluster.pod_cidr,
        settings.cluster.service_cidr,
    ]
    return [*here, *map(str, machines.addresses.values()), *map(str, networks)]


def settings_of(config: Path) -> Settings | None:
    """Of a stack's config file, without its secrets; None where the program will refuse it."""
    try:
        import yaml

        from settings.load import ConfigError, load
    except ImportError:  # `make down` without .venv
        return None
    try:
        read = yaml.safe_load(config.read_text()).get("config", {})
        text = {key: v if isinstance(v, str) else json.dumps(_without_secrets(v)) for key, v in read.items()}
        return load(text, preview=True)
    except (OSError, AttributeError, yaml.YAMLError, ConfigError):
        return None


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        mapping = cast(dict[str, Any], value)
        return {key: _without_secrets(item) for key, item in mapping.items() if not _is_encrypted(item)}
    return value


def _is_encrypted(value: Any) -> bool:
    return isinstance(value, dict) and list(cast(dict[str, Any], value)) == ["secure"]


def set_for_this_run(stack: Stack, numinst: str = "") -> list[str]:
    """Options of the CLI for VHOST_BACKEND and SPDK_SOURCE: a copy of the config file that has them.

    numinst: so many instances, in the copy; empty: those of the config file.
    """
    backend, source = os.environ.get("VHOST_BACKEND"), os.environ.get("SPDK_SOURCE")
    if not (backend or source or numinst):
        return []
    import yaml

    read: dict[str, Any] = (yaml.safe_load(stack.config.read_text()) if stack.config.exists() else None) or {}
    config: dict[str, Any] = read.setdefault("config", {})
    if numinst:
        config[f"{project()}:numinst"] = numinst
    vhost: dict[str, Any] = config.setdefault(f"{project()}:vhost", {}) if backend or source else {}
    if backend:
        vhost["backend"] = backend
    if source:
        vhost["source"] = str(Path(source).resolve())
    copy = STATE / f"{stack.name}.yaml"
    copy.parent.mkdir(exist_ok=True)  # a backend of the user's own keeps nothing there
    copy.write_text(yaml.safe_dump(read, sort_keys=False))
    return ["--config-file", str(copy)]


def project() -> str:
    found = re.search(r"^name: *(\S+)", (ROOT / "Pulumi.yaml").read_text(), re.MULTILINE)
    return found[1] if found else NAMESPACE


def main(run: Callable[[], int]) -> None:
    """Exit with what `run` returns; Ctrl-C is no traceback."""
    if (home := os.environ.get("HOME")) and not Path(home).is_dir():
        sys.exit(f"HOME={home} is no folder; remedy: set HOME to one that is there")
    try:
        sys.exit(run())
    except KeyboardInterrupt:
        sys.exit(130)
