#!/usr/bin/python3
"""Delete the pods of this node whose disk was taken out while it was mounted, so that they are made anew.

udev starts it in the worker VM when a disk goes: docs/decisions/0007. It asks the API server as kubelet's own user may,
and without kubectl, which costs an emulated CPU ten seconds a call.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

LIMIT, PAUSE = 300, 1  # seconds
KUBELET = Path("/var/lib/kubelet")
VOLUME = re.compile(rf"{KUBELET}/pods/([^/]+)/volumes/kubernetes\.io~local-volume/")


def lost(mounts: str, present: Callable[[str], bool]) -> set[str]:
    """UIDs of the pods with a local volume on a device that is no more.

    mounts: as in /proc/self/mountinfo. present: whether the device "MAJOR:MINOR" is there.
    """
    lines = (line.split() for line in mounts.splitlines())
    return {found[1] for _, _, device, _, point, *_ in lines if (found := VOLUME.match(point)) and not present(device)}


def delete(ask: Callable[..., bytes], node: str, uids: set[str]) -> set[str]:
    """Delete the pods of `uids` on `node`; returns the UIDs of those that need no more asking.

    ask: method, path and body of a request -> the answer's body.
    """
    pods = json.loads(ask("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"))["items"]
    for pod in pods:
        about = pod["metadata"]
        if about["uid"] in uids:
            print(f"pod {about['name']} lost its disk: deleting it", flush=True)
            # by its UID: the next pod of that name may be there already
            options = {"gracePeriodSeconds": 1, "preconditions": {"uid": about["uid"]}}
            ask("DELETE", f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}", json.dumps(options))
    return uids


def client(connect: Callable[[], HTTPConnection]) -> Callable[..., bytes]:
    """Requests to the API server, each over a connection of its own."""

    def ask(method: str, path: str, body: str | None = None) -> bytes:
        connection = connect()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status >= 400 and answer.status not in (404, 409):  # it is gone, or another one by now
            raise HTTPException(f"{method} {path}: {answer.status} {said.decode(errors='replace')[:200]}")
        return said

    return ask


def as_kubelet() -> HTTPConnection:
    server = re.search(r"server: https://([\w.-]+):(\d+)", Path("/etc/kubernetes/kubelet.conf").read_text())
    if server is None:
        raise HTTPException("/etc/kubernetes/kubelet.conf names no server")
    trusting = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
    trusting.load_cert_chain(KUBELET / "pki/kubelet-client-current.pem")
    return HTTPSConnection(server[1], int(server[2]), timeout=10, context=trusting)


def main() -> int:
    ask, node, done = client(as_kubelet), socket.gethostname(), set[str]()
    end = time.monotonic() + LIMIT
    # until kubelet has unmounted: a pod that was made meanwhile may have mounted the same device
    while uids := lost(Path("/proc/self/mountinfo").read_text(), lambda d: Path("/sys/dev/block", d).exists()):
        if time.monotonic() > end:
            print(f"waited {LIMIT} s for kubelet to unmount the volumes of {', '.join(sorted(uids))}", file=sys.stderr)
            return 1
        if uids - done:
            try:
                done |= delete(ask, node, uids - done)
            except (OSError, HTTPException) as error:
                print(f"the API server does not answer: {error}", file=sys.stderr, flush=True)
        time.sleep(PAUSE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
