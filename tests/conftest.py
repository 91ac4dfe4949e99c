import pytest

from tests.pulumi_cli import heed_interrupts

TIERS = ("unit", "engine", "e2e", "servers")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden files of the renderers anew")


def pytest_configure() -> None:
    heed_interrupts()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick tiers first: a typing error is known before a machine is made."""
    items.sort(key=lambda item: next(i for i, tier in enumerate(TIERS) if item.get_closest_marker(tier)))
