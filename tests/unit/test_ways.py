"""What the documents say of a key, its way, and what a change of it does to the program's resources agree."""

from __future__ import annotations

import os
from typing import Any

import pytest

from operate import impact
from operate.impact import Cause
from settings.changes import ways
from settings.way import Way
from tests.unit.test_impact import QEMU, changed

pytestmark = pytest.mark.unit

COSTS = {
    Cause.ROLLING: Way.ROLLING,
    Cause.TARGET: Way.TARGET,
    Cause.SWAP: Way.TARGET,
    Cause.TOGETHER: Way.TARGET,
    Cause.GUEST: Way.GUEST,
    Cause.NODE: Way.NODE,
}
FILES = {**QEMU, "bdev": "aio"}
SPDK = {"backend": "spdk", "source": "images"}
# key -> the target before, and another value of the key
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "numinst": (QEMU, 5),
    "registry.port": (QEMU, 5001),
    "registry.tls": (QEMU, False),
    "vhost.backend": (SPDK, "qemu-storage-daemon"),
    "vhost.source": (SPDK, "render"),
    "vhost.bdev": (QEMU, "aio"),
    "vhost.diskMib": (QEMU, 256),
    "vhost.blockSize": (QEMU, 512),
    "vhost.files": (FILES, "/var/lib/spdk-k8s/disks/b"),
    "vhost.devices": (FILES, [f"/dev/disk/by-id/wwn-{i}" for i in range(3)]),
    "vhost.memoryMib": (SPDK, 8192),
    "vhost.cpuMask": (SPDK, "0x2"),
    "vhost.mode": (SPDK, "poll"),
    "vhost.hugepageSize": (SPDK, "2Mi"),
    "vhost.qos.iops": (QEMU, 5000),
    "vhost.qos.mibPerSecond": (QEMU, 10),
    "vhost.qos.readMibPerSecond": (SPDK, 10),
    "vhost.qos.writeMibPerSecond": (SPDK, 10),
    "vhost.qos.disks": (QEMU, {"1": {"iops": 5000}}),
    "vm.vcpus": (QEMU, 3),
    "vm.memoryMib": (QEMU, 4096),
    "vm.hugepageSize": (QEMU, "2Mi"),
    "vm.accel": (QEMU, "tcg"),
    "vm.queues": (QEMU, 2),
    "vm.diskSlots": (QEMU, 16),
    "vm.vnc": (QEMU, "127.0.0.1:2"),
    "cpus.target": (SPDK, "1"),
    "cpus.vms": (QEMU, ["1-2"]),
    "cpus.emulator": (QEMU, "1"),
    "cpus.system": (QEMU, "0"),
    "video.httpPort": (QEMU, 9080),
    "video.rtmpPort": (QEMU, 2935),
    "video.cpuRequest": (QEMU, "60m"),
    "video.cpuLimit": (QEMU, "600m"),
    "monitoring": (QEMU, False),
}
ELSEWHERE = {"configVersion", "video.mediaDir"}  # there is one version, and containers have no folder of the user's own


def config(vhost: dict[str, Any], key: str = "", value: object = None) -> dict[str, Any]:
    made: dict[str, Any] = {"vhost": dict(vhost)}
    if key:
        *above, last = key.split(".")
        inside = made
        for part in above:
            inside = inside.setdefault(part, {})
        inside[last] = value
    return made


def test_every_key_that_can_be_changed_is_here() -> None:
    wanted = {key for key, way in ways().items() if way is not Way.REBUILD and not key.startswith("machines.")}
    assert wanted == CHANGES.keys() | ELSEWHERE


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_costs_no_more_than_its_way(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)  # enough for a CPU plan
    vhost, value = CHANGES[key]
    for before, after in ((config(vhost), config(vhost, key, value)), (config(vhost, key, value), config(vhost))):
        found = impact.of(changed(before, after))
        worst = max((COSTS[away.cause] for away in found.pages.values()), default=Way.LIVE, key=lambda w: w.severity)
        assert worst.severity <= ways()[key].severity
        if ways()[key] is not Way.NODE:
            assert worst is ways()[key], "its way says more than it costs"
