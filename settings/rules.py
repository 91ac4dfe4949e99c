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
from settings.cores import numbers, ranges
from settings.models import MAX_CORE, MAX_INSTANCES, NAMESPACE, Containers, Settings, Ssh
from settings.names import EXPORTER_PORT, PROMETHEUS_PORT, number
from settings.qos import NONE


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
    # without machines, or places for the instances, other rules make no sense
    for first in (_listed, _since, _moved):
        if found := list(first(s)):
            yield from found
            return
    yield from _networks(s)
    if isinstance(s.machines, Ssh):
        yield from _servers(s.machines)
        yield from _private_keys(s.machines, preview=preview, secret=secret)
    yield from _disks(s)
    yield from _devices(s)
    yield from _qos(s)
    yield from _cores(s, cpus if isinstance(s.machines, Containers) else None)
    yield from _plan(s, cpus if isinstance(s.machines, Containers) else None)
    yield from _vm(s)
    if s.video.media_dir and isinstance(s.machines, Containers):
        rule = "needs machines.kind ssh: with kind containers the program creates worker1 and puts sample movies there"
        yield Problem("video.mediaDir", s.video.media_dir, rule, remove("video.mediaDir"))
    yield from _ports(s)


def _listed(s: Settings) -> Iterator[Problem]:
    """Whether `machines` names storage hosts and VMs in one of its two forms, each node once."""
    machines = s.machines
    if isinstance(machines, Containers):
        return
    pair = {"machines.worker1": machines.worker1, "machines.worker2": machines.worker2}
    if machines.listed:
        for key in (key for key, there in pair.items() if there):
            yield Problem(key, None, "does not go together with machines.storage, which lists all hosts", remove(key))
    else:
        required = {"machines.worker1": ("192.0.2.12", "hostKey"), "machines.worker2": ("192.0.2.13", "gateway")}
        for key, (address, other) in required.items():
            if pair[key] is None:
                rule = "is required where machines.storage lists no hosts"
                mend = f"{put(f'{key}.address', address)} && {put(f'{key}.{other}', '192.0.2.1')}"
                yield Problem(key, None, rule, mend)
    nodes = {f"machines.storage[{i}]": host.name for i, host in enumerate(machines.listed)}
    guests = {
        f"machines.storage[{i}].vms[{j}]": vm for i, host in enumerate(machines.listed) for j, vm in enumerate(host.vms)
    }
    nodes |= {key: vm.name for key, vm in guests.items()}
    unused = (name for i in range(1, 100) if (name := f"worker{i}") not in nodes.values())
    if machines.listed and not guests:
        key = "machines.storage[0].vms[0]"
        mend = " && ".join(
            put(f"{key}.{name}", value)
            for name, value in (("name", next(unused)), ("address", "192.0.2.13"), ("gateway", "192.0.2.1"))
        )
        yield Problem("machines.storage[0].vms", None, "some storage host must have a VM", mend)
    seen: dict[str, str] = {}
    for key, name in nodes.items():
        if name in seen:
            rule = f"is the name of {seen[name]} too: each node is listed once, under a name of its own"
            yield Problem(f"{key}.name", name, rule, put(f"{key}.name", next(unused)))
        seen.setdefault(name, key)
    if guests and not any(vm.gateway for vm in guests.values()):
        key = f"{next(iter(guests))}.gateway"
        yield Problem(key, None, "is required: one VM must name the gateway", put(key, "192.0.2.1"))
    prefix = next((vm.prefix for vm in guests.values() if vm.prefix), 24)
    for key, vm in guests.items():
        if vm.prefix and vm.prefix != prefix:
            rule = f"all nodes share one network, and another VM says {prefix}"
            yield Problem(f"{key}.prefix", vm.prefix, rule, remove(f"{key}.prefix"))


