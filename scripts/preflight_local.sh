#!/usr/bin/env bash
# Checks whether the dev machines can be made here; reports every obstacle at once, each with its remedy; changes nothing.
# usage: preflight_local.sh SUBNET NETWORK MEMORY_MIB [kvm]   with a CPU plan in ROLES: LIB is the text of lib.sh
set -euo pipefail
subnet=$1 network=$2 memory=$3
wrong=()

for tool in docker jq openssl ssh-keygen ip; do
  command -v "$tool" >/dev/null || wrong+=("$tool is missing; remedy: make setup")
done
if data=$(docker info -f '{{.DockerRootDir}}' 2>/dev/null); then
  others=$(docker network ls -q --filter driver=bridge | xargs -r docker network inspect |
    jq -r --arg own "$network" '.[] | select(.Name != $own) | .Name as $n | .IPAM.Config[]?.Subnet | "\($n) \(.)"')
else
  wrong+=("no Docker engine answers; remedy: make setup, or start it: systemctl start docker")
  data=/ others=
fi

# overlap A B   two IPv4 networks
overlap() {
  local a=${1%/*} b=${2%/*} p=${1#*/} q=${2#*/} mask
  ((p = p < q ? p : q))
  ((mask = p ? (0xffffffff << (32 - p)) & 0xffffffff : 0))
  ((($(number "$a") & mask) == ($(number "$b") & mask)))
}
number() {
  local IFS=. o
  read -ra o <<<"$1"
  echo $(((o[0] << 24) + (o[1] << 16) + (o[2] << 8) + o[3]))
}
own=$(docker network inspect -f '{{.Id}}' "$network" 2>/dev/null | cut -c1-12) || own=
routes=$(ip -4 route show | awk '{for (i = 1; i < NF; i++) if ($i == "dev") print $(i + 1), $1}' | grep -v "^br-$own ") || routes=
# in_the_way SUBNET   prints what overlaps it, one a line
in_the_way() {
  local name taken
  while read -r name taken; do
    [[ "$taken" =~ ^[0-9.]+/[0-9]+$ ]] || continue
    if overlap "$1" "$taken"; then echo "$taken of Docker network $name"; fi
  done <<<"$others"
  while read -r name taken; do
    if [[ "$taken" != */* ]] || grep -q " $taken\$" <<<"$others"; then continue; fi
    if overlap "$1" "$taken"; then echo "the route to $taken by $name"; fi
  done <<<"$routes"
}
while read -r by; do
  [ -n "$by" ] || continue
  for i in {20..254}; do [ -n "$(in_the_way "172.30.$i.0/24")" ] || break; done
  wrong+=("machines.subnet = $subnet overlaps $by; remedy: pulumi config set --path machines.subnet 172.30.$i.0/24")
done <<<"$(in_the_way "$subnet")"

free=$(df -m --output=avail "$data" 2>/dev/null | tail -n 1 | tr -d ' ')
need=${SPDK_K8S_MIN_DISK_MIB:-6144}
if [ -n "$free" ] && ((free < need)); then
  wrong+=("$data has $free MiB free, the dev machines need $need MiB; remedy: docker system prune, or a larger disk")
fi

total=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
if ((total < memory)); then
  wrong+=("this machine has $total MiB of memory, the disks, the VM and the nodes need $memory MiB; remedy: pulumi config set numinst, or --path vhost.diskMib, or --path vm.memoryMib, to less")
fi

if [ "${4:-}" = kvm ] && [ ! -e /dev/kvm ]; then
  wrong+=("vm.accel = kvm, and there is no /dev/kvm; remedy: modprobe kvm_intel or kvm_amd, or: pulumi config set --path vm.accel auto")
fi

if [ -n "${ROLES:-}" ]; then
  while IFS='|' read -r result found remedy; do
    if [ "$result" = FAIL ]; then wrong+=("$found; remedy: $remedy"); else echo "CPU plan: $found; $remedy" >&2; fi
  done < <(eval "$LIB" && plan_flaws)
fi

if ((${#wrong[@]})); then
  echo "this machine cannot carry the dev stack; nothing was started:" >&2
  printf '  - %s\n' "${wrong[@]}" >&2
  exit 1
fi
