"""Budgets: the memory, hugepages and CPUs that a config needs. `backend` is always the vhost backend in use."""

from __future__ import annotations

from typing import Literal

from settings import cores
from settings.models import HUGEPAGE_MIB, MAX_INSTANCES, Containers, HugepageSize, Settings

Backend = Literal["spdk", "qemu-storage-daemon"]

# Memory in MiB.
NODE_MIB = 512  # kubelet, containerd and system pods of one node
NODES_MIB = 1536  # control plane, kubelets and registry of a dev stack
CONTROL_PLANE_MIB = 1700  # kubeadm's own minimum
VHOST_OVERHEAD_MIB = 256  # a target without disks
VHOST_OVERHEAD_MIB_PER_DISK = 8  # SPDK's buffers: see render.vhost.spdk_config
AGENT_MIB = 128  # the disk agent in the vhost pod
LARGE_GUEST_MIB = 16384  # up to this size the memory of a dev stack's VM is another without another target
VM_RESERVED_MIB = 512  # the guest's kernel, kubelet, containerd and CoreDNS
VIDEO_MIB, VIDEO_LIMIT_MIB = 32, 128  # memory request and limit of a video pod

# Ephemeral storage of a pod in MiB, request and limit. Their root filesystems are read-only: what is left are logs, of
# which kubelet keeps 5 files of 10 MiB for each container.
LOGS_MIB, LOGS_LIMIT_MIB = 16, 128

VM_RESERVED_MILLICPU = 200  # CoreDNS, which may run on the VM
VM_VECTORS = 195  # interrupt vectors that each x86 vCPU has for devices: see docs/decisions/0012
VM_RESERVED_VECTORS = 12  # interrupt vectors of the VM's fixed devices