def _since(s: Settings) -> Iterator[Problem]:
    since, key = s.machines.since, s.machines.since_key
    for vm, first in since.items():
        if vm not in s.vms:
            yield Problem(key(vm), first, f"there is no such VM: the VMs are {', '.join(s.vms)}", remove(key(vm)))
    if all(since.get(vm) for vm in s.vms):
        first = min(s.vms, key=lambda vm: since[vm])
        rule = "one VM must be there from the first instance on"
        yield Problem(key(first), since[first], rule, remove(key(first)))


def _moved(s: Settings) -> Iterator[Problem]:
    moved = s.machines.moved
    places = list(moved.values())
    for ordinal, place in moved.items():
        key = f"machines.moved.{ordinal}"
        if not re.fullmatch("0|[1-9][0-9]{0,2}", ordinal) or int(ordinal) >= MAX_INSTANCES:
            yield Problem(key, place, f"must be named by an ordinal, 0 to {MAX_INSTANCES - 1}", remove(key))
        elif place.split("/")[0] not in s.vms:
            yield Problem(key, place, f"there is no such VM: the VMs are {', '.join(s.vms)}", remove(key))
        elif places.count(place) > 1:
            yield Problem(key, place, "is the place of two instances", remove(key))
        elif (port := int(place.split("/")[1])) >= MAX_INSTANCES:
            yield Problem(key, place, f"a VM has root ports 0 to {MAX_INSTANCES - 1}", remove(key))
        elif port >= s.vm.disk_slots:
            rule = f"{NAMESPACE}:{key} = {place} needs a further root port"
            yield Problem("vm.diskSlots", s.vm.disk_slots, rule, _slots(port + 1))


# Remedies propose one of these. No network here overlaps one of another key.
_FREE_NETWORKS = {
    "machines.subnet": ("172.30.97.0/24", "192.168.97.0/24", "10.97.97.0/24"),
    "cluster.podCidr": ("10.244.0.0/16", "172.24.0.0/16", "192.168.0.0/18"),
    "cluster.serviceCidr": ("10.96.0.0/16", "172.25.0.0/16", "192.168.112.0/20"),
}


def _networks(s: Settings) -> Iterator[Problem]:
    machines, nodes = s.machines, 1 + max(map(number, [*s.machines.storage, *s.vms]))
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
    for name, vm in machines.guests.items():
        for i, nameserver in enumerate(vm.nameservers):
            yield f"{machines.keys[name]}.nameservers[{i}]", nameserver


def _servers(machines: Ssh) -> Iterator[Problem]:
    """All nodes must be in one network, each with an address and, if it is a server, a host key of its own."""
    network = machines.network
    ends = (network.network_address, network.broadcast_address)
    wanted = [(f"{machines.keys[name]}.address", address) for name, address in machines.addresses.items()]
    own = {address for _, address in wanted}
    gateways: dict[IPv4Address, str] = {}
    for name, vm in machines.guests.items():
        if vm.gateway:
            gateways.setdefault(vm.gateway, f"{machines.keys[name]}.gateway")
    wanted += [(key, gateway) for gateway, key in gateways.items()]
    free = (a for a in network.hosts() if a not in own and a not in gateways)
    first = next(iter(machines.storage))
    seen: set[IPv4Address] = set()
    for key, address in wanted:
        if address not in network or address in ends or address in seen:
            rule = f"must be an address of its own in {first}'s network, {network}: all nodes share one network"
            yield Problem(key, address, rule, put(key, next(free)))
        seen.add(address)
    shown: dict[str, str] = {}
    for name in machines.hosts:
        key, host_key = machines.keys[name], " ".join(machines.hosts[name].host_key.split()[:2])
        if host_key in shown:
            rule = (
                f"is that of {shown[host_key]} too, so either could pass for the other: give one of them new host keys"
            )
            yield Problem(f"{key}.hostKey", f"{host_key[:40]}…", rule, put(f"{key}.hostKey", ""))
        shown.setdefault(host_key, key)


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
            f"must be at least {s.per_vm}, the instances of the fullest VM: every disk has its own PCIe root port",
            _slots(s.per_vm),
        )
    elif s.per_host > s.vm.disk_slots and (s.vhost.backend != "qemu-storage-daemon" or s.cpus.target):
        # `auto` may come to be SPDK, and in a CPU plan any target has only the memory that it reserves
        why = "in a CPU plan a target has memory for no more" if s.cpus.target else "SPDK has buffers for no more"
        rule = f"must be at least {s.per_host}, the instances of the fullest storage host: {why}"
        yield Problem("vm.diskSlots", s.vm.disk_slots, rule, _slots(s.per_host))
    size, mib = s.vhost.hugepage_size, s.vhost.memory_mib
    if mib is None:
        return
    if mib < (need := vhost_need_mib(s, s.per_host)):
        rule = f"the target's buffers for {max(s.per_host, s.vm.disk_slots)} disks must fit: {need} MiB"
        yield Problem("vhost.memoryMib", mib, rule, put("vhost.memoryMib", need))
    elif mib != (whole := whole_pages(mib, size)):
        rule = f"must be a multiple of vhost.hugepageSize ({size})"
        yield Problem("vhost.memoryMib", mib, rule, put("vhost.memoryMib", whole))


