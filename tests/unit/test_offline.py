"""What offline/ builds agrees on the versions of what it shares: only then is that compiled once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from settings.pins import PINS

pytestmark = pytest.mark.unit

OFFLINE = Path(__file__).parents[2] / "offline"


def versions(folder: str) -> dict[str, str]:
    """What the module requires, by path."""
    return dict(re.findall(r"^\t(\S+) (v\S+)", (OFFLINE / folder / "go.mod").read_text(), re.MULTILINE))


def test_the_language_host_shares_the_versions_of_all_other_programs() -> None:
    host, others = versions("pulumi-python"), versions(".")
    differ = {path for path, version in host.items() if others.get(path, version) != version}
    assert differ == {"github.com/pulumi/pulumi/sdk/v3"}, "remedy: go get PATH@VERSION in offline/pulumi-python"


def test_the_pinned_versions_are_built() -> None:
    pinned = versions(".")
    assert pinned["k8s.io/kubernetes"] == f"v{PINS['KUBERNETES']}"
    assert pinned["github.com/pulumi/pulumi/pkg/v3"] == f"v{PINS['PULUMI']}"
    assert pinned["go.etcd.io/etcd/server/v3"] == f"v{PINS['ETCD'].partition('-')[0]}"
    assert pinned["github.com/coredns/coredns"] == f"v{PINS['COREDNS']}"
    assert pinned["github.com/containernetworking/plugins"] == f"v{PINS['CNI_PLUGINS']}"
