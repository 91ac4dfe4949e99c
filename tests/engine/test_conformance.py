"""The offline plugins against the released ones: the same small programs, and the engine must see the same.

What is expected is what the released plugins do. The offline ones are always tested, the released ones where they are:
in PULUMI_HOME, on PATH, or in the folder that SPDK_K8S_REAL_PLUGINS names.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.server
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi_docker as docker
import pulumi_kubernetes as kubernetes
import pytest
from pulumi_command import local, remote

from settings.pins import PINS
from tests.engine.conformance import (
    CREATE,
    DELETE,
    DELETE_FIRST,
    NAME,
    REPLACE,
    SECRET,
    UNKNOWN,
    UPDATE,
    Engine,
    offline_plugins,
    released_plugin,
)

pytestmark = pytest.mark.engine

Program = Callable[[], object]
PAUSE = f"registry.k8s.io/pause:{PINS['PAUSE']}"


@pytest.fixture(scope="module", autouse=True)
def one_at_a_time() -> Iterator[None]:
    """Networks, containers and images have fixed names, so a second run on this machine waits for the first."""
    with (Path(tempfile.gettempdir()) / f"{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(params=["offline", "released"])
def plugin(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if request.param == "offline":
            return offline_plugins() / f"pulumi-resource-{name}"
        found = released_plugin(name)
        if not found:
            pytest.skip(f"no released pulumi-resource-{name} here; remedy: SPDK_K8S_REAL_PLUGINS=DIR")
        return found

    return find


def engine_with(name: str, folder: Path, plugin: Callable[[str], Path]) -> Iterator[Engine]:
    made = Engine(folder, plugin(name))
    yield made
    if made.resources():
        made.destroy()


def sh(*command: str, text: str | None = None, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, input=text)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
    return done.stdout.strip()


def wait(what: str, so: Callable[[], bool], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not so():
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.2)


# --- command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shell:
    """Where commands run: here, or in a container with a shell and sshd. folder: a path that exists on both sides."""

    connection: dict[str, Any] | None
    folder: str

    def command(
        self, name: str, opts: pulumi.ResourceOptions | None = None, **args: Any
    ) -> local.Command | remote.Command:
        if self.connection is None:
            args["logging"] = local.Logging(args.get("logging", "stdoutAndStderr"))
            return local.Command(name, opts=opts, **args)
        args["logging"] = remote.Logging(args.get("logging", "stdoutAndStderr"))
        return remote.Command(name, opts=opts, **{"connection": self.connection, **args})

    def read(self, name: str) -> list[str]:
        path = f"{self.folder}/{name}"
        if self.connection is None:
            return Path(path).read_text().splitlines() if Path(path).exists() else []
        return sh("docker", "exec", f"{NAME}-sshd", "cat", path, check=False).splitlines()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The connection to an SSH server in a throw-away container."""
    keys = tmp_path_factory.mktemp("keys")
    for name in ("host", "user"):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(keys / name))
    image, name = f"{NAME}-sshd:1", f"{NAME}-sshd"
    sh(
        "docker", "build", "-q", "-t", image, "-",
        text=f"FROM debian:{PINS['DEBIAN']}-slim\nRUN apt-get update -q "
        "&& apt-get install -qy --no-install-recommends openssh-server && mkdir -p /run/sshd\n",
    )  # fmt: skip
    sh("docker", "rm", "-f", name, check=False)
    sh(
        "docker", "run", "-d", "--init", "--name", name, "-p", "127.0.0.1::22", "-v", f"{keys}:/keys:ro", image,
        "/usr/sbin/sshd", "-D", "-e", "-o", "HostKey=/keys/host", "-o", "AuthorizedKeysFile=/keys/user.pub",
        "-o", "StrictModes=no", "-o", "MaxStartups=100", "-o", "AcceptEnv=*", "-o", "PerSourcePenalties=no",
    )  # fmt: skip
    try:
        port = int(sh("docker", "port", name, "22").rpartition(":")[2])
        host_key = (keys / "host.pub").read_text()
        wait(
            "sshd answers", lambda: host_key.split()[1] in sh("ssh-keyscan", "-p", str(port), "127.0.0.1", check=False)
        )
        yield {
            "host": "127.0.0.1",
            "port": port,
            "user": "root",
            "private_key": (keys / "user").read_text(),
            "host_key": host_key,
            "dial_error_limit": 2,
            "per_dial_timeout": 5,
        }
    finally:
        sh("docker", "rm", "-f", name, check=False)
        # the image stays, as a cache


