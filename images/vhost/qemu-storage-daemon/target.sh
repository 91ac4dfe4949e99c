# shellcheck shell=bash
# qemu-storage-daemon, asked by QMP: one socket for each that asks, because a monitor talks to one client at a time.
# shellcheck source=/dev/null
. /usr/local/bin/files.sh

connect() { # connect reconcile|probes
  [ -S "/run/vhost/$1.qmp" ] || return 1
  coproc QMP { exec socat - "UNIX-CONNECT:/run/vhost/$1.qmp" 2>/dev/null; }
  exec 3<&"${QMP[0]}" 4>&"${QMP[1]}" # a coprocess's own descriptors are closed in subshells
  read -r -t 10 _ <&3 && qmp '{"execute":"qmp_capabilities"}' >/dev/null
}

qmp() { # one command; prints its answer; false on an error
  local answer
  printf '%s\n' "$1" >&4 || return 1
  while read -r -t 30 answer <&3; do
    case $answer in
    '{"return"'*)
      printf '%s\n' "$answer"
      return
      ;;
    '{"error"'*)
      jq -r --arg command "$(jq -r .execute <<<"$1")" '"\($command): \(.error.desc)"' <<<"$answer" >&2
      return 1
      ;;
    esac # anything else is an event
  done
  return 1
}

served() { qmp '{"execute":"query-block-exports"}' | jq -r '.return[].id'; }

add() {
  local file block_size queues
  file=$(file_of "$1")
  read -r block_size queues < <(jq -r '"\(.blockSize) \(.queues)"' /etc/vhost/vhost.json)
  # an earlier try may have left the node
  node_exists "$1" || qmp '{"execute":"blockdev-add","arguments":{"driver":"'"$([[ "$file" == /dev/* ]] && echo host_device || echo file)"'","node-name":"'"$1"'","filename":"'"$file"'","discard":"unmap"}}' >/dev/null
  qmp '{"execute":"block-export-add","arguments":{"type":"vhost-user-blk","id":"'"$1"'","node-name":"'"$1"'","addr":{"type":"unix","path":"'"$(disk "$1" socket)"'"},"writable":true,"logical-block-size":'"$block_size"',"num-queues":'"$queues"'}}' >/dev/null
}

node_exists() { qmp '{"execute":"query-named-block-nodes"}' | jq -e --arg name "$1" 'any(.return[]; ."node-name" == $name)' >/dev/null; }

# the daemon does not tell, and a connection shows only in the network namespace that it came from: worker1 says so
in_use() { [ -e "$(jq -r .sockets /etc/vhost/vhost.json)/$1.used" ]; }

remove() {
  qmp '{"execute":"block-export-del","arguments":{"id":"'"$1"'"}}' >/dev/null || return 0
  qmp '{"execute":"blockdev-del","arguments":{"node-name":"'"$1"'"}}' >/dev/null || return 0
  if [ "$(jq -r .bdev /etc/vhost/vhost.json)" = malloc ]; then rm -f "/disks/$1"; fi # memory ends here, a file stays
}

# disks in memory live as long as the pod's volume, files for ever
life() {
  if [ "$(jq -r .bdev /etc/vhost/vhost.json)" != malloc ]; then
    echo kept
    return
  fi
  [ -e /disks/.life ] || cat /proc/sys/kernel/random/uuid >/disks/.life
  cat /disks/.life
}
