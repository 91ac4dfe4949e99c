"""Each policy on resources that comply and on resources that do not, and on values that a preview does not know yet."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from pulumi_policy.deserialize import SPECIAL_SECRET_SIG, SPECIAL_SIG_KEY
from pulumi_policy.proxy import UNKNOWN_ARRAY_VALUE, UNKNOWN_BOOLEAN_VALUE, UNKNOWN_OBJECT_VALUE, UNKNOWN_STRING_VALUE

from policy import rules
from policy.rules import Resource
from settings.load import ConfigError, load
from settings.names import VHOST
from tests.unit.recorder import run_program

pytestmark = pytest.mark.unit

REGISTRY = "172.30.89.2:5000"
DIGEST = "sha256:" + "a" * 64
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
UNKNOWN = UNKNOWN_STRING_VALUE


def accepted(key: str, **value: str) -> bool:
    try:
        load({f"spdk-k8s:{key}": json.dumps(value)})
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("folder", "passes"),
    [
        ("/var/lib/spdk-k8s/disks", True),
        ("/srv/disks", True),
        ("/srv/a-1/b_2.c/", True),
        ("/mnt", True),
        ("/data/disks", False),
        ("/srv/../etc", False),
        ("/srv/./../etc", False),
        ("/srvs", False),
        ("/var/lib/spdk-k8s", False),
    ],
)
def test_settings_refuse_folders_that_the_target_has_no_grant_for(folder: str, passes: bool) -> None:
    target = workload(name=VHOST, volumes=[{"name": "disks", "hostPath": {"path": folder}}])
    assert (not list(rules.host_access(target))) == passes
    assert accepted("vhost", files=folder) == passes


def secret(value: object) -> dict[str, object]:
    return {SPECIAL_SIG_KEY: SPECIAL_SECRET_SIG, "value": value}


def workload(kind: str = "apps/v1:Deployment", *, name: str = "web", **pod: Any) -> Resource:
    """A workload with one container, whose image is named by digest. pod: additions to its pod specification."""
    spec = {"containers": [{"name": "web", "image": f"{REGISTRY}/web@{DIGEST}"}], **pod}
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    inputs: dict[str, Any] = {"metadata": {"name": name, "namespace": "spdk-k8s"}, "spec": {"template": template}}
    if kind.endswith("CronJob"):
        inputs["spec"] = {"jobTemplate": {"spec": {"template": template}}}
    if kind.endswith(":Pod"):
        inputs["spec"] = spec
    return Resource(f"kubernetes:{kind}", "web", inputs)


def container(**container: Any) -> dict[str, Any]:
    return {"containers": [{"name": "web", "image": f"{REGISTRY}/web@{DIGEST}", **container}]}


@pytest.fixture
def images() -> rules.Images:
    """The result of the policy after it has seen the stack's own image."""
    made = rules.Images()
    assert not list(made(Resource("docker:index/image:Image", "web-image", {"imageName": f"{REGISTRY}/web:0123"})))
    return made


@pytest.mark.parametrize("kind", ["apps/v1:Deployment", "apps/v1:StatefulSet", "batch/v1:CronJob", "core/v1:Pod"])
@pytest.mark.parametrize("group", ["containers", "initContainers"])
def test_images_come_from_the_stacks_registry_by_digest(images: rules.Images, kind: str, group: str) -> None:
    def found(image: str) -> str:
        return "\n".join(images(workload(kind, **{group: [{"name": "x", "image": image}]})))

    assert not found(f"{REGISTRY}/web@{DIGEST}")
    assert not found(UNKNOWN)
    assert "can change" in found(f"{REGISTRY}/web:1.27")
    assert f"is not from this stack's registry ({REGISTRY})" in found(f"docker.io/library/nginx@{DIGEST}")
    both = found("nginx:1.27")
    assert "container x: nginx:1.27 is not from" in both
    assert "can change" in both


def test_a_known_bad_image_is_found_beside_unknown_ones(images: rules.Images) -> None:
    pod = {"initContainers": UNKNOWN_ARRAY_VALUE, "containers": [{"image": UNKNOWN}, {"name": "bad", "image": "nginx"}]}
    assert all("container bad: nginx" in problem for problem in images(workload(**pod)))
    assert len(list(images(workload(**pod)))) == 2


def test_an_image_volume_is_an_image_too(images: rules.Images) -> None:
    assert list(images(workload(volumes=[{"name": "v", "image": {"reference": "nginx"}}])))


