"""Pure functions from settings to the text of files that machines and pods read. No provider SDK, no I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import yaml

# Names of the original.
VHOST = "cb-vhost-p0"
VIDEO = "app-vs-p2"
CLAIM = "disk"  # a video pod's claim: disk-app-vs-p2-0
VIDEO_MIB = 32  # memory that a video pod asks for
NAMESPACE = "spdk-k8s"

SOCKETS = "/var/tmp"  # vhost.0, vhost.1, … as in the original
RUN = "/run/spdk-k8s"
STATE = "/var/lib/spdk-k8s"
PATCHES = "/etc/kubernetes/patches"

# Slots 1-7 of pcie.0 carry the VM's fixed devices; root ports take 8 functions a slot from here on: 128 end at slot 23.
FIRST_PORT_SLOT = 8


def _yaml(*documents: Mapping[str, Any]) -> str:
    return "---\n".join(yaml.safe_dump(d, sort_keys=False) for d in documents)


# --- disk identity: one place for QEMU and the guest alike -----------------------------------------------------------


def place(ordinal: int, vms: int) -> tuple[int, int]:
    """Where instance `ordinal` runs: number of its VM, and number of its root port there. VMs take turns."""
    return ordinal % vms, ordinal // vms


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
    return f"{SOCKETS}/vhost.{ordinal}"


# --- registry --------------------------------------------------------------------------------------------------------


def registry_config(*, port: int, tls: bool) -> str:
    """config.yml of the distribution registry."""
    http: dict[str, Any] = {"addr": f":{port}", "headers": {"X-Content-Type-Options": ["nosniff"]}}
    if tls:
        http["tls"] = {
            "certificate": "/etc/docker/registry/server.crt",
            "key": "/etc/docker/registry/server.key",
        }
    return _yaml(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": "/var/lib/docker-registry"},
                "delete": {"enabled": True},
                "cache": {"blobdescriptor": "inmemory"},
            },
            "http": http,
            "auth": {"htpasswd": {"realm": "spdk-k8s", "path": "/etc/docker/registry/htpasswd"}},
        }
    )


def registry_hosts(url: str, *, host: str, user: str, password: str, tls: bool) -> str:
    """containerd's hosts.toml for the private registry: where it is, whom to trust, the login. A secret."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    ca = f'  ca = "/etc/containerd/certs.d/{host}/ca.crt"\n' if tls else ""
    return (
        f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n{ca}'
        f'  [host."{url}".header]\n    Authorization = ["Basic {login}"]\n'
    )


# --- cluster ---------------------------------------------------------------------------------------------------------


def pod_subnet(pod_cidr: IPv4Network, node: int) -> IPv4Network:
    """The /24 of node number `node` (0 = master): fixed here, so that routes are known before any node joins."""
    return IPv4Network((pod_cidr[node * 256], 24))


def cni_config(pod_cidr: IPv4Network, node: int) -> str:
    """CNI list of one node: a bridge with the node's own /24."""
    subnet = pod_subnet(pod_cidr, node)
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "spdk-k8s",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": str(subnet)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )


def routes(pod_cidr: IPv4Network, nodes: Sequence[IPv4Address], node: int) -> str:
    """Shell of one node's routes to the other nodes' pods, and masquerading of pods that leave the cluster."""
    lines = [
        f"ip route replace {pod_subnet(pod_cidr, other)} via {address}"
        for other, address in enumerate(nodes)
        if other != node
    ]
    own = pod_subnet(pod_cidr, node)
    return "\n".join(
        [
            "set -e",
            *lines,
            "nft -f - <<'EOF'",
            "table ip spdk-k8s",
            "delete table ip spdk-k8s",
            "table ip spdk-k8s {",
            "  chain postrouting {",
            "    type nat hook postrouting priority srcnat; policy accept;",
            f"    ip saddr {own} ip daddr != {pod_cidr} masquerade",
            "  }",
            "}",
            "EOF",
        ]
    )