@pytest.fixture(params=["local", "remote"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    if request.param == "local":
        return Shell(None, str(tmp_path))
    connection = request.getfixturevalue("sshd")
    folder = f"/tmp/{tmp_path.name}-{os.urandom(4).hex()}"
    sh("docker", "exec", f"{NAME}-sshd", "mkdir", folder)
    return Shell(connection, folder)


@pytest.fixture
def commands(tmp_path: Path, plugin: Callable[[str], Path]) -> Iterator[Engine]:
    yield from engine_with("command", tmp_path, plugin)


def test_command_lives(commands: Engine, shell: Shell) -> None:
    log = f"{shell.folder}/log"

    def program(**over: Any) -> Program:
        args = {
            "create": f"echo made $LC_A; echo from; cat; echo oops >&2; echo create >>{log}",
            # both read all of stdin: an SSH command that ends before that may fail
            "update": f'echo "$PULUMI_COMMAND_STDOUT" >>{log}; cat >/dev/null; echo updated',
            "delete": f"cat >/dev/null; echo delete >>{log}",
            "environment": {"LC_A": "a b"},
            "stdin": "in\n",
            "triggers": [1],
        }

        def declare() -> None:
            first = shell.command("first", **args | over)
            shell.command("second", create="cat", stdin=first.stdout)

        return declare

    planned = commands.preview(program())
    assert planned.steps == {"first": CREATE, "second": CREATE}
    assert planned.outputs["first"]["stdout"] == planned.inputs["second"]["stdin"] == UNKNOWN
    assert shell.read("log") == []

    made = commands.up(program())
    assert made.steps == {"first": CREATE, "second": CREATE}
    assert made.outputs["first"]["stdout"] == made.outputs["second"]["stdout"] == "made a b\nfrom\nin"
    assert made.outputs["first"]["stderr"] == "oops"
    assert "made a b" in made.said
    assert "oops" in made.said

    assert commands.up(program()).steps == {}
    assert commands.refresh().steps == {}

    planned = commands.preview(program(stdin="else"))
    assert planned.steps == {"first": UPDATE, "second": UPDATE}
    assert planned.diffs["first"] == {"stdin": "update"}
    assert planned.inputs["second"]["stdin"] == UNKNOWN
    updated = commands.up(program(stdin="else"))
    assert updated.steps == {"first": UPDATE, "second": UPDATE}
    assert updated.outputs["second"]["stdout"] == "updated", "without an update script, create runs again"

    replaced = commands.up(program(stdin="else", triggers=[2]))
    assert replaced.diffs["first"] == {"triggers[0]": "update-replace"}
    assert replaced.steps["first"] == REPLACE
    assert commands.destroy().steps == {"first": DELETE, "second": DELETE}
    assert shell.read("log") == ["create", "made a b", "from", "in", "create", "delete", "delete"]


def test_command_keeps_secrets(commands: Engine, shell: Shell) -> None:
    def program() -> None:
        shell.command(
            "first",
            create="cat; echo progress >&2",
            stdin=pulumi.Output.secret("hush"),
            logging="stderr",
            opts=pulumi.ResourceOptions(additional_secret_outputs=["stdout"]),
        )
        shell.command("second", create="cat", stdin=pulumi.Output.secret("hush"), logging="none")

    made = commands.up(program)
    assert SECRET in made.state["first"]["inputs"]["stdin"]
    assert SECRET in made.state["first"]["outputs"]["stdout"]
    assert "progress" in made.said
    assert "hush" not in made.said
    # only the output that the program marks is secret
    assert made.state["second"]["outputs"]["stdout"] == "hush"
    if shell.connection:
        assert not commands.holds(shell.connection["private_key"].splitlines()[3])
        assert not commands.holds(shell.connection["host"])


def test_command_fails(commands: Engine, shell: Shell) -> None:
    def program(**over: Any) -> Program:
        return lambda: shell.command("first", **{"create": "echo 1", "update": "echo 2", "delete": "true", **over})

    failed = commands.up(program(create="echo out; echo why >&2; exit 3"))
    assert failed.steps == {"first": ["create", "failed"]}
    assert "3" in failed.errors
    assert "why" in failed.errors
    assert "out" in failed.said
    assert "first" not in failed.state

    commands.up(program())
    failed = commands.up(program(update="echo why >&2; exit 4"))
    assert failed.steps == {"first": ["update", "failed"]}
    assert "why" in failed.errors
    assert failed.state["first"]["inputs"]["update"] == "echo 2", "what failed is tried again"
    mended = commands.up(program(update="echo 3"))
    assert mended.steps == {"first": UPDATE}
    assert mended.outputs["first"]["stdout"] == "3"

    commands.up(program(update="true", delete="echo why >&2; exit 5"))
    failed = commands.destroy()
    assert failed.steps == {"first": ["delete", "failed"]}
    assert "why" in failed.errors
    assert "first" in failed.state
    commands.up(program(update="true", delete="true"))


def test_remote_command_is_refused(commands: Engine, sshd: dict[str, Any], tmp_path: Path) -> None:
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(tmp_path / "other"))
    other, other_public = ((tmp_path / name).read_text() for name in ("other", "other.pub"))

    for over, says in {
        ("host_key", other_public): "host key",
        ("host_key", "nonsense"): "key",
        ("private_key", other): "unable to authenticate",
        ("private_key", "nonsense"): "key",
        ("port", 1): "refused",
    }.items():
        failed = commands.up(
            lambda over=over: remote.Command("first", create="true", connection={**sshd, over[0]: over[1]})
        )
        assert failed.steps == {"first": ["create", "failed"]}, over
        assert says in failed.errors, over
        assert "first" not in failed.state


def test_remote_command_goes_through_a_jump_host(commands: Engine, sshd: dict[str, Any]) -> None:
    inside = {**sshd, "port": 22, "proxy": {**sshd}}
    made = commands.up(lambda: remote.Command("first", create="echo through", connection=inside))
    assert made.outputs["first"]["stdout"] == "through", made


# --- docker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def containers(tmp_path: Path, plugin: Callable[[str], Path]) -> Iterator[Engine]:
    try:
        yield from engine_with("docker", tmp_path, plugin)
    finally:
        sh("docker", "rm", "-f", "-v", NAME, check=False)
        sh("docker", "network", "rm", NAME, check=False)
        sh("docker", "volume", "rm", NAME, check=False)
        sh("docker", "rmi", "-f", f"{NAME}:1", check=False)


def test_network_and_volume(containers: Engine) -> None:
    def program(**over: Any) -> Program:
        def declare() -> None:
            args = {"name": NAME, "ipam_configs": [{"subnet": "172.30.88.0/24", "gateway": "172.30.88.1"}]}
            network = docker.Network("network", **args | over)
            docker.Volume("volume", name=network.name)

        return declare

    planned = containers.preview(program())
    assert planned.steps == {"network": CREATE, "volume": CREATE}
    assert planned.outputs["volume"]["name"] == NAME
    assert planned.outputs["volume"]["mountpoint"] == planned.outputs["network"]["scope"] == UNKNOWN
    made = containers.up(program())
    assert made.outputs["network"]["driver"] == "bridge"
    assert made.outputs["volume"]["driver"] == "local"
    assert containers.up(program()).steps == {}
    assert containers.refresh().steps == {}

    labelled = [{"label": "a", "value": "b"}]
    planned = containers.preview(program(labels=labelled))
    assert planned.steps["network"] == DELETE_FIRST
    assert planned.diffs["network"] == {"labels": "add-replace"}

    sh("docker", "network", "rm", NAME)
    assert containers.refresh().steps == {"network": DELETE}
    assert containers.up(program()).steps == {"network": CREATE}
    assert containers.destroy().steps == {"network": DELETE, "volume": DELETE}
    assert NAME not in sh("docker", "volume", "ls", "-q").split()


def test_network_that_overlaps(containers: Engine) -> None:
    first: dict[str, Any] = {"ipam_configs": [{"subnet": "172.30.88.0/24"}]}

    def program() -> None:
        network = docker.Network("network", name=NAME, **first)
        docker.Network("second", name=f"{NAME}-2", **first, opts=pulumi.ResourceOptions(depends_on=[network]))

    failed = containers.up(program)
    assert failed.steps == {"network": CREATE, "second": ["create", "failed"]}
    assert "overlap" in failed.errors
    assert "second" not in failed.state


def container(**over: Any) -> docker.Container:
    args: dict[str, Any] = {
        "name": NAME,
        "image": PAUSE,
        "hostname": "machine",
        "restart": "unless-stopped",
        "cgroupns_mode": "private",
        "tmpfs": {"/run": ""},
        "envs": ["A=1"],
        "volumes": [{"volume_name": NAME, "container_path": "/var"}],
        "uploads": [{"file": "/key", "content": pulumi.Output.secret("hush"), "permissions": "0600"}],
        "must_run": True,
    }
    return docker.Container("container", **args | over, opts=pulumi.ResourceOptions(delete_before_replace=True))


def test_container_lives(containers: Engine) -> None:
    def program(**over: Any) -> Program:
        def declare() -> None:
            network = docker.Network("network", name=NAME, ipam_configs=[{"subnet": "172.30.88.0/24"}])
            container(networks_advanced=[{"name": network.id, "ipv4_address": "172.30.88.7"}], **over)

        return declare

    planned = containers.preview(program())
    assert planned.steps == {"network": CREATE, "container": CREATE}
    assert planned.outputs["container"]["networkDatas"] == UNKNOWN
    assert planned.inputs["container"]["networksAdvanced"][0]["name"] == UNKNOWN
    made = containers.up(program())
    assert made.outputs["container"]["networkDatas"][0]["ipAddress"] == "172.30.88.7"
    assert SECRET in made.outputs["container"]["uploads"]
    assert not containers.holds("hush")
    assert sh("docker", "cp", f"{NAME}:/key", "-") != ""
    assert containers.up(program()).steps == {}
    assert containers.refresh().steps == {}
    assert containers.up(program()).steps == {}

    updated = containers.up(program(restart="always"))
    assert updated.steps == {"container": UPDATE}
    assert updated.diffs == {"container": {"restart": "update"}}
    assert sh("docker", "inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", NAME) == "always"

    planned = containers.preview(
        program(restart="always", envs=["A=2"], hostname="other", image="b:1", privileged=True)
    )
    assert planned.steps == {"container": DELETE_FIRST}
    assert set(planned.diffs["container"]) == {"envs[0]", "hostname", "image", "privileged"}
    assert all(kind.endswith("-replace") for kind in planned.diffs["container"].values())

    sh("docker", "stop", "-t", "0", NAME)
    assert containers.refresh().steps == {"container": UPDATE}
    mended = containers.up(program(restart="always"))
    assert mended.steps == {"container": UPDATE}
    assert mended.diffs == {"container": {"mustRun": "update"}}
    assert sh("docker", "inspect", "-f", "{{.State.Running}}", NAME) == "true"

    sh("docker", "rm", "-f", NAME)
    assert containers.refresh().steps == {"container": DELETE}
    assert containers.up(program()).steps == {"container": CREATE}
    assert containers.destroy().steps == {"network": DELETE, "container": DELETE}


def test_container_without_its_image(containers: Engine) -> None:
    failed = containers.up(lambda: container(image=f"127.0.0.1:1/{NAME}:1"))
    assert failed.steps == {"container": ["create", "failed"]}
    assert f"127.0.0.1:1/{NAME}:1" in failed.errors
    assert "container" not in failed.state


def test_container_where_the_plugins_differ(containers: Engine) -> None:
    """On purpose: the offline plugin removes a container that cannot start, and knows what the engine adds to it."""
    released = containers.plugin.parent != offline_plugins()

    def program() -> None:
        container(memory=64, capabilities={"adds": ["NET_ADMIN"]})

    failed = containers.up(lambda: container(entrypoints=["/nope"]))
    assert failed.steps == {"container": ["create", "failed"]}
    assert "/nope" in failed.errors
    assert ("container" in failed.state) == released
    assert containers.up(program).steps == {"container": DELETE_FIRST if released else CREATE}
    again = containers.up(program)
    assert again.steps == ({"container": UPDATE} if released else {})
    assert again.diffs == ({"container": {"memorySwap": "delete"}} if released else {})
    drift = containers.refresh()
    assert drift.steps == ({"container": UPDATE} if released else {})
    assert ("capabilities.adds[0]" in drift.diffs.get("container", {})) == released


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Folder with a Dockerfile."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nARG TEXT\nLABEL text=$TEXT\nCOPY file /file\n")
    (folder / "file").write_text("1")
    return folder