def test_an_image_that_is_not_pushed_makes_no_registry() -> None:
    images = rules.Images()
    list(images(Resource("docker:index/image:Image", "i", {"imageName": f"{REGISTRY}/web:0", "skipPush": True})))
    assert "it has pushed to none" in "".join(images(workload()))


@pytest.mark.parametrize(
    ("pod", "what"),
    [
        ({"hostNetwork": True}, "hostNetwork (pod)"),
        ({"hostPID": True}, "hostPID (pod)"),
        ({"hostIPC": True}, "hostIPC (pod)"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/etc"}}]}, "hostPath (/etc)"),
        (container(securityContext={"privileged": True}), "privileged (web)"),
        (container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}), "capability (SYS_ADMIN)"),
        ({"volumes": UNKNOWN_ARRAY_VALUE, "hostNetwork": True}, "hostNetwork (pod)"),
    ],
)
def test_nobody_takes_from_the_host_without_a_grant(pod: dict[str, Any], what: str) -> None:
    (problem,) = rules.host_access(workload(**pod))
    assert problem == f"Deployment web has no grant for {what}; the grants: policy/rules.py"


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"hostNetwork": False, "hostPID": False},
        {"hostNetwork": UNKNOWN_BOOLEAN_VALUE},
        {"volumes": [{"name": "v", "hostPath": {"path": UNKNOWN}}, {"name": "w", "emptyDir": {}}]},
        container(securityContext=UNKNOWN_OBJECT_VALUE),
        container(securityContext={"privileged": UNKNOWN_BOOLEAN_VALUE, "capabilities": {"drop": ["ALL"]}}),
    ],
)
def test_what_is_not_known_is_not_held_against_a_pod(pod: dict[str, Any]) -> None:
    assert not list(rules.host_access(workload(**pod)))


@pytest.mark.parametrize(
    ("kind", "name", "path", "granted"),
    [
        ("apps/v1:Deployment", "cb-vhost-p0", "/run/spdk-k8s", True),
        ("apps/v1:Deployment", "cb-vhost-p0-worker4", "/run/spdk-k8s", True),
        ("apps/v1:Deployment", "cb-vhost-p0", "/mnt/nvme0/disks", True),
        ("apps/v1:Deployment", "cb-vhost-p0", "/run/spdk-k8s/../../etc", False),
        ("apps/v1:Deployment", "cb-vhost-p0", "/mntx", False),
        ("apps/v1:DaemonSet", "cb-vhost-p0", "/run/spdk-k8s", False),
        ("apps/v1:StatefulSet", "app-vs-p2", "/srv/media", True),
        ("apps/v1:StatefulSet", "app-vs-p2", "/run/spdk-k8s", False),
        ("apps/v1:StatefulSet", "app-vs-p22", "/srv/media", False),
    ],
)
def test_a_grant_is_for_one_workload_and_its_folders(kind: str, name: str, path: str, granted: bool) -> None:
    mounted = container(volumeMounts=[{"name": "v", "mountPath": "/v", "readOnly": True}])
    found = list(
        rules.host_access(workload(kind, name=name, volumes=[{"name": "v", "hostPath": {"path": path}}], **mounted))
    )
    assert (not found) == granted


def test_a_grant_to_read_is_none_to_write() -> None:
    media = [{"name": "v", "hostPath": {"path": "/srv/media"}}]
    mounts = [{"name": "v", "mountPath": "/a", "readOnly": True}, {"name": "v", "mountPath": "/b"}]
    pod = workload("apps/v1:StatefulSet", name="app-vs-p2", volumes=media, **container(volumeMounts=mounts))
    assert "no grant for hostPath (/srv/media)" in "".join(rules.host_access(pod))


def test_a_grant_is_for_the_stacks_own_namespace() -> None:
    target = workload(name=VHOST, **container(name="vhost", securityContext={"privileged": True}))
    elsewhere = {**target.inputs, "metadata": {"name": VHOST, "namespace": "kube-system"}}
    unknown = {**target.inputs, "metadata": {"name": VHOST, "namespace": UNKNOWN}}
    (problem,) = rules.host_access(Resource(target.type, "web", elsewhere))
    assert problem.startswith(f"Deployment kube-system/{VHOST} has no grant for privileged")
    assert not list(rules.host_access(Resource(target.type, "web", unknown)))


