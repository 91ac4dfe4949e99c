"""Images built here and pushed to the private registry; used by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pulumi
import pulumi_docker as docker

ROOT = Path(__file__).parent.parent / "images"


def content_tag(folder: str, *more: str) -> str:
    """Twelve hexadecimal digits that change with any file of images/`folder` or any of `more`."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in sorted((ROOT / folder).rglob("*")):
        if path.is_file():
            mode = "x" if path.stat().st_mode & 0o100 else "-"
            digest.update(f"\0{path.relative_to(ROOT)}\0{mode}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Images(pulumi.ComponentResource):
    """Builds and pushes images to one registry.

    registry: "address:port". login: what pulumi-docker needs to push. ready: the registry's resources; when one of
    them is made anew the registry is empty, and every image is pushed again.
    """

    def __init__(
        self,
        name: str,
        *,
        registry: str,
        login: docker.RegistryArgs,
        ready: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("spdk-k8s:index:Images", name, None, opts)
        self._registry = registry
        self._login = login
        self._ready = list(ready)
        self.register_outputs({})

    def build(
        self,
        name: str,
        folder: str,
        args: Mapping[str, str],
        *,
        target: str | None = None,
        tag: str | None = None,
    ) -> pulumi.Output[str]:
        """Build images/`folder` and push it as `name`; returns "registry/name@sha256:…".

        tag: for names that others choose (kubeadm's); else a hash of the content.
        """
        tag = tag or content_tag(folder, target or "", *(f"{k}={v}" for k, v in sorted(args.items())))
        image = docker.Image(
            f"{name}-image",
            image_name=f"{self._registry}/{name}:{tag}",
            build=docker.DockerBuildArgs(
                context=f"images/{folder}",
                dockerfile=f"images/{folder}/Dockerfile",
                target=target,
                platform="linux/amd64",
                args=dict(args),
            ),
            registry=self._login,
            opts=pulumi.ResourceOptions(parent=self, depends_on=self._ready, replace_with=self._ready),
        )
        return image.repo_digest
