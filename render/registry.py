"""Configuration of the private registry, and of the nodes that pull from it."""

from __future__ import annotations

import base64
from typing import Any

from render.text import documents


def registry_config(*, port: int, tls: bool) -> str:
    """config.yml of the registry (CNCF Distribution)."""
    http: dict[str, Any] = {"addr": f":{port}", "headers": {"X-Content-Type-Options": ["nosniff"]}}
    if tls:
        http["tls"] = {
            "certificate": "/etc/docker/registry/server.crt",
            "key": "/etc/docker/registry/server.key",
        }
    return documents(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": "/var/lib/docker-registry"},
                "delete": {"enabled": True},
                "cache": {"blobdescriptor": "inmemory"},
            },
            "http": http,
            "auth": {"htpasswd": {"realm": "spdk-k8s", "path": "/etc/docker/registry/htpasswd"}},
        }
    )


def registry_hosts(url: str, *, host: str, user: str, password: str, tls: bool) -> str:
    """hosts.toml of containerd for the private registry, with its CA and login. The text is a secret.

    url: "https://address:port". host: "address:port", containerd's name of the registry.
    """
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    ca = f'  ca = "/etc/containerd/certs.d/{host}/ca.crt"\n' if tls else ""
    return (
        f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n{ca}'
        f'  [host."{url}".header]\n    Authorization = ["Basic {login}"]\n'
    )