def image(context: Path, **over: Any) -> docker.Image:
    args: dict[str, Any] = {
        "image_name": f"{NAME}:1",
        "build": {
            "context": str(context),
            "dockerfile": str(context / "Dockerfile"),
            "platform": "linux/amd64",
            "args": {"TEXT": "a"},
        },
        "skip_push": True,
    }
    return docker.Image("image", **args | over)


def test_image_is_built(containers: Engine, context: Path) -> None:
    planned = containers.preview(lambda: image(context))
    assert planned.steps == {"image": CREATE}
    assert sh("docker", "images", "-q", NAME) == ""
    made = containers.up(lambda: image(context))
    assert made.steps == {"image": CREATE}
    assert made.outputs["image"]["imageName"] == f"{NAME}:1"
    assert sh("docker", "inspect", "-f", "{{.Config.Labels.text}}", f"{NAME}:1") == "a"
    assert containers.up(lambda: image(context)).steps == {}
    assert containers.refresh().steps == {}

    (context / "file").write_text("2")
    updated = containers.up(lambda: image(context))
    assert updated.steps == {"image": UPDATE}
    # the offline plugin also names the part of the build that has changed
    assert [path.partition(".")[0] for path in updated.diffs["image"]] == ["build"]

    (context / "Dockerfile").write_text("FROM scratch\nCOPY nothing /file\n")
    failed = containers.up(lambda: image(context))
    assert failed.steps == {"image": ["update", "failed"]}
    assert "nothing" in failed.errors
    assert containers.destroy().steps == {"image": DELETE}