@pytest.mark.parametrize(
    ("namespace", "granted"), [("spdk-k8s-monitoring", True), (UNKNOWN, True), ("spdk-k8s", False), (None, False)]
)
def test_a_grant_may_be_for_another_namespace(namespace: str | None, granted: bool) -> None:
    pod = workload(name="prometheus", hostNetwork=True)
    inputs = {**pod.inputs, "metadata": {"name": "prometheus", "namespace": namespace}}
    assert (not list(rules.host_access(Resource(pod.type, "web", inputs)))) == granted


@pytest.mark.parametrize(
    ("type_", "inputs"),
    [
        ("kubernetes:core/v1:PersistentVolume", {"metadata": {"name": "v"}, "spec": {"hostPath": {"path": "/etc"}}}),
        ("docker:index/volume:Volume", {"name": "v", "driverOpts": {"type": "none", "o": "bind", "device": "/etc"}}),
    ],
)
def test_a_volume_may_not_be_a_folder_of_the_node(type_: str, inputs: dict[str, Any]) -> None:
    (problem,) = rules.host_access(Resource(type_, "v", inputs))
    assert "no grant for hostPath (/etc)" in problem


def test_an_engines_container_is_of_an_image_that_the_stack_built(images: rules.Images) -> None:
    def found(image: str) -> str:
        return "".join(images(Resource("docker:index/container:Container", "c", {"image": image})))

    assert not found(f"{REGISTRY}/web:0123")
    assert not found(f"{REGISTRY}/web:of-an-earlier-checkout"), "the machine is not replaced for a new one"
    assert not found(UNKNOWN)
    assert f"{REGISTRY}/other:0123 is not built" in found(f"{REGISTRY}/other:0123")
    assert "nginx:latest is not built by this stack" in found("nginx:latest")


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"name": "spdk-k8s-dev-master", "privileged": True}, ""),
        ({"name": "other", "privileged": True}, "privileged"),
        ({"name": "spdk-k8s-dev-master", "networkMode": "host"}, "hostNetwork"),
        ({"name": "spdk-k8s-dev-master", "volumes": [{"hostPath": "/", "containerPath": "/host"}]}, "hostPath (/)"),
        ({"name": "spdk-k8s-dev-master", "mounts": [{"type": "bind", "source": "/etc"}]}, "hostPath (/etc)"),
        ({"name": "spdk-k8s-dev-master", "devices": [{"hostPath": "/dev/kvm"}]}, "device (/dev/kvm)"),
        ({"name": "spdk-k8s-dev-master", "usernsMode": "host"}, "hostUsers"),
        ({"name": "spdk-k8s-dev-master", "securityOpts": ["seccomp=unconfined"]}, "security option"),
        ({"name": UNKNOWN, "privileged": True}, ""),
    ],
)
def test_the_engines_containers_are_held_to_the_same(inputs: dict[str, Any], what: str) -> None:
    found = "\n".join(rules.host_access(Resource("docker:index/container:Container", "c", inputs)))
    assert what in found
    assert bool(found) == bool(what)


def command(**inputs: Any) -> Resource:
    good = {"connection": {"host": "h", "hostKey": "ssh-ed25519 AAAA"}, "create": "timeout -k 10 60 bash -s up"}
    return Resource("command:remote:Command", "step", {**good, **inputs})


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({}, ""),
        ({"create": "sudo -n timeout -k 10 600 bash -s up"}, ""),
        ({"create": "env NOW=1 timeout -k 10 600 bash -s up"}, ""),
        ({"create": UNKNOWN, "connection": secret(UNKNOWN_OBJECT_VALUE)}, ""),
        ({"connection": secret({"host": "h", "hostKey": UNKNOWN})}, ""),
        ({"create": "bash -s up"}, "create has no time limit"),
        ({"create": "timeout -k 10 0 bash -s up"}, "create has no time limit"),
        ({"delete": "rm -rf /x"}, "delete has no time limit"),
        ({"create": "timeout -k 10 60 true; sleep infinity"}, "create has no time limit"),
        ({"update": "timeout -k 10 60 bash -s up # drifted"}, ""),
        ({"update": "echo; timeout -k 10 60 true"}, "update has no time limit"),
        ({"connection": {"host": "h"}}, "connection has no hostKey"),
        ({"connection": secret({"host": "h", "hostKey": ""})}, "connection has no hostKey"),
        ({"connection": {"host": UNKNOWN, "hostKey": "k", "proxy": {"host": "j"}}}, "connection.proxy has no hostKey"),
        ({"connection": {"hostKey": "k", "proxy": {"host": "j", "hostKey": "k"}}}, ""),
    ],
)
def test_remote_steps_know_their_host_and_end(inputs: dict[str, Any], what: str) -> None:
    found = list(rules.remote_command(command(**inputs)))
    assert len(found) == bool(what)
    assert what in "".join(found)


