#!/usr/bin/env bash
# Makes an image in the Docker engine with SPDK's source, from a local folder, in /spdk; prints the image's name.
# in: FOLDER IMAGE
set -euo pipefail
[ -x "$FOLDER/configure" ] || {
  printf 'error: spdk-k8s:vhost.source = %s: no source of SPDK (no configure in it); mend: pulumi config set --path vhost.source FOLDER\n' "$FOLDER" >&2
  exit 1
}
for part in dpdk isa-l isa-l-crypto; do
  [ -n "$(ls -A "$FOLDER/$part" 2>/dev/null)" ] || {
    printf 'error: spdk-k8s:vhost.source = %s: lacks the submodule %s; mend: git -C %q submodule update --init %s\n' "$FOLDER" "$part" "$FOLDER" "$part" >&2
    exit 1
  }
done
tar --exclude=./.git --transform 's,^\.,spdk,' -C "$FOLDER" -c . | docker import - "$IMAGE" >&2
printf '%s' "$IMAGE"
