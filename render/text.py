"""How the renderers write YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def documents(*parts: Mapping[str, Any]) -> str:
    """YAML documents, keys in the order in which they are given."""
    return "---\n".join(yaml.safe_dump(part, sort_keys=False) for part in parts)