@pytest.mark.parametrize(
    ("inputs", "path"),
    [
        ({"stdin": secret(f"KEY='{KEY}'")}, ""),
        ({"connection": secret({"privateKey": KEY})}, ""),
        ({"connection": {"privateKey": UNKNOWN}}, ""),
        ({"registry": {"username": "u", "password": ""}}, ""),
        ({"stdin": f"KEY='{KEY}'"}, "stdin"),
        ({"stdin": "USER_NAME=spdk\nPASSWORD=p4ss\nmain"}, "stdin"),
        ({"stdin": "USER_NAME=spdk\nPASSWORD=''\nmain"}, ""),
        ({"stdin": "REGISTRY=r\nREGISTRY_HOSTS='server = \"r\"'\nmain"}, "stdin"),
        ({"uploads": [{"content": "x"}, {"content": KEY}]}, "uploads.1.content"),
        ({"registry": {"password": "p4ss"}}, "registry.password"),
        ({"kubeconfig": "apiVersion: v1"}, "kubeconfig"),
        ({"text": "users:\n- user:\n    client-key-data: AAAA"}, "text"),
    ],
)
def test_secrets_are_secret_and_never_repeated(inputs: dict[str, Any], path: str) -> None:
    found = list(rules.plain_secrets(Resource("any:index:Thing", "thing", inputs)))
    assert len(found) == bool(path)
    assert all(problem.startswith(f"{path} would be in the state in plain text") for problem in found)
    assert not any(hidden in "".join(found) for hidden in ("AAAA", "p4ss"))


def test_a_secret_of_kubernetes_is_one_of_pulumis() -> None:
    kind = "kubernetes:core/v1:Secret"
    assert list(rules.plain_secrets(Resource(kind, "s", {"stringData": {"token": "p4ss"}})))
    assert not list(rules.plain_secrets(Resource(kind, "s", {"stringData": secret({"token": "p4ss"})})))


@pytest.mark.parametrize(
    ("kind", "logging", "secrets", "what"),
    [
        ("remote", "stderr", ["stdout"], ""),
        ("remote", "stderr", [], "not a secret"),
        ("local", "stderr", [], ""),
        ("local", None, [], ""),
        ("local", "none", ["stdout"], ""),
        ("local", None, ["stdout"], "would be shown"),
        ("local", "stdoutAndStderr", ["stdout"], "would be shown"),
    ],
)
def test_what_a_command_prints_is_as_secret_as_it_says(
    kind: str, logging: str | None, secrets: list[str], what: str
) -> None:
    found = list(rules.secret_outputs(Resource(f"command:{kind}:Command", "c", {"logging": logging}, secrets)))
    assert len(found) == bool(what)
    assert what in "".join(found)


def test_a_printed_key_is_found_once_it_is_known() -> None:
    def found(stdout: str, *secrets: str) -> list[str]:
        return list(rules.printed_keys(Resource("command:local:Command", "c", {"stdout": stdout}, secrets)))

    assert found(KEY) == ['stdout holds a private key; mend: additional_secret_outputs=["stdout"]']
    assert not found(KEY, "stdout")
    assert not found(UNKNOWN)
    assert not found("done")


@pytest.mark.parametrize("bdev", ["malloc", "aio"])
def test_the_program_keeps_them_when_all_is_known(bdev: str) -> None:
    images = rules.Images()
    devices = [f"/dev/disk/by-id/virtio-{i}" for i in range(3)] if bdev == "aio" else []
    for made in run_program(vhost={"bdev": bdev, "devices": devices}).values():
        on_the_wire = json_format.MessageToDict(made.request.object)
        resource = Resource(made.typ, made.name, on_the_wire, list(made.request.additionalSecretOutputs))
        for rule in (images, rules.host_access, rules.remote_command, rules.plain_secrets, rules.secret_outputs):
            assert not list(rule(resource)), made.path
    assert images.registries