def kubeadm_init(
    *,
    version: str,
    repository: str,
    address: IPv4Address,
    pod_cidr: IPv4Network,
    service_cidr: IPv4Network,
    in_container: bool,
) -> str:
    """kubeadm v1beta4: InitConfiguration, ClusterConfiguration, KubeletConfiguration, KubeProxyConfiguration."""
    proxy: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
    }
    if in_container:  # conntrack's limits belong to the machine below
        proxy["conntrack"] = {"maxPerCore": 0, "min": 0}
    return _yaml(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": str(address), "bindPort": 6443},
            "nodeRegistration": _node_registration("master", in_container),
            "patches": {"directory": PATCHES},
        },
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "clusterName": "spdk-k8s",
            "kubernetesVersion": f"v{version}",
            "imageRepository": repository,
            # as long as the CA's and the registry's: kubeadm renews the others, of a year, only when it upgrades
            "certificateValidityPeriod": "87600h0m0s",
            "networking": {"podSubnet": str(pod_cidr), "serviceSubnet": str(service_cidr)},
            # each node's pod subnet is fixed by the program: see pod_subnet
            "controllerManager": {"extraArgs": [{"name": "allocate-node-cidrs", "value": "false"}]},
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "serverTLSBootstrap": False,
            # `make status` shows how full the disks are, not how full they were
            "volumeStatsAggPeriod": "10s",
            # up to 128 video pods on one VM; they need no addresses of their own
            "maxPods": 200,
        },
        proxy,
    )


def kubeadm_join(*, node: str, api_server: str, ca_hash: str, in_container: bool) -> str:
    """kubeadm v1beta4 JoinConfiguration; scripts/join.sh puts the token in place of @TOKEN@."""
    return _yaml(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "JoinConfiguration",
            "discovery": {
                "bootstrapToken": {
                    "token": "@TOKEN@",
                    "apiServerEndpoint": api_server,
                    "caCertHashes": [ca_hash],
                }
            },
            "nodeRegistration": _node_registration(node, in_container),
            "patches": {"directory": PATCHES},
        }
    )


def _node_registration(node: str, in_container: bool) -> dict[str, Any]:
    registration: dict[str, Any] = {"name": node, "criSocket": "unix:///run/containerd/containerd.sock"}
    if in_container:  # kernel config, swap and cgroups are the outer machine's
        registration["ignorePreflightErrors"] = ["SystemVerification", "Swap"]
    return registration


# --- vhost -----------------------------------------------------------------------------------------------------------


BDEV_FOLDER = "/disks"  # in the vhost pod: of disks in memory, or worker1's folder of files


@dataclass(frozen=True)
class Disks:
    """What a vhost target serves: instance i's disk is vhost.i, on bdev Malloci, Aioi or Nvmein1.

    ordinals: of the instances whose disks it serves. slots: as many as there may be. bdev: malloc, aio or nvme.
    devices: block devices or PCI addresses, in the order of `ordinals`; empty: files.
    """

    ordinals: Sequence[int]
    slots: int
    mib: int
    block_size: int
    queues: int
    bdev: str = "malloc"
    devices: Sequence[str] = ()

    def file(self, ordinal: int) -> str | None:
        """Backing file or block device, as the vhost pod sees it."""
        if self.bdev == "nvme":
            return None
        return self.device(ordinal) if self.devices else f"{BDEV_FOLDER}/vhost.{ordinal}"

    def device(self, ordinal: int) -> str:
        return self.devices[self.ordinals.index(ordinal)]


def vhost_config(disks: Disks) -> str:
    """What the vhost pod serves, as JSON: one disk and one vhost-user-blk export for each instance."""
    return json.dumps(
        {
            "sockets": SOCKETS,
            "bdev": disks.bdev,
            "mib": disks.mib,
            "blockSize": disks.block_size,
            "queues": disks.queues,
            "disks": [{"name": f"vhost.{i}", "socket": socket_path(i), "file": disks.file(i)} for i in disks.ordinals],
        },
        indent=1,
    )


