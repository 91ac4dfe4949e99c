"""The user's proxy, in the environment and in the config of Docker's client."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from settings import proxy

pytestmark = pytest.mark.unit

PROXY = "http://user:hush@proxy:3128"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_a_build_gets_the_proxy_in_both_cases(tmp_path: Path, name: str) -> None:
    """apt-get and curl read http_proxy, others HTTP_PROXY."""
    given = proxy.for_builds({name: PROXY, "NO_PROXY": "intranet", "DOCKER_CONFIG": str(tmp_path)})
    assert given == {"HTTPS_PROXY": PROXY, "https_proxy": PROXY, "NO_PROXY": "intranet", "no_proxy": "intranet"}


def test_dockers_own_proxy_for_containers_comes_first(tmp_path: Path) -> None:
    default = {"httpProxy": "http://172.17.0.1:3128", "noProxy": "*.corp"}
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": default}}))
    given = proxy.for_builds({"HTTP_PROXY": "http://127.0.0.1:3128", "DOCKER_CONFIG": str(tmp_path)})
    assert given["http_proxy"] == given["HTTP_PROXY"] == "http://172.17.0.1:3128"
    assert given["no_proxy"] == "*.corp"


@pytest.mark.parametrize("text", ["", "[]", '{"proxies": {"default": null}}', '{"proxies": {}}', '{"auths": {}}'])
def test_a_docker_config_without_a_proxy(tmp_path: Path, text: str) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(text)
    assert proxy.for_builds({"HOME": str(tmp_path)}) == {}
    assert proxy.for_builds({"HOME": str(tmp_path), "ALL_PROXY": PROXY})["all_proxy"] == PROXY


def test_set_up_reads_them_from_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "settings.proxy"]
    done = subprocess.run(
        command, env={"DOCKER_CONFIG": str(tmp_path), "https_proxy": PROXY}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"HTTPS_PROXY": PROXY, "https_proxy": PROXY}


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        ("*", True),
        ("192.0.2.1", True),
        ("192.0.2.1:5000", True),
        ("192.0.2.1:80", False),
        ("192.0.2.10", False),
        ("localhost, 192.0.2.0/24", True),
        ("198.51.100.0/24,::1/128,.corp,a/b", False),
    ],
)
def test_no_proxy_as_go_reads_it(no_proxy: str, direct: bool) -> None:
    assert proxy.goes_direct(no_proxy, IPv4Address("192.0.2.1"), 5000) == direct
    assert proxy.goes_direct(no_proxy, IPv4Address("127.0.0.1"), 5000)
