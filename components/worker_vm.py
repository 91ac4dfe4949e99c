"""The worker VM: a QEMU guest on worker1, a systemd unit there, whose vhost-user-blk disks are plugged in by QMP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

import pulumi

from components import render
from components.hosts import SCRIPTS, Host

MEDIA = "/srv/media"  # worker1's folder, and where the guest mounts it


class WorkerVm(pulumi.ComponentResource):
    """host: where QEMU runs. index: number of this VM there, from 0.
    guest: the root disk's image. preload: images that the guest has from the start.

    accel: the accelerator in use, "kvm" or "tcg". running: the resource after which the guest boots, answers:
    after which it can be reached; `disk` plugs in one vhost disk and needs the vhost target.
    """

    def __init__(
        self,
        name: str,
        *,
        host: Host,
        index: int,
        host_ready: Sequence[pulumi.Resource],
        address: IPv4Address,
        prefix: int,
        gateway: IPv4Address,
        nameservers: Sequence[str],
        authorized_key: pulumi.Input[str],
        host_key: tuple[pulumi.Input[str], pulumi.Input[str]],
        guest: pulumi.Input[str],
        bundle: pulumi.Input[str],
        preload: Sequence[pulumi.Input[str]],
        media_image: pulumi.Input[str] | None,
        media_dir: str | None,
        registry_values: Mapping[str, pulumi.Input[str]],
        vcpus: int,
        memory_mib: int,
        accel: str,
        mac: str,
        queues: int,
        disk_slots: int,
        vnc: str | None,
        hugepage_size: str,
        nic: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:WorkerVm", name, None, opts)
        self._name, self._host = name, host
        self._vm = "vm" if index == 0 else f"vm-{index + 1}"  # on its host
        tap = f"tap{index}"
        private, public = host_key
        user_data = pulumi.Output.all(authorized_key, private, public).apply(
            lambda v: render.cloud_init_user_data(
                hostname=name,
                authorized_key=str(v[0]),
                host_private=str(v[1]),
                host_public=str(v[2]),
                nameservers=nameservers,
            )
        )
        self.running = host.run(
            f"{name}-vm",
            "worker_vm",
            {
                "REGISTRY": registry_values["REGISTRY"],
                "GUEST": guest,
                "BUNDLE": bundle,
                "PRELOAD": pulumi.Output.all(*preload).apply(" ".join),
                "MEDIA_IMAGE": media_image if media_image is not None else "",
                "MEDIA_DIR": media_dir or MEDIA,
                "DISK_GIB": "8",
                "ACCEL": accel,
                "VM": self._vm,
                "QEMU_ARGS": "\n".join(
                    render.qemu_args(
                        vm=self._vm,
                        vcpus=vcpus,
                        memory_mib=memory_mib,
                        mac=mac,
                        tap=tap,
                        disk_slots=disk_slots,
                        vnc=vnc,
                        hugepage_size=hugepage_size,
                    )
                ),
                "USER_DATA": pulumi.Output.secret(user_data),
                "META_DATA": render.cloud_init_meta_data(hostname=name),
                "NETWORK_CONFIG": render.cloud_init_network(mac=mac, address=address, prefix=prefix, gateway=gateway),
                "QUEUES": str(queues),
                "SOCKETS": render.SOCKETS,
                "BRIDGE": "br0",
                "TAP": tap,
                "NIC": nic,
                "BRIDGE_SCRIPT": (SCRIPTS / "host" / "bridge").read_text(),
                "VM_DISKS": (SCRIPTS / "host" / "vm-disks").read_text(),
            },
            parent=self,
            depends_on=host_ready,
        )
        self.answers = host.run(
            f"{name}-answers",
            "vm_answers",
            {"ADDRESS": str(address)},
            parent=self,
            undo="never",
            depends_on=[self.running],
        )
        self.accel = self.running.stdout
        self.register_outputs({"accel": self.accel})

    def disk(self, ordinal: int, *, port: int, vhost: pulumi.Resource) -> pulumi.Resource:
        """Disk `ordinal` behind root port number `port`: listed for every start of the VM, and plugged into the running
        one; its undo unplugs it."""
        return self._host.run(
            f"{self._name}-disk-{ordinal}",
            "vm_disk",
            {"VM": self._vm, "ORDINAL": str(ordinal), "SLOT": str(port)},
            parent=self,
            depends_on=[self.running, vhost],
        )
