"""The Pulumi CLI as a user has it, on a stack of the tests' own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def heed_interrupts() -> None:
    """Handle SIGINT again, which a shell makes its background jobs ignore.

    The CLI ends its program with SIGINT; if the program inherits that it is ignored, each command takes 5 s longer.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def show(line: str) -> str:
    """Print a line of the CLI's output to the terminal, past pytest's capture, if it reports a completed step."""
    if re.search(r" (created|updated|replaced|deleted|failed\*\*)( \(\d.*| error.*)?$", line):
        print(time.strftime("%H:%M:%S"), line.rstrip()[:150], file=sys.__stderr__, flush=True)
    return line


def free_subnet(first: int = 95) -> str:
    """A /24 that nothing on this machine uses, according to scripts/preflight_local.sh."""
    for i in range(first, 255):
        subnet = f"172.30.{i}.0/24"
        if (
            subprocess.run(
                [ROOT / "scripts/preflight_local.sh", subnet, "spdk-k8s-tests", "0"], capture_output=True
            ).returncode
            == 0
        ):
            return subnet
    raise OSError("no 172.30.x.0/24 is free on this machine")


@dataclass(frozen=True)
class Stack:
    """A stack of the tests, with a state folder and a config file of its own. It does not touch a user's stack."""

    name: str
    state: Path

    @property
    def config_file(self) -> Path:
        return ROOT / f"Pulumi.{self.name}.yaml"

    @property
    def environment(self) -> dict[str, str]:
        self.state.mkdir(parents=True, exist_ok=True)
        return {
            **os.environ,
            "PULUMI_BACKEND_URL": f"file://{self.state}",
            "PULUMI_CONFIG_PASSPHRASE": "a test's",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }

    def start(self, *args: str) -> subprocess.Popen[str]:
        chosen = [] if args[0] == "stack" else ["--stack", self.name]
        command = ["pulumi", "--non-interactive", "--color", "never", *chosen, *args]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a test can interrupt the CLI alone
        )

    def try_run(self, *args: str, timeout: float = 900) -> tuple[int, str]:
        """Run the CLI. Returns exit code and output, and shows completed steps while it runs. timeout: seconds."""
        process = self.start(*args)
        killer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        try:
            printed = [show(line) for line in process.stdout or ()]
            code = process.wait()
        except KeyboardInterrupt:  # let the CLI end its steps, so that a destroy can follow
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        finally:
            killer.cancel()
        assert code != -signal.SIGKILL, f"pulumi {' '.join(args)} took over {timeout} s:\n{''.join(printed)[-3000:]}"
        return code, "".join(printed)

    def run(self, *args: str, timeout: float = 900) -> str:
        code, output = self.try_run(*args, timeout=timeout)
        assert code == 0, f"pulumi {' '.join(args)}:\n{output[-6000:]}"
        return output

    def init(self, **config: str) -> None:
        self.config_file.unlink(missing_ok=True)
        self.run("stack", "init", self.name)
        pairs = [arg for key, value in config.items() for arg in ("--plaintext", f"{key}={value}")]
        self.run("config", "set-all", "--path", *pairs)

    def set_secret(self, key: str, value: str) -> None:
        """Set a secret as a user does: on stdin, not on the command line."""
        subprocess.run(
            ["pulumi", "--non-interactive", "config", "set", "--secret", "--path", key, "--stack", self.name],
            cwd=ROOT, env=self.environment, input=value, capture_output=True, text=True, check=True,
        )  # fmt: skip

    def outputs(self) -> dict[str, Any]:
        process = subprocess.run(
            ["pulumi", "stack", "output", "--json", "--show-secrets", "--stack", self.name],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        made: dict[str, Any] = json.loads(process.stdout)
        return made

    def remove(self) -> None:
        self.run("stack", "rm", "--yes", "--force", self.name)
        self.config_file.unlink(missing_ok=True)
