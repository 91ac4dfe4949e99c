"""Rules over several config keys. Rules about a single key are in settings/models.py."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from settings.budgets import (
    VIDEO_MIB,
    VM_RESERVED_MIB,
    VM_RESERVED_MILLICPU,
    VM_RESERVED_VECTORS,
    VM_VECTORS,
    vhost_need_mib,
    whole_pages,
)
from settings.models import MAX_INSTANCES, NAMESPACE, Containers, Settings, Ssh


@dataclass(frozen=True)
class Problem:
    """A broken rule. key: without the namespace. value: None if there is none to show. mend: the command that helps."""

    key: str
    value: object
    rule: str
    mend: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {json.dumps(self.value, default=str, ensure_ascii=False)}"
        return f"{NAMESPACE}:{self.key}{shown}: {self.rule}; mend: {self.mend}"


def put(key: str, value: object) -> str:
    """The command that sets `key` to `value`. SSH keys have no `value`: the command reads them from host or file."""
    if key.endswith("hostKey"):
        return f"pulumi config set {_path(key)} \"$(ssh-keyscan -t ed25519 ADDRESS | grep -v ^# | cut -d' ' -f2-)\""
    if key.endswith("privateKey"):
        return f"pulumi config set --secret {_path(key)} <~/.ssh/id_ed25519"
    return f"pulumi config set {_path(key)} {shlex.quote(str(value))}"


def remove(key: str) -> str:
    """The command that restores the default of `key`."""
    return f"pulumi config rm {_path(key)}"


def _path(key: str) -> str:
    return f"--path {shlex.quote(key)}" if re.search(r"[.[]", key) else key


def broken(s: Settings, cpus: int | None = None, *, preview: bool = False, secret: bool = True) -> Iterator[Problem]:
    """Yield every broken rule.

    cpus: number of CPUs of this machine, which runs the dev stack's containers; None: unknown.
    preview: private keys may be missing, because nothing logs in.
    secret: whether the stack's file keeps some value of `machines` encrypted.
    """
    yield from _networks(s)
    if isinstance(s.machines, Ssh):
        yield from _servers(s.machines)
        yield from _private_keys(s.machines, preview=preview, secret=secret)
    yield from _disks(s)
    yield from _devices(s)
    yield from _cores(s, cpus if isinstance(s.machines, Containers) else None)
    yield from _vm(s)
    if s.video.media_dir and isinstance(s.machines, Containers):
        rule = "needs machines.kind ssh: with kind containers the program creates worker1 and puts sample movies there"
        yield Problem("video.mediaDir", s.video.media_dir, rule, remove("video.mediaDir"))
    yield from _ports(s)


# Remedies propose one of these. No network here overlaps one of another key.
_FREE_NETWORKS = {
    "machines.subnet": ("172.30.97.0/24", "192.168.97.0/24", "10.97.97.0/24"),
    "cluster.podCidr": ("10.244.0.0/16", "172.24.0.0/16", "192.168.0.0/18"),
    "cluster.serviceCidr": ("10.96.0.0/16", "172.25.0.0/16", "192.168.112.0/20"),
}


def _networks(s: Settings) -> Iterator[Problem]:
    machines, nodes = s.machines, 1 + len(s.machines.storage) + len(s.vms)
    used: dict[str, IPv4Network] = {
        "cluster.podCidr": s.cluster.pod_cidr,
        "cluster.serviceCidr": s.cluster.service_cidr,
    }
    if isinstance(machines, Containers):
        used = {"machines.subnet": machines.subnet, **used}
        others: dict[str, IPv4Network] = {}
    else:
        others = {f"{NAMESPACE}:{key} = {address}": IPv4Network(address) for key, address in _reached(machines)}
        others = {what: n for what, n in others.items() if not n.subnet_of(machines.network)}
        others[f"the nodes' network, {machines.network}"] = machines.network

    def problem(key: str, rule: str) -> Problem:
        taken = [network for other, network in {**used, **others}.items() if other != key]
        free = (n for n in _FREE_NETWORKS[key] if not any(IPv4Network(n).overlaps(other) for other in taken))
        return Problem(key, used[key], rule, put(key, next(free, _FREE_NETWORKS[key][0])))

    # the network's own address, its broadcast, the gateway
    if isinstance(machines, Containers) and machines.subnet.num_addresses < (need := max(16, nodes + 3)):
        yield problem("machines.subnet", f"must have {need} addresses for {nodes} nodes (/{_prefix(need)} or larger)")
    if s.cluster.pod_cidr.prefixlen > (longest := min(20, 24 - (nodes - 1).bit_length())):
        yield problem("cluster.podCidr", f"must have a /24 for each of {nodes} nodes (/{longest} or larger)")
    if not 12 <= s.cluster.service_cidr.prefixlen <= 28:
        yield problem("cluster.serviceCidr", "must be a network from /12 to /28")
    keys = list(used)
    for i, key in enumerate(keys):
        for other in keys[i + 1 :]:
            if used[key].overlaps(used[other]):
                yield problem(key, f"must not overlap {NAMESPACE}:{other} = {used[other]}")
        for other, network in others.items():
            if used[key].overlaps(network):
                yield problem(key, f"must not overlap {other}")


def _reached(machines: Ssh) -> Iterator[tuple[str, IPv4Address]]:
    """Config key and address of each server and name server. The cluster's networks must not hide them."""
    for key, server in machines.servers.items():
        yield f"{key}.address", server.address
    for i, nameserver in enumerate(machines.worker2.nameservers):
        yield f"machines.worker2.nameservers[{i}]", nameserver


