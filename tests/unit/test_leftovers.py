"""What the dev stack made in the Docker engine is found where the state is lost, and nothing of anybody else's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from operate import leftovers
from operate.cli import ROOT
from operate.leftovers import Leftover

pytestmark = pytest.mark.unit

LISTED = {
    "ps": [
        ("spdk-k8s-dev-master", "dev", str(ROOT)),
        ("spdk-k8s-dev-worker1", "", ""),  # made before there were labels
        ("renamed", "dev", str(ROOT)),
        ("spdk-k8s-dev2-master", "dev2", str(ROOT)),
        ("spdk-k8s-dev2-worker1", "", ""),
        ("spdk-k8s-dev-worker1-of-mine", "", ""),
        ("my-spdk-k8s-dev-worker1", "", ""),
        ("database", "", ""),
    ],
    "volume": [("spdk-k8s-dev-worker1-var", "", ""), ("spdk-k8s-dev-data", "", ""), ("x", "other", "")],
    "network": [("spdk-k8s-dev", "", ""), ("bridge", "", ""), ("spdk-k8s-dev2", "", "")],
}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        out = "".join("\t".join(row) + "\n" for row in LISTED[command[1]])
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("engine")
def test_only_what_has_the_stacks_labels_or_its_names_is_found() -> None:
    assert [(item.kind, item.name) for item in leftovers.find("dev")] == [
        ("container", "spdk-k8s-dev-master"),
        ("container", "spdk-k8s-dev-worker1"),
        ("container", "renamed"),
        ("volume", "spdk-k8s-dev-worker1-var"),
        ("network", "spdk-k8s-dev"),
    ]
    assert leftovers.find("de.") == []


@pytest.mark.parametrize("fails", [1, FileNotFoundError])
def test_where_no_engine_answers_nothing_is_found(monkeypatch: pytest.MonkeyPatch, fails: object) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if fails == 1:
            return subprocess.CompletedProcess(command, 1, "", "Cannot connect")
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    assert leftovers.find("dev") == []


def test_up_is_refused_with_the_way_out(tmp_path: Path) -> None:
    leftovers.refuse("dev", [])
    with pytest.raises(SystemExit) as ended:
        leftovers.refuse("dev", [Leftover("container", "c", str(ROOT)), Leftover("network", "n")])
    said = str(ended.value)
    assert "still in the Docker engine, and this state does not know it; nothing was started" in said
    assert "  container c\n  network n\n" in said
    assert said.endswith("remedy: make down STACK=dev, which deletes them and their data")

    link = tmp_path / "link"
    link.symlink_to(ROOT)
    assert not Leftover("container", "c", str(link)).elsewhere
    other = Leftover("container", "c", str(tmp_path))
    assert not other.elsewhere  # that checkout was deleted
    (tmp_path / "Pulumi.yaml").touch()
    with pytest.raises(SystemExit) as ended:
        leftovers.refuse("dev", [other])
    assert str(ended.value).endswith(f"remedy: make -C {tmp_path} down STACK=dev")