def whole_pages(mib: int, size: HugepageSize) -> int:
    """`mib` in MiB, rounded up to whole pages of `size`."""
    page = HUGEPAGE_MIB[size]
    return -(-mib // page) * page


def vhost_disks(config: Settings, backend: Backend) -> int:
    """Number of disks that a vhost target can come to serve, for which it has memory from its start.

    It must not depend on numinst or the number of VMs: another size is another pod, and disks in memory are blank after
    that. Only a limit on ordinary pages is free: so a dev stack's qemu-storage-daemon may serve all that there can be,
    unless its memory is reserved.
    """
    free = backend == "qemu-storage-daemon" and not reserved(config)
    return MAX_INSTANCES if free else config.vm.disk_slots


def sample_playlists(config: Settings) -> int:
    """Number of playlists in the image of sample media. A VM that is added changes nothing."""
    slots = config.vm.disk_slots
    return slots * -(-config.numinst // slots)


def reserved(config: Settings) -> bool:
    """Whether a node reserves all memory that a vhost target can come to use: on a server, and in a CPU plan."""
    return bool(config.cpus.target) or not isinstance(config.machines, Containers)


def vhost_memory_mib(config: Settings, backend: Backend) -> int:
    """Memory of a vhost target in MiB."""
    return config.vhost.memory_mib or vhost_need_mib(config, vhost_disks(config, backend))


def vhost_need_mib(config: Settings, disks: int) -> int:
    """Memory in MiB, in whole pages, that a vhost target with `disks` disks needs for itself."""
    own = VHOST_OVERHEAD_MIB + max(disks, config.vm.disk_slots) * VHOST_OVERHEAD_MIB_PER_DISK
    return whole_pages(own, config.vhost.hugepage_size)


def vhost_disks_mib(config: Settings, backend: Backend) -> int:
    """Memory in MiB of all disks that a vhost pod can come to hold; 0 where they are files or devices."""
    return _disks_mib(config, vhost_disks(config, backend))


def vhost_beside_mib(config: Settings) -> int:
    """What is charged to the vhost pod beside the target's memory, MiB: the disk agent, and page tables of the guests'
    memory, which the target maps once for each disk. That memory itself is charged to QEMU, which touches it first.

    Where it is reserved, it is for the VMs that there are. Else it is only a limit, for any that may come."""
    guest_mib, disks, page_kib = config.vm.memory_mib, config.vm.disk_slots, 4
    if not reserved(config):
        guest_mib, disks = max(guest_mib, LARGE_GUEST_MIB), MAX_INSTANCES
    elif config.vm.hugepage_size != "none":
        page_kib = HUGEPAGE_MIB[config.vm.hugepage_size] * 1024
    return AGENT_MIB + disks * -(-guest_mib * 8 // (page_kib * 1024))


def _disks_mib(config: Settings, count: int) -> int:
    return count * config.vhost.disk_mib if config.vhost.bdev == "malloc" else 0


def on_hugepages(config: Settings, backend: Backend) -> bool:
    """Whether the vhost target's memory is on hugepages."""
    return backend == "spdk" and config.vhost.hugepage_size != "none"


def machine_memory_mib(config: Settings, backend: Backend) -> int:
    """Memory in MiB that one machine needs for the whole dev stack.

    Hugepages are allocated at once, and disks in memory only as they come.
    """
    hosts = len(config.machines.storage) * _target_mib(config, backend)
    return hosts + _disks_mib(config, config.numinst) + len(config.vms) * config.vm.memory_mib + NODES_MIB


def storage_host_memory_mib(config: Settings, backend: Backend, host: str) -> int:
    """Memory in MiB that a storage host needs."""
    disks = _disks_mib(config, len(config.ordinals(host)))
    return _target_mib(config, backend) + disks + config.vm.memory_mib * len(config.machines.storage[host]) + NODE_MIB


def _target_mib(config: Settings, backend: Backend) -> int:
    """Memory in MiB that a vhost target takes for itself at its start."""
    return vhost_memory_mib(config, backend) if on_hugepages(config, backend) else vhost_need_mib(config, 0)


def hugepages(config: Settings, backend: Backend, host: str) -> dict[str, int]:
    """Hugepages that the program reserves on a storage host: their place -> number of pages.

    place: the size ("2Mi", "1Gi") or, for a part with cores of its own, "SIZE@CORES": on the NUMA node of these cores.
    """
    sizes: dict[str, HugepageSize] = {}
    wanted: dict[str, int] = {}

    def add(size: HugepageSize, at: str, mib: int) -> None:
        place = f"{size}@{at}" if at else size
        sizes[place] = size
        wanted[place] = wanted.get(place, 0) + mib

    for index in range(len(config.machines.storage[host])):
        add(config.vm.hugepage_size, config.cpus.of_vm(index), config.vm.memory_mib)
    if backend == "spdk":
        add(config.vhost.hugepage_size, config.cpus.target or "", vhost_memory_mib(config, backend))
    return {
        place: -(-mib // HUGEPAGE_MIB[sizes[place]]) for place, mib in wanted.items() if sizes[place] != "none" and mib
    }


def storage_host_cpus(config: Settings, backend: Backend) -> int:
    """Number of CPUs that a storage host must have: every core that SPDK polls on or the plan names, and one more where
    the plan names none for the system."""
    spdk = config.target_cores if backend == "spdk" else frozenset[int]()
    taken = {core for of_role in config.cpus.roles.values() for core in cores.numbers(of_role)}
    if config.polls:
        taken |= spdk
    return max(len(taken) + (not config.cpus.system), *(core + 1 for core in taken | spdk), 1)


def vhost_cpus(config: Settings, backend: Backend) -> tuple[str, str | None]:
    """CPU request and limit of the vhost pod; None: no limit.

    In a CPU plan both are the target's cores and one for the agent: the quota never stops a reactor, which polls all of
    its core.
    """
    if config.cpus.target:
        whole = str(len(config.target_cores) + 1)
        return whole, whole
    return (str(len(config.target_cores)) if backend == "spdk" and config.polls else "100m"), None


def in_words(config: Settings, backend: Backend) -> str:
    """The budgets of the storage hosts as text: a line for each that differs from the others."""
    same: dict[str, list[str]] = {}
    for host in config.machines.storage:
        same.setdefault(_budget(config, backend, host), []).append(host)
    return "\n".join(f"budget of {' and '.join(hosts)}: {budget}" for budget, hosts in same.items())


def _budget(config: Settings, backend: Backend, host: str) -> str:
    count = len(config.machines.storage[host])
    vms = "VM" if count == 1 else f"{count} VMs, each" if count else "no VM of"
    pages = [
        f"{count} hugepages of {place.replace('@', ' beside cores ')}"
        for place, count in hugepages(config, backend, host).items()
    ]
    return (
        f"vhost {vhost_memory_mib(config, backend)} MiB and up to {vhost_disks(config, backend)}"
        f" disks of {config.vhost.disk_mib} MiB, {vms} {config.vm.memory_mib} MiB;"
        f" {' and '.join(pages) or 'no hugepages'}"
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
    if config.cpus.roles and not config.cpus.target:
        return "qemu-storage-daemon", "the CPU plan has no cores for SPDK (cpus.target)"
    if cpus is None:
        return "spdk", "its source can be had"
    if cpus <= (last := max(config.target_cores, default=0)):
        return "qemu-storage-daemon", f"vhost.cpuMask names core {last}, and {cpus} CPUs end at {cpus - 1}"
    if not config.polls:
        return "spdk", "its source can be had, and in interrupt mode it needs no core of its own"
    polled = len(config.target_cores)
    if cpus < (need := config.vm.vcpus + 1 + polled):
        return "qemu-storage-daemon", f"SPDK polls on a core of its own, and {cpus} CPUs are less than {need}"
    return "spdk", f"its source can be had, and of {cpus} CPUs {'one' if polled == 1 else polled} can be spared"
