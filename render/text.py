"""YAML for the renderers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def documents(*parts: Mapping[str, Any]) -> str:
    """`parts` as YAML documents. Keys keep their order."""
    return "---\n".join(yaml.safe_dump(part, sort_keys=False) for part in parts)
