#!/usr/bin/env bash
# Saves and restores the kernel settings that kubelet and scripts/node.sh change in the dev machines, which are containers
# and so share them with this machine.
# usage: kernel_local.sh up     prints the settings
#        kernel_local.sh down   restores what `up` printed (PULUMI_COMMAND_STDOUT)
# in: IMAGE (a container of it writes the settings where the user has no permission)
set -euo pipefail
names=(fs.inotify.max_user_instances vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops)
proc=${PROC:-/proc}/sys
found=${PULUMI_COMMAND_STDOUT:-}

if [ "$1" = up ]; then
  for name in "${names[@]}"; do [ -n "$found" ] || printf '%s=%s\n' "$name" "$(cat "$proc/${name//.//}")"; done
  printf '%s' "$found" # the settings are changed by now: a later run prints what the first one found
  exit
fi
# shellcheck disable=SC2016 # expanded by the other shell
put='set -e; cd "$1"; while IFS="=" read -r name value; do echo "$value" >"${name//.//}"; done'
if [ -w "$proc/kernel/panic" ]; then
  bash -c "$put" - "$proc" <<<"$found"
else
  docker run --rm -i --privileged --network none --entrypoint bash "$IMAGE" -c "$put" - /proc/sys <<<"$found"
fi || echo "these kernel settings could not be put back; as root: sysctl -w ${found//$'\n'/ }" >&2
