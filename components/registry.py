"""The private registry on one host, with TLS, a login, and the registry's CA in the Docker engine that pushes."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pulumi
import pulumi_docker as docker
from pulumi_command import local

from components.hosts import STEP, Host, here
from render.registry import registry_config, registry_hosts

USER = "spdk-k8s"


@dataclass(frozen=True)
class RegistryArgs:
    host: Host
    """Where the registry runs. The registry has this host's address."""
    port: int = 5000
    tls: bool = True
    """False: plain HTTP. The Docker engine that pushes must list the registry under insecure-registries."""


class Registry(pulumi.ComponentResource):
    """The CNCF Distribution registry as a systemd service.

    address: "IP:port". login: what pulumi-docker needs to push, a secret. node_values: variables of scripts/node.sh,
    with which a node can pull, partly secret. ready: depend on these before a push; if one of them is replaced, the
    registry is empty.

    ```python
    import pulumi

    from components.hosts import Host
    from components.registry import Registry, RegistryArgs

    key = pulumi.Config().require_secret("key")
    host = Host("store", address="192.0.2.11", host_key="ssh-ed25519 AAAA…", private_key=key)
    registry = Registry("registry", RegistryArgs(host=host, port=5001))
    pulumi.export("registry", registry.address)
    ```
    """

    def __init__(self, name: str, args: RegistryArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:Registry", name, None, opts)
        host, port, tls = args.host, args.port, args.tls
        self.address = pulumi.Output.concat(host.address, f":{port}")
        url = pulumi.Output.concat("https://" if tls else "http://", self.address)
        certificate = local.Command(
            f"{name}-certificate",
            create=pulumi.Output.concat(f"{STEP} ", host.address),
            environment=here("certificate"),
            logging=local.Logging.NONE,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stdout"]),
        )
        made = pulumi.Output.secret(certificate.stdout).apply(json.loads)

        def part(key: str) -> pulumi.Output[str]:
            return made.apply(lambda m: str(m[key]))

        ca = part("ca") if tls else pulumi.Output.from_input("")
        service = host.run(
            name,
            "registry",
            {
                "CONFIG": registry_config(port=port, tls=tls),
                "CERTIFICATE": part("certificate") if tls else "",
                "KEY": part("key") if tls else "",
                "CA": ca,
                "USER_NAME": USER,
                "PASSWORD": part("password"),
                "PORT": str(port),
                "URL": url,
            },
            parent=self,
        )
        # The Docker engine that pushes must trust the CA. Its folder is on this machine, so destroy removes it.
        trust = local.Command(
            f"{name}-trust",
            create=pulumi.Output.concat(f"{STEP} up ", self.address),
            update=pulumi.Output.concat(f"{STEP} up ", self.address),
            delete=pulumi.Output.concat(f"{STEP} down ", self.address),
            environment=here("engine_trust"),
            stdin=ca,
            triggers=[self.address],  # a replacement removes the folder of the old address
            logging=local.Logging.STDERR,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[service]),
        )
        self.ready = [service, trust]
        self.login = docker.RegistryArgs(server=self.address, username=USER, password=part("password"))
        self.node_values: dict[str, pulumi.Input[str]] = {
            "REGISTRY": self.address,
            "REGISTRY_CA": ca,
            "REGISTRY_HOSTS": pulumi.Output.all(url, self.address, part("password")).apply(
                lambda v: registry_hosts(v[0], host=v[1], user=USER, password=v[2], tls=tls)
            ),
        }
        self.register_outputs({"address": self.address})
