"""The documents lead to files, functions and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOUSES = "settings|render|components|operate|scripts|images|policy|setup|offline|bench|tests|docs"


def anchors(document: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_file_and_function_on_the_map_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(rf"`((?:{HOUSES})/[\w./<>-]*)(?:: ([\w.]+))?`", text)
    assert len(named) > 30
    for path, function in named:
        found = list(ROOT.glob(re.sub(r"<\w+>", "*", path)))
        assert found, path
        if function:
            source = found[0].read_text()
            for name in function.split("."):
                assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{path}: {function}"
