"""The machines of the dev stack: containers that boot systemd and sshd, on a Docker network of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pulumi
import pulumi_docker as docker
from pulumi_command import local

from components.hosts import SCRIPTS, STEP, Host, Keys, here
from components.images import builds_through_proxy, content_tag, recipe
from render.cpus import roles
from settings.models import Cpus
from settings.names import CHECKOUT_LABEL, STACK_LABEL

# Docker cannot change labels: what an earlier checkout made would be replaced.
LABELS_STAY = ["labels"]


@dataclass(frozen=True)
class DevMachinesArgs:
    subnet: IPv4Network
    gateway: IPv4Address
    containers: Mapping[str, IPv4Address]
    """Name -> address of each machine."""
    base_image: str
    """Debian image from which the machines' image is built."""
    keys: Sequence[str] = ()
    """Names of further machines to make host keys for: all that may come, because other names would leave the keys of
    all machines unknown until `up`, and a preview could not tell that nothing else changes."""
    memory_mib: int = 0
    """Memory in MiB that the whole stack needs. The preflight fails if this machine has less."""
    holding: Collection[str] = ()
    """Names of the machines whose volume holds disk files. The volume is protected: see `Settings.holding`."""
    cpus: Cpus = field(default_factory=Cpus)
    """The CPU plan of the storage host. The preflight fails if it does not fit this machine."""
    kvm: bool = False
    """Whether the VMs require KVM. The preflight fails if this machine has no /dev/kvm."""


class DevMachines(pulumi.ComponentResource):
    """Containers of the local Docker engine that boot systemd and answer SSH, as hosts.

    hosts: name -> Host of each container. keys: the SSH keys of the containers and of the VMs.

    ```python
    from ipaddress import IPv4Address, IPv4Network

    from components.dev_machines import DevMachines, DevMachinesArgs

    machines = DevMachines(
        "dev",
        DevMachinesArgs(
            subnet=IPv4Network("172.30.97.0/24"),
            gateway=IPv4Address("172.30.97.1"),
            containers={"master": IPv4Address("172.30.97.2")},
            base_image="debian:trixie-slim",
        ),
    )
    machines.hosts["master"].run("hello", "ready", parent=machines)
    ```
    """

    hosts: dict[str, Host]

    def __init__(self, name: str, args: DevMachinesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:DevMachines", name, None, opts)
        project = f"spdk-k8s-{pulumi.get_stack()}"
        child = pulumi.ResourceOptions(parent=self)
        labels = {STACK_LABEL: pulumi.get_stack(), CHECKOUT_LABEL: str(Path(__file__).resolve().parents[1])}

        plan = {"ROLES": roles(args.cpus), "LIB": (SCRIPTS / "lib.sh").read_text()} if args.cpus.roles else {}
        preflight = local.Command(
            f"{name}-preflight",
            create=f"{STEP} {args.subnet} {project} {args.memory_mib}{' kvm' * args.kvm}",
            environment={**here("preflight_local"), **plan},
            logging=local.Logging.STDERR,
            add_previous_output_in_env=False,
            opts=child,
        )
        self.keys = Keys(name, dict.fromkeys([*args.keys, *args.containers]), parent=self, depends_on=[preflight])

        tag = content_tag("node", args.base_image, "machine")
        image = docker.Image(
            f"{name}-image",
            image_name=f"spdk-k8s/machine:{tag}",
            build=recipe("node", {"BASE": args.base_image}, "machine"),
            skip_push=True,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[preflight], hooks=builds_through_proxy()),
        )
        # the kernel settings, saved before a machine changes them and restored by its delete
        kernel = local.Command(
            f"{name}-kernel",
            create=f"{STEP} up",
            delete=f"{STEP} down",
            environment={**here("kernel_local"), "IMAGE": f"spdk-k8s/machine:{tag}"},
            logging=local.Logging.STDERR,
            add_previous_output_in_env=True,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[preflight]),
        )
        network = docker.Network(
            f"{name}-network",
            name=project,
            ipam_configs=[docker.NetworkIpamConfigArgs(subnet=str(args.subnet), gateway=str(args.gateway))],
            labels=[docker.NetworkLabelArgs(label=label, value=value) for label, value in labels.items()],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[preflight], ignore_changes=LABELS_STAY),
        )
        self.hosts = {}
        for machine, address in args.containers.items():
            volume = docker.Volume(
                f"{name}-{machine}-var",
                name=f"{project}-{machine}-var",
                labels=[docker.VolumeLabelArgs(label=label, value=value) for label, value in labels.items()],
                opts=pulumi.ResourceOptions(
                    parent=self, protect=machine in args.holding or None, ignore_changes=LABELS_STAY
                ),
            )
            container = docker.Container(
                f"{name}-{machine}",
                name=f"{project}-{machine}",
                hostname=machine,
                image=image.image_name,
                privileged=True,
                cgroupns_mode="private",
                restart="unless-stopped",
                tmpfs={"/run": "", "/tmp": ""},
                # overlayfs, which containerd uses, does not work on the container's own overlayfs
                volumes=[docker.ContainerVolumeArgs(volume_name=volume.name, container_path="/var")],
                networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.name, ipv4_address=str(address))],
                # systemd 256 and later refuse cgroup v1 without this
                envs=["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"],
                uploads=[
                    docker.ContainerUploadArgs(
                        file="/root/.ssh/authorized_keys",
                        content=self.keys.key("client", "public"),
                        permissions="0600",
                    ),
                    docker.ContainerUploadArgs(
                        file="/etc/ssh/ssh_host_ed25519_key",
                        content=self.keys.key(machine, "private"),
                        permissions="0600",
                    ),
                ],
                must_run=True,
                labels=[docker.ContainerLabelArgs(label=label, value=value) for label, value in labels.items()],
                opts=pulumi.ResourceOptions(
                    parent=self,
                    depends_on=[kernel],
                    delete_before_replace=True,
                    # another image would make another container, without what the steps installed in this one
                    ignore_changes=["image", *LABELS_STAY],
                ),
            )
            host = self.keys.host(machine, str(address), deleted_with=container, after=[container])
            self.hosts[machine] = host.gated(f"{name}-{machine}-ready", parent=self)
        self.register_outputs({"hosts": {name: host.address for name, host in self.hosts.items()}})
