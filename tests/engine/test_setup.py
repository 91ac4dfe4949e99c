"""The set-up against a mirror on loopback that has the layout of the released one."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socketserver
import subprocess
import tarfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from settings.models import Vm
from settings.pins import PINS

ROOT = Path(__file__).parents[2]
PULUMI = f"pulumi-v{PINS['PULUMI']}-linux-x64.tar.gz"

pytestmark = pytest.mark.engine


class Tree:
    """A checkout of the set-up whose offline builder only says that it was asked, with a mirror and a cache."""

    def __init__(self, folder: Path) -> None:
        self.root, self.mirror, self.cache = folder / "tree", folder / "mirror", folder / "cache"
        shutil.copytree(ROOT / "setup", self.root / "setup")
        for name in ("versions.env", "pyproject.toml", "uv.lock", "Makefile"):
            shutil.copy(ROOT / name, self.root)
        for name in ("coredns", "kube-proxy", "pause", "plugins"):
            (self.root / "offline" / name).mkdir(parents=True)
        for name in ("go.mod", "go.sum"):
            shutil.copy(ROOT / "offline" / name, self.root / "offline")
        self.program(self.root / "offline/build", 'mkdir -p "$2" && install -m 0755 "$0" "$2/$1" && echo "built $1"')
        self.mirror.mkdir()
        self.cache.mkdir()
        self.url = ""

    @staticmethod
    def program(path: Path, body: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\nset -eu\n{body}\n")
        path.chmod(0o755)
        return path

    def archive(self, name: str, members: dict[str, Path]) -> str:
        """Serve a .tar.gz and return its SHA-256."""
        path = self.mirror / name
        with tarfile.open(path, "w:gz") as tar:
            for member, source in members.items():
                tar.add(source, member)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def bash(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        parts = "lib machine packages python pulumi images"
        head = f"set -euo pipefail; cd '{self.root}'; for p in {parts}; do . setup/$p.sh; done; exec 3>&1\n"
        return subprocess.run(
            ["bash", "-c", head + script],
            env=os.environ | {"SPDK_K8S_CACHE": str(self.cache), "SPDK_K8S_OFFLINE": ""} | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tree.mirror)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tree.url = f"http://127.0.0.1:{server.server_port}"
        yield tree
        server.shutdown()


def serve_pulumi(tree: Tree, *, damaged: bool = False) -> None:
    cli = tree.program(tree.root.parent / "pulumi", f"echo v{PINS['PULUMI']}")
    digest = tree.archive(PULUMI, {"pulumi/pulumi": cli})
    (tree.mirror / f"pulumi-{PINS['PULUMI']}-checksums.txt").write_text(
        f"{'0' * 64 if damaged else digest}  {PULUMI}\n"
    )


def test_released_cli_is_preferred_and_kept(tree: Tree) -> None:
    serve_pulumi(tree)
    first = tree.bash("pulumi_cli", SPDK_K8S_PULUMI_URL=tree.url)
    assert f"v{PINS['PULUMI']}, released" in first.stdout, first.stderr
    shutil.rmtree(tree.mirror)
    second = tree.bash("pulumi_cli", SPDK_K8S_PULUMI_URL=tree.url)
    assert f"v{PINS['PULUMI']}, released" in second.stdout, second.stderr


@pytest.mark.parametrize("why", ["damaged", "unreachable", "told so"])
def test_cli_is_built_where_no_good_release_can_be_had(tree: Tree, why: str) -> None:
    serve_pulumi(tree, damaged=why == "damaged")
    url = "http://127.0.0.1:9" if why == "unreachable" else tree.url
    done = tree.bash(
        "go_ready() { :; }; pulumi_cli", SPDK_K8S_PULUMI_URL=url, SPDK_K8S_OFFLINE="1" if why == "told so" else ""
    )
    assert "built pulumi\n" in done.stdout, done.stderr
    assert "built from its Go module" in done.stdout
    assert not list(tree.cache.glob("tmp.*")), "a half download is left"


def test_released_kubernetes(tree: Tree) -> None:
    folder = tree.mirror / f"v{PINS['KUBERNETES']}/bin/linux/amd64"
    for name in ("kubeadm", "kubectl", "kubelet"):
        program = tree.program(folder / name, f"echo {name}")
        (folder / f"{name}.sha256").write_text(hashlib.sha256(program.read_bytes()).hexdigest())
    version = f"v{PINS['CNI_PLUGINS']}"
    (tree.mirror / version).mkdir()
    archive = f"cni-plugins-linux-amd64-{version}.tgz"
    plugins = ["bridge", "host-local", "loopback", "portmap"]
    plugin = tree.program(tree.root.parent / "plugin", ":")
    digest = tree.archive(f"{version}/{archive}", {f"./{name}": plugin for name in plugins})
    (tree.mirror / version / f"{archive}.sha256").write_text(f"{digest}  {archive}\n")

    # an engine that can reach every registry
    docker = """case $1 in
        pull) echo "$2" >>"$SPDK_K8S_CACHE/pulled" ;;
        import) tar -t | sort >"$SPDK_K8S_CACHE/tree" ;;
        *) false ;;
    esac"""
    tools = tree.program(tree.root.parent / "bin/docker", docker).parent
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SPDK_K8S_KUBERNETES_URL": tree.url,
        "SPDK_K8S_CNI_URL": tree.url,
    }
    done = tree.bash("kubernetes", **environment)
    assert f"v{PINS['KUBERNETES']}, released" in done.stdout, done.stderr
    pulled = (tree.cache / "pulled").read_text().split()
    assert f"registry.k8s.io/kube-proxy:v{PINS['KUBERNETES']}" in pulled
    assert f"registry.k8s.io/coredns/coredns:v{PINS['COREDNS']}" in pulled
    assert len(pulled) == 7
    binaries = [line for line in (tree.cache / "tree").read_text().split() if not line.endswith("/")]
    assert binaries == [
        *(f"./opt/cni/bin/{name}" for name in plugins),
        *(f"./usr/local/bin/{name}" for name in ("kubeadm", "kubectl", "kubelet")),
    ]

    shutil.rmtree(tree.cache / f"kubernetes-{PINS['KUBERNETES']}")
    (folder / "kubelet").write_text("something else")
    done = tree.bash("kubernetes_released", **environment)
    assert done.returncode != 0
    assert not list(tree.cache.glob("kubernetes-*"))


def real_cli(tree: Tree) -> None:
    cli = Path(shutil.which("pulumi") or pytest.fail("no pulumi on PATH; remedy: make test, or eval $(make env)"))
    kept = tree.cache / f"pulumi-{PINS['PULUMI']}"
    kept.mkdir(exist_ok=True)
    (kept / "bin").symlink_to(cli.parent)
    (kept / "source").write_text("released")


def test_released_provider(tree: Tree) -> None:
    """With the real CLI: it fetches a provider from the mirror."""
    real_cli(tree)
    plugin = tree.program(tree.root.parent / "plugin", ":")
    tree.archive("pulumi-resource-command-v1.2.1-linux-amd64.tar.gz", {"pulumi-resource-command": plugin})
    environment = {"SPDK_K8S_PLUGINS_URL": tree.url, "HOME": str(tree.root)}
    done = tree.bash("pulumi_cli; provider_released command 1.2.1", **environment)
    assert done.returncode == 0, done.stderr
    assert (tree.cache / "pulumi-home/plugins/resource-command-v1.2.1/pulumi-resource-command").exists()
    assert not (tree.root / ".pulumi").exists(), "the user's own home of the CLI"


def test_offline_providers_are_installed_where_the_cli_looks(tree: Tree) -> None:
    """Once for each content of offline/plugins, though its version stays; never in place of a released one."""
    real_cli(tree)
    names = " ".join(f"pulumi-resource-{name}" for name in ("docker", "command", "kubernetes"))
    build = f"""mkdir -p "$2"; echo "built $1"
        for name in {names}; do printf '#!/bin/sh\n# %s\n' "$(cat plugins/*)" >"$2/$name"; done; chmod 0755 "$2"/*"""
    tree.program(tree.root / "offline/build", f'cd "$(dirname "$0")"\n{build}')
    source = tree.root / "offline/plugins/main.go"
    source.write_text("first")
    mine = tree.program(tree.root.parent / "bin/pulumi-resource-kubernetes", ":")
    environment = {
        "SPDK_K8S_OFFLINE": "1",
        "HOME": str(tree.root),
        "PATH": f"{mine.parent}:{os.environ['PATH']}",
    }
    providers = "go_ready() { :; }; pulumi_providers"
    plugins = tree.cache / "pulumi-home/plugins"
    installed = plugins / "resource-docker-v5.1.0/pulumi-resource-docker"

    done = tree.bash(providers, **environment)
    assert "built plugins\n" in done.stdout, done.stderr
    assert "# first" in installed.read_text()
    assert os.access(installed, os.X_OK)
    assert f"kubernetes: {mine}" in done.stdout
    assert not list(plugins.glob("resource-kubernetes-*")), "the user's own comes first"

    again = tree.bash(providers, **environment, SPDK_K8S_PLUGINS_URL="http://127.0.0.1:9")
    assert "docker 5.1.0: offline/plugins" in again.stdout, again.stderr
    assert "built" not in again.stdout

    source.write_text("second")
    done = tree.bash(providers, **environment)
    assert "# second" in installed.read_text(), done.stderr

    (installed.parent / "offline").unlink()  # as the CLI installs a released one
    source.write_text("third")
    done = tree.bash(providers, **environment)
    assert "docker 5.1.0: released" in done.stdout, done.stderr
    assert "# second" in installed.read_text()


def test_python_is_synchronised_when_its_lock_changed(tree: Tree) -> None:
    uv = """echo "uv $1" >>"$SPDK_K8S_CACHE/asked"; touch "$TMPDIR/uv.lock"
        mkdir -p .venv/bin; ln -sf "$(command -v python3)" .venv/bin/python"""
    tree.program(tree.cache / f"uv-{PINS['UV']}/bin/uv", uv)
    bare = "/usr/local/bin:/usr/bin:/bin"
    python = "has() { [ $1 != uv ]; }; python_environment"

    def syncs() -> int:
        done = tree.bash(python, PATH=bare)
        assert "packages of uv.lock" in done.stdout, done.stderr
        assert not list(tree.cache.glob("tmp.*")), "nor anything in /tmp"
        return (tree.cache / "asked").read_text().count("uv sync")

    assert syncs() == 1
    assert syncs() == 1
    with (tree.root / "uv.lock").open("a") as lock:
        lock.write("# changed\n")
    assert syncs() == 2
    (tree.root / ".venv/bin/python").unlink()  # the distribution's Python was replaced
    assert syncs() == 3
    shutil.copytree(tree.root, moved := tree.root.parent / "moved", symlinks=True)
    tree.root = moved
    assert syncs() == 4


class BuildKit(http.server.BaseHTTPRequestHandler):
    """An engine that builds everything but images/video."""

    asked: ClassVar[dict[str, tuple[dict[str, list[str]], list[str]]]] = {}

    def do_POST(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(self.rfile.read(int(self.headers["Content-Length"])))) as context:
            files = context.getnames()
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        folder = next(name for name in ("node", "vhost", "video", "media", "monitoring") if f"./{name}" in files)
        self.asked[f"{folder} {query.get('target', [''])[0]}"] = query, [url.path, *files]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"stream": "Step 1"}\n')
        if folder == "video":
            self.wfile.write(b'{"errorDetail": {"message": "no nginx"}, "error": "no nginx"}\n')

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_images_are_built_ahead(tree: Tree, tmp_path: Path) -> None:
    """As the program will build them; one that fails is left to it."""
    for name in ("node", "vhost", "video", "media", "monitoring"):
        (tree.root / "images" / name).mkdir(parents=True)
        (tree.root / "images" / name / name).touch()
    program_of(tree)
    tools = tree.program(tmp_path / "bin/docker", f"echo unix://{tmp_path}/engine.sock").parent
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "engine.sock"), BuildKit) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = {
            "HTTP_PROXY": "http://user:hu'sh@127.0.0.1:9",
            "DOCKER_CONFIG": str(tmp_path),
            "NO_PROXY": "",
            "no_proxy": "",
        }
        done = tree.bash('mkdir -p "$CACHE/logs"; images_ahead', PATH=f"{tools}:{os.environ['PATH']}", **proxy)
        server.shutdown()
    assert "built ahead, but for video/: left to pulumi up" in done.stdout, done.stderr
    assert set(BuildKit.asked) == {
        *("node machine", "node guest", "vhost qemu-storage-daemon", "video ", "media "),
        *("monitoring node-exporter", "monitoring prometheus"),
    }
    for query, (path, *_) in BuildKit.asked.values():
        assert path == "/build"
        assert query["version"] == ["2"]
        assert query["platform"] == ["linux/amd64"]
        built = json.loads(query["buildargs"][0])
        here = {"HTTP_PROXY": proxy["HTTP_PROXY"], "http_proxy": proxy["HTTP_PROXY"]}
        assert built == here | {"BASE": f"debian:{PINS['DEBIAN']}-slim", "COUNT": str(Vm().disk_slots)}


DOCKER = """echo "$1" >>"$SPDK_K8S_CACHE/asked"
case $1 in info) echo "$ENGINE_IS" ;; run) exit "$REFUSED" ;; esac"""


def test_privileged_is_tried_once_for_each_engine(tree: Tree) -> None:
    tools = tree.program(tree.root.parent / "bin/docker", DOCKER).parent

    def tried(engine: str, refused: int = 0) -> tuple[int, int, str]:
        done = tree.bash("privileged", ENGINE_IS=engine, REFUSED=str(refused), PATH=f"{tools}:{os.environ['PATH']}")
        return (tree.cache / "asked").read_text().split().count("run"), done.returncode, done.stderr

    assert tried("A 28 runc []", refused=1)[:2] == (1, 1)
    assert tried("A 28 runc []")[:2] == (2, 0)
    assert tried("A 28 runc []", refused=1)[:2] == (2, 0)
    assert tried("A 28 bounded []")[:2] == (3, 0), "an engine with another runtime"


def program_of(tree: Tree) -> None:
    """The parts of the program that the set-up asks."""
    for name in ("settings", "operate"):
        shutil.copytree(ROOT / name, tree.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree.root / ".venv").symlink_to(ROOT / ".venv")


PODMAN = {"Platform": {"Name": "linux/amd64/debian-13"}, "Components": [{"Name": "Podman Engine"}]}


def test_an_engine_that_cannot_serve_ends_the_set_up(tree: Tree) -> None:
    """tests/unit/test_engine.py has every kind of it."""
    program_of(tree)
    info = {"KernelVersion": os.uname().release, "SecurityOptions": []}
    answers = """case $1 in info) echo "$INFO" ;; version) echo "$VERSION" ;; context) echo '"unix:///x"' ;; esac"""
    tools = tree.program(tree.root.parent / "bin/docker", answers).parent
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "INFO": json.dumps(info)}
    done = tree.bash("engine_fits", VERSION=json.dumps({"Components": [{"Name": "Engine"}]}), **environment)
    assert done.returncode == 0, done.stderr
    done = tree.bash("engine_fits; echo never", VERSION=json.dumps(PODMAN), **environment)
    assert done.returncode == 1
    assert "talks to Podman" in done.stderr
    assert "Remedy" in done.stderr
    assert "Traceback" not in done.stderr
    assert "never" not in done.stdout


def test_an_engine_that_cannot_be_started_is_named_at_once(tree: Tree) -> None:
    """And nothing is installed or started in its place."""
    if not shutil.which("docker"):
        pytest.skip("needs the Docker client")
    config = tree.root.parent / "docker"
    config.mkdir()
    here = {"DOCKER_CONFIG": str(config), "DOCKER_HOST": ""}
    begun = time.monotonic()
    for command in ("bash setup/engine start", "check_machine"):
        done = tree.bash(command, **here, DOCKER_CONTEXT="nope")
        assert done.returncode == 1
        assert '"nope"' in done.stderr
        assert "unset DOCKER_CONTEXT" in done.stderr
        (config / "config.json").write_text('{"currentContext": "gone"}')
        done = tree.bash(command, **here)
        assert '"gone"' in done.stderr
        assert str(config / "config.json") in done.stderr
        assert "docker context use default" in done.stderr
        (config / "config.json").unlink()
        done = tree.bash(command, **here | {"DOCKER_HOST": "unix:///nowhere"})
        assert "DOCKER_HOST=unix:///nowhere; remedy: start that engine, or unset DOCKER_HOST" in done.stderr
    assert time.monotonic() - begun < 20
    assert not (tree.cache / "engine").exists()


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_every_target_says_that_there_is_no_home(tree: Tree, home: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HOME"} | ({"HOME": home} if home else {})
    for target in ("setup", "up", "preview", "status", "check", "down", "test", "bench", "env"):
        done = subprocess.run(["make", target], cwd=tree.root, env=environment, capture_output=True, text=True)
        assert done.returncode != 0, target
        assert f"HOME is '{home or ''}'" in done.stderr, done.stderr
        assert "remedy: export HOME=" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("tag", [PINS["SPDK_COMMIT"], "0" * 40, "a portal's page", None])
def test_a_preview_knows_whether_spdk_can_be_had(tree: Tree, tag: str | None) -> None:
    """On a clean machine too `make preview` chooses the vhost backend that `make up` will."""
    if tag:
        (tree.mirror / "spdk.git/info").mkdir(parents=True)
        refs = f"{'1' * 40}\trefs/tags/v{PINS['SPDK']}\n{tag}\trefs/tags/v{PINS['SPDK']}^{{}}\n"
        (tree.mirror / "spdk.git/info/refs").write_text(refs)
    mine = ("check_machine", "packages", "python_environment", "engine_fits", "pulumi_cli", "pulumi_providers")
    with (tree.root / "setup/images.sh").open("a") as parts:  # the rest of the set-up is this machine's
        parts.writelines(f"{name}() {{ :; }}\n" for name in mine)
    tree.program(tree.root / "setup/engine", ":")
    url = f"{tree.url}/spdk.git" if tag else "http://127.0.0.1:9"
    done = tree.bash(f"{tree.root}/setup/setup --tools; {tree.root}/setup/env", SPDK_K8S_SPDK_URL=url)
    assert done.returncode == 0, done.stderr
    assert (f"export SPDK_RELEASE={PINS['SPDK']}\n" in done.stdout) == (tag == PINS["SPDK_COMMIT"]), done.stdout


def test_step_shows_the_log_of_what_failed(tree: Tree) -> None:
    done = tree.bash('bad() { echo "no such suite: trixy"; false; }; step "base image" bad; echo never')
    assert done.returncode == 1
    assert "no such suite: trixy" in done.stderr
    assert str(tree.cache / "logs/base-image.log") in done.stderr
    assert "never" not in done.stdout


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_is_named_in_both_spellings_and_survives_sudo(tree: Tree, name: str) -> None:
    """curl and apt-get read http_proxy only, and sudo takes either away."""
    tools = tree.program(tree.root.parent / "bin/sudo", 'echo "sudo $*"; shift 2; exec "$@"').parent
    bare = {f"{proxy}_PROXY" for proxy in ("HTTP", "HTTPS", "ALL", "NO")}
    bare = {other: "" for upper in bare for other in (upper, upper.lower())}
    environment = bare | {name: "http://user:hush@proxy:3128", "PATH": f"{tools}:{os.environ['PATH']}"}
    script = "id() { echo 1000; }; as_root printenv "
    for spelt in (name.upper(), name.lower()):
        done = tree.bash(script + spelt, **environment)
        asked, value = done.stdout.splitlines()
        assert value == "http://user:hush@proxy:3128"
        assert spelt in asked
        assert "--preserve-env=" in asked
        assert "hush" not in asked, "the command line"
    assert "preserve" not in tree.bash(script + "PATH", **environment | {name: ""}).stdout


def test_interrupt_ends_what_a_step_started(tree: Tree) -> None:
    stop = 'until [ -s "$CACHE/pid" ]; do :; done; kill -TERM $$'
    done = tree.bash(f'long() {{ echo $BASHPID >"$CACHE/pid"; sleep 300; }}; ({stop}) & step long long')
    assert done.returncode == 130, done.stderr
    assert not Path(f"/proc/{(tree.cache / 'pid').read_text().strip()}").exists()


def test_steps_beside_each_other(tree: Tree) -> None:
    lanes = "a() { step one sleep 1; step two true; }; b() { step three sleep 0.1; }; beside b a; echo then"
    done = tree.bash(lanes)
    assert [line.split()[1] for line in done.stdout.splitlines()[:-1]] == ["three", "one", "two"], done.stderr
    assert done.stdout.endswith("then\n")


@pytest.mark.parametrize("how", ["a step fails", "interrupt"])
def test_steps_beside_each_other_end_together(tree: Tree, how: str) -> None:
    end = 'until [ -s "$CACHE/pid" ]; do :; done; '
    last = f"{{ {end}false; }}" if how == "a step fails" else f"{{ {end}kill -TERM $$; sleep 300; }}"
    lanes = f"""long() {{ echo $BASHPID >"$CACHE/pid"; sleep 300; }}; last() {last}
        a() {{ step long long; }}; b() {{ step last last; }}; beside a b; echo never"""
    done = tree.bash(lanes)
    assert done.returncode == (1 if how == "a step fails" else 130), done.stderr
    assert "never" not in done.stdout
    assert not Path(f"/proc/{(tree.cache / 'pid').read_text().strip()}").exists()


def test_everything_wrong_with_a_machine_at_once(tree: Tree) -> None:
    tools = tree.root.parent / "bin"
    tree.program(tools / "df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/sda 9 9 3145728"')
    tree.program(tools / "uname", 'echo "Darwin arm64"')
    done = tree.bash("check_machine", PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "Darwin arm64" in done.stderr
    assert "3 GiB free" in done.stderr
    assert "12 GiB are needed" in done.stderr
    assert "SPDK_K8S_CACHE" in done.stderr, "no remedy"


def test_packages_that_may_not_be_installed_are_named(tree: Tree) -> None:
    done = tree.bash('may_root() { false; }; has_venv() { true; }; has() { [ "$1" != jq ]; }; TESTS=; packages')
    assert done.returncode == 1
    assert "sudo apt-get update && sudo apt-get install -y --no-install-recommends jq" in done.stderr


LACKS_JQ = 'may_root() { true; }; as_root() { "$@"; }; has_venv() { true; }; has() { [ "$1" != jq ]; }; TESTS='


def test_an_installation_that_was_interrupted_is_completed(tree: Tree, tmp_path: Path) -> None:
    """By a Ctrl-C in dpkg's turn."""
    tree.program(tmp_path / "bin/dpkg", f"""[ "$*" = "--configure -a" ] && touch {tmp_path}/configured""")
    tree.program(
        tmp_path / "bin/apt-get",
        f"""if [ "$1" = install ] && [ ! -e {tmp_path}/configured ]; then
          echo "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem." >&2
          exit 100
        fi""",
    )
    done = tree.bash(f"{LACKS_JQ}; packages", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert "installed jq" in done.stdout, done.stderr


def test_an_apt_that_runs_already_is_waited_for(tree: Tree, tmp_path: Path) -> None:
    """As unattended upgrades do after a machine's boot."""
    asked = tmp_path / "asked"
    tree.program(
        tmp_path / "bin/apt-get",
        f"""echo "$@" >>{asked}
        if [ "$1" = update ] && [ "$(wc -l <{asked})" -lt 3 ]; then
          echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 6 (apt-get)" >&2
          exit 100
        fi""",
    )
    done = tree.bash(f"{LACKS_JQ}; packages", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert "installed jq" in done.stdout, done.stderr
    assert [line.split()[0] for line in asked.read_text().splitlines()] == ["update", "update", "update", "install"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop capabilities")
@pytest.mark.parametrize("command", ["create", "exec"])
def test_runtime_asks_only_for_what_the_machine_gives(tmp_path: Path, command: str) -> None:
    capabilities = {"bounding": ["CAP_CHOWN", "CAP_SYS_TIME"], "ambient": []}
    file = tmp_path / "config.json"
    process = {"capabilities": capabilities, "args": ["true"]}
    file.write_text(json.dumps({"process": process} if command == "create" else process))
    Tree.program(tmp_path / "runc", 'echo "runc $*"')
    arguments = {"create": ["create", "--bundle", str(tmp_path), "id"], "exec": ["exec", "-p", str(file), "id"]}[
        command
    ]
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_time", ROOT / "setup/runc-bounded", "--root", "/run/x", *arguments],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"runc --root /run/x {' '.join(arguments)}\n"
    found = json.loads(file.read_text())
    found = found.get("process", found)
    assert found == {"capabilities": {"bounding": ["CAP_CHOWN"], "ambient": []}, "args": ["true"]}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces")
def test_engine_is_started_where_none_answers_and_stopped_again(tmp_path: Path) -> None:
    """A machine without an engine: namespaces of its own."""
    script = f"""
        mount --make-rprivate / && mount -t tmpfs none /run && mount -t tmpfs none /var/lib/docker && ip link set lo up
        {ROOT}/setup/engine start
        {ROOT}/setup/engine start
        docker version -f '{{{{.Server.Version}}}}'
        {ROOT}/setup/engine stop
        {ROOT}/setup/engine stop
        ! docker version
    """
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "bash", "-euc", script],
        env={k: v for k, v in os.environ.items() if k != "DOCKER_HOST"} | {"SPDK_K8S_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Docker engine stopped$", done.stdout, re.MULTILINE), done.stdout
    assert not (tmp_path / "engine/pid").exists()


def test_environment_leaves_the_users_own_backend_alone(tree: Tree) -> None:
    done = tree.bash(f"{tree.root}/setup/env", PULUMI_BACKEND_URL="s3://mine")
    assert "PULUMI_BACKEND_URL" not in done.stdout
    assert "PULUMI_HOME" not in done.stdout
    assert not (tree.root / ".state").exists()


KUBECONFIG = "apiVersion: v1\nkind: Config\nusers: [{name: a, user: {token: hush}}]\n"


def test_environment_for_a_shell_has_the_stacks_kubeconfig(tree: Tree) -> None:
    body = f"""[ "$*" = "stack output -s mine --show-secrets kubeconfig" ] && [ -d "$PULUMI_HOME" ] &&
        printf %s '{KUBECONFIG}'"""
    tree.program(tree.cache / f"pulumi-{PINS['PULUMI']}/bin/pulumi", body)
    file = tree.root / ".state/kubeconfig"
    plain = tree.bash("bash setup/env")
    assert "KUBECONFIG" not in plain.stdout
    assert not file.exists()

    done = tree.bash("make --no-print-directory env STACK=mine", KUBECONFIG="/the/users/own", PULUMI_BACKEND_URL="")
    assert f"export KUBECONFIG={file}\n" in done.stdout, done.stderr
    assert file.read_text() == KUBECONFIG
    assert file.stat().st_mode & 0o777 == 0o600
    assert "hush" not in done.stdout

    done = tree.bash("make --no-print-directory env STACK=other")
    assert f"export KUBECONFIG={file}\n" in done.stdout, done.stderr
    assert "hush" not in file.read_text(), "of a stack that is not up"
    assert [path.name for path in file.parent.glob("kubeconfig*")] == ["kubeconfig"]
    if kubectl := shutil.which("kubectl"):
        asked = subprocess.run([kubectl, "--kubeconfig", file, "get", "pods"], capture_output=True, text=True)
        assert "stack other is not up" in asked.stderr
        assert "make up STACK=other" in asked.stderr


def test_set_up_does_not_depend_on_how_the_checkout_came(tree: Tree, tmp_path: Path) -> None:
    """An unpacked archive: no exec bits, umask 077, a folder with blanks, somebody else's, inside a repository."""
    shutil.copy(ROOT / "offline/build", tree.root / "offline")
    shutil.copytree(ROOT / "offline/pause", tree.root / "offline/pause", dirs_exist_ok=True)
    plain = tree.bash("plugins").stdout
    tree.root = tree.root.rename(tmp_path / "my check out")
    subprocess.run(["git", "init", "-q", tree.root], check=True)
    for path in (tree.root, *tree.root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if os.geteuid() == 0:
            os.chown(path, 12345, 12345)
    assert tree.bash("plugins").stdout == plain

    go = Path(os.environ.get("SPDK_K8S_CACHE", Path.home() / ".cache/spdk-k8s"), f"go-{PINS['GO']}")
    if go.exists():
        (tree.cache / go.name).symlink_to(go)
    done = tree.bash('umask 022; go_ready; bash offline/build pause "$CACHE/out"')
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tree.cache / "out").iterdir()] == ["pause"]
    assert (tree.cache / "out/pause").stat().st_mode & 0o777 == 0o755

    mine = ("check_machine", "packages", "python_environment", "engine_fits", "pulumi_cli", "pulumi_providers")
    with (tree.root / "setup/images.sh").open("a") as parts:  # the rest of the set-up is this machine's
        parts.writelines(f"{name}() {{ :; }}\n" for name in mine)
    (tree.root / "setup/engine").write_text("echo engine $1\n")
    url = {"SPDK_K8S_SPDK_URL": "http://127.0.0.1:9"}
    done = tree.bash('umask 077; bash setup/setup --tools && eval "$(make env)" && echo "$PATH"', **url)
    assert done.returncode == 0, done.stderr
    assert f"{tree.root}/.venv/bin:" in done.stdout
