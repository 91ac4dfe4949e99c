"""No test waits: retries follow at once."""

from __future__ import annotations

import pytest
from disk_agent import agent, supervise, vm


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(agent, "LAST_RETRY", 0.004)
    monkeypatch.setattr(vm, "ASK_AGAIN", 0)
    monkeypatch.setattr(supervise, "LOOK_EVERY", 0.05)