class Registry(http.server.BaseHTTPRequestHandler):
    """The part of a registry that a push needs, with a login."""

    kept: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(b"user:hush").decode():
            return self.answer(401, WWW_Authenticate='Basic realm="test"')
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if path == "/v2/":
            self.answer(200)
        elif self.command == "POST":
            self.answer(202, Location=f"{path.rstrip('/')}/{os.urandom(8).hex()}", Range="0-0")
        elif self.command == "PATCH":
            self.kept[name] = self.kept.get(name, b"") + body
            self.answer(202, Location=path, Range=f"0-{len(self.kept[name]) - 1}")
        elif self.command == "PUT" and "digest=" in query:
            self.kept[query.partition("digest=")[2].replace("%3A", ":")] = self.kept.pop(name, b"") + body
            self.answer(201, Location=path)
        elif self.command == "PUT":
            self.kept[name] = self.kept[digest] = body
            self.answer(201, Docker_Content_Digest=digest)
        elif name in self.kept:
            found = self.kept[name]
            kind = json.loads(found)["mediaType"] if "/manifests/" in path else "application/octet-stream"
            self.answer(
                200, found, Docker_Content_Digest="sha256:" + hashlib.sha256(found).hexdigest(), Content_Type=kind
            )
        else:
            self.answer(404)

    do_HEAD = do_POST = do_PATCH = do_PUT = do_GET


