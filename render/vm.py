"""A worker VM: QEMU's arguments and the files of cloud-init."""

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
    """QEMU's arguments, one word each; worker_vm.sh puts the accelerator's in place of @ACCEL@. vm: name on its host.

    No vhost disk is named here: the disk agent plugs them into the root ports, at every start and when N grows.
    """
    folder = f"{STATE}/{vm}"
    hugepages = "" if hugepage_size == "none" else f",hugetlb=on,hugetlbsize={hugepage_size[:2]}"
    args = [
        "-machine", "q35,memory-backend=mem,smm=off", "@ACCEL@",
        "-smp", str(vcpus), "-m", str(memory_mib),
        # vhost-user targets map the guest's memory: it must be shareable. A page is charged to who touches it first:
        # QEMU touches all of them, or a target would be OOM-killed for its guests' memory (docs/decisions/0014)
        "-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on,prealloc=on{hugepages}",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd",
        # compat: root ports take no interrupt vectors, the disks need them; plugging is by ACPI all the same
        "-append",
        "root=LABEL=root ro console=ttyS0 quiet net.ifnames=0 mitigations=off audit=0 pcie_ports=compat ds=nocloud",
        "-serial", f"file:{folder}/console.log",
        # a monitor serves one client at a time: the disk agent keeps the first; the second is for the end, and people
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
    """NoCloud user-data: the VM's name and keys. A secret: it carries the VM's host key."""
    return "#cloud-config\n" + documents(
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
    return documents({"instance-id": f"spdk-k8s-{hostname}", "local-hostname": hostname})


def cloud_init_network(*, mac: str, address: IPv4Address, prefix: int, gateway: IPv4Address) -> str:
    """Network config v2 of the VM's one card."""
    return documents(
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
