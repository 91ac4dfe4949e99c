"""The private registry on one host: TLS from a CA of its own, login, and the trust of the engine that pushes."""

from __future__ import annotations

import json

import pulumi
import pulumi_docker as docker
from pulumi_command import local

from components import render
from components.hosts import Host

USER = "spdk-k8s"


class Registry(pulumi.ComponentResource):
    """The distribution registry as a systemd service on `host`.

    address: "IP:port". login: for pulumi-docker. node_values: what scripts/node.sh needs so that a node can pull.
    service: the resource that is the registry; images must be pushed again when it is replaced.
    """

    def __init__(
        self,
        name: str,
        *,
        host: Host,
        ip: str,
        port: int,
        tls: bool,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:Registry", name, None, opts)
        self.address = f"{ip}:{port}"
        url = f"{'https' if tls else 'http'}://{self.address}"
        certificate = local.Command(
            f"{name}-certificate",
            create=f"exec scripts/certificate.sh {ip}",
            logging=local.Logging.NONE,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stdout"]),
        )
        made = pulumi.Output.secret(certificate.stdout).apply(json.loads)

        def part(key: str) -> pulumi.Output[str]:
            return made.apply(lambda m: str(m[key]))

        ca = part("ca") if tls else pulumi.Output.from_input("")
        self.service = host.run(
            name,
            "registry",
            {
                "CONFIG": render.registry_config(port=port, tls=tls),
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
            create=f"exec scripts/engine_trust.sh up {self.address}",
            update=f"exec scripts/engine_trust.sh up {self.address}",
            delete=f"exec scripts/engine_trust.sh down {self.address}",
            stdin=ca,
            logging=local.Logging.STDERR,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[self.service]),
        )
        self.ready = [self.service, trust]
        self.login = docker.RegistryArgs(server=self.address, username=USER, password=part("password"))
        self.node_values: dict[str, pulumi.Input[str]] = {
            "REGISTRY": self.address,
            "REGISTRY_CA": ca,
            "REGISTRY_HOSTS": part("password").apply(
                lambda password: render.registry_hosts(url, host=self.address, user=USER, password=password, tls=tls)
            ),
        }
        self.register_outputs({"address": self.address})
