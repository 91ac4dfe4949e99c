"""A worker VM: QEMU's arguments and its cloud-init files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import IPv4Address

from render.placement import root_port
from render.text import documents
from settings.names import RUN, STATE


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
    """QEMU's arguments, one word per item. scripts/worker_vm.sh replaces @ACCEL@ with the accelerator's arguments.

    vm: the VM's name on its host. tap: the network interface on the host. disk_slots: number of PCIe root ports.
    The arguments name no vhost disk: the disk agent plugs the disks into the root ports at every start, and
    when N grows.
    """
    folder = f"{STATE}/{vm}"
    hugepages = "" if hugepage_size == "none" else f",hugetlb=on,hugetlbsize={hugepage_size[:2]}"
    args = [
        "-machine", "q35,memory-backend=mem,smm=off", "@ACCEL@",
        "-smp", str(vcpus), "-m", str(memory_mib),
        # The vhost-user target maps the guest's memory. The kernel charges a page to the process that touches it first:
        # QEMU touches all pages, else the target would be OOM-killed for its guests' memory. See docs/decisions/0014.
        "-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on,prealloc=on{hugepages}",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd",
        # pcie_ports=compat leaves the interrupt vectors to the disks: see docs/decisions/0012
        "-append",
        "root=LABEL=root ro console=ttyS0 quiet net.ifnames=0 mitigations=off audit=0 pcie_ports=compat ds=nocloud",
        "-serial", f"file:{folder}/console.log",
        # A QMP monitor serves one client at a time. The disk agent keeps the first; shutdown and people use the second.
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


def definition(vm: str, *parts: str) -> str:
    """The name that QEMU carries (-name), which tells its definition: another one after any change of `parts`."""
    return f"{vm}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:8]}"


def cloud_init_user_data(
    *, hostname: str, authorized_key: str, host_private: str, host_public: str, nameservers: Sequence[str]
) -> str:
    """user-data of cloud-init's NoCloud: host name, SSH keys, name servers. It is a secret: it holds a private key."""
    return "#cloud-config\n" + documents(
        {
            "hostname": hostname,
            "fqdn": hostname,
            "users": [],  # no user besides root
            "ssh_deletekeys": False,
            "ssh_keys": {"ed25519_private": host_private, "ed25519_public": host_public},
            "ssh_authorized_keys": [authorized_key],
            "write_files": [
                {"path": "/etc/hosts", "content": f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n"},
                # kubelet copies it into pods, and starts none without it
                {"path": "/etc/resolv.conf", "content": "".join(f"nameserver {n}\n" for n in nameservers)},
            ],
        }
    )


def cloud_init_meta_data(*, hostname: str) -> str:
    """meta-data of cloud-init's NoCloud."""
    return documents({"instance-id": f"spdk-k8s-{hostname}", "local-hostname": hostname})


def cloud_init_network(*, mac: str, address: IPv4Address, prefix: int, gateway: IPv4Address) -> str:
    """network-config (version 2) of cloud-init's NoCloud, for the VM's only card. prefix: length in bits."""
    return documents(
        {
            "version": 2,
            "ethernets": {
                "eth0": {  # so named by net.ifnames=0 on the kernel's command line
                    "match": {"macaddress": mac.lower()},
                    "addresses": [f"{address}/{prefix}"],
                    "routes": [{"to": "0.0.0.0/0", "via": str(gateway)}],
                }
            },
        }
    )
