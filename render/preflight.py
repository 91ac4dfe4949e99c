"""The requirements that scripts/preflight.sh checks on a server."""

from __future__ import annotations

from render.cpus import roles
from render.placement import vm_mac
from settings import budgets
from settings.models import Settings, Ssh
from settings.names import EXPORTER_PORT, PROMETHEUS_PORT


def needs(config: Settings, host: str, backend: budgets.Backend) -> dict[str, str]:
    """The variables of scripts/preflight.sh for server `host`: addresses, ports, CPUs, memory and disk in MiB."""
    machines = config.machines
    nodes = machines.addresses
    values = {
        "ADDRESS": str(nodes[host]),
        "REGISTRY": f"{nodes['master']}:{config.registry.port}",
        "PORTS": "10248 10249 10250 10256",
        "NETWORKS": f"podCidr={config.cluster.pod_cidr} serviceCidr={config.cluster.service_cidr}",
        "CPUS": "2",
        "MEMORY_MIB": str(budgets.CONTROL_PLANE_MIB),
        "DISK_MIB": "6144",
    }
    if host == "master":
        values["PORTS"] += f" {config.registry.port} 6443 2379 2380 2381 10257 10259"
    if config.monitoring:
        values["PORTS"] += f" {EXPORTER_PORT}" + f" {PROMETHEUS_PORT}" * (host == "master")
    if host in machines.storage:
        vms = machines.storage[host]
        if config.vm.vnc:
            values["PORTS"] += f" {config.vm.vnc_port}"
        keys = machines.keys if isinstance(machines, Ssh) else {}
        files_mib = len(config.ordinals(host)) * config.vhost.disk_mib if config.on_files else 0
        pages = budgets.hugepages(config, backend, host)
        values |= {
            "CPUS": str(budgets.storage_host_cpus(config, backend)),
            "MEMORY_MIB": str(budgets.storage_host_memory_mib(config, backend, host)),
            "DISK_MIB": str(4096 + 4096 * len(vms) + files_mib),
            "HUGEPAGES": " ".join(f"{place}={count}" for place, count in pages.items()),
            "ACCEL": config.vm.accel,
            "AT": keys.get(host, host),
            "VMS": " ".join(f"{nodes[vm]}={vm_mac(config.vm.mac, vm)}={keys.get(vm, vm)}" for vm in vms),
            "NIC": machines.nic(host),
            "MEDIA_DIR": config.video.media_dir or "",
            "PLAYLISTS": str(config.numinst) if config.video.media_dir else "",
        }
        if config.cpus.roles:
            values["ROLES"] = roles(config.cpus)
    return values
