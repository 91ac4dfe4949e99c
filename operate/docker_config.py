"""A copy of the config of Docker's client that has none of the user's logins.

The program needs none: it has its own for the private registry, and set-up puts all other images into the engine. But
pulumi-docker reads every login before a build, and fails where a credential helper does: one of Docker Desktop that is
no longer there, a keyring without a session, a password store that asks for a passphrase.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

LOGINS = ("auths", "credsStore", "credHelpers")
# With no store named, pulumi-docker takes one that happens to be installed: so one is named, which has no logins.
STORE = "spdk-k8s-none"
HELPER = """#!/bin/sh
case $1 in
  list) echo '{}' ;;
  get) echo 'credentials not found in native keychain' && exit 1 ;;
esac
"""


def without_logins(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Make the copy in `folder`, which is there, and return the variables that put it in place of the user's config.

    A config that cannot be read stays in place: Docker's client says what is wrong with it.
    """
    config = environment.get("DOCKER_CONFIG", "")
    users = Path(config) if config else Path(environment.get("HOME", "/nonexistent"), ".docker")
    try:
        read: Any = json.loads((users / "config.json").read_text())
    except FileNotFoundError:
        read = {}
    except (OSError, ValueError):
        return {}
    if not isinstance(read, dict):
        return {}
    kept = {key: value for key, value in cast(dict[str, Any], read).items() if key not in LOGINS}

    copy = folder / "docker"
    copy.mkdir(mode=0o700)
    (copy / "config.json").write_text(json.dumps(kept | {"credsStore": STORE}))
    helper = copy / f"docker-credential-{STORE}"
    helper.write_text(HELPER)
    helper.chmod(0o700)
    for path in users.iterdir() if users.is_dir() else ():  # contexts, plug-ins
        if path.name != "config.json":
            (copy / path.name).symlink_to(path.absolute())
    return {"DOCKER_CONFIG": str(copy), "PATH": f"{environment.get('PATH', os.defpath)}:{copy}"}
