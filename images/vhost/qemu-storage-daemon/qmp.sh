# shellcheck shell=bash
# qmp_connect SOCKET, then qmp JSON: one command, prints its answer, false on an error.
qmp_connect() {
  [ -S "$1" ] || return 1
  coproc QMP { exec socat - "UNIX-CONNECT:$1" 2>/dev/null; }
  exec 3<&"${QMP[0]}" 4>&"${QMP[1]}" # a coprocess's own descriptors are closed in subshells
  read -r -t 10 _ <&3 && qmp '{"execute":"qmp_capabilities"}' >/dev/null
}

qmp() {
  local answer
  printf '%s\n' "$1" >&4 || return 1
  while read -r -t 30 answer <&3; do
    case $answer in
    '{"return"'*)
      printf '%s\n' "$answer"
      return
      ;;
    '{"error"'*)
      printf '%s\n' "$answer" >&2
      return 1
      ;;
    esac # anything else is an event
  done
  return 1
}

exports() { qmp '{"execute":"query-block-exports"}' | jq -r '.return[].id'; }
