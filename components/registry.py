"""The private registry on one host: TLS from a CA of its own, login, and the trust of the engine that pushes."""

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
    """Where it runs; its address is the registry's."""
    port: int = 5000
    tls: bool = True
    """False: plain HTTP, for engines that list it under insecure-registries."""


class Registry(pulumi.ComponentResource):
    """The distribution registry as a systemd service.

    address: "IP:port". login: for pulumi-docker. node_values: what scripts/node.sh needs so that a node can pull.
    ready: the resources after which it serves; when one is made anew, the registry is empty.

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
        # Where the engine that pushes looks for whom to trust; it belongs to this machine, so it is removed at the end.
        trust = local.Command(
            f"{name}-trust",
            create=pulumi.Output.concat(f"{STEP} up ", self.address),
            update=pulumi.Output.concat(f"{STEP} up ", self.address),
            delete=pulumi.Output.concat(f"{STEP} down ", self.address),
            environment=here("engine_trust"),
            stdin=ca,
            triggers=[self.address],  # the folder of an earlier one goes
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
