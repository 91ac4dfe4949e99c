# shellcheck shell=bash
# What every part of the set-up shares. Sourced.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../versions.env
. "$ROOT/versions.env"

die() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

if [ ! -d "${HOME:-}" ]; then
  die "HOME is '${HOME:-}', but must name a folder that exists: the cache and the tools' settings are in it;" \
    "remedy: export HOME=$(getent passwd "$(id -u)" | cut -d: -f6), or create that folder"
fi
CACHE=${SPDK_K8S_CACHE:-$HOME/.cache/spdk-k8s}

# The user's proxy in both spellings: curl and apt-get read http_proxy, others HTTP_PROXY. settings/proxy.py has the rest.
PROXIES=http_proxy,https_proxy,all_proxy,no_proxy,HTTP_PROXY,HTTPS_PROXY,ALL_PROXY,NO_PROXY
for lower in http_proxy https_proxy all_proxy no_proxy; do
  upper=${lower^^}
  value=${!upper:-${!lower:-}}
  [ -z "$value" ] || export "$lower=$value" "$upper=$value"
done
unset lower upper value

has() { command -v "$1" >/dev/null; }

# step NAME COMMAND…   runs it with its output in a log and prints one line: what it did (see `did`) and for how long.
# A step that takes long prints a line each 20 s; one that fails shows the end of its log.
step() {
  local name=$1 log=$CACHE/logs/${1// /-}.log begun=$SECONDS
  shift
  mkdir -p "$CACHE/logs"
  : >"$log.did"
  set -m # a process group of its own, so that Ctrl-C ends all of it
  (set -euo pipefail && "$@") </dev/null >"$log" 2>&1 3>"$log.did" &
  running=$!
  set +m
  while ! timeout 20 tail -s 0.1 --pid="$running" -f /dev/null; do
    printf '  %-12s %4d s … %s\n' "$name" $((SECONDS - begun)) "$(tail -n 1 "$log" | tr '\r' '\n' | tail -n 1 | cut -c1-100)"
  done 9>&- & # it may outlive this shell for a moment, but not hold its lock
  if wait "$running"; then
    running=
    printf '✓ %-12s %4d s   %s\n' "$name" $((SECONDS - begun)) "$(paste -sd ';' "$log.did" | sed 's/;/; /g')"
  else
    running=
    printf '✗ %-12s %4d s\n' "$name" $((SECONDS - begun))
    tail -n 25 "$log" | sed 's/^/    /' >&2
    die "step '$name' failed; its whole log: $log"
  fi
}

# beside FUNCTION…   runs these functions, each of them some steps, at the same time. Where one fails, the others end too.
beside() {
  local lane ended
  for lane in "$@"; do
    (set -euo pipefail && end_children && "$lane") &
    lanes+=($!)
  done
  while ((${#lanes[@]})); do
    wait -n -p ended "${lanes[@]}" || exit 1
    for lane in "${!lanes[@]}"; do
      [ "${lanes[lane]}" != "$ended" ] || unset "lanes[lane]"
    done
  done
}

# Whatever ends this shell ends the step that it runs, and its lanes with their steps.
end_children() {
  running='' lanes=()
  trap 'stop_children' EXIT
  trap 'exit 130' INT TERM # `wait` lets signals through at once
}
stop_children() {
  if [ -n "$running" ]; then kill -- "-$running" 2>/dev/null || true; fi
  if ((${#lanes[@]})); then
    kill "${lanes[@]}" 2>/dev/null || true
    wait "${lanes[@]}" 2>/dev/null || true
  fi
}
end_children

# did TEXT   what a step has to say about itself (also in its log); outside of a step it has no reader
did() {
  { echo "$*" >&3; } 2>/dev/null || true
  echo "$*"
}

# fetch URL FILE   fails within seconds where nothing answers or nothing moves
fetch() {
  curl -fsSL --connect-timeout 5 --retry 2 --retry-max-time 20 --speed-limit 1000 --speed-time 20 -o "$2" "$1"
}

# reachable URL   a proxy's or a portal's error page is not what was asked for
reachable() {
  [ -z "${SPDK_K8S_OFFLINE:-}" ] && curl -fsSL --connect-timeout 5 --max-time 15 -o /dev/null "$1"
}

# cached NAME COMMAND…   makes $CACHE/NAME once: COMMAND fills a temporary folder that is moved into place when whole
cached() {
  local name=$1 temporary
  shift
  [ ! -d "$CACHE/$name" ] || return 0
  temporary=$(mktemp -d "$CACHE/tmp.XXXXXX")
  chmod 0755 "$temporary"
  if "$@" "$temporary"; then
    mkdir -p "$(dirname "$CACHE/$name")"
    mv -T "$temporary" "$CACHE/$name"
  else
    rm -rf "$temporary"
    return 1
  fi
}

# hash PATH…   twelve digits that change with any byte of these files and folders of the checkout, wherever that lies
hash() {
  (cd "$ROOT" && find "$@" -type f ! -name '*_test.go' ! -name '*.md' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) |
    sha256sum | cut -c1-12
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif [ -n "${http_proxy:-}${https_proxy:-}${all_proxy:-}" ]; then # sudo takes them out of the environment
    sudo -n --preserve-env="$PROXIES" "$@"
  else
    sudo -n "$@"
  fi
}

# May this user do what needs root?
may_root() { [ "$(id -u)" = 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }
