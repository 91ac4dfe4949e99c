"""What a user notices of a running stack. In this order: asked, changed, gone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, stream

from components.hosts import script
from render.placement import disk_path
from settings.names import CLAIM, NAMESPACE, VHOST, VIDEO
from tests.e2e.conftest import COUNT, HUGEPAGES, Running, on_hugepages, traces
from tests.pulumi_cli import ROOT

pytestmark = pytest.mark.e2e

ORDINALS = range(COUNT)


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=headers or {})
    with opener.open(request, timeout=30) as response:
        return response.status, response.read()


def test_every_node_is_ready_and_labelled(running: Running) -> None:
    nodes = {n.metadata.name: n for n in running.core.list_node().items}
    assert set(nodes) == {"master", "worker1", "worker2"}
    for name, node in nodes.items():
        assert {c.type: c.status for c in node.status.conditions}["Ready"] == "True", name
        assert node.metadata.labels["type1"] == name
        assert node.status.node_info.kubelet_version == "v1.36.3"
    assert "node-role.kubernetes.io/control-plane" in nodes["master"].metadata.labels


def test_spdk_and_the_vm_are_on_hugepages(running: Running, backend: str, traces_before: dict[str, str]) -> None:
    if not on_hugepages(backend):
        pytest.skip("this stack is on ordinary pages")
    pages = int(HUGEPAGES.read_text())
    assert running.core.read_node("worker1").status.allocatable["hugepages-2Mi"] == f"{pages * 2}Mi"
    pod = pods_of(running, VHOST)[0]
    target = int(pod.spec.containers[0].resources.limits["hugepages-2Mi"].removesuffix("Mi"))
    assert (pages - int(traces_before["hugepages"])) * 2 == target + 3072, "the VM has vm.memoryMib"
    own, guests = running.docker("worker1", "bash", "-c", HUGETLB).split()
    assert int(own) == target << 10
    assert int(guests) > 0


# kB of SPDK's memory on hugepages: its own, and the guest's, which it shares with QEMU
HUGETLB = """awk '/^Private_Hugetlb/ {own += $2} /^Shared_Hugetlb/ {guests += $2} END {print own, guests}' \\
  /proc/$(pgrep -f ^spdk-vhost)/smaps"""


def pods_of(running: Running, app: str) -> list[client.V1Pod]:
    return running.core.list_namespaced_pod(NAMESPACE, label_selector=f"app={app}").items


def is_ready(pod: client.V1Pod) -> bool:
    states = pod.status.container_statuses or []
    return pod.status.phase == "Running" and bool(states) and all(c.ready for c in states)


def test_every_pod_runs_and_cluster_dns_answers(running: Running) -> None:
    end = time.monotonic() + 90  # the cluster's own pods may still start when the videos play
    while waiting := [p.metadata.name for p in running.core.list_pod_for_all_namespaces().items if not is_ready(p)]:
        assert time.monotonic() < end, waiting
        time.sleep(1)
    dns = running.core.list_namespaced_pod("kube-system", label_selector="k8s-app=kube-dns").items
    assert len(dns) == 2
    service = running.core.read_namespaced_service("kube-dns", "kube-system").spec.cluster_ip
    answer = running.guest(f"python3 -c {shlex.quote(DNS_QUERY)} {service}")
    assert "10.96.0.1" in answer


def test_probes_leave_no_processes_behind(running: Running) -> None:
    """One every second or two: within a day a machine has no process numbers left."""
    listed = (
        line.split(maxsplit=2) for line in running.docker("worker1", "ps", "-eo", "stat=,etimes=,args=").splitlines()
    )
    assert not [args for state, seconds, args in listed if state.startswith("Z") and int(seconds) > 10]


# `kubernetes.default` asked of the cluster's DNS through its service address: kube-proxy, routes and CoreDNS at once
DNS_QUERY = """
import socket, sys
name = b"".join(bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b"."))
query = b"\\x12\\x34\\x01\\x00\\x00\\x01" + bytes(6) + name + b"\\x00\\x00\\x01\\x00\\x01"
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.settimeout(10)
asked.sendto(query, (sys.argv[1], 53))
print(socket.inet_ntoa(asked.recv(512)[-4:]))
"""


def test_the_registry_wants_tls_and_a_login(running: Running) -> None:
    registry = running.outputs["registry"]
    trusting = ssl.create_default_context(cafile=f"/etc/docker/certs.d/{registry}/ca.crt")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(f"https://{registry}/v2/{VIDEO}/tags/list", timeout=10)
    assert refused.value.code == 401
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(f"https://{registry}/v2/")
    with pytest.raises(urllib.error.HTTPError) as plain:
        get(f"http://{registry}/v2/")
    assert plain.value.code == 400


@pytest.mark.parametrize("app", [VHOST, VIDEO])
def test_pods_run_images_of_the_private_registry_by_digest(running: Running, app: str) -> None:
    pods = pods_of(running, app)
    assert pods
    for pod in pods:
        for container in pod.spec.containers:
            assert re.fullmatch(
                rf"{re.escape(running.outputs['registry'])}/{app}@sha256:[0-9a-f]{{64}}", container.image
            )


def test_video_pods_are_unprivileged(running: Running) -> None:
    for pod in pods_of(running, VIDEO):
        context = pod.spec.containers[0].security_context
        assert pod.spec.security_context.run_as_non_root
        assert context.read_only_root_filesystem
        assert context.capabilities.drop == ["ALL"]
        assert not context.privileged


def movies(running: Running, ordinal: int) -> list[str]:
    _, body = get(running.outputs["pages"][ordinal] + "playlist.json")
    names = re.findall(r"[\w./-]+\.mp4", body.decode())
    assert names
    return names


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_a_movie_by_ranges_is_the_one_of_the_pods_own_playlist(running: Running, ordinal: int) -> None:
    page = running.outputs["pages"][ordinal]
    movie = movies(running, ordinal)[0]
    parts = []
    for start in (0, 10_000):
        status, body = get(page + movie.lstrip("/"), {"Range": f"bytes={start}-{start + 9_999 if start == 0 else ''}"})
        assert status == 206
        parts.append(body)
    assert len(parts[0]) == 10_000
    source = f"/srv/media/mp4-{ordinal + 1}/{Path(movie).name}"
    expected = running.docker("worker1", "sha256sum", source).split()[0]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == expected


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_each_pod_has_its_own_vhost_disk(running: Running, ordinal: int) -> None:
    """Ordinal = claim = volume = PCI path = mounted filesystem = marker = bdev of the target."""
    claim = running.core.read_namespaced_persistent_volume_claim(f"{CLAIM}-{VIDEO}-{ordinal}", NAMESPACE)
    volume = running.core.read_persistent_volume(claim.spec.volume_name)
    assert volume.spec.local.path == disk_path(ordinal)
    device = running.guest(f"readlink -f {disk_path(ordinal)}").strip()
    pod = running.core.read_namespaced_pod(f"{VIDEO}-{ordinal}", NAMESPACE)
    mounted = running.guest(f"grep '^{device} ' /proc/mounts")
    assert pod.metadata.uid in mounted
    assert " ext4 " in mounted
    found = marker(running, ordinal)
    assert found
    assert found["ordinal"] == ordinal
    size = int(running.guest(f"blockdev --getsize64 {device}"))
    assert size == 128 << 20
    running.guest("sync")  # and at the target's end: its disk of that number holds the marker
    assert in_target(running, f'grep -ac \'"playlist": "mp4-{ordinal + 1}"\' /disks/vhost.{ordinal}-*').strip() == "1"


def in_pod(running: Running, pod: str, command: str) -> str:
    return str(
        stream.stream(
            running.core.connect_get_namespaced_pod_exec, pod, NAMESPACE,
            command=["bash", "-c", command], stdout=True, stderr=True, stdin=False, tty=False,
        )
    )  # fmt: skip


def in_target(running: Running, command: str) -> str:
    """Run in the vhost pod."""
    (pod,) = pods_of(running, VHOST)
    return in_pod(running, pod.metadata.name, command)


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_rtmp_plays(running: Running, ordinal: int) -> None:
    movie = Path(movies(running, ordinal)[0]).name
    url = f"{running.outputs['streams'][ordinal]}/{movie}"
    probe = subprocess.run(
        ["ffprobe", "-v", "error", "-of", "json", "-show_streams", url], capture_output=True, text=True, timeout=90
    )
    assert probe.returncode == 0, probe.stderr
    # the end of a short movie is a message of the server's, which ffprobe lists as data
    assert {s["codec_type"] for s in json.loads(probe.stdout)["streams"]} - {"data"} == {"video", "audio"}


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_a_live_stream_needs_the_stacks_key(running: Running, ordinal: int) -> None:
    """tests/engine/test_video_page.py has what follows of it on the page."""
    live = running.outputs["streams"][ordinal].removesuffix("vod2") + "live/e2e"
    source = ["-re", "-f", "lavfi", "-i", "testsrc=size=160x90:rate=5", "-c:v", "libx264", "-preset", "ultrafast"]
    more = ["-pix_fmt", "yuv420p", "-force_key_frames", "expr:gte(t,n_forced)", "-t", "60", "-f", "flv"]

    def publish(url: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["ffmpeg", "-nostdin", "-loglevel", "quiet", *source, *more, url])

    assert publish(live).wait(60) != 0
    publisher = publish(f"{live}?key={running.outputs['publishKey']}")
    try:
        playlist = running.outputs["pages"][ordinal] + "hls/e2e.m3u8"
        until(30, "the stream's playlist", lambda: answer(playlist) != b"")
    finally:
        publisher.kill()
        publisher.wait()


def answer(url: str) -> bytes:
    """Empty while there is none."""
    try:
        return get(url)[1]
    except urllib.error.URLError:
        return b""


@pytest.mark.parametrize("ordinal", ORDINALS)
def test_a_browser_plays_the_page(running: Running, ordinal: int, tmp_path: Path) -> None:
    from tests.e2e.browser import watch

    seen = watch(running.outputs["pages"][ordinal], tmp_path / "page.png")
    assert seen["title"] == "Cinabro Video Server"
    assert seen["currentTime"] > 0


def test_the_last_log_line_tells_where_a_pod_serves(running: Running) -> None:
    for ordinal in ORDINALS:
        log = running.core.read_namespaced_pod_log(f"{VIDEO}-{ordinal}", NAMESPACE, tail_lines=1)
        assert log.strip() == f"{running.outputs['nodes']['worker2']}:{8080 + ordinal} rtmp:{1935 + ordinal}"


def test_a_second_up_changes_nothing(running: Running) -> None:
    output = running.stack.run("up", "--yes", "--skip-preview")
    assert re.search(r"Resources:\s+\d+ unchanged", output), output[-2000:]
    assert not re.search(r"\d+ (created|updated|replaced|deleted)", output)


def test_make_up_with_nothing_to_do_only_looks(running: Running) -> None:
    code, said = make_up(running)
    assert code == 0, said[-3000:]
    assert "Impact: none\n" in said
    assert "done after" not in said, "Pulumi was run"


def test_a_change_that_takes_pages_away_is_not_made_without_consent(running: Running) -> None:
    before = unharmed(running)
    running.stack.run("config", "set", "--path", "vm.vnc", "127.0.0.1:2")
    try:
        code, said = make_up(running)
    finally:
        running.stack.run("config", "rm", "--path", "vm.vnc")
    assert code == 3, said[-3000:]
    assert re.search(r"^  VMs that boot anew +worker2$", said, re.MULTILINE), said
    assert re.search(rf"^  pages away +0 to {COUNT - 1} for about \d+ s", said, re.MULTILINE), said
    assert f"the change was not made; remedy: make up STACK={running.stack.name} ALLOW=interrupt\n" in said
    assert unharmed(running) == before


def test_no_secret_in_the_state_or_the_outputs(running: Running) -> None:
    state = running.stack.run("stack", "export", "--stack", running.stack.name)
    assert "PRIVATE KEY" not in state
    kubeconfig_key = re.search(r"client-key-data: (\S+)", running.outputs["kubeconfig"])
    assert kubeconfig_key
    assert kubeconfig_key[1] not in state
    assert base64.b64decode(kubeconfig_key[1]).decode() not in state


def marker(running: Running, ordinal: int) -> dict[str, str | int] | None:
    """What disk `ordinal` says of itself, read past every cache; None while nothing answers."""
    try:
        found: dict[str, str | int] = json.loads(get(running.outputs["pages"][ordinal] + "marker")[1])
    except (OSError, ValueError):
        return None
    return found


def video_pods(running: Running) -> dict[str, client.V1Pod]:
    pods = pods_of(running, VIDEO)
    return {p.metadata.name: p for p in pods}


def assert_every_pod_serves_its_own_disk(running: Running) -> None:
    for ordinal in ORDINALS:
        found = marker(running, ordinal)
        assert found, ordinal
        assert found["ordinal"] == ordinal
        test_a_movie_by_ranges_is_the_one_of_the_pods_own_playlist(running, ordinal)


def wait_until_all_serve_another_life(running: Running, before: list[dict[str, str | int] | None]) -> None:
    end = time.monotonic() + 240
    while True:
        now = [marker(running, i) for i in ORDINALS]
        if all(n and b and n["life"] != b["life"] for n, b in zip(now, before, strict=True)):
            break
        assert time.monotonic() < end, (now, {n: p.status for n, p in video_pods(running).items()})
        time.sleep(2)
    while waiting := [n for n, p in video_pods(running).items() if not is_ready(p)]:
        assert time.monotonic() < end, waiting
        time.sleep(1)


def kill_target(running: Running, backend: str) -> None:
    program = "spdk-vhost" if backend == "spdk" else "qemu-storage-daemon"
    running.docker("worker1", "pkill", "-KILL", "-f", f"^(/usr/local/bin/)?{program} ")


def test_the_target_is_killed_and_every_pod_serves_its_own_movie_again(running: Running, backend: str) -> None:
    """Disks in memory are the pod's: no page is made anew."""
    lives = [marker(running, i) for i in ORDINALS]
    uids = {n: p.metadata.uid for n, p in video_pods(running).items()}
    kill_target(running, backend)
    running.guest("echo 3 >/proc/sys/vm/drop_caches")
    assert {n: p.metadata.uid for n, p in video_pods(running).items()} == uids
    until(15, "the pages", lambda: [marker(running, i) for i in ORDINALS] == lives)
    assert_every_pod_serves_its_own_disk(running)