def _servers(machines: Ssh) -> Iterator[Problem]:
    """All nodes must be in one network, each with an address of its own."""
    network, gateway = machines.network, machines.gateway
    ends = (network.network_address, network.broadcast_address)
    wanted = {f"machines.{name}.address": address for name, address in machines.addresses.items()}
    wanted["machines.worker2.gateway"] = gateway
    free = (a for a in (network[i] for i in range(1, 7)) if a not in wanted.values())
    seen: set[IPv4Address] = set()
    for key, address in wanted.items():
        if address not in network or address in ends or address in seen:
            rule = f"must be an address of its own in worker1's network, {network}: all nodes share one network"
            yield Problem(key, address, rule, put(key, next(free)))
        seen.add(address)


def _private_keys(machines: Ssh, *, preview: bool, secret: bool) -> Iterator[Problem]:
    for at, server in machines.servers.items():
        key = f"{at}.privateKey"
        if not server.private_key and not preview:
            yield Problem(key, None, "is required, except in a preview", put(key, ""))
        elif server.private_key and not secret:
            yield Problem(key, None, "is in the stack's file in plain text, but must be a secret", put(key, ""))


def _prefix(addresses: int) -> int:
    return 32 - (addresses - 1).bit_length()


def _disks(s: Settings) -> Iterator[Problem]:
    if s.per_vm > s.vm.disk_slots:
        yield Problem(
            "vm.diskSlots",
            s.vm.disk_slots,
            f"must be at least numinst ({s.numinst}) for each VM ({len(s.vms)}): every disk has its own PCIe root port",
            put("vm.diskSlots", min(MAX_INSTANCES, -(-s.per_vm // 8) * 8)),
        )
    size, mib = s.vhost.hugepage_size, s.vhost.memory_mib
    if mib is None:  # the default has room for every slot
        return
    if mib < (need := vhost_need_mib(s, s.per_host)):
        disks = f"{s.per_host} disks x {s.vhost.disk_mib} MiB and " if s.vhost.bdev == "malloc" else ""
        rule = f"{disks}the target's own {vhost_need_mib(s, 0)} MiB must fit: {need} MiB"
        yield Problem("vhost.memoryMib", mib, rule, put("vhost.memoryMib", need))
    elif mib != (whole := whole_pages(mib, size)):
        rule = f"must be a multiple of vhost.hugepageSize ({size})"
        yield Problem("vhost.memoryMib", mib, rule, put("vhost.memoryMib", whole))


# bdev -> pattern of a device's name, and examples for remedies. The kernel may give /dev/sdb to another disk at a boot.
DEVICE = {
    "aio": (r"/dev/disk/by-id/[\w.:+-]+", [f"/dev/disk/by-id/wwn-0x5000c500{n:08x}" for n in range(1, 129)]),
    "nvme": (r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", [f"0000:{bus:02x}:00.0" for bus in range(0x5E, 0xFF)]),
}


def _devices(s: Settings) -> Iterator[Problem]:
    """`vhost.devices` must fit `vhost.bdev`, and be enough for each host's instances."""
    key, devices, bdev = "vhost.devices", s.vhost.devices, s.vhost.bdev
    if bdev == "malloc":
        if devices:
            yield Problem(key, devices, "bdev malloc uses no devices", remove(key))
        return
    if s.on_files and isinstance(s.machines, Containers) and not s.vhost.files.startswith("/var/"):
        rule = "must be below /var on machines that are containers: nothing else there outlives a container"
        yield Problem("vhost.files", s.vhost.files, rule, put("vhost.files", "/var/lib/spdk-k8s/disks"))
    pattern, examples = DEVICE[bdev]
    unused = (example for example in examples if example not in devices)
    for i, device in enumerate(devices):
        if not re.fullmatch(pattern, device):
            yield Problem(
                f"{key}[{i}]", device, f"must be like {examples[0]} for bdev {bdev}", put(f"{key}[{i}]", next(unused))
            )
        elif device in devices[:i]:
            yield Problem(f"{key}[{i}]", device, "is listed twice", put(f"{key}[{i}]", next(unused)))
    if devices and len(devices) < s.per_host:
        fitting = len(devices) // s.vms_per_host * len(s.vms) or len(devices)
        rule = f"each of a host's {s.per_host} instances needs a device of its own"
        yield Problem(key, devices, rule, put("numinst", fitting))
    if bdev == "nvme":
        if not devices:
            yield Problem(
                key, devices, "bdev nvme needs the PCI addresses of its devices", put(f"{key}[0]", next(unused))
            )
        if s.vhost.backend != "spdk":
            rule = "only SPDK serves bdev nvme"
            yield Problem("vhost.backend", s.vhost.backend, rule, put("vhost.backend", "spdk"))
        if s.vhost.hugepage_size == "none":
            rule = "NVMe devices need memory on hugepages"
            yield Problem("vhost.hugepageSize", "none", rule, put("vhost.hugepageSize", "2Mi"))


def _cores(s: Settings, cpus: int | None) -> Iterator[Problem]:
    """SPDK must get the cores of `vhost.cpuMask`, and the machine must keep one more. cpus: None where unknown.

    backend auto falls back to qemu-storage-daemon instead. Existing hosts are checked by scripts/preflight.sh.
    """
    key, mask, cores = "vhost.cpuMask", s.vhost.cpu_mask, s.vhost.cores
    if not cores:
        yield Problem(key, mask, "must name at least one core", put(key, "0x1"))
    elif cpus and s.vhost.backend == "spdk":
        if cpus == 1:
            rule = "SPDK polls on a core of its own, but this machine has only one CPU"
            mend = remove("vhost.bdev") if s.vhost.bdev == "nvme" else put("vhost.backend", "qemu-storage-daemon")
            yield Problem("vhost.backend", "spdk", rule, mend)
        elif max(cores) >= cpus:
            yield Problem(
                key,
                mask,
                f"names a core that this machine does not have: its cores are 0 to {cpus - 1}",
                put(key, "0x1"),
            )
        elif len(cores) == cpus:
            yield Problem(key, mask, f"must leave at least one of this machine's {cpus} CPUs free", put(key, "0x1"))


def _vm(s: Settings) -> Iterator[Problem]:
    vm, video = s.vm, s.video
    if vm.queues > vm.vcpus:
        yield Problem("vm.queues", vm.queues, f"must not exceed vm.vcpus ({vm.vcpus})", put("vm.queues", vm.vcpus))
    # Each disk takes an interrupt vector on every vCPU for its queues, and one on some vCPU for config changes.
    if s.per_vm + (s.per_vm + VM_RESERVED_VECTORS) / vm.vcpus > VM_VECTORS:
        rule = f"{s.per_vm} disks need more interrupt vectors than {vm.vcpus} vCPUs have"
        need = -(-(s.per_vm + VM_RESERVED_VECTORS) // (VM_VECTORS - s.per_vm))
        yield Problem("vm.vcpus", vm.vcpus, rule, put("vm.vcpus", need))
    need = whole_pages(VM_RESERVED_MIB + s.per_vm * VIDEO_MIB, vm.hugepage_size)
    if vm.memory_mib < need:
        rule = f"{s.per_vm} pods x {VIDEO_MIB} MiB and {VM_RESERVED_MIB} MiB for the VM's system must fit: {need} MiB"
        yield Problem("vm.memoryMib", vm.memory_mib, rule, put("vm.memoryMib", need))
    elif vm.memory_mib != (whole := whole_pages(vm.memory_mib, vm.hugepage_size)):
        rule = f"must be a multiple of vm.hugepageSize ({vm.hugepage_size})"
        yield Problem("vm.memoryMib", vm.memory_mib, rule, put("vm.memoryMib", whole))
    request, limit = _millicpu(video.cpu_request), _millicpu(video.cpu_limit)
    fitting = (vm.vcpus * 1000 - VM_RESERVED_MILLICPU) // s.per_vm
    if request > fitting:
        rule = f"{s.per_vm} pods x {request}m must fit into the VM's {vm.vcpus} vCPUs less {VM_RESERVED_MILLICPU}m"
        yield Problem("video.cpuRequest", video.cpu_request, rule, put("video.cpuRequest", f"{fitting}m"))
    if limit < request:
        rule = f"must not be less than video.cpuRequest ({video.cpu_request})"
        yield Problem("video.cpuLimit", video.cpu_limit, rule, put("video.cpuLimit", video.cpu_request))


def _millicpu(cpu: str) -> int:
    return int(cpu[:-1]) if cpu.endswith("m") else int(cpu) * 1000


# Ports on which a node itself listens: SSH, etcd, API server, kubelet, kube-proxy, controller manager, scheduler.
NODE_PORTS = {22, 2379, 2380, 2381, 6443, 10248, 10249, 10250, 10256, 10257, 10259}


def _ports(s: Settings) -> Iterator[Problem]:
    registry = s.registry.port
    if registry in NODE_PORTS:
        yield Problem("registry.port", registry, "is a port that a node itself needs", put("registry.port", 5000))
    http, rtmp = (range(first, first + s.numinst) for first in (s.video.http_port, s.video.rtmp_port))
    for key, used, other, free in (
        ("video.httpPort", http, rtmp, (8080, 18080)),
        ("video.rtmpPort", rtmp, http, (1935, 11935)),
    ):
        mend = put(key, next(port for port in free if not _overlap(range(port, port + s.numinst), other)))
        if used.stop > 65536:
            yield Problem(key, used.start, f"numinst ({s.numinst}) ports from here go beyond 65535", mend)
        if taken := sorted(NODE_PORTS.intersection(used)):
            rule = f"ports {used.start}-{used.stop - 1} include {taken}, which a node itself needs"
            yield Problem(key, used.start, rule, mend)
        if used is rtmp and _overlap(http, rtmp):
            rule = f"RTMP ports {rtmp.start}-{rtmp.stop - 1} overlap the HTTP ports {http.start}-{http.stop - 1}"
            yield Problem(key, used.start, rule, mend)
    if s.vm.vnc:
        host, port = s.vm.vnc.rpartition(":")[0], s.vm.vnc_port
        if port > 65535 or port in NODE_PORTS:
            rule = f"its port is {port}: {'beyond 65535' if port > 65535 else 'one that a node itself needs'}"
            yield Problem("vm.vnc", s.vm.vnc, rule, put("vm.vnc", f"{host}:2"))
        if s.vms_per_host > 1:
            yield Problem("vm.vnc", s.vm.vnc, "is a single display, but each host has several VMs", remove("vm.vnc"))


def _overlap(some: range, others: range) -> bool:
    return some.start < others.stop and others.start < some.stop
