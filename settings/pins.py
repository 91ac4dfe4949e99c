"""PINS: the pinned versions in versions.env, name -> version."""

from pathlib import Path

_LINES = (Path(__file__).parent.parent / "versions.env").read_text().splitlines()
PINS: dict[str, str] = dict(line.split("=", 1) for line in _LINES if line and not line.startswith("#"))
