"""What the Docker engine must be, and must be set to, asked of the engine before anything changes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

from settings import proxy
from settings.models import NAMESPACE, Settings

OWN_ENGINE = (
    "Remedy: use the system's own engine: sudo apt-get install docker.io; docker context use default; unset DOCKER_HOST"
)


def refuse_unable_to_push(config: Settings) -> None:
    """Refuse an engine whose settings keep it from pushing images to the stack's registry."""
    address, port, tls = config.machines.addresses["master"], config.registry.port, config.registry.tls
    asked = asked_of_docker("info")
    if isinstance(asked, str):
        raise SystemExit(f"{asked}\nremedy: make setup")
    if not tls and not may_be_plain(asked.get("RegistryConfig") or {}, address, port):
        raise SystemExit(
            f"{NAMESPACE}:registry.tls = false: the Docker engine does not list {address}:{port} under"
            " insecure-registries, so it would push no image; nothing was changed"
            "\nremedy: pulumi config rm --path registry.tls, or add"
            f' "insecure-registries": ["{address}:{port}"] to the engine\'s /etc/docker/daemon.json and'
            " have it read again: sudo systemctl reload docker"
        )
    # `docker info` masks the password
    through: str = asked.get("HttpsProxy" if tls else "HttpProxy") or ""
    if through and not proxy.goes_direct(asked.get("NoProxy") or "", address, port):
        raise SystemExit(
            f"the Docker engine would push images to the registry {address}:{port} through its proxy {through}, because"
            f" its no-proxy is {asked.get('NoProxy') or 'empty'!r}; nothing was changed"
            f'\nremedy: add "{address}" to "no-proxy" under "proxies" in /etc/docker/daemon.json (or to NO_PROXY where'
            " systemctl show --property=Environment docker has the proxy), then sudo systemctl restart docker"
        )


def unfit(info: dict[str, Any], server: dict[str, Any], *, local: bool, kernel: str) -> str:
    """Why this engine cannot serve, with the remedy; empty if it can.

    info, server: what `docker info` and `docker version` say of it. local: it answers at a Unix socket. kernel: this
    machine's, as in `uname -r`.
    """
    parts = {part.get("Name", "") for part in cast(list[dict[str, str]], server.get("Components") or [])}
    options = {option.partition(",")[0] for option in cast(list[str], info.get("SecurityOptions") or [])}
    product = cast(dict[str, str], server.get("Platform") or {}).get("Name", "")
    if "Podman Engine" in parts:
        return f"the Docker client talks to Podman, which has no BuildKit: no image could be built. {OWN_ENGINE}"
    if info.get("OperatingSystem") == "Docker Desktop" or product.startswith("Docker Desktop"):
        why = "Docker Desktop runs the engine in a virtual machine"
    elif local and info.get("KernelVersion", kernel) != kernel:
        why = (
            f"the Docker engine runs in a virtual machine (kernel {info['KernelVersion']}, this machine's is {kernel})"
        )
    elif "name=rootless" in options:
        return (
            f"the Docker engine runs without root: a dev machine's systemd and kubelet need a real root. {OWN_ENGINE}"
        )
    elif "name=userns" in options:
        return (
            "the Docker engine maps root to another user (userns-remap): a dev machine's systemd and kubelet need a"
            " real root. Remedy: take userns-remap out of /etc/docker/daemon.json and restart the engine"
        )
    else:
        return ""
    return f"{why}: containers have no address that this machine reaches, and /etc/docker is not read. {OWN_ENGINE}"


def without_proxy(info: dict[str, Any]) -> str:
    """What to say of an engine that has no proxy, where the user has one; empty otherwise."""
    if info.get("HttpsProxy") or not proxy.named(os.environ):
        return ""
    return (
        'the engine has no proxy, so it pulls without; to change that: "proxies": {"http-proxy": …, "https-proxy": …,'
        ' "no-proxy": …} in /etc/docker/daemon.json, then sudo systemctl restart docker'
    )


def asked_of_docker(*what: str, form: str = "{{json .}}") -> Any:
    """The answer to `docker WHAT`, mostly an object; a text if there is none: why."""
    done = subprocess.run(["docker", *what, "--format", form], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()


def may_be_plain(registries: dict[str, Any], address: IPv4Address, port: int) -> bool:
    """registries: RegistryConfig of `docker info`."""
    named: dict[str, Any] = registries.get("IndexConfigs") or {}
    networks: list[str] = registries.get("InsecureRegistryCIDRs") or []
    listed = named.get(f"{address}:{port}")
    return (listed is not None and not listed["Secure"]) or any(address in IPv4Network(n) for n in networks if "." in n)


def main() -> None:
    """For setup/images.sh: refuse an engine that cannot serve; print what there is to say of one that can."""
    info, server = asked_of_docker("info"), asked_of_docker("version", form="{{json .Server}}")
    endpoint = asked_of_docker("context", "inspect", form="{{json .Endpoints.docker.Host}}")
    if isinstance(info, str) or isinstance(server, str):
        raise SystemExit(f"{info}\n{server}")
    if why := unfit(info, server, local=str(endpoint).startswith("unix:"), kernel=platform.release()):
        raise SystemExit(why)
    print(without_proxy(info))


if __name__ == "__main__":
    main()
