"""Container images: the local Docker engine builds them and pushes them to the private registry. Pods use digests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi_docker as docker
from pulumi_command import local

from components.hosts import STEP, here
from settings import proxy
from settings.pins import PINS

ROOT = Path(__file__).parent.parent / "images"
# what a developer's tools leave beside the disk agent's sources, and its tests; images/vhost/.dockerignore too
NOT_BUILT = {".venv", ".hypothesis", ".pytest_cache", ".coverage", "__pycache__", "tests"}


def content_tag(folder: str, *more: str) -> str:
    """Twelve hexadecimal digits that change with any file of images/`folder` or any of `more`.

    They do not depend on the files' modes, which a checkout's umask or an archive sets: each Dockerfile sets its own.
    """
    return tree_digest(ROOT / folder, *more, ignored=NOT_BUILT)


def recipe(folder: str, args: Mapping[str, str], target: str | None = None) -> docker.DockerBuildArgs:
    """How images/`folder` is built. Its path is relative to the working folder, so it is the same in every checkout."""
    context = os.path.relpath(ROOT / folder)
    return docker.DockerBuildArgs(
        context=context, dockerfile=f"{context}/Dockerfile", target=target, platform="linux/amd64", args=dict(args)
    )


def builds_through_proxy() -> pulumi.ResourceHookBinding | None:
    """Hooks of an image's resource that build it ahead with the user's proxy, where there is one.

    The provider gives a build its build arguments only, and keeps them in the state: a proxy among them would change
    every image whenever the user comes to another network. BuildKit does not count a proxy when it looks a layer up, so
    the provider's own build, without, finds each layer.
    """
    if not proxy.for_builds(os.environ):
        return None

    async def build_ahead(args: pulumi.ResourceHookArgs) -> None:
        build: Mapping[str, Any] = (args.new_inputs or {})["build"]
        command = ["bash", ROOT.parent / "setup/build-ahead", Path(build["context"]).name, build.get("target") or ""]
        running = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, said = await running.communicate(json.dumps(build["args"]).encode())
        if running.returncode:  # the provider's own build follows, and fails or not
            pulumi.log.warn(f"the build of {args.name} with the proxy failed: {said.decode(errors='replace')[-2000:]}")

    return pulumi.ResourceHookBinding(before_create=[build_ahead], before_update=[build_ahead])


def tree_digest(root: Path, *more: str, without: str = "", ignored: Collection[str] = (), modes: bool = False) -> str:
    """Twelve hexadecimal digits of every file's name and content in `root`, except in its folder `without`.

    ignored: names of files and folders that do not count, at any depth. modes: the exec bit counts too.
    """
    digest = hashlib.sha256("\0".join(more).encode())
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and inside.parts[0] != without and not set(ignored).intersection(inside.parts):
            mode = "x" if modes and path.stat().st_mode & 0o100 else "-"
            digest.update(f"\0{inside}\0{mode}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Source:
    """An image that holds source code. image: its name in the Docker engine. made_by: the resource that builds it."""

    image: str
    made_by: pulumi.Resource


@dataclass(frozen=True)
class ImagesArgs:
    registry: pulumi.Input[str]
    """ "address:port"."""
    login: docker.RegistryArgs
    """What pulumi-docker needs to push."""
    ready: Sequence[pulumi.Resource] = ()
    """Registry.ready: if one of these resources is replaced, the registry is empty, and every image is pushed again."""


class Images(pulumi.ComponentResource):
    """Builds images and pushes them to one registry. `build` returns each image's reference by digest.

    ```python
    import pulumi
    import pulumi_docker as docker

    from components.images import Images, ImagesArgs

    password = pulumi.Config().require_secret("password")
    login = docker.RegistryArgs(server="registry.example:5000", username="me", password=password)
    images = Images("images", ImagesArgs(registry="registry.example:5000", login=login))
    pulumi.export("video", images.build("video", "video", {"BASE": "debian:trixie-slim"}))
    ```
    """

    def __init__(self, name: str, args: ImagesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("spdk-k8s:index:Images", name, None, opts)
        self._name, self._args, self._through_proxy = name, args, builds_through_proxy()
        self.register_outputs({"registry": args.registry})

    def build(
        self,
        name: str,
        folder: str,
        args: Mapping[str, str],
        *,
        target: str | None = None,
        tag: str | None = None,
        source: Source | None = None,
    ) -> pulumi.Output[str]:
        """Build images/`folder` and push it as `name`. Returns the reference "registry/name@sha256:…".

        args: the Dockerfile's build arguments. target: its stage. tag: default is a hash of the content; images that
        kubeadm asks for by tag need one of their own. source: SPDK's source for the build, see `spdk_source`.
        """
        if source:
            args = {**args, "SPDK_SOURCE": source.image}
        tag = tag or content_tag(folder, target or "", *(f"{k}={v}" for k, v in sorted(args.items())))
        after = [*self._args.ready, *([source.made_by] if source else [])]
        image = docker.Image(
            f"{self._name}-{name}",
            image_name=pulumi.Output.concat(self._args.registry, f"/{name}:{tag}"),
            build=recipe(folder, args, target),
            registry=self._args.login,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=after,
                replace_with=list(self._args.ready),
                hooks=self._through_proxy,
            ),
        )
        return image.repo_digest

    def spdk_source(self, folder: str | None, base: str) -> Source:
        """An image, only in the engine, with SPDK's source in /spdk: that of `folder`, or of the pinned release."""
        if folder:
            name = f"spdk-k8s/spdk-source:{tree_digest(Path(folder), without='.git', modes=True)}"
            made = local.Command(
                f"{self._name}-spdk-source",
                create=STEP,
                environment={**here("spdk_source"), "FOLDER": folder, "IMAGE": name},
                logging=local.Logging.STDERR,
                add_previous_output_in_env=False,
                opts=pulumi.ResourceOptions(parent=self),
            )
            return Source(name, made)
        name = f"spdk-k8s/spdk-source:v{PINS['SPDK']}"
        args = {"BASE": base, "SPDK_VERSION": PINS["SPDK"], "SPDK_COMMIT": PINS["SPDK_COMMIT"]}
        image = docker.Image(
            f"{self._name}-spdk-source",
            image_name=name,
            build=recipe("spdk-source", args),
            skip_push=True,
            opts=pulumi.ResourceOptions(parent=self, hooks=self._through_proxy),
        )
        return Source(name, image)