def _slots(need: int) -> str:
    return put("vm.diskSlots", min(MAX_INSTANCES, -(-need // 8) * 8))


# bdev -> pattern of a device's name, and examples for remedies. The kernel may give /dev/sdb to another disk at a boot.
DEVICE = {
    "aio": (r"/dev/disk/by-id/[\w.:+-]+", [f"/dev/disk/by-id/wwn-0x5000c500{n:08x}" for n in range(1, 129)]),
    "nvme": (r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", [f"0000:{bus:02x}:00.0" for bus in range(0x5E, 0xFF)]),
}


def _devices(s: Settings) -> Iterator[Problem]:
    """Devices must fit `vhost.bdev`, and be enough for each host's instances."""
    bdev, own = s.vhost.bdev, {host: devices for host in s.machines.storage if (devices := s.machines.devices(host))}
    keys = {host: f"{s.machines.keys[host]}.devices" for host in own} if isinstance(s.machines, Ssh) else {}
    lists = {"vhost.devices": s.vhost.devices} | {key: own[host] for host, key in keys.items()}
    if bdev == "malloc":
        for key, devices in lists.items():
            if devices:
                yield Problem(key, devices, "bdev malloc uses no devices", remove(key))
        return
    if s.on_files and isinstance(s.machines, Containers) and not s.vhost.files.startswith("/var/"):
        rule = "must be below /var on machines that are containers: nothing else there outlives a container"
        yield Problem("vhost.files", s.vhost.files, rule, put("vhost.files", "/var/lib/spdk-k8s/disks"))
    pattern, examples = DEVICE[bdev]
    for key, devices in lists.items():
        unused = (example for example in examples if example not in devices)
        for i, device in enumerate(devices):
            if not re.fullmatch(pattern, device):
                rule = f"must be like {examples[0]} for bdev {bdev}"
                yield Problem(f"{key}[{i}]", device, rule, put(f"{key}[{i}]", next(unused)))
            elif device in devices[:i]:
                yield Problem(f"{key}[{i}]", device, "is listed twice", put(f"{key}[{i}]", next(unused)))
    bare = [host for host in s.machines.storage if not s.devices(host)]
    if own and bare and bdev == "aio":
        rule = f"other storage hosts have none ({', '.join(bare)}): all disks are on devices, or all in files"
        for host, key in keys.items():
            yield Problem(key, own[host], rule, remove(key))
        return
    for host in s.machines.storage:
        key = keys.get(host, "vhost.devices")
        devices, count = s.devices(host), len(s.ordinals(host))
        if devices and len(devices) < count:
            fewer = (s.model_copy(update={"numinst": n}) for n in range(s.numinst, 0, -1))
            fitting = next((c.numinst for c in fewer if len(c.ordinals(host)) <= len(devices)), 1)
            rule = f"each of a host's {count} instances needs a device of its own"
            yield Problem(key, devices, rule, put("numinst", fitting))
            break
    if bdev == "nvme":
        if bare:
            key = "vhost.devices"
            yield Problem(
                key, s.vhost.devices, "bdev nvme needs the PCI addresses of its devices", put(f"{key}[0]", examples[0])
            )
        if s.vhost.backend != "spdk":
            rule = "only SPDK serves bdev nvme"
            yield Problem("vhost.backend", s.vhost.backend, rule, put("vhost.backend", "spdk"))
        if s.vhost.hugepage_size == "none":
            rule = "NVMe devices need memory on hugepages"
            yield Problem("vhost.hugepageSize", "none", rule, put("vhost.hugepageSize", "2Mi"))


def _qos(s: Settings) -> Iterator[Problem]:
    key, qos = "vhost.qos", s.vhost.qos
    known = {str(i) for i in range(s.numinst)}
    for ordinal, limits in qos.disks.items():
        if ordinal not in known:
            rule = f"there is no disk {ordinal}: numinst is {s.numinst}, so the disks are 0 to {s.numinst - 1}"
            yield Problem(f"{key}.disks.{ordinal}", limits.set, rule, remove(f"{key}.disks.{ordinal}"))
    default = qos.of(-1)  # of a disk without exceptions
    if "mibPerSecond" in default and _DIRECTIONS & default.keys():
        yield Problem(f"{key}.mibPerSecond", qos.mib_per_second, _EITHER_OR, remove(f"{key}.mibPerSecond"))
        return
    for ordinal in sorted(known & qos.disks.keys(), key=int):
        limits = qos.of(int(ordinal))
        if "mibPerSecond" in limits and _DIRECTIONS & limits.keys():
            at = f"{key}.disks.{ordinal}.mibPerSecond"
            yield Problem(at, limits["mibPerSecond"], _EITHER_OR, put(at, NONE))


_DIRECTIONS = {"readMibPerSecond", "writeMibPerSecond"}
_EITHER_OR = (
    "a disk has either this limit or readMibPerSecond and writeMibPerSecond: qemu-storage-daemon cannot keep both"
)


def _cores(s: Settings, cpus: int | None) -> Iterator[Problem]:
    """SPDK must get the cores of `vhost.cpuMask`, and the machine must keep one more. cpus: None where unknown.

    backend auto falls back to qemu-storage-daemon instead. Existing hosts are checked by scripts/preflight.sh.
    """
    key, mask, cores = "vhost.cpuMask", s.vhost.cpu_mask, s.vhost.cores
    if s.cpus.target:
        if "cpu_mask" in s.vhost.model_fields_set and cores != s.target_cores:
            rule = f"names other cores than cpus.target ({s.cpus.target}), which takes its place"
            yield Problem(key, mask, rule, remove(key))
    elif not cores:
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


def _plan(s: Settings, cpus: int | None) -> Iterator[Problem]:
    """The CPU plan. cpus: see `_cores`; the cores of existing hosts are checked by scripts/preflight.sh."""
    roles = {f"cpus.{role}": cores for role, cores in s.cpus.roles.items()}
    if roles and not s.cpus.target and s.vhost.backend == "spdk" and s.vhost.cores:
        mask = ranges(s.vhost.cores)
        rule = f"is required in a plan with SPDK, which polls on cores of its own (vhost.cpuMask: {mask})"
        yield Problem("cpus.target", None, rule, put("cpus.target", mask))
    owner: dict[int, str] = {}
    sound = True
    for key, value in roles.items():
        cores = numbers(value)
        # without the first VM's entry, the second VM's would become the first's
        whole = "cpus.vms" if key.startswith("cpus.vms") else key
        if cpus and max(cores) >= cpus:
            rule = f"names core {max(cores)}, which this machine does not have: its cores are 0 to {cpus - 1}"
            yield Problem(key, value, rule, remove(whole))
            sound = False
        elif taken := [core for core in cores if core in owner]:
            free = [core for core in cores if core not in owner]
            mend = put(key, ranges(free)) if free and whole == key else remove(whole)
            yield Problem(key, value, f"core {taken[0]} is also in {NAMESPACE}:{owner[taken[0]]}", mend)
            sound = False
        owner |= {core: key for core in cores if core not in owner}
    if not sound:
        return
    if roles and isinstance(s.machines, Containers) and len(s.machines.storage) > 1:
        rule = f"{len(s.machines.storage)} storage hosts on one machine would have the same cores: a plan is for one"
        yield Problem("cpus", None, rule, remove("cpus"))
        return
    spare = [core for core in range(cpus or MAX_CORE + 1) if core not in owner]
    if roles and cpus and not s.cpus.system and not spare:
        key = list(roles)[-1]
        rule = f"leaves none of this machine's {cpus} cores for the system"
        yield Problem(key, roles[key], rule, remove("cpus.vms" if key.startswith("cpus.vms") else key))
        return
    if not s.cpus.system and cpus:
        spare = spare[1:]  # one stays the system's
    for i, of_vm in enumerate(s.cpus.vms):
        key, cores, vcpus = f"cpus.vms[{i}]", numbers(of_vm), s.vm.vcpus
        if len(cores) == vcpus:
            continue
        rule = f"must name {vcpus} cores, one for each vCPU (vm.vcpus)"
        if len(cores) > vcpus:
            mend = put(key, ranges(sorted(cores)[:vcpus]))
        elif len(more := sorted(spare, key=lambda core: (core < cores[0], core))) >= (lacking := vcpus - len(cores)):
            mend = put(key, ranges([*cores, *more[:lacking]]))
            spare = [core for core in spare if core not in more[:lacking]]
        else:
            mend = remove("cpus.vms")
        yield Problem(key, of_vm, rule, mend)


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
    needed = NODE_PORTS | ({EXPORTER_PORT} if s.monitoring else set[int]())
    if registry in needed | ({PROMETHEUS_PORT} if s.monitoring else set[int]()):
        yield Problem("registry.port", registry, "is a port that a node itself needs", put("registry.port", 5000))
    http, rtmp = (range(first, first + s.numinst) for first in (s.video.http_port, s.video.rtmp_port))
    for key, used, other, free in (
        ("video.httpPort", http, rtmp, (8080, 18080)),
        ("video.rtmpPort", rtmp, http, (1935, 11935)),
    ):
        mend = put(key, next(port for port in free if not _overlap(range(port, port + s.numinst), other)))
        if used.stop > 65536:
            yield Problem(key, used.start, f"numinst ({s.numinst}) ports from here go beyond 65535", mend)
        if taken := sorted(needed.intersection(used)):
            rule = f"ports {used.start}-{used.stop - 1} include {taken}, which a node itself needs"
            yield Problem(key, used.start, rule, mend)
        if used is rtmp and _overlap(http, rtmp):
            rule = f"RTMP ports {rtmp.start}-{rtmp.stop - 1} overlap the HTTP ports {http.start}-{http.stop - 1}"
            yield Problem(key, used.start, rule, mend)
    if s.vm.vnc:
        host, port = s.vm.vnc.rpartition(":")[0], s.vm.vnc_port
        if port > 65535 or port in needed:
            rule = f"its port is {port}: {'beyond 65535' if port > 65535 else 'one that a node itself needs'}"
            yield Problem("vm.vnc", s.vm.vnc, rule, put("vm.vnc", f"{host}:2"))
        if any(len(vms) > 1 for vms in s.machines.storage.values()):
            yield Problem("vm.vnc", s.vm.vnc, "is a single display, but a host has several VMs", remove("vm.vnc"))


def _overlap(some: range, others: range) -> bool:
    return some.start < others.stop and others.start < some.stop
