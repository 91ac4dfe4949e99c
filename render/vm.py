"""A worker VM: QEMU's arguments and its cloud-init files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import IPv4Address

from render.placement import WATCHDOG_SLOT, root_port
from render.text import documents
from settings.names import RUN, STATE

# What @ACCEL@ in QEMU's arguments stands for, by accelerator.
ACCEL_ARGS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    # a page table's fifth level is one more to walk at each miss
    "tcg": ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"],
}


# pcie_ports=compat leaves the interrupt vectors to the disks: see docs/decisions/0012. By the last line a guest boots
# anew when one CPU stands still for 30 s, busy (softlockup) or idle (rcu): the watchdog device does not see that while
# systemd runs on another CPU.
KERNEL = (
    "root=LABEL=root ro console=ttyS0 quiet net.ifnames=0 mitigations=off audit=0 pcie_ports=compat"
    " watchdog_thresh=15 softlockup_panic=1 rcupdate.rcu_cpu_stall_timeout=30 sysctl.kernel.panic_on_rcu_stall=1"
    " panic=1"
)


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
    cores: str = "",
) -> list[str]:
    """QEMU's arguments, one word per item. scripts/worker_vm.sh replaces @ACCEL@ by some of ACCEL_ARGS, and @NUMA@ by
    the NUMA node of the VM's cores.

    vm: the VM's name on its host. tap: the network interface on the host. disk_slots: number of PCIe root ports.
    cores: of the vCPUs; empty: none of their own.
    The arguments name no vhost disk: the disk agent plugs the disks into the root ports at every start, and
    when N grows.
    """
    folder = f"{STATE}/{vm}"
    hugepages = "" if hugepage_size == "none" else f",hugetlb=on,hugetlbsize={hugepage_size[:2]}"
    numa = "@NUMA@" if cores else ""
    args = [
        "-machine", "q35,memory-backend=mem,smm=off", "@ACCEL@",
        "-smp", str(vcpus), "-m", str(memory_mib),
        # The vhost-user target maps the guest's memory. The kernel charges a page to the process that touches it first:
        # QEMU touches all pages, else the target would be OOM-killed for its guests' memory. See docs/decisions/0014.
        "-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on,prealloc=on{hugepages}{numa}",
        "-nodefaults", "-no-user-config", "-display", "none",
        # as libvirt starts its QEMUs: a guest that breaks out of its devices starts no program
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd",
        "-append", f"{KERNEL} ds=nocloud",
        "-serial", f"file:{folder}/console.log",
        # A QMP monitor serves one client at a time. The disk agent keeps the first; shutdown and people use the second;
        # the unit's watchdog asks the third, whose name the disk agent does not take for a VM's.
        "-chardev", f"socket,id=qmp,path={RUN}/{vm}.qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=end,path={RUN}/{vm}.end.qmp,server=on,wait=off", "-mon", "chardev=end,mode=control",
        "-chardev", f"socket,id=alive,path={RUN}/{vm}.alive,server=on,wait=off", "-mon", "chardev=alive,mode=control",
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
        # The guest's systemd feeds it: see images/node/watchdog.conf. Its slot is behind the last root port's, so no
        # disk's PCI path depends on it, and it has no interrupt.
        "-device", f"i6300esb,addr={WATCHDOG_SLOT:#x}", "-action", "watchdog=reset",
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
    return f"{vm}-{_digest(chr(0).join(parts))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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


def cloud_init_meta_data(*, hostname: str, network: str) -> str:
    """meta-data of cloud-init's NoCloud. network: the network-config; cloud-init applies another one only to another
    instance."""
    return documents({"instance-id": f"spdk-k8s-{hostname}-{_digest(network)}", "local-hostname": hostname})


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