# SPDK's buffers of 8 KiB and 132 KiB. Each vhost controller keeps some of both for itself, twice (bdev, accel); with
# SPDK's own figures (128 and 16) the pools are empty at the 33rd, and the guest hangs.
SMALL_BUFFERS, LARGE_BUFFERS = 16, 4


def _bdev(disks: Disks, i: int) -> tuple[str, dict[str, Any]]:
    """Name of instance `i`'s bdev, and the call that makes it."""
    if disks.bdev == "nvme":
        params = {"name": f"Nvme{i}", "trtype": "PCIe", "traddr": disks.device(i)}
        return f"Nvme{i}n1", {"method": "bdev_nvme_attach_controller", "params": params}
    if disks.bdev == "aio":
        # with discard, as Malloc: a guest that has negotiated it cannot go on with a disk that lacks it
        params = {
            "name": f"Aio{i}",
            "filename": disks.file(i),
            "block_size": disks.block_size,
            "fallocate": True,
        }
        return f"Aio{i}", {"method": "bdev_aio_create", "params": params}
    blocks = (disks.mib << 20) // disks.block_size
    params = {"name": f"Malloc{i}", "num_blocks": blocks, "block_size": disks.block_size}
    return f"Malloc{i}", {"method": "bdev_malloc_create", "params": params}


def spdk_config(disks: Disks) -> str:
    """SPDK's start-up file (--json): buffers for every slot, then each instance's bdev and vhost controller."""
    cache = {"small_cache_size": SMALL_BUFFERS, "large_cache_size": LARGE_BUFFERS}
    pools = {
        "small_pool_count": (disks.slots + 2) * SMALL_BUFFERS * 4,
        "large_pool_count": (disks.slots + 2) * LARGE_BUFFERS * 4,
    }
    bdevs = {i: _bdev(disks, i) for i in disks.ordinals}
    subsystems: dict[str, list[dict[str, Any]]] = {
        "iobuf": [{"method": "iobuf_set_options", "params": pools}],
        "accel": [{"method": "accel_set_options", "params": cache}],
        "bdev": [
            {"method": "bdev_set_options", "params": {f"iobuf_{key}": size for key, size in cache.items()}},
            *(call for _, call in bdevs.values()),
        ],
        "vhost_blk": [
            {"method": "vhost_create_blk_controller", "params": {"ctrlr": f"vhost.{i}", "dev_name": name}}
            for i, (name, _) in bdevs.items()
        ],
    }
    return json.dumps({"subsystems": [{"subsystem": n, "config": c} for n, c in subsystems.items()]}, indent=1)


def spdk_args(*, memory_mib: int, cpu_mask: str, hugepages: bool, pci: bool) -> list[str]:
    """SPDK's arguments beside those that its image gives: sockets, cores, memory, and what it may touch."""
    args = ["-S", SOCKETS, "-m", cpu_mask, "-s", str(memory_mib)]
    if not hugepages:
        args += ["--no-huge"]
    elif not pci:
        # no DMA; SPDK would ask for physical addresses on an Intel host without IOMMU, and its pod may not see any
        args += ["--iova-mode", "va"]
    return args if pci else [*args, "--no-pci"]


# --- worker VM -------------------------------------------------------------------------------------------------------


def mac_address(first: str, vm: int) -> str:
    """Of VM number `vm`, counted over all hosts: they share a network."""
    return f"{first[:-2]}{(int(first[-2:], 16) + vm) % 256:02X}"


