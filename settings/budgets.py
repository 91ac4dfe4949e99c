"""Budgets: the memory, hugepages and CPUs that a config needs. `backend` is always the vhost backend in use."""

from __future__ import annotations

from typing import Literal

from settings.models import HUGEPAGE_MIB, HugepageSize, Settings

Backend = Literal["spdk", "qemu-storage-daemon"]

# Memory in MiB.
NODE_MIB = 512  # kubelet, containerd and system pods of one node
NODES_MIB = 1536  # control plane, kubelets and registry of a dev stack
CONTROL_PLANE_MIB = 1700  # kubeadm's own minimum
VHOST_OVERHEAD_MIB = 256  # a target without disks
VHOST_OVERHEAD_MIB_PER_DISK = 8  # SPDK's buffers: see render.vhost.spdk_config
AGENT_MIB = 128  # the disk agent in the vhost pod
VM_RESERVED_MIB = 512  # the guest's kernel, kubelet, containerd and CoreDNS
VIDEO_MIB = 32  # memory request of a video pod

VM_RESERVED_MILLICPU = 200  # CoreDNS, which may run on the VM
VM_VECTORS = 195  # interrupt vectors that each x86 vCPU has for devices: see docs/decisions/0012
VM_RESERVED_VECTORS = 12  # interrupt vectors of the VM's fixed devices


def whole_pages(mib: int, size: HugepageSize) -> int:
    """`mib` in MiB, rounded up to whole pages of `size`."""
    page = HUGEPAGE_MIB[size]
    return -(-mib // page) * page


def vhost_memory_mib(config: Settings) -> int:
    """Memory of a vhost target in MiB.

    The default has room for a disk in every slot of the target's VMs. It must not depend on numinst: a changed size
    replaces the pod, and disks in memory are blank after that.
    """
    return config.vhost.memory_mib or vhost_need_mib(config, config.slots)


def vhost_need_mib(config: Settings, disks: int) -> int:
    """Memory in MiB, in whole pages, that a vhost target with `disks` disks needs."""
    own = VHOST_OVERHEAD_MIB + config.slots * VHOST_OVERHEAD_MIB_PER_DISK
    return whole_pages(own + _disks_mib(config, disks), config.vhost.hugepage_size)


def vhost_beside_mib(config: Settings) -> int:
    """What is charged to the vhost pod beside the target's memory, MiB: the disk agent, and page tables of the guests'
    memory, which the target maps once for each disk. That memory itself is charged to QEMU, which touches it first."""
    page_kib = HUGEPAGE_MIB[config.vm.hugepage_size] * 1024 if config.vm.hugepage_size != "none" else 4
    return AGENT_MIB + config.slots * -(-config.vm.memory_mib * 8 // (page_kib * 1024))


def _disks_mib(config: Settings, count: int) -> int:
    return count * config.vhost.disk_mib if config.vhost.bdev == "malloc" else 0


def on_hugepages(config: Settings, backend: Backend) -> bool:
    """Whether the vhost target's memory is on hugepages."""
    return backend == "spdk" and config.vhost.hugepage_size != "none"


def machine_memory_mib(config: Settings, backend: Backend) -> int:
    """Memory in MiB that one machine needs for the whole dev stack.

    Hugepages are allocated for every slot at once, ordinary pages only for disks that exist.
    """
    at_once = on_hugepages(config, backend)
    target = vhost_memory_mib(config) if at_once else vhost_need_mib(config, 0)
    disks = 0 if at_once else _disks_mib(config, config.numinst)
    return len(config.machines.storage) * target + disks + len(config.vms) * config.vm.memory_mib + NODES_MIB


def storage_host_memory_mib(config: Settings, backend: Backend) -> int:
    """Memory in MiB that the storage host with the most instances needs."""
    target = vhost_memory_mib(config) if on_hugepages(config, backend) else vhost_need_mib(config, config.per_host)
    return target + config.vm.memory_mib * config.vms_per_host + NODE_MIB


def hugepages(config: Settings, backend: Backend) -> dict[str, int]:
    """Hugepages that the program reserves on a storage host: size ("2Mi", "1Gi") -> number of pages."""
    wanted: dict[HugepageSize, int] = {config.vm.hugepage_size: config.vm.memory_mib * config.vms_per_host}
    if backend == "spdk":
        size = config.vhost.hugepage_size
        wanted[size] = wanted.get(size, 0) + vhost_memory_mib(config)
    return {size: -(-mib // HUGEPAGE_MIB[size]) for size, mib in wanted.items() if size != "none"}


def storage_host_cpus(config: Settings, backend: Backend) -> int:
    """Number of CPUs that a storage host must have: every core that SPDK polls on, and one more."""
    polled = config.vhost.cores if backend == "spdk" else ()
    return max(len(polled) + 1, *(core + 1 for core in polled), 1)


def in_words(config: Settings, backend: Backend) -> str:
    """The budget of a storage host as one line of text."""
    vms = "VM" if config.vms_per_host == 1 else f"{config.vms_per_host} VMs, each"
    pages = [f"{count} hugepages of {size}" for size, count in hugepages(config, backend).items()]
    return (
        f"budget of worker1: vhost {vhost_memory_mib(config)} MiB for up to {config.slots} disks of"
        f" {config.vhost.disk_mib} MiB, {vms} {config.vm.memory_mib} MiB; {' and '.join(pages) or 'no hugepages'}"
    )


def choose_backend(config: Settings, *, cpus: int | None, release: bool) -> tuple[Backend, str]:
    """The vhost backend to use, and the reason.

    cpus: number of CPUs of the machine that worker1 runs on; None: unknown. release: whether SPDK's pinned release can
    be downloaded.
    """
    if config.vhost.backend != "auto":
        return config.vhost.backend, "it is configured"
    if not (release or config.vhost.source):
        return "qemu-storage-daemon", "SPDK's release cannot be reached and vhost.source names no folder"
    polled = len(config.vhost.cores)
    if cpus is None:
        return "spdk", "its source can be had"
    if cpus < (need := config.vm.vcpus + 1 + polled):
        return "qemu-storage-daemon", f"SPDK polls on a core of its own, and {cpus} CPUs are less than {need}"
    if cpus <= (last := max(config.vhost.cores, default=0)):
        return "qemu-storage-daemon", f"vhost.cpuMask names core {last}, and {cpus} CPUs end at {cpus - 1}"
    return "spdk", f"its source can be had, and of {cpus} CPUs {'one' if polled == 1 else polled} can be spared"
