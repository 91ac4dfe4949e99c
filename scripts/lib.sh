# shellcheck shell=bash
# What every step shares. components/hosts.py sends: assignments, this file, the step; then calls `main up` or `main down`.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

STATE=/var/lib/spdk-k8s # what the steps keep on a machine; the last undo removes it

# Progress goes to stderr: stdout is a step's result, and some results are secret.
say() { printf '%s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# wait_for SECONDS "condition, in words" COMMAND...   bounded; says what it waited for when it gives up
wait_for() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || fail "waited ${limit} s for ${what}"
    sleep 0.3
  done
}

# quietly COMMAND...   its output only when it fails; the whole of it stays in the machine's log folder
quietly() {
  local log=/var/log/spdk-k8s-$1.log
  if ! "$@" >>"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "$1 failed on $(hostname); all of it: $log"
  fi
}

# write MODE FILE   stdin to FILE if it differs; true when it changed
write() {
  local mode=$1 file=$2 new
  mkdir -p "$(dirname "$file")" # one that is there keeps its mode
  new=$(umask 077 && mktemp "$file.XXXXXX")
  cat >"$new"
  chmod "$mode" "$new"
  if cmp -s "$new" "$file"; then
    rm -f "$new"
    return 1
  fi
  mv -f "$new" "$file"
}

# packages NAME...   installs what is missing, and remembers everything that came with it for the undo
packages() {
  local name missing=() before code=0
  before=$(installed)
  for name in "$@"; do
    grep -qx "$name" <<<"$before" || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  apt-get -qq update >&2
  # nothing of the machine's own is taken away for it
  apt-get -qq install -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120 -o APT::Keep-Downloaded-Packages=false \
    "${missing[@]}" >>/var/log/spdk-k8s-apt.log 2>&1 || code=$?
  install -d "$STATE"
  comm -13 <(printf '%s\n' "$before") <(installed) >>"$STATE/packages"
  if ((code)); then
    tail -n 20 /var/log/spdk-k8s-apt.log >&2
    fail "apt-get cannot install ${missing[*]} on $(hostname)"
  fi
  rm -f /var/log/spdk-k8s-apt.log
}
installed() { dpkg-query -W -f '${Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort -u; }

# keep FILE   before a step first writes over a file of the machine's own; give_back puts it where it was, or ours away; true when
# there was something to give back
keep() {
  if [ -e "$STATE/kept$1" ] || [ -e "$STATE/kept$1.none" ]; then return; fi
  install -d "$(dirname "$STATE/kept$1")"
  if [ -e "$1" ]; then cp -a "$1" "$STATE/kept$1"; else touch "$STATE/kept$1.none"; fi
}
give_back() {
  if [ -e "$STATE/kept$1" ]; then mv "$STATE/kept$1" "$1"; elif [ -e "$STATE/kept$1.none" ]; then rm -f "$1" "$STATE/kept$1.none"; else return 1; fi
}

# enable UNIT   at boot; asking first, because enabling reloads systemd, which an emulated CPU feels
enable() { systemctl is-enabled --quiet "$1" 2>/dev/null || systemctl enable --quiet "$1"; }

is_container() { systemd-detect-virt --quiet --container; }

# hugepage_mib SIZE, hugepages_folder SIZE   of pages of 2Mi or 1Gi: MiB, and what the kernel shows of them (SYS: tests' own tree)
hugepage_mib() { numfmt --from=iec-i --to-unit=Mi "$1"; }
hugepages_folder() { echo "${SYS:-/sys}/kernel/mm/hugepages/hugepages-$(($(hugepage_mib "$1") * 1024))kB"; }

# idle_hugepages SIZE   prints how many nobody has taken yet; a container sees the machine's below it, which others wait for
idle_hugepages() {
  local dir
  dir=$(hugepages_folder "$1")
  if is_container || [ ! -d "$dir" ]; then echo 0; else echo $(($(cat "$dir/free_hugepages") - $(cat "$dir/resv_hugepages"))); fi
}

# main up|down   the step. Where the machine will be given back, its own text is there (TEXT, UNDO: its name) from before it changes
# anything until its `down` has ended well: Pulumi knows nothing of a step that failed, so scripts/ready.sh undoes what is left.
main() {
  local noted=$STATE/undo/${UNDO:-}
  if [ "$1" = up ] && [ -n "${TEXT:-}" ]; then
    install -d "$STATE/undo"
    (umask 077 && printf '%s' "$TEXT" >"$STATE/undo/.$UNDO")
    [ ! -e "$noted" ] || touch -r "$noted" "$STATE/undo/.$UNDO" # its place among the others stays
    mv -f "$STATE/undo/.$UNDO" "$noted"
  fi
  step "$@"
  if [ "$1" = down ] && [ -n "${UNDO:-}" ]; then rm -f "$noted"; fi
}
