"""The rules: functions from a resource, as its provider gets it, to what is wrong with it.

In a preview much is not known yet. What is not known is not held against a resource; what is known, is.
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
    """Stands for a value that is not known yet: false, empty, and so is all that is in it."""

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def get(self, _key: str, _default: object = None) -> Unknown:
        return self


UNKNOWN = Unknown()


@dataclass(frozen=True)
class Resource:
    """inputs: as they are on the wire. secret_outputs: what the program lists as additional_secret_outputs."""

    type: str
    name: str
    inputs: Mapping[str, Any]
    secret_outputs: Sequence[str] = ()

    @property
    def kind(self) -> str:
        return self.type.rpartition(":")[2]

    @property
    def properties(self) -> Any:
        """The inputs, secrets among them opened, what is not known as UNKNOWN."""
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
    """Every pod specification in `value`, however deep: a Pod's own, a Deployment's or a CronJob's template."""
    if isinstance(value, Mapping):
        if "containers" in value:
            yield value
        for below in value.values():
            yield from pods(below)
    elif isinstance(value, list):
        for below in value:
            yield from pods(below)


def containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(group) or ()


def repository(image: str) -> str:
    """An image's name without its tag or digest."""
    return re.sub(r"(@[^/]*|:[^/]*)$", "", image)


class Images:
    """Pods' images come from the registries that this stack pushes to, which it does before any pod asks for one; an
    engine's containers are of images that this stack built."""

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
            if image and repository(image) not in self.built:  # a machine keeps the build that it was made of
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
                yield f"{user}: {image} is not from this stack's registry ({own}); mend: use what images.build returns"
            if image and not re.search(r"@sha256:[0-9a-f]{64}$", image):
                yield f"{user}: {image} can change; mend: name it by digest, NAME@sha256:…"


class Grant(NamedTuple):
    """What one workload may take from its node. which: containers, or folders with all that is below them."""

    kind: str
    name: str  # * for any ending
    what: str
    which: tuple[str, ...]
    why: str


NAMESPACE = "spdk-k8s"
# All that the design allows; nobody else, and nothing in another namespace, gets any of it.
GRANTS = (
    Grant("Deployment", "cb-vhost-p0*", "hostPath", ("/run/spdk-k8s",), "its sockets and QEMU's monitors"),
    Grant("Deployment", "cb-vhost-p0*", "hostPath", ("/var/lib/spdk-k8s/disks", "/mnt", "/srv"), "vhost.files"),
    Grant("Deployment", "cb-vhost-p0*", "hostPath", ("/dev",), "vhost.devices"),
    Grant("Deployment", "cb-vhost-p0*", "privileged", ("vhost",), "vhost.devices"),
    Grant("StatefulSet", "app-vs-p2", "hostPath, read-only", ("/srv/media",), "the playlists"),
    Grant("StatefulSet", "app-vs-p2", "hostNetwork", ("pod",), "each pod serves at a port of its node"),
    Grant("Container", "spdk-k8s-*", "privileged", ("container",), "dev machines boot systemd and run kubelet"),
)


def host_access(resource: Resource) -> Iterator[str]:
    """What a pod or an engine's container takes from its node without a grant."""
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
        if namespace is not UNKNOWN and namespace != NAMESPACE:
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
    """A volume of the engine's may be a folder of the machine by another name."""
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
    """A remote step without a host key, for its host or the jump host, or one that could hang for ever."""
    if not resource.type.startswith("command:remote:"):
        return
    properties = resource.properties
    connection = properties.get("connection", {})
    for where, hop in (("connection", connection), ("connection.proxy", connection.get("proxy", UNKNOWN))):
        key = hop.get("hostKey")
        if not key and key is not UNKNOWN:
            yield f"{where} has no hostKey: whoever answers would be trusted; mend: Host.run, which requires one"
    for when in ("create", "update", "delete"):
        line = properties.get(when)
        if line and not re.fullmatch(r"(env \w+=\S* )?(sudo -n )?timeout -k 10 [1-9]\d* [^;&|\n]*", line):
            yield f"{when} has no time limit; mend: Host.run, or begin it with timeout -k 10 SECONDS"


PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|client-key-data:")
SECRET_NAMES = {"privateKey", "privateKeyPassPhrase", "password", "kubeconfig"}
# of a script on stdin
SECRET_VALUE = re.compile(r"^(PASSWORD|KUBECONFIG_TEXT|REGISTRY_HOSTS|USER_DATA)=(?!''$).", re.MULTILINE)


def plain_secrets(resource: Resource) -> Iterator[str]:
    """Inputs that must be secrets, and are not marked as such."""
    for path, value in _plain(resource.inputs, ()):
        of_secret = resource.kind == "Secret" and path[0] in ("data", "stringData")
        if path[-1] in SECRET_NAMES or of_secret or PRIVATE_KEY.search(value) or SECRET_VALUE.search(value):
            yield f"{'.'.join(path)} would be in the state in plain text; mend: pulumi.Output.secret"


def _plain(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string that is known and not within a secret, and where it is."""
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
    """A remote step's stdout that is no secret, or a command that shows the secret that it prints."""
    if resource.type == "command:remote:Command" and "stdout" not in resource.secret_outputs:
        yield 'what it prints is not a secret; mend: Host.run, or additional_secret_outputs=["stdout"]'
    shown = resource.properties.get("logging") or "stdoutAndStderr"
    if resource.type.startswith("command:") and "stdout" in resource.secret_outputs and "stdout" in shown.lower():
        yield "its secret stdout would be shown as it runs; mend: logging=Logging.STDERR or Logging.NONE"


def printed_keys(resource: Resource) -> Iterator[str]:
    """After the fact: a command printed a private key, and its output is in the state in plain text."""
    for output in ("stdout", "stderr"):
        if (
            resource.type.startswith("command:")
            and PRIVATE_KEY.search(resource.properties.get(output) or "")
            and output not in resource.secret_outputs
        ):
            yield f'{output} holds a private key; mend: additional_secret_outputs=["{output}"]'
