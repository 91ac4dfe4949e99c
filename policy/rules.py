"""The rules: functions that take a resource, as its provider gets it, and yield a message for each violation.

In a preview many values are not known yet. A rule skips an unknown value and checks the rest; `up` checks all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import normpath
from typing import Any, NamedTuple

from pulumi_policy import deserialize, proxy

NOT_KNOWN = {value for name, value in vars(proxy).items() if name.startswith("UNKNOWN_")}


class Unknown:
    """A value that is not known yet. It is falsy and empty, and so is everything read from it."""

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def get(self, _key: str, _default: object = None) -> Unknown:
        return self


UNKNOWN = Unknown()


@dataclass(frozen=True)
class Resource:
    """inputs: in the engine's wire format, with secrets marked. secret_outputs: from additional_secret_outputs."""

    type: str
    name: str
    inputs: Mapping[str, Any]
    secret_outputs: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """The last part of the type: "StatefulSet" of "kubernetes:apps/v1:StatefulSet"."""
        return self.type.rpartition(":")[2]

    @property
    def properties(self) -> Any:
        """The inputs, with the plain values of secrets, and UNKNOWN for values that are not known yet."""
        return _opened(self.inputs)


def _opened(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.get(deserialize.SPECIAL_SIG_KEY) == deserialize.SPECIAL_SECRET_SIG:
            return _opened(value["value"])
        return {key: _opened(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_opened(below) for below in value]
    return UNKNOWN if isinstance(value, str) and value in NOT_KNOWN else value


def pods(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every pod specification in `value`, at any depth: of a Pod, or in the template of a Deployment or CronJob."""
    if isinstance(value, Mapping):
        if "containers" in value:
            yield value
        for below in value.values():
            yield from pods(below)
    elif isinstance(value, list):
        for below in value:
            yield from pods(below)


def containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every container of a pod specification, init and ephemeral ones included."""
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(group) or ()


def repository(image: str) -> str:
    """The name of an image, without tag or digest."""
    return re.sub(r"(@[^/]*|:[^/]*)$", "", image)


class Images:
    """The policy private-images.

    Pods use images of the registries that this stack pushes to. Docker containers use images that this stack builds.
    It keeps the registries and images that it has seen: the stack registers an image before the pod that uses it.
    """

    def __init__(self) -> None:
        self.registries: set[str] = set()
        self.built: set[str] = set()

    def __call__(self, resource: Resource) -> Iterator[str]:
        properties = resource.properties
        if resource.type == "docker:index/image:Image":
            names = {name for name in [properties.get("imageName")] if name}
            self.built |= {repository(name) for name in names}
            if not properties.get("skipPush"):
                self.registries |= {name.partition("/")[0] for name in names}
        if resource.type == "docker:index/container:Container":
            image = properties.get("image")
            if image and repository(image) not in self.built:  # not by tag: a running machine keeps its first image
                yield f"{image} is not built by this stack; mend: use the image_name of a docker.Image"
        if resource.type.startswith("kubernetes:"):
            for pod in pods(properties):
                yield from self.wrong_images(pod)

    def wrong_images(self, pod: Mapping[str, Any]) -> Iterator[str]:
        used = [(f"container {c.get('name')}", c.get("image")) for c in containers(pod)]
        used += [
            (f"volume {v.get('name')}", v["image"].get("reference")) for v in pod.get("volumes") or () if v.get("image")
        ]
        for user, image in used:
            if image is UNKNOWN:
                continue
            own = " or ".join(sorted(self.registries)) or "it has pushed to none"
            if not image or image.partition("/")[0] not in self.registries:
                yield f"{user}: {image} is not from this stack's registry ({own}); mend: use the result of Images.build"
            if image and not re.search(r"@sha256:[0-9a-f]{64}$", image):
                yield f"{user}: {image} can change; mend: name it by digest, NAME@sha256:…"


class Grant(NamedTuple):
    """What one workload may use of its node. which: names of containers, or folders, which include all below them."""

    kind: str
    name: str  # a pattern: * matches any ending
    what: str
    which: tuple[str, ...]
    why: str


NAMESPACE = "spdk-k8s"
# The complete list. Other workloads, and workloads in other namespaces, get nothing.
GRANTS = (
    Grant("Deployment", "cb-vhost-p0*", "hostPath", ("/run/spdk-k8s",), "vhost-user sockets and QEMU's monitors"),
    Grant("Deployment", "cb-vhost-p0*", "hostPath", ("/var/lib/spdk-k8s/disks", "/mnt", "/srv"), "vhost.files"),
    Grant("Deployment", "cb-vhost-p0*", "hostPath", ("/dev",), "vhost.devices"),
    Grant("Deployment", "cb-vhost-p0*", "privileged", ("vhost",), "vhost.devices"),
    Grant("StatefulSet", "app-vs-p2", "hostPath, read-only", ("/srv/media",), "the playlists"),
    Grant("StatefulSet", "app-vs-p2", "hostNetwork", ("pod",), "each pod serves on a port of its node"),
    Grant("DaemonSet", "spdk-k8s-monitoring/node-exporter", "hostNetwork", ("pod",), "it serves at its node's address"),
    Grant("Deployment", "spdk-k8s-monitoring/prometheus", "hostNetwork", ("pod",), "the wall is at master's address"),
    Grant("Container", "spdk-k8s-*", "privileged", ("container",), "dev machines run systemd and kubelet"),
)


def host_access(resource: Resource) -> Iterator[str]:
    """The policy host-access: what a pod, volume or Docker container uses of its node needs a grant."""
    properties = resource.properties
    if resource.type == "docker:index/container:Container":
        name, demands = properties.get("name"), _demands_of_container(properties)
    elif resource.type == "docker:index/volume:Volume":
        name, demands = properties.get("name"), _demands_of_volume(properties)
    elif resource.type == "kubernetes:core/v1:PersistentVolume":
        name = (properties.get("metadata") or {}).get("name")
        demands = _demands_of_pod({"volumes": [properties.get("spec") or {}]})
    elif resource.type.startswith("kubernetes:"):
        metadata = properties.get("metadata") or {}
        name, namespace = metadata.get("name"), metadata.get("namespace")
        if namespace is UNKNOWN:  # only `up` knows whether it is the right one
            name = next((g.name for g in GRANTS if g.name.rpartition("/")[2] == name), name)
        elif namespace != NAMESPACE:
            name = f"{namespace or 'default'}/{name}"
        demands = (demand for pod in pods(properties) for demand in _demands_of_pod(pod))
    else:
        return
    for what, which in demands:
        if name is not UNKNOWN and not granted(resource.kind, name or "", what, which):
            yield f"{resource.kind} {name} has no grant for {what} ({which}); the grants: policy/rules.py"


def granted(kind: str, name: str, what: str, which: str) -> bool:
    return any(
        kind == grant.kind
        and what in (grant.what, f"{grant.what}, read-only")
        and fnmatchcase(name, grant.name)
        and any(which == it or (what.startswith("hostPath") and which.startswith(f"{it}/")) for it in grant.which)
        for grant in GRANTS
    )


def _demands_of_pod(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for what in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(what):
            yield what, "pod"
    for container in containers(pod):
        context = container.get("securityContext") or {}
        if context.get("privileged"):
            yield "privileged", container.get("name") or "container"
        for capability in (context.get("capabilities") or {}).get("add") or ():
            yield "capability", capability
    for volume in pod.get("volumes") or ():
        path = (volume.get("hostPath") or {}).get("path")
        if path:
            mounts = [
                m for c in containers(pod) for m in c.get("volumeMounts") or () if m.get("name") == volume.get("name")
            ]
            read_only = mounts and all(m.get("readOnly") for m in mounts)
            yield "hostPath, read-only" if read_only else "hostPath", normpath(path)


def _demands_of_volume(properties: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A Docker volume with driver options can be a folder of the machine."""
    device = (properties.get("driverOpts") or {}).get("device")
    if device:
        yield "hostPath", normpath(device)


def _demands_of_container(properties: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if properties.get("privileged"):
        yield "privileged", "container"
    modes = {"networkMode": "hostNetwork", "pidMode": "hostPID", "ipcMode": "hostIPC", "usernsMode": "hostUsers"}
    for mode, what in modes.items():
        if properties.get(mode) == "host":
            yield what, "container"
    for capability in (properties.get("capabilities") or {}).get("adds") or ():
        yield "capability", capability
    for device in properties.get("devices") or ():
        yield "device", device.get("hostPath") or "device"
    for option in properties.get("securityOpts") or ():
        yield "security option", option
    paths = [volume.get("hostPath") for volume in properties.get("volumes") or ()]
    paths += [mount.get("source") for mount in properties.get("mounts") or () if mount.get("type") == "bind"]
    for path in paths:
        if path:
            yield "hostPath", normpath(path)


def remote_command(resource: Resource) -> Iterator[str]:
    """The policy remote-commands: a host key for the host and the jump host, and a time limit for each command."""
    if not resource.type.startswith("command:remote:"):
        return
    properties = resource.properties
    connection = properties.get("connection", {})
    for where, hop in (("connection", connection), ("connection.proxy", connection.get("proxy", UNKNOWN))):
        key = hop.get("hostKey")
        if not key and key is not UNKNOWN:
            yield f"{where} has no hostKey, so any server would be trusted; mend: use Host.run, which requires one"
    for when in ("create", "update", "delete"):
        line = properties.get(when)
        if line and not re.fullmatch(r"(env \w+=\S* )?(sudo -n )?timeout -k 10 [1-9]\d* [^;&|\n]*", line):
            yield f"{when} has no time limit; mend: use Host.run, or begin the command with timeout -k 10 SECONDS"


PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|client-key-data:")
SECRET_NAMES = {"privateKey", "privateKeyPassPhrase", "password", "kubeconfig"}
# an assignment of a secret in a script on stdin
SECRET_VALUE = re.compile(r"^(PASSWORD|KUBECONFIG_TEXT|REGISTRY_HOSTS|USER_DATA)=(?!''$).", re.MULTILINE)


def plain_secrets(resource: Resource) -> Iterator[str]:
    """The policy secret-inputs: inputs that must be secrets, but are not marked as such."""
    for path, value in _plain(resource.inputs, ()):
        of_secret = resource.kind == "Secret" and path[0] in ("data", "stringData")
        if path[-1] in SECRET_NAMES or of_secret or PRIVATE_KEY.search(value) or SECRET_VALUE.search(value):
            yield f"{'.'.join(path)} would be in the state in plain text; mend: pulumi.Output.secret"


def _plain(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every known string outside of secrets, with its path."""
    if isinstance(value, Mapping):
        if value.get(deserialize.SPECIAL_SIG_KEY) != deserialize.SPECIAL_SECRET_SIG:
            for key, below in value.items():
                yield from _plain(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _plain(below, (*path, str(index)))
    elif isinstance(value, str) and value and value not in NOT_KNOWN:
        yield path, value


def secret_outputs(resource: Resource) -> Iterator[str]:
    """The policy secret-outputs: a remote step's stdout is a secret, and no command shows a secret while it runs."""
    if resource.type == "command:remote:Command" and "stdout" not in resource.secret_outputs:
        yield 'stdout is not a secret; mend: use Host.run, or additional_secret_outputs=["stdout"]'
    shown = resource.properties.get("logging") or "stdoutAndStderr"
    if resource.type.startswith("command:") and "stdout" in resource.secret_outputs and "stdout" in shown.lower():
        yield "the secret stdout would be shown while the command runs; mend: logging=Logging.STDERR or Logging.NONE"


def printed_keys(resource: Resource) -> Iterator[str]:
    """The policy secret-keys: a command has printed a private key, and the state holds its output in plain text."""
    for output in ("stdout", "stderr"):
        if (
            resource.type.startswith("command:")
            and PRIVATE_KEY.search(resource.properties.get(output) or "")
            and output not in resource.secret_outputs
        ):
            yield f'{output} holds a private key; mend: additional_secret_outputs=["{output}"]'
