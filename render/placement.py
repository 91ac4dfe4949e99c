"""Where an instance runs and where its disk is: QEMU's arguments and Kubernetes' volumes both come from here."""

from __future__ import annotations

from settings.names import RUN

# Slots 1 to 7 of pcie.0 hold the VM's fixed devices. From slot 8 on each slot holds 8 root ports: 128 end at slot 23.
FIRST_PORT_SLOT = 8


def place(ordinal: int, vms: int) -> tuple[int, int]:
    """Where instance `ordinal` runs: number of its VM, and number of its root port there. VMs take turns."""
    return ordinal % vms, ordinal // vms


def unit_name(index: int) -> str:
    """Of VM number `index` on its host: its systemd unit is spdk-k8s-NAME, its monitor NAME.qmp."""
    return "vm" if index == 0 else f"vm-{index + 1}"


def root_port(port: int) -> str:
    """PCI address on pcie.0 of root port number `port`, in QEMU's form: slot.function, hexadecimal."""
    return f"0x{FIRST_PORT_SLOT + port // 8:x}.{port % 8}"


def disk_path(port: int) -> str:
    """Block device behind root port number `port`, inside the VM.

    Root ports are the only bridges; firmware numbers buses in the order of their addresses: port i leads to bus i+1.
    """
    return f"/dev/disk/by-path/pci-0000:{port + 1:02x}:00.0"


def socket_path(ordinal: int) -> str:
    """vhost-user socket of instance `ordinal` on worker1."""
    return f"{RUN}/vhost.{ordinal}"


def mac_address(first: str, vm: int) -> str:
    """Of VM number `vm`, counted over all hosts: they share a network."""
    return f"{first[:-2]}{(int(first[-2:], 16) + vm) % 256:02X}"
