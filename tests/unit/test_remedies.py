"""The command at the end of a config error corrects it, typed as it is."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settings.load import ConfigError, load
from settings.rules import put

pytestmark = pytest.mark.unit

Config = dict[str, Any]


def run(command: str, config: Config) -> None:
    """Apply a `pulumi config set` or `rm` to `config`, as the CLI does."""
    count = sum(map(ord, command))  # each host has a key of its own
    command = re.sub(r'"\$\(ssh-keyscan [^"]*\)"', f"'ssh-ed25519 AAAA{count}'", command)
    words = shlex.split(command.replace("<~/.ssh/id_ed25519", "KEY"))
    assert words[:2] == ["pulumi", "config"]
    verb, *rest = words[2:]
    with_path = "--path" in rest
    key, *value = (word for word in rest if not word.startswith("--"))
    parts = [int(i) if i else name for name, i in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)] if with_path else [key]
    assert with_path or not re.search(r"[.[]", key), command
    *outer, last = parts
    inside: Any = config
    for part, following in zip(outer, parts[1:], strict=True):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(inside, list):
            inside[part:] = inside[part:] or [empty]
            inside = inside[part]
        else:
            inside = inside.setdefault(part, empty)
    if verb == "rm":
        assert not value
        if isinstance(inside, list):
            del inside[last]
        else:
            inside.pop(last, None)
        return
    assert verb == "set"
    (text,) = value
    made: Any = "-----BEGIN PRIVATE KEY-----\n" if text == "KEY" else text
    was_text = isinstance(inside, dict) and isinstance(inside.get(last), str)
    if outer and re.fullmatch(r"0|-?[1-9][0-9]*" if was_text else r"true|false|0|-?[1-9][0-9]*", text):
        made = json.loads(text)
    if isinstance(inside, list):
        assert 0 <= last <= len(inside), f"{command}: expected an array"
        inside[last:] = [made, *inside[last + 1 :]]
    else:
        assert isinstance(inside, dict), f"{command}: not a map"
        inside[last] = made


def test_a_host_key_is_had_from_any_ssh_keyscan(tmp_path: Path) -> None:
    """Some versions of ssh-keyscan print comments between the keys."""
    scan = tmp_path / "ssh-keyscan"
    scan.write_text("#!/bin/sh\nprintf '# %s:22 SSH-2.0-OpenSSH_10.0p2\\n%s ssh-ed25519 AAAA\\n' $3 $3\n")
    scan.chmod(0o755)
    command = put("machines.master.hostKey", "").replace("pulumi config set", "printf %s,")
    path = f"{tmp_path}:{os.environ['PATH']}"
    made = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={"PATH": path})
    assert made.stdout.endswith(",ssh-ed25519 AAAA,"), made


def wrong(config: Config, cpus: int) -> list[str]:
    raw = {f"spdk-k8s:{key}": v if isinstance(v, str) else json.dumps(v) for key, v in config.items()}
    try:
        load(raw, cpus=cpus)
    except ConfigError as error:
        return error.problems
    return []


def maps(**keys: Any) -> st.SearchStrategy[Config]:
    """Maps with any subset of the keys. A list: its values."""
    return st.fixed_dictionaries(
        {}, optional={k: st.sampled_from(v) if isinstance(v, list) else v for k, v in keys.items()}
    )


NETWORKS = ["10.244.0.0/16", "10.96.0.0/16", "172.30.97.0/24", "10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12",
            "10.244.0.0/30", "127.0.0.0/8", "1.2.3.4/8", "::/0", "0.0.0.0/0", 3]  # fmt: skip
PORTS = [80, 1930, 1935, 2300, 6442, 8080, 8081, 10250, 65000, 65535, 65536, "8080"]
MIB = [0, 64, 100, 1024, 1025, 4607, 1 << 20, "1024"]
HUGEPAGES = ["none", "2Mi", "1Gi", "4Ki"]
CPU = ["1m", "50m", "2", "300", 1, 0, "0.5", True]
ADDRESSES = ["192.0.2.11", "192.0.2.12", "10.244.1.1", "10.96.0.1", "192.0.2", 5]
HOST = maps(address=ADDRESSES, user=["root", "admin", 3], port=PORTS, hostKey=["ssh-ed25519 AAAA", "AAAA"],
            privateKey=["KEY", 3], nic=["eth1"], adress=["192.0.2.1"])  # fmt: skip
NAMES = ["worker1", "worker2", "worker3", "storage", 1]
PLACES = ["worker2/3", "worker2/200", "worker3/3", "worker2", 2]
GUEST = maps(name=NAMES, address=ADDRESSES, gateway=ADDRESSES, prefix=[24, 25, 31], since=[0, 3, "3"])
LISTED = st.tuples(HOST, maps(name=NAMES, vms=st.lists(GUEST, max_size=2))).map(lambda both: both[0] | both[1])
LIMITS = {name: [0, 1, 1000, 1600, -5, 10**9, "none", "5", 1.5] for name in
          ("iops", "mibPerSecond", "readMibPerSecond", "writeMibPerSecond")}  # fmt: skip
CONTAINERS = maps(kind=["containers", "cloud", 1], subnet=NETWORKS, storageHosts=[1, 2, 8, 9], vmsPerHost=[1, 2, 4, 0])
CONFIGS = maps(
    numinst=["0", "1", "3", "24", "31", "100", "128", "129", "-1", "three", "3.5", "true", "null", "[1]"],
    numnist=["3"],
    machines=st.one_of(CONTAINERS, st.sampled_from([3, "x", []])),
    registry=maps(port=[*PORTS, 22, 5000], tls=[True, False, "yes", 1]),
    cluster=maps(podCidr=NETWORKS, serviceCidr=NETWORKS, podCIDR=NETWORKS),
    vhost=maps(
        backend=["auto", "spdk", "qemu-storage-daemon", "ssd"],
        source=["/usr/src/spdk", 3],
        bdev=["malloc", "aio", "nvme", "null"],
        diskMib=MIB,
        blockSize=[512, 4096, 1024],
        files=["/srv/disks", "/data/disks", "disks", ""],
        devices=[
            [],
            ["/dev/disk/by-id/wwn-0x5000c50000000001"],
            ["/dev/disk/by-id/wwn-0x5000c50000000001", "/dev/disk/by-id/wwn-0x5000c50000000001"],
            ["sdc", "/dev/disk/by-id/wwn-0x5000c50000000001"],
            ["0000:5e:00.0"],
            [1],
            "[]",
            {"a": 1},
        ],
        memoryMib=MIB,
        cpuMask=["0x1", "0x0", "0xff", "[0-5]", "[3-1]", "[7,9]", "[0-99999]", "[]", "1", 1],
        hugepageSize=HUGEPAGES,
        qos=maps(
            **LIMITS,
            disks=st.one_of(maps(**{ordinal: maps(**LIMITS) for ordinal in ("0", "3", "01", "x")}), st.just(3)),
        ),
    ),
    vm=maps(
        vcpus=[1, 2, 12, 0, 129, "2"],
        memoryMib=MIB,
        hugepageSize=HUGEPAGES,
        accel=["auto", "kvm", "hvf"],
        queues=[1, 2, 4, 65],
        diskSlots=[1, 8, 32, 128, 129],
        mac=["DE:AD:BE:EF:01:41", "01:00:5E:00:00:01", "DE-AD-BE-EF-01-41"],
        vnc=["127.0.0.1:2", ":543", ":99999", "x", 3],
        sockets=[1],
    ),
    cpus=maps(
        target=["0", 1, "0-5", "3-1", "2,2", "x", "900"],
        vms=[[], ["1"], [1], ["1-2"], ["2-13"], ["0-1", "2-3"], ["1", "1"], "1-2", ["5-2"], ["0-7"]],
        emulator=["0", "3", "2-4", True],
        system=["0", "0-1", "6-11", 0],
        systm=["0"],
    ),
    video=maps(httpPort=PORTS, rtmpPort=PORTS, mediaDir=["/srv/movies", "movies", 3], cpuRequest=CPU, cpuLimit=CPU),
)


def mended(config: Config, cpus: int, rounds: int = 4) -> None:
    """Follow every remedy, then those of the next errors. It fails if that does not end after a few rounds."""
    said: list[list[str]] = []
    while found := wrong(config, cpus):
        said.append(found)
        assert len(said) <= rounds, said
        for command in dict.fromkeys(c for problem in found for c in problem.rpartition("; mend: ")[2].split(" && ")):
            run(command, config)


EXAMPLES = settings(max_examples=int(os.environ.get("EXAMPLES", "200")), deadline=None, derandomize=True)


@EXAMPLES
@given(config=CONFIGS, cpus=st.sampled_from([1, 2, 8]))
def test_remedies_mend_the_config(config: Config, cpus: int) -> None:
    mended(config, cpus)


@EXAMPLES
@given(
    machines=st.fixed_dictionaries(
        {"kind": st.just("ssh")},
        optional={
            "master": HOST,
            "worker1": st.one_of(HOST, st.just("worker1")),
            "worker2": maps(address=ADDRESSES, gateway=ADDRESSES, prefix=[24, 31]),
            "storage": st.lists(LISTED, max_size=2) | st.sampled_from(["worker1", ["worker1"]]),
            "moved": maps(**{"0": PLACES, "7": PLACES, "x": PLACES}),
        },
    ),
    cluster=maps(podCidr=NETWORKS, serviceCidr=NETWORKS),
)
def test_remedies_mend_a_lab(machines: Config, cluster: Config) -> None:
    # keys, then the list of nodes, then where instances are, then addresses and private keys
    mended({"machines": machines, "cluster": cluster}, 2, rounds=7)
