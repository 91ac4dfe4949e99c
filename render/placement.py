"""Names and addresses of VMs, root ports and disks. settings/places.py says which VM and port an instance has.

QEMU's arguments, the vhost target's config and the PersistentVolumes all use these functions, so they agree.
"""

from __future__ import annotations

from settings.names import number

# Slots 1 to 7 of bus pcie.0 hold the VM's fixed devices. Each slot from 8 on holds 8 root ports, so 128 end at slot 23.
FIRST_PORT_SLOT = 8
WATCHDOG_SLOT = 24


def unit_name(index: int) -> str:
    """Of VM number `index` on its host: its systemd unit is spdk-k8s-NAME, its monitor NAME.qmp."""
    return "vm" if index == 0 else f"vm-{index + 1}"


def root_port(port: int) -> str:
    """PCI address of root port number `port` on bus pcie.0, as QEMU writes it: hexadecimal "slot.function"."""
    return f"0x{FIRST_PORT_SLOT + port // 8:x}.{port % 8}"


def disk_path(port: int) -> str:
    """Path in the VM of the block device behind root port number `port`.

    The root ports are the only PCI bridges, and the firmware numbers buses in the order of the bridges' addresses. So
    port i leads to bus i + 1.
    """
    return f"/dev/disk/by-path/pci-0000:{port + 1:02x}:00.0"


def vm_index(vm: str, host: str) -> int:
    """Number of `vm` on `host`, from 0: it follows from the two names alone, so no other VM changes it."""
    return (number(vm) - number(host) - 1) % 99


def vm_mac(first: str, vm: str) -> str:
    """MAC address of `vm`: it follows from the name alone. first: that of worker2, the first VM of most stacks."""
    return f"{first[:-2]}{(int(first[-2:], 16) + number(vm) - 2) % 256:02X}"
