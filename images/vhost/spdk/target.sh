# shellcheck shell=bash
# SPDK's vhost target, asked by JSON-RPC. What a disk is made of is the calls in its start-up file, spdk.json.
# shellcheck source=/dev/null
. /usr/local/bin/files.sh
calls=/etc/vhost/spdk.json

connect() { # any number of clients share the socket
  [ -S /run/vhost/rpc.sock ] || return 1
  coproc RPC { exec socat - UNIX-CONNECT:/run/vhost/rpc.sock 2>/dev/null; }
  exec 3<&"${RPC[0]}" 4>&"${RPC[1]}" # a coprocess's own descriptors are closed in subshells
  rpc spdk_get_version >/dev/null
}

rpc() { # rpc METHOD [PARAMS]   prints its result; false, with the target's message, on an error
  local answer
  jq -nc --arg method "$1" --argjson params "${2:-null}" \
    '{jsonrpc: "2.0", id: 1, method: $method} + if $params then {params: $params} else {} end' >&4 || return 1
  read -r -t 30 answer <&3 || return 1
  jq -ec --arg method "$1" 'if .error then "\($method): \(.error.message) (\(.error.code))\n" | halt_error(1) else .result end' <<<"$answer"
}

served() { rpc vhost_get_controllers | jq -r '.[].ctrlr'; }

# the start-up file's calls that make disk NAME: its bdev's, then its controller's
calls_of() {
  jq -c --arg name "$1" '[.subsystems[].config[]] as $all
    | ($all[] | select(.params.ctrlr == $name)) as $controller
    | ($all[] | select(.params.name | . == $controller.params.dev_name or . + "n1" == $controller.params.dev_name)), $controller' "$calls"
}

add() {
  local call method
  [ "$(jq -r .bdev /etc/vhost/vhost.json)" != aio ] || file_of "$1" >/dev/null
  while read -r call; do
    method=$(jq -r .method <<<"$call")
    # an earlier try may have left the bdev
    case $method in bdev_*) ! bdev_exists "$(jq -r .params.name <<<"$call")" || continue ;; esac
    rpc "$method" "$(jq -c .params <<<"$call")" >/dev/null
  done < <(calls_of "$1")
}

bdev_exists() { rpc bdev_get_bdevs '{"name":"'"$1"'"}' >/dev/null 2>&1; }

in_use() { rpc vhost_get_controllers | jq -e --arg name "$1" 'any(.[]; .ctrlr == $name and (.sessions | length > 0))' >/dev/null; }

remove() {
  local bdev
  bdev=$(rpc vhost_get_controllers | jq -r --arg name "$1" '.[] | select(.ctrlr == $name) | .backend_specific.block.bdev')
  rpc vhost_delete_controller '{"ctrlr":"'"$1"'"}' >/dev/null
  case $bdev in
  Malloc*) rpc bdev_malloc_delete '{"name":"'"$bdev"'"}' >/dev/null ;;
  Aio*) rpc bdev_aio_delete '{"name":"'"$bdev"'"}' >/dev/null ;;
  Nvme*) rpc bdev_nvme_detach_controller '{"name":"'"${bdev%n1}"'"}' >/dev/null ;;
  esac
}

# disks in memory live as long as the target's process, others for ever
life() { cat /run/vhost/life; }