def test_the_wall_shows_what_is_read_and_a_target_that_is_killed(
    running: Running, backend: str, tmp_path: Path
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    from tests.e2e.browser import WALL, chromium

    nodes = set(running.outputs["nodes"].values())
    with chromium() as browser:

        def seen() -> dict[str, Any]:
            found: dict[str, Any] = browser.execute_script(WALL)
            return found

        browser.get(running.outputs["wall"])
        WebDriverWait(browser, 60).until(
            lambda _: len(seen()["tiles"]) == COUNT and all(tile["playing"] for tile in seen()["tiles"]),
            f"not every tile plays: {seen()}",
        )
        read = f"dd if=$(readlink -f {disk_path(1)}) of=/dev/null bs=4k count=12000 iflag=direct 2>/dev/null"
        threading.Thread(target=running.guest, args=[read]).start()
        until(30, "IOPS of the disk that is read", lambda: seen()["tiles"][1]["iops"] > 100)
        shown = seen()
        assert shown["tiles"][1]["iops"] > 5 * max(shown["tiles"][i]["iops"] for i in (0, 2)), shown
        assert set(shown["cores"]) == set(running.outputs["nodes"])
        assert not shown["wrong"], shown
        browser.save_screenshot(str(tmp_path / "wall.png"))
        began = sum("the vhost target of worker1 was started" in event for event in shown["events"])
        kill_target(running, backend)
        until(10, "the killed target among the events", lambda: sum(
            "the vhost target of worker1 was started" in event for event in seen()["events"]) == began + 1)  # fmt: skip
        until(30, "all to be well again", lambda: not seen()["wrong"])
        asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert {urllib.parse.urlsplit(url).hostname for url in asked} <= nodes


def test_a_refresh_sees_no_drift(running: Running) -> None:
    running.stack.run("refresh", "--yes", "--skip-preview", "--expect-no-changes")


def checked(running: Running) -> subprocess.CompletedProcess[str]:
    """`make check`."""
    return subprocess.run(
        ["python", "-m", "operate.check"], env=running.stack.environment | {"PULUMI_STACK": running.stack.name},
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def wait_until_there_is_no_drift(running: Running, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (found := checked(running)).returncode != 0:
        assert time.monotonic() < end, found.stderr
        time.sleep(2)
    assert "no drift" in found.stdout


def test_drift_is_found_and_mended_and_the_vm_comes_back_with_every_disk_as_it_was(running: Running) -> None:
    lives = [marker(running, i) for i in ORDINALS]
    running.docker("worker1", "systemctl", "stop", "spdk-k8s-vm")
    running.core.patch_node("worker1", {"metadata": {"labels": {"type1": None}}})
    end = time.monotonic() + 120
    while "node worker2 is not Ready" not in (said := checked(running).stderr):
        assert time.monotonic() < end, said
        time.sleep(2)
    shown = subprocess.run(
        ["python", "-m", "operate.status"], env=running.stack.environment | {"PULUMI_STACK": running.stack.name},
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert re.search(r"^worker2 +NotReady", shown.stdout, re.MULTILINE), shown.stdout
    running.core.delete_node("master")
    said = checked(running).stderr
    assert "node master is not in the cluster" in said
    assert "node worker1 lacks its label type1=worker1" in said
    assert "mend it: make up" in said
    code, said = make_up(running)
    assert code == 0, said[-3000:]
    assert "no drift" in checked(running).stdout, "up ends when it is so"
    assert [marker(running, i) for i in ORDINALS] == lives
    assert_every_pod_serves_its_own_disk(running)


def make_up(running: Running, allow: str = "") -> tuple[int, str]:
    """Exit code and output of `make up`, which needs no set-up here."""
    environment = running.stack.environment | {"ALLOW": allow}
    done = subprocess.run(
        [sys.executable, "-m", "operate.up", running.stack.name], env=environment, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500,  # a kill would leave Pulumi half-way
    )  # fmt: skip
    return done.returncode, done.stdout


def until(seconds: float, what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.5)


def lose_namespace(running: Running) -> None:
    """While pod 0 reads its disk, as a probe or a viewer does: nothing ends a read of a disk whose target is gone."""
    reading = "(while dd if=/data/.spdk-k8s.json bs=4K iflag=direct; do :; done) >/dev/null 2>&1 &"
    in_pod(running, f"{VIDEO}-0", reading)
    running.core.delete_namespace(NAMESPACE)
    until(30, "the target to go", lambda: not pods_of(running, VHOST))
    assert f"{VIDEO}-0" in video_pods(running), "its read holds it"


def lose_claims(running: Running) -> None:
    running.core.delete_collection_namespaced_persistent_volume_claim(NAMESPACE)
    running.core.delete_collection_namespaced_pod(NAMESPACE, label_selector=f"app={VIDEO}")
    until(60, "a volume to be released", lambda: "Released" in {v.status.phase for v in volumes(running)})


def lose_volume(running: Running) -> None:
    """Somebody makes it anew by hand, with a typing error."""
    running.core.delete_persistent_volume("vhost-0")
    running.core.delete_namespaced_persistent_volume_claim(f"{CLAIM}-{VIDEO}-0", NAMESPACE)
    running.core.delete_namespaced_pod(f"{VIDEO}-0", NAMESPACE)
    until(60, "the volume to go", lambda: "vhost-0" not in {v.metadata.name for v in volumes(running)})
    other = client.V1PersistentVolume(
        metadata=client.V1ObjectMeta(name="vhost-0"),
        spec=next(v.spec for v in volumes(running) if v.metadata.name == "vhost-1"),
    )
    other.spec.claim_ref = client.V1ObjectReference(
        api_version="v1", kind="PersistentVolumeClaim", namespace=NAMESPACE, name=f"{CLAIM}-{VIDEO}-0"
    )
    other.spec.local.path = disk_path(30)
    running.core.create_persistent_volume(other)


def lose_node(running: Running) -> None:
    running.core.delete_node("worker2")


def lose_network(running: Running) -> None:
    running.docker("worker1", "rm", "-rf", "/etc/cni/net.d")
    until(60, "worker1 to be NotReady", lambda: "worker1 is not Ready" in checked(running).stderr)


def volumes(running: Running) -> list[client.V1PersistentVolume]:
    return running.core.list_persistent_volume().items


@pytest.mark.parametrize("lose", [lose_claims, lose_volume, lose_node, lose_network, lose_namespace])
def test_what_was_deleted_by_hand_comes_back_by_one_up(running: Running, lose: Callable[[Running], None]) -> None:
    lose(running)
    assert checked(running).returncode == 1
    began = time.monotonic()
    code, said = make_up(running)
    assert code == 0, said[-3000:]
    assert time.monotonic() - began < 180
    assert "no drift" in checked(running).stdout, "up ends when it is so"
    assert_every_pod_serves_its_own_disk(running)


def test_a_drained_node_is_said_at_once_and_left_to_whoever_meant_it(running: Running) -> None:
    running.core.patch_node("worker2", {"spec": {"unschedulable": True}})
    try:
        running.core.delete_namespaced_pod(f"{VIDEO}-0", NAMESPACE)
        what = f"drift: node worker2 is cordoned, so {VIDEO}-0 cannot start; mend: kubectl uncordon worker2\n"
        until(60, "the next pod", lambda: checked(running).stderr == what)
        began = time.monotonic()
        code, said = make_up(running)
        assert code != 0
        assert time.monotonic() - began < 60
        assert what in said
        assert re.search(r"^worker2 +Ready,cordoned ", said, re.MULTILINE), said
    finally:
        running.core.patch_node("worker2", {"spec": {"unschedulable": None}})
    wait_until_there_is_no_drift(running, 90)


def test_a_vm_that_changes_boots_anew_and_keeps_every_disk(running: Running) -> None:
    """U16: `up` said "1 updated", and nothing had changed. The way back is a row of test_changes.py."""
    lives = [marker(running, i) for i in ORDINALS]
    boot = running.core.read_node("worker2").status.node_info.boot_id
    running.stack.run("config", "set", "--path", "vm.memoryMib", "3328")
    code, said = make_up(running, allow="interrupt")
    assert code == 0, said[-3000:]
    node = running.core.read_node("worker2")
    assert 3128 < int(node.status.capacity["memory"].removesuffix("Ki")) >> 10 < 3328
    assert node.status.node_info.boot_id != boot
    assert not node.spec.unschedulable
    assert "no drift" in checked(running).stdout, "up ends when it is so"
    assert [marker(running, i) for i in ORDINALS] == lives


def test_a_qemu_that_stands_still_is_started_anew(running: Running) -> None:
    """U23: it stood for ever."""
    lives = [marker(running, i) for i in ORDINALS]
    starts = ("systemctl", "show", "-P", "NRestarts", "spdk-k8s-vm")
    before = running.docker("worker1", *starts)
    running.docker("worker1", "systemctl", "kill", "--kill-whom=main", "--signal=STOP", "spdk-k8s-vm")
    until(60, "systemd to start QEMU anew", lambda: running.docker("worker1", *starts) != before)
    wait_until_there_is_no_drift(running, 240)
    assert [marker(running, i) for i in ORDINALS] == lives
    assert_every_pod_serves_its_own_disk(running)


def delete_target(running: Running) -> None:
    """Delete the vhost pod, and wait for its successor."""
    (old,) = pods_of(running, VHOST)
    running.core.delete_namespaced_pod(old.metadata.name, NAMESPACE)
    end = time.monotonic() + 120
    while True:
        pods = pods_of(running, VHOST)
        if [p for p in pods if p.metadata.uid != old.metadata.uid and is_ready(p)]:
            return
        assert time.monotonic() < end, [p.status for p in pods]
        time.sleep(0.5)


def test_the_vhost_pod_is_deleted_and_blank_disks_are_filled_anew(running: Running) -> None:
    lives = [marker(running, i) for i in ORDINALS]
    delete_target(running)
    wait_until_all_serve_another_life(running, lives)
    assert_every_pod_serves_its_own_disk(running)


class Viewer(threading.Thread):
    """Streams a movie again and again, as a client that never stops; `gap`: the longest wait for the next bytes, s."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.gap, self.stopped, self.bytes = url, 0.0, threading.Event(), 0
        self.error: Exception | None = None

    def run(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        last = time.monotonic()
        try:
            while not self.stopped.is_set():
                with opener.open(self.url, timeout=30) as response:
                    while chunk := response.read(4096):
                        self.bytes += len(chunk)
                        self.gap, last = max(self.gap, time.monotonic() - last), time.monotonic()
                        self.stopped.wait(0.05)  # about as fast as it is watched
        except OSError as error:
            self.error = error

    def stop(self) -> None:
        self.stopped.set()
        self.join(60)
        assert self.error is None, self.error
        assert self.bytes > 0


def unharmed(running: Running) -> dict[str, object]:
    """What must be the same after a change of N: pods, their restarts, and QEMU's process."""
    pods = running.core.list_namespaced_pod(NAMESPACE).items
    restarts = {p.metadata.name: [c.restart_count for c in p.status.container_statuses] for p in pods}
    return {
        "pods": {p.metadata.name: p.metadata.uid for p in pods},
        "restarts": restarts,
        "qemu": running.docker("worker1", "systemctl", "show", "-p", "MainPID", "spdk-k8s-vm"),
        "lives": [marker(running, i) for i in ORDINALS],
    }


def test_n_grows_and_shrinks_while_everything_runs(running: Running) -> None:
    before = unharmed(running)
    viewer = Viewer(running.outputs["pages"][0] + movies(running, 0)[0].lstrip("/"))
    viewer.start()
    running.stack.run("config", "set", "numinst", str(COUNT + 1))
    output = running.stack.run("up", "--yes", "--skip-preview")
    assert re.search(r"\+ 1 created", output), output[-2000:]
    assert not re.search(r"\d+ (replaced|deleted)", output), output[-2000:]
    assert get(running.stack.outputs()["pages"][COUNT])[0] == 200
    running.stack.run("config", "set", "numinst", str(COUNT))
    running.stack.run("up", "--yes", "--skip-preview")
    viewer.stop()
    assert viewer.gap < 5, f"a viewer of pod 0 waited {viewer.gap:.1f} s"
    assert unharmed(running) == before
    assert running.guest(f"test -e {disk_path(COUNT)} || echo gone").strip() == "gone"
    wait_until_there_is_no_drift(running, 60)  # kubelet passes a changed ConfigMap on within half a minute


def test_a_registry_port_that_is_taken_is_refused(running: Running) -> None:
    machine = f"spdk-k8s-{running.stack.name}-worker1"
    running.docker("worker1", "sh", "-c", "socat TCP-LISTEN:5000,fork /dev/null >/dev/null 2>&1 & echo $! >/run/taken")
    running.docker(
        "worker1",
        "sh",
        "-c",
        "for i in $(seq 50); do ss -Hltn 'sport = :5000' | grep -q . && exit; sleep 0.1; done; exit 1",
    )
    try:
        refused = subprocess.run(
            ["docker", "exec", "-i", machine, "bash", "-s", "up"],
            input=script("registry", {"PORT": "5000"}), capture_output=True, text=True,
        )  # fmt: skip
    finally:
        running.docker("worker1", "sh", "-c", "kill $(cat /run/taken); rm /run/taken")
    assert refused.returncode != 0
    assert "spdk-k8s:registry.port = 5000: socat on worker1 listens there already" in refused.stderr
    assert "pulumi config set --path registry.port 5001" in refused.stderr


def test_disks_on_files_survive_the_target(running: Running) -> None:
    """bdev aio: another kind of disk is a blank one, and then it stays what it is."""
    before = [marker(running, i) for i in ORDINALS]
    running.stack.run("config", "set", "--path", "vhost.bdev", "aio")
    running.stack.run("up", "--yes", "--skip-preview")
    wait_until_all_serve_another_life(running, before)
    lives = [marker(running, i) for i in ORDINALS]
    delete_target(running)
    running.guest("echo 3 >/proc/sys/vm/drop_caches")
    assert [marker(running, i) for i in ORDINALS] == lives
    assert_every_pod_serves_its_own_disk(running)


class InGuest(threading.Thread):
    """Runs a program of this folder in the guest."""

    def __init__(self, running: Running, program: str, *arguments: object) -> None:
        super().__init__(daemon=True)
        text = shlex.quote(Path(__file__).with_name(program).read_text())
        self.command = " ".join(["python3 -c", text, *map(str, arguments)])
        self.running, self.said = running, ""
        self.start()

    def run(self) -> None:
        self.said = self.running.guest(self.command)

    def seen(self) -> dict[str, Any]:
        """What it printed at its end."""
        self.join(120)
        found: dict[str, Any] = json.loads(self.said)
        return found


class Reader(InGuest):
    """Reads the disk of instance `ordinal` as fast as it can: see reader.py. The first second is left out, as target
    and guest start with what they have saved."""

    def __init__(self, running: Running, ordinal: int) -> None:
        super().__init__(running, "reader.py", disk_path(ordinal), 11)

    def mib_per_second(self) -> float:
        seen = self.seen()
        assert seen["errors"] == 0
        rates = seen["rates"][1:]
        return float(sum(rates) / len(rates))


def test_a_limit_is_kept_by_the_one_disk_that_has_it_and_restarts_nothing(running: Running, backend: str) -> None:
    """On files, which outlive the target."""
    before, limit = unharmed(running), 4

    def is_kept() -> None:
        limited, other = Reader(running, 1), Reader(running, 0)
        assert limited.mib_per_second() == pytest.approx(limit, rel=0.05)
        assert other.mib_per_second() > 2 * limit
        assert "no drift" in checked(running).stdout

    running.stack.run("config", "set", "--path", "vhost.qos.disks.1.readMibPerSecond", str(limit))
    code, said = make_up(running)
    assert code == 0, said[-3000:]
    assert f"disks with other limits  1 (no limit → {limit} MiB/s read)" in said
    assert re.search(rf"^1 .* {limit} MiB/s read ", said, re.MULTILINE), "make status shows it"
    is_kept()
    kill_target(running, backend)
    until(15, "the pages", lambda: all(marker(running, i) for i in ORDINALS))
    is_kept()
    running.stack.run("config", "rm", "--path", "vhost.qos")
    code, said = make_up(running)
    assert code == 0, said[-3000:]
    assert Reader(running, 1).mib_per_second() > 2 * limit
    assert unharmed(running) == before


KILLS, BETWEEN = 4, 4  # seconds


def writer(running: Running, ordinal: int) -> InGuest:
    """Writes to the disk of instance `ordinal`, and verifies it: see writer.py."""
    folder = running.guest(f"findmnt -nfo TARGET --source $(readlink -f {disk_path(ordinal)})").strip()
    return InGuest(running, "writer.py", f"{folder}/verified", KILLS * BETWEEN + 10)


def test_a_target_that_is_killed_again_and_again_loses_no_write(running: Running, backend: str) -> None:
    """On files: each acknowledged write is there, no page is away for long, nothing is out of memory."""
    writers = [writer(running, ordinal) for ordinal in ORDINALS[:2]]
    for _ in range(KILLS):
        kill_target(running, backend)
        until(15, "the pages", lambda: all(marker(running, i) for i in ORDINALS))
        time.sleep(BETWEEN)
    for each in writers:
        seen = each.seen()
        assert (seen["errors"], seen["wrong"]) == (0, 0), seen
        assert seen["longest"] < 10, seen
    (pod,) = pods_of(running, VHOST)
    assert [c.restart_count for c in pod.status.container_statuses] == [0], "the agent starts its target by itself"


def test_disks_on_files_survive_fewer_instances_and_a_destroy(running: Running) -> None:
    lives = [marker(running, i) for i in ORDINALS]
    # a smaller N takes no data away: what the last instance had is there when it comes back
    for count in (COUNT - 1, COUNT):
        running.stack.run("config", "set", "numinst", str(count))
        running.stack.run("up", "--yes", "--skip-preview")
    assert [marker(running, i) for i in ORDINALS] == lives
    # nor does what would delete the files, without a word of the user's
    code, refused = running.stack.try_run("destroy", "--yes", "--skip-preview")
    assert code != 0
    assert re.search(r"dev-worker1-var\S* cannot be deleted\s+because it is protected", refused), refused[-2000:]
    volume = f"spdk-k8s-{running.stack.name}-worker1-var"
    folder = subprocess.check_output(
        ["docker", "volume", "inspect", "-f", "{{.Mountpoint}}", volume], text=True
    ).strip()
    assert {path.name for path in Path(folder, "lib/spdk-k8s/disks").iterdir()} == {f"vhost.{i}" for i in ORDINALS}


def test_down_leaves_no_trace(running: Running, traces_before: dict[str, str]) -> None:
    running.stack.run("state", "unprotect", "--all", "--yes")  # the files' machine
    running.stack.run("destroy", "--yes", "--skip-preview")
    after = traces()
    for where, before in traces_before.items():
        assert after[where] == before, where
