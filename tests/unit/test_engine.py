"""Docker engines that cannot serve, as `docker info` and `docker version` show them, and their remedies."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from operate import engine
from settings import proxy
from settings.load import load

pytestmark = pytest.mark.unit


def config(**registry: object) -> Any:
    return load({"spdk-k8s:registry": json.dumps(registry)})


def answer(monkeypatch: pytest.MonkeyPatch, info: object, code: int = 0, said: str = "") -> list[list[str]]:
    """The engine's answer to `docker info`; the commands that asked it."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, json.dumps(info), said)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def registries(*networks: str, **named: bool) -> dict[str, Any]:
    """As dockerd answers: its own 127.0.0.0/8, and what insecure-registries of daemon.json adds."""
    known = {"docker.io": {"Name": "docker.io", "Secure": True}}
    known |= {name: {"Name": name, "Secure": secure} for name, secure in named.items()}
    return {"IndexConfigs": known, "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8", *networks]}


@pytest.mark.parametrize(
    "info",
    [
        registries(),
        registries("172.30.98.0/24"),
        registries(**{"172.30.97.2:5001": False}),
        registries(**{"172.30.97.2:5000": True}),  # a mirror's entry, say
        {"IndexConfigs": None, "InsecureRegistryCIDRs": None},
    ],
)
def test_plain_http_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, info: object) -> None:
    """Finding U21."""
    answer(monkeypatch, {"RegistryConfig": info})
    with pytest.raises(SystemExit) as refused:
        engine.refuse_unable_to_push(config(tls=False))
    said = str(refused.value)
    assert "spdk-k8s:registry.tls = false" in said
    assert '"insecure-registries": ["172.30.97.2:5000"]' in said
    assert "pulumi config rm --path registry.tls" in said
    assert "nothing was changed" in said


@pytest.mark.parametrize("info", [registries(**{"172.30.97.2:5000": False}), registries("172.30.0.0/16")])
def test_an_engine_that_lists_the_registry_will_do(monkeypatch: pytest.MonkeyPatch, info: object) -> None:
    asked = answer(monkeypatch, {"RegistryConfig": info})
    engine.refuse_unable_to_push(config(tls=False))
    assert asked


def test_a_registry_with_tls_need_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"RegistryConfig": registries()})
    engine.refuse_unable_to_push(config())


def test_an_engine_that_does_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, None, code=1, said="Cannot connect to the Docker daemon")
    with pytest.raises(SystemExit, match=r"Cannot connect to the Docker daemon\nremedy: make setup"):
        engine.refuse_unable_to_push(config())


PROXIES = {"HttpProxy": "http://a:3128", "HttpsProxy": "http://user:xxxxx@b:3128"}  # as `docker info` masks a password


@pytest.mark.parametrize("no_proxy", ["", "localhost,.corp", "172.30.97.2:443", "172.30.98.0/24", "172.30.97.20"])
@pytest.mark.parametrize("tls", [True, False])
def test_an_engine_that_would_push_through_its_proxy_is_refused(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, tls: bool
) -> None:
    answer(monkeypatch, {"RegistryConfig": registries("172.30.0.0/16"), "NoProxy": no_proxy, **PROXIES})
    with pytest.raises(SystemExit) as refused:
        engine.refuse_unable_to_push(config(tls=tls))
    said = str(refused.value)
    assert f"through its proxy {PROXIES['HttpsProxy' if tls else 'HttpProxy']}," in said
    assert no_proxy in said
    assert 'add "172.30.97.2" to "no-proxy"' in said
    assert "nothing was changed" in said


@pytest.mark.parametrize("no_proxy", ["*", "a, 172.30.97.2", "172.30.97.2:5000", "10.0.0.0/8,172.16.0.0/12"])
def test_an_engine_whose_proxy_is_not_for_the_registry_will_do(monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    answer(monkeypatch, {"NoProxy": no_proxy, **PROXIES})
    engine.refuse_unable_to_push(config())


def test_a_proxy_for_plain_http_alone_does_not_matter_to_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"HttpProxy": "http://a:3128", "HttpsProxy": "", "NoProxy": ""})
    engine.refuse_unable_to_push(config())


HERE = "6.12.0-amd64"


def info(**more: object) -> dict[str, Any]:
    """`docker info` of a distribution's engine."""
    plain = {"name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"}
    return {
        "OperatingSystem": "Debian GNU/Linux 13 (trixie)",
        "KernelVersion": HERE,
        "SecurityOptions": [*plain],
        **more,
    }


def server(product: str = "Docker Engine - Community", *parts: str) -> dict[str, Any]:
    """`docker version`, its part Server."""
    names = parts or ("Engine", "containerd", "runc", "docker-init")
    return {"Platform": {"Name": product}, "Components": [{"Name": name, "Version": "1"} for name in names]}


DESKTOP = {"OperatingSystem": "Docker Desktop", "Name": "docker-desktop", "KernelVersion": "6.12.5-linuxkit"}
PODMAN = server("linux/amd64/debian-13", "Podman Engine", "Conmon", "OCI Runtime (crun)")


@pytest.mark.parametrize(
    ("said_info", "said_version", "word"),
    [
        (
            info(**DESKTOP),
            server("Docker Desktop 4.44.0 (201307)"),
            "Docker Desktop runs the engine in a virtual machine",
        ),
        (info(**DESKTOP | {"KernelVersion": HERE}), server(""), "Docker Desktop"),  # WSL2: one kernel for all
        (
            info(KernelVersion="6.6.93-0-virt"),
            server(),
            "virtual machine (kernel 6.6.93-0-virt, this machine's is 6.12.0",
        ),
        (info(SecurityOptions=["name=seccomp,profile=builtin", "name=rootless"]), server(), "without root"),
        (info(SecurityOptions=["name=userns"]), server(), "userns-remap"),
        (info(), PODMAN, "Podman, which has no BuildKit"),
        (info(SecurityOptions=["name=seccomp,profile=default", "name=rootless"]), PODMAN, "Podman"),
    ],
)
def test_an_engine_that_cannot_serve_is_named(said_info: Any, said_version: Any, word: str) -> None:
    why = engine.unfit(said_info, said_version, local=True, kernel=HERE)
    assert word in why
    assert "Remedy: " in why


@pytest.mark.parametrize(
    ("said_info", "said_version", "local"),
    [
        (info(), server(), True),
        (info(SecurityOptions=None), {"Platform": None, "Components": None}, True),
        (info(), server("", "Engine", "containerd", "bounded", "docker-init"), True),
        (info(KernelVersion="6.1.0"), server(), False),  # on another machine, by ssh:// or tcp://
    ],
)
def test_an_engine_of_a_distribution_serves(said_info: Any, said_version: Any, local: bool) -> None:
    assert engine.unfit(said_info, said_version, local=local, kernel=HERE) == ""


def test_an_engine_without_the_users_proxy_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in proxy.NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    assert not engine.without_proxy({"HttpsProxy": ""})
    monkeypatch.setenv("https_proxy", "http://user:hush@proxy:3128")
    assert "/etc/docker/daemon.json" in engine.without_proxy({"HttpsProxy": ""})
    assert "hush" not in engine.without_proxy({"HttpsProxy": ""})
    assert not engine.without_proxy(PROXIES)
