"""The set-up against a mirror on loopback that has the layout of the released one."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from settings.pins import PINS

ROOT = Path(__file__).parents[2]
PULUMI = f"pulumi-v{PINS['PULUMI']}-linux-x64.tar.gz"

pytestmark = pytest.mark.engine


class Tree:
    """A checkout of the set-up whose offline builder only says that it was asked, with a mirror and a cache."""

    def __init__(self, folder: Path) -> None:
        self.root, self.mirror, self.cache = folder / "tree", folder / "mirror", folder / "cache"
        shutil.copytree(ROOT / "setup", self.root / "setup")
        for name in ("versions.env", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        for name in ("cni", "coredns", "etcd", "kube-proxy", "kubernetes", "pause", "plugins"):
            (self.root / "offline" / name).mkdir(parents=True)
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
        head = f"set -euo pipefail; for p in {parts}; do . {self.root}/setup/$p.sh; done; exec 3>&1\n"
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


def test_released_provider(tree: Tree) -> None:
    """With the real CLI: it fetches a provider from the mirror."""
    cli = Path(shutil.which("pulumi") or pytest.fail("no pulumi on PATH; remedy: make test, or eval $(make env)"))
    kept = tree.cache / f"pulumi-{PINS['PULUMI']}"
    kept.mkdir()
    (kept / "bin").symlink_to(cli.parent)
    (kept / "source").write_text("released")
    plugin = tree.program(tree.root.parent / "plugin", ":")
    tree.archive("pulumi-resource-command-v1.2.1-linux-amd64.tar.gz", {"pulumi-resource-command": plugin})
    environment = {"SPDK_K8S_PLUGINS_URL": tree.url, "HOME": str(tree.root)}
    done = tree.bash("pulumi_cli; provider_released command 1.2.1", **environment)
    assert done.returncode == 0, done.stderr
    assert (tree.cache / "pulumi-home/plugins/resource-command-v1.2.1/pulumi-resource-command").exists()
    assert not (tree.root / ".pulumi").exists(), "the user's own home of the CLI"


@pytest.mark.parametrize("in_reach", [True, False])
def test_a_preview_knows_whether_spdk_can_be_had(tree: Tree, in_reach: bool) -> None:
    """On a clean machine too `make preview` chooses the vhost backend that `make up` will."""
    mine = ("check_machine", "packages", "python_environment", "pulumi_cli", "pulumi_providers")
    with (tree.root / "setup/images.sh").open("a") as parts:  # the rest of the set-up is this machine's
        parts.writelines(f"{name}() {{ :; }}\n" for name in mine)
    tree.program(tree.root / "setup/engine", ":")
    url = tree.url if in_reach else "http://127.0.0.1:9"
    done = tree.bash(f"{tree.root}/setup/setup --tools; {tree.root}/setup/env", SPDK_K8S_SPDK_URL=url)
    assert done.returncode == 0, done.stderr
    assert (f"export SPDK_RELEASE={PINS['SPDK']}\n" in done.stdout) == in_reach, done.stdout


def test_step_shows_the_log_of_what_failed(tree: Tree) -> None:
    done = tree.bash('bad() { echo "no such suite: trixy"; false; }; step "base image" bad; echo never')
    assert done.returncode == 1
    assert "no such suite: trixy" in done.stderr
    assert str(tree.cache / "logs/base-image.log") in done.stderr
    assert "never" not in done.stdout


def test_interrupt_ends_what_a_step_started(tree: Tree) -> None:
    stop = 'until [ -s "$CACHE/pid" ]; do :; done; kill -TERM $$'
    done = tree.bash(f'long() {{ echo $BASHPID >"$CACHE/pid"; sleep 300; }}; ({stop}) & step long long')
    assert done.returncode == 130, done.stderr
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
