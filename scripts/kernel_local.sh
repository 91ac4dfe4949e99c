#!/usr/bin/env bash
# Kernel settings that the dev machines share with this one, which kubelet and scripts/node.sh change there.
# usage: kernel_local.sh up     prints them as they are before
#        kernel_local.sh down   puts them back as `up` printed them (PULUMI_COMMAND_STDOUT)
# in: IMAGE, a container of which may write them where the user may not
set -euo pipefail
names=(fs.inotify.max_user_instances vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops)
proc=${PROC:-/proc}/sys
found=${PULUMI_COMMAND_STDOUT:-}

if [ "$1" = up ]; then
  for name in "${names[@]}"; do [ -n "$found" ] || printf '%s=%s\n' "$name" "$(cat "$proc/${name//.//}")"; done
  printf '%s' "$found" # a later run finds what is changed already
  exit
fi
# shellcheck disable=SC2016 # it is another shell's
put='set -e; cd "$1"; while IFS="=" read -r name value; do echo "$value" >"${name//.//}"; done'
if [ -w "$proc/kernel/panic" ]; then
  bash -c "$put" - "$proc" <<<"$found"
else
  docker run --rm -i --privileged --network none --entrypoint bash "$IMAGE" -c "$put" - /proc/sys <<<"$found"
fi || echo "these kernel settings could not be put back; as root: sysctl -w ${found//$'\n'/ }" >&2