@pytest.fixture
def registry() -> Iterator[str]:
    handler = type("Kept", (Registry,), {"kept": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        yield address
        server.shutdown()
    # by tag and by digest
    made = sh("docker", "images", "--format", "{{.ID}}", f"{address}/{NAME}").split()
    sh("docker", "rmi", "-f", *made, check=False)


def test_image_is_pushed(containers: Engine, context: Path, registry: str) -> None:
    name = f"{registry}/{NAME}:1"

    def program(password: str) -> Program:
        def declare() -> None:
            login = {"server": registry, "username": "user", "password": pulumi.Output.secret(password)}
            made = image(context, image_name=name, skip_push=False, registry=login)
            pulumi.export("digest", made.repo_digest)

        return declare

    failed = containers.up(program("wrong"))
    assert failed.steps == {"image": ["create", "failed"]}, failed
    assert "image" not in failed.state

    made = containers.up(program("hush"))
    assert made.steps == {"image": CREATE}, made
    assert made.outputs["image"]["repoDigest"].startswith(f"{registry}/{NAME}@sha256:")
    assert not containers.holds("hush")
    assert "hush" not in made.said
    assert containers.up(program("hush")).steps == {}

    (context / "file").write_text("2")
    updated = containers.up(program("hush"))
    assert updated.steps == {"image": UPDATE}
    assert updated.outputs["image"]["repoDigest"] != made.outputs["image"]["repoDigest"]


# --- kubernetes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """An API server with a controller manager and no node. kubeconfig: a file."""

    kubeconfig: Path

    def kubectl(self, *args: str, text: str | None = None, check: bool = True) -> str:
        return sh("kubectl", "--kubeconfig", str(self.kubeconfig), *args, text=text, check=check)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, token = tmp_path_factory.mktemp("cluster"), os.urandom(16).hex()
    sh("openssl", "genrsa", "-out", str(folder / "sa.key"), "2048")
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    names = [f"{NAME}-{part}" for part in ("etcd", "apiserver", "controller-manager")]
    etcd, server, manager = names

    def kubeconfig(address: str) -> str:
        return json.dumps({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "t", "cluster": {"server": address, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "t", "user": {"token": token}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            "current-context": "t",
        })  # fmt: skip

    def run(name: str, image: str, *args: str) -> None:
        program = image.split("/")[-1].split(":")[0]
        network = ["-p", "127.0.0.1::6443"] if name == etcd else ["--network", f"container:{etcd}"]
        sh(
            "docker", "run", "-d", "--name", name, *network, "-v", f"{folder}:/t:ro",
            "--entrypoint", f"/usr/local/bin/{program}", image, *args,
        )  # fmt: skip

    sh("docker", "rm", "-f", *names, check=False)
    try:
        run(etcd, f"registry.k8s.io/etcd:{PINS['ETCD']}", "--data-dir", "/data", "--unsafe-no-fsync")
        run(
            server, f"registry.k8s.io/kube-apiserver:v{PINS['KUBERNETES']}",
            "--etcd-servers", "http://127.0.0.1:2379", "--cert-dir", "/certs", "--token-auth-file", "/t/tokens.csv",
            "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
            "--service-cluster-ip-range", "10.0.0.0/24", "--service-account-issuer", "https://test",
            "--service-account-key-file", "/t/sa.key", "--service-account-signing-key-file", "/t/sa.key",
        )  # fmt: skip
        (folder / "inside").write_text(kubeconfig("https://127.0.0.1:6443"))
        port = sh("docker", "port", etcd, "6443").rpartition(":")[2]
        (folder / "kubeconfig").write_text(kubeconfig(f"https://127.0.0.1:{port}"))
        made = Cluster(folder / "kubeconfig")
        wait("API server ready", lambda: made.kubectl("get", "--raw", "/readyz", check=False) == "ok", 120)
        run(
            manager, f"registry.k8s.io/kube-controller-manager:v{PINS['KUBERNETES']}", "--kubeconfig", "/t/inside",
            "--leader-elect=false", "--cert-dir", "/certs", "--service-account-private-key-file", "/t/sa.key",
        )  # fmt: skip
        yield made
    finally:
        sh("docker", "rm", "-f", "-v", *reversed(names), check=False)


@pytest.fixture
def objects(tmp_path: Path, plugin: Callable[[str], Path], cluster: Cluster) -> Iterator[Engine]:
    try:
        yield from engine_with("kubernetes", tmp_path, plugin)
    finally:
        cluster.kubectl("delete", "namespace,persistentvolume", NAME, "--ignore-not-found")


def example(cluster: Cluster, *, provider: dict[str, Any] | None = None, **over: Any) -> Program:
    """Namespace, ConfigMap, PersistentVolume and StatefulSet, and the provider, as the program uses them."""

    def declare() -> None:
        made = kubernetes.Provider(
            "provider",
            **{
                "kubeconfig": pulumi.Output.secret(cluster.kubeconfig.read_text()),
                "cluster_identifier": NAME,
                "enable_server_side_apply": True,
                "upsert_existing_objects": True,
                "enable_config_map_mutable": True,
                **(provider or {}),
            },
        )
        child = pulumi.ResourceOptions(provider=made)
        space = kubernetes.core.v1.Namespace("space", metadata={"name": NAME}, opts=child)
        name = space.metadata["name"]
        kubernetes.core.v1.ConfigMap(
            "map",
            metadata={"name": over.get("map_name", "map"), "namespace": name},
            data=over.get("data", {"k": "v"}),
            opts=child,
        )
        kubernetes.core.v1.Secret(
            "secret",
            metadata={"name": "secret", "namespace": name},
            string_data={"k": pulumi.Output.secret("hush")},
            opts=child,
        )
        kubernetes.core.v1.PersistentVolume(
            "volume",
            metadata={"name": NAME},
            spec={
                "storage_class_name": "none",
                "capacity": {"storage": over.get("size", "8Mi")},
                "access_modes": ["ReadWriteOnce"],
                "local": {"path": over.get("path", "/dev/a"), "fs_type": "ext4"},
                "node_affinity": {
                    "required": {
                        "node_selector_terms": [
                            {"match_expressions": [{"key": "type1", "operator": "In", "values": ["worker2"]}]}
                        ]
                    }
                },
            },
            opts=child,
        )
        kubernetes.apps.v1.StatefulSet(
            "set",
            metadata={"name": "set", "namespace": name},
            spec={
                "replicas": over.get("replicas", 0),
                "service_name": over.get("service", "set"),
                "selector": {"match_labels": {"app": "set"}},
                "template": {
                    "metadata": {"labels": {"app": "set"}},
                    "spec": {"containers": [{"name": "c", "image": over.get("image", "a:1")}]},
                },
            },
            opts=pulumi.ResourceOptions(provider=made, custom_timeouts=pulumi.CustomTimeouts(create="6s", update="6s")),
        )

    return declare


ALL = ("space", "map", "secret", "volume", "set")


def unknown_in_preview(value: str) -> pulumi.Output[str]:
    async def known(what: object) -> Any:
        return what

    dry = pulumi.runtime.is_dry_run()
    secret = known(True)
    return pulumi.Output(set(), known(None if dry else value), known(not dry), secret)


def test_objects_live(objects: Engine, cluster: Cluster) -> None:
    planned = objects.preview(example(cluster))
    assert planned.steps == dict.fromkeys(ALL, CREATE)
    assert planned.outputs["map"]["data"] == {"k": "v"}
    assert cluster.kubectl("get", "namespace", NAME, "--ignore-not-found") == ""
    made = objects.up(example(cluster))
    assert made.steps == dict.fromkeys(ALL, CREATE)
    assert made.state["map"]["id"] == f"{NAME}/map"
    assert made.outputs["set"]["spec"]["podManagementPolicy"] == "OrderedReady"
    for clear in ("hush", base64.b64encode(b"hush").decode(), "insecure-skip-tls-verify"):
        assert not objects.holds(clear)
    assert objects.up(example(cluster)).steps == {}
    assert objects.refresh().steps == {}

    planned = objects.preview(example(cluster, data={"k": "w", "l": "w"}, image="a:2", size="9Mi"))
    assert planned.steps == {"map": UPDATE, "set": UPDATE, "volume": UPDATE}
    assert planned.diffs == {
        "map": {"data.k": "update", "data.l": "add"},
        "set": {"spec.template.spec.containers[0].image": "update"},
        "volume": {"spec.capacity.storage": "update"},
    }
    over = {"data": {"k": "w"}, "service": "other", "path": "/dev/b"}
    changed = objects.up(example(cluster, **over))
    assert changed.errors == ""
    assert changed.steps == {"map": UPDATE, "set": DELETE_FIRST, "volume": DELETE_FIRST}
    assert cluster.kubectl("get", "configmap", "map", "-n", NAME, "-o", "jsonpath={.data.k}") == "w"
    assert objects.up(example(cluster, **over)).steps == {}
    renamed = objects.up(example(cluster, **over, map_name="other"))
    assert renamed.steps == {"map": REPLACE}
    assert cluster.kubectl("get", "configmap", "map", "-n", NAME, "--ignore-not-found") == ""
    assert objects.destroy().steps == dict.fromkeys(ALL, DELETE)
    assert cluster.kubectl("get", "namespace", NAME, "--ignore-not-found") == ""


def test_objects_where_the_plugins_differ(objects: Engine, cluster: Cluster) -> None:
    """On purpose: the offline plugin previews a replacement that the API server would refuse as an update."""
    objects.up(example(cluster))
    planned = objects.preview(example(cluster, service="other", path="/dev/b"))
    if objects.plugin.parent != offline_plugins():
        assert "Preview failed" in planned.errors
        assert "immutable after creation" in planned.errors or "updates to statefulset spec" in planned.errors
        return
    assert planned.errors == ""
    assert planned.steps == {"set": DELETE_FIRST, "volume": DELETE_FIRST}
    assert planned.diffs == {
        "set": {"spec.serviceName": "update-replace"},
        "volume": {"spec.local.path": "update-replace"},
    }


def test_objects_of_a_cluster_that_is_not_there_yet(objects: Engine, cluster: Cluster) -> None:
    def program() -> None:
        config = unknown_in_preview(cluster.kubeconfig.read_text())
        example(cluster, provider={"kubeconfig": config})()

    planned = objects.preview(program)
    assert planned.steps == dict.fromkeys(ALL, CREATE), planned
    assert planned.errors == ""
    made = objects.up(program)
    assert made.steps == dict.fromkeys(ALL, CREATE)
    # while the kubeconfig is not known again, they may change, but nothing is replaced
    assert objects.preview(program).steps == dict.fromkeys(ALL, UPDATE)
    assert objects.up(program).steps == {}


def test_objects_drift(objects: Engine, cluster: Cluster) -> None:
    objects.up(example(cluster))
    cluster.kubectl("patch", "configmap", "map", "-n", NAME, "--type=merge", "-p", '{"data": {"k": "drift"}}')
    found = objects.refresh()
    assert found.steps == {"map": UPDATE}
    assert found.diffs == {"map": {"data.k": "update"}}
    mended = objects.up(example(cluster))
    assert mended.steps == {"map": UPDATE}
    assert mended.diffs == {"map": {"data.k": "update"}}
    assert cluster.kubectl("get", "configmap", "map", "-n", NAME, "-o", "jsonpath={.data.k}") == "v"

    cluster.kubectl("label", "configmap", "map", "-n", NAME, "somebody=else")
    assert objects.refresh().steps == {}, "what others own is no drift"

    cluster.kubectl("delete", "configmap", "map", "-n", NAME)
    assert objects.refresh().steps == {"map": DELETE}
    assert objects.up(example(cluster)).steps == {"map": CREATE}


def test_objects_that_are_there_already(objects: Engine, cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", NAME)
    cluster.kubectl("create", "configmap", "map", "-n", NAME, "--from-literal=k=v", "--from-literal=l=old")
    refused = objects.up(example(cluster, provider={"upsert_existing_objects": False}))
    assert refused.steps["space"] == ["create", "failed"]
    assert "already exists" in refused.errors
    assert "space" not in refused.state
    adopted = objects.up(example(cluster))
    assert adopted.steps["space"] == adopted.steps["map"] == CREATE
    kept = json.loads(cluster.kubectl("get", "configmap", "map", "-n", NAME, "-o", "json"))["data"]
    assert kept == {"k": "v", "l": "old"}


def test_workload_that_does_not_get_ready(objects: Engine, cluster: Cluster) -> None:
    failed = objects.up(example(cluster, replicas=1))
    assert failed.steps["set"] == ["create", "failed"]
    assert "timed out" in failed.errors
    assert "0/1" in failed.errors + failed.said
    assert failed.state["set"]["initErrors"], "it is kept, and the next run goes on with it"
    planned = objects.preview(example(cluster, replicas=1))
    assert planned.steps == {"set": UPDATE}
    mended = objects.up(example(cluster))
    assert mended.steps == {"set": UPDATE}
    assert mended.errors == ""
    assert "initErrors" not in mended.state["set"]


def test_cluster_that_is_gone(objects: Engine, cluster: Cluster) -> None:
    config = json.loads(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    gone = {"kubeconfig": json.dumps(config)}
    objects.up(example(cluster))

    failed = objects.up(example(cluster, provider=gone, data={"k": "w"}))
    assert failed.steps == {"map": ["update", "failed"]}
    assert "refused" in failed.errors
    failed = objects.destroy()
    assert ["delete", "failed"] in failed.steps.values()
    assert "PULUMI_K8S_DELETE_UNREACHABLE" in failed.errors
    assert set(ALL) < set(failed.state)

    dropped = objects.up(example(cluster, provider={**gone, "delete_unreachable": True}))
    assert objects.destroy().errors == "", dropped
    assert objects.resources() == []