def qemu_args(
    *,
    vm: str,
    vcpus: int,
    memory_mib: int,
    mac: str,
    tap: str,
    disk_slots: int,
    vnc: str | None,
    hugepage_size: str = "none",
) -> list[str]:
    """QEMU's arguments, one word each; worker_vm.sh puts the accelerator's in place of @ACCEL@. vm: name on its host.

    No vhost disk is named here: vm-disks plugs them into the root ports, at every start and when N grows.
    """
    folder = f"{STATE}/{vm}"
    hugepages = "" if hugepage_size == "none" else f",hugetlb=on,hugetlbsize={hugepage_size[:2]}"
    args = [
        "-machine", "q35,memory-backend=mem,smm=off", "@ACCEL@",
        "-smp", str(vcpus), "-m", str(memory_mib),
        # vhost-user targets map the guest's memory: it must be shareable
        "-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on{hugepages}",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd",
        # compat: root ports take no interrupt vectors, the disks need them; plugging is by ACPI all the same
        "-append",
        "root=LABEL=root ro console=ttyS0 quiet net.ifnames=0 mitigations=off audit=0 pcie_ports=compat ds=nocloud",
        "-serial", f"file:{folder}/console.log",
        # a monitor serves one client at a time: the second is for the end, which waits for nobody
        "-chardev", f"socket,id=qmp,path={RUN}/{vm}.qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=end,path={RUN}/{vm}.end.qmp,server=on,wait=off", "-mon", "chardev=end,mode=control",
        "-drive", f"file={folder}/root.img,if=none,id=root,format=raw,cache=writeback,discard=unmap",
        "-device", "virtio-blk-pci,drive=root,addr=0x1,serial=root",
        "-drive", f"file={folder}/containers.img,if=none,id=containers,format=raw,cache=writeback,discard=unmap",
        "-device", "virtio-blk-pci,drive=containers,addr=0x2,serial=containers",
        "-blockdev", f"driver=vvfat,node-name=seed,dir={folder}/seed,label=CIDATA,read-only=on",
        "-device", "virtio-blk-pci,drive=seed,addr=0x3,serial=seed",
        "-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=net,mac={mac},addr=0x4",
        "-chardev", f"socket,id=media,path={RUN}/{vm}-media.sock",
        "-device", "vhost-user-fs-pci,chardev=media,tag=host0,addr=0x5",
        "-device", "virtio-rng-pci,addr=0x6",
    ]  # fmt: skip
    for i in range(disk_slots):
        multifunction = ",multifunction=on" if i % 8 == 0 else ""
        args += [
            "-device",
            f"pcie-root-port,id=port-{i},bus=pcie.0,addr={root_port(i)},chassis={i + 1},io-reserve=0{multifunction}",
        ]
    if vnc:
        args += ["-vnc", vnc, "-device", "VGA,addr=0x7"]
    return args


def cloud_init_user_data(
    *, hostname: str, authorized_key: str, host_private: str, host_public: str, nameservers: Sequence[str]
) -> str:
    """NoCloud user-data: the VM's name and keys. A secret: it carries the VM's host key."""
    return "#cloud-config\n" + _yaml(
        {
            "hostname": hostname,
            "fqdn": hostname,
            "users": [],  # root only
            "ssh_deletekeys": False,
            "ssh_keys": {"ed25519_private": host_private, "ed25519_public": host_public},
            "ssh_authorized_keys": [authorized_key],
            "write_files": [
                {"path": "/etc/hosts", "content": f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n"},
                # kubelet hands it to pods and will not start one without it
                {"path": "/etc/resolv.conf", "content": "".join(f"nameserver {n}\n" for n in nameservers)},
            ],
        }
    )


def cloud_init_meta_data(*, hostname: str) -> str:
    return _yaml({"instance-id": f"spdk-k8s-{hostname}", "local-hostname": hostname})


def cloud_init_network(*, mac: str, address: IPv4Address, prefix: int, gateway: IPv4Address) -> str:
    """Network config v2 of the VM's one card."""
    return _yaml(
        {
            "version": 2,
            "ethernets": {
                "eth0": {  # its one card; net.ifnames=0 on the kernel's command line
                    "match": {"macaddress": mac.lower()},
                    "addresses": [f"{address}/{prefix}"],
                    "routes": [{"to": "0.0.0.0/0", "via": str(gateway)}],
                }
            },
        }
    )
