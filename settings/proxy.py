"""The user's proxy (HTTPS_PROXY and its like): downloads go through it, requests to the stack itself never do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# the same in config.json of Docker's client
DOCKERS_NAMES = {"HTTP_PROXY": "httpProxy", "HTTPS_PROXY": "httpsProxy", "ALL_PROXY": "allProxy", "NO_PROXY": "noProxy"}


def named(environment: Mapping[str, str]) -> dict[str, str]:
    """The proxies in the environment, by upper-case name. Programs differ in which case they read."""
    found = {name: environment.get(name) or environment.get(name.lower(), "") for name in NAMES}
    return {name: value for name, value in found.items() if value}


def for_children(environment: Mapping[str, str], own: Iterable[str]) -> dict[str, str]:
    """Variables that keep requests for `own` addresses and networks away from the proxy; empty where there is none.

    Go and curl know networks in NO_PROXY, Python's libraries only addresses: `own` is to have both.
    """
    proxies = named(environment)
    if not proxies:
        return {}
    lists = [environment.get("NO_PROXY", ""), environment.get("no_proxy", ""), *own]
    entries = (entry.strip() for text in lists for entry in text.split(","))
    return _both_cases(proxies | {"NO_PROXY": ",".join(dict.fromkeys(entry for entry in entries if entry))})


def for_builds(environment: Mapping[str, str]) -> dict[str, str]:
    """Build arguments that give an image's build the proxy; empty where there is none.

    Docker's own setting for containers comes first ("proxies" in config.json): a proxy on this machine's loopback, say,
    has another address there. BuildKit knows these arguments: they change neither the image nor what is cached.
    """
    folder = Path(environment.get("DOCKER_CONFIG") or Path(environment.get("HOME", "/nonexistent"), ".docker"))
    try:
        default: Any = json.loads((folder / "config.json").read_text())["proxies"]["default"]
        dockers = {name: str(default[key]) for name, key in DOCKERS_NAMES.items() if default.get(key)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        dockers = {}
    if named(dockers):
        return _both_cases(dockers)
    return for_children(environment, ())


def goes_direct(no_proxy: str, address: IPv4Address, port: int) -> bool:
    """Whether a Go program with this NO_PROXY, such as the Docker engine, asks `address` without its proxy."""
    if address.is_loopback:
        return True
    for entry in (entry.strip() for entry in no_proxy.split(",")):
        if entry in ("*", str(address), f"{address}:{port}"):
            return True
        try:
            if "/" in entry and address in ip_network(entry, strict=False):
                return True
        except ValueError:  # a name
            continue
    return False


def _both_cases(variables: Mapping[str, str]) -> dict[str, str]:
    return {spelt: value for name, value in variables.items() if value for spelt in (name, name.lower())}


if __name__ == "__main__":  # for setup/images.sh: by stdout to a pipe, because a proxy's password may be in it
    import os
    import sys

    json.dump(for_builds(os.environ), sys.stdout)
