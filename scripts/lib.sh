# shellcheck shell=bash
# The functions that every step shares. A step is one scripts/NAME.sh; it defines `step`, which is called with `up` (make
# it so) or `down` (undo it). components/hosts.py sends one text over SSH: the step's values as assignments, this file,
# the step's file, and the call of `main`, at the end of this file.
#
# Each step can be run again at any time, also after it was cut off at any point. So a step records that something is
# done (a mark, a stamp) only when it is done, and it writes each file aside first and then renames it.
set -euo pipefail
# NEEDRESTART_SUSPEND: Ubuntu's needrestart would restart services of the machine's own after each apt-get of ours
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
# The machine's proxy (of /etc/environment, say) is for apt-get, which does not know '*'; all else is the stack's own.
no_proxy=${no_proxy:-${NO_PROXY:-}}
export NO_PROXY="${no_proxy:+$no_proxy,}*" no_proxy="${no_proxy:+$no_proxy,}*"
umask 022 # what a step makes is readable for services that do not run as root, whatever this login's umask is

STATE=/var/lib/spdk-k8s # the steps' own notes on a machine; the last undo (scripts/ready.sh) removes them

# say TEXT, fail TEXT   progress and errors go to stderr: stdout is a step's result, and some results are secret
say() { printf '%s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# wait_for SECONDS "condition, in words" COMMAND...   runs COMMAND until it succeeds; fails with the condition after SECONDS
wait_for() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || fail "waited ${limit} s for ${what}"
    sleep 0.3
  done
}

# quietly COMMAND...   its output goes to a log on the machine; the last lines are shown when it fails
quietly() {
  local log=/var/log/spdk-k8s-$1.log
  if ! "$@" >>"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "$1 failed on $(hostname); all of it: $log"
  fi
}

# write MODE FILE   stdin becomes FILE, if it differs; true when FILE changed
write() {
  local mode=$1 file=$2 new
  mkdir -p "$(dirname "$file")"
  new=$(umask 077 && mktemp "$file.XXXXXX")
  cat >"$new"
  chmod "$mode" "$new"
  if cmp -s "$new" "$file"; then
    rm -f "$new"
    chmod "$mode" "$file"
    return 1
  fi
  mv -f "$new" "$file"
}

# units_changed UNIT...   systemd reads its files again, if those of a UNIT have changed since it last did
units_changed() {
  if systemctl show -P NeedDaemonReload "$@" | grep -qx yes; then systemctl daemon-reload; fi
}

# follow UNIT FILE...   UNIT runs, and was started after the last change of every FILE; else it is (re)started. A step that
# was cut off between a change and the restart is made good by the next run.
follow() {
  local unit=$1 file
  shift
  for file in "$@"; do
    if older "$unit" "$file"; then
      systemctl restart "$unit"
      return
    fi
  done
  systemctl start "$unit"
}

# older UNIT FILE   does UNIT's process run since before the last change of FILE?
older() {
  local since
  since=$(systemctl show --timestamp=us+utc -P ExecMainStartTimestamp "$1")
  [ -n "$since" ] && [ -e "$2" ] && (($(date -d "$since" +%s%6N) < 10#$(stat -c %.6Y "$2" | tr -d .)))
}

# Seconds that another apt may hold a lock: unattended upgrades do for minutes, mostly after a boot.
APT_PATIENCE=400

# Downloads the lists of packages. apt-get waits for dpkg's lock by itself, but not for that of the lists.
package_lists() {
  local said code
  lists_are_free || wait_for "$APT_PATIENCE" "another apt to let go of the lists of packages: $said" lists_are_free
  ((!code)) || fail "apt-get update: $said"
  [ -z "$said" ] || say "$said"
}
lists_are_free() {
  code=0
  said=$(apt-get -qq update 2>&1) || code=$?
  [[ "$said" != *"Could not get lock"* ]]
}

# packages NAME...   installs what is missing, and records everything that came with it for the undo
packages() {
  local name now missing=() code=0
  if [ -e "$STATE/packages.before" ]; then # an installation was cut off
    dpkg --configure -a >&2
    record_packages
  fi
  now=$(installed)
  for name in "$@"; do
    grep -qx "$name" <<<"$now" || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  package_lists
  write 0644 "$STATE/packages.before" <<<"$now" || true # there until the end of the installation
  # nothing of the machine's own is taken away for it
  apt-get -qq install -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=$APT_PATIENCE -o APT::Keep-Downloaded-Packages=false \
    "${missing[@]}" >>/var/log/spdk-k8s-apt.log 2>&1 || code=$?
  record_packages
  if ((code)); then
    tail -n 20 /var/log/spdk-k8s-apt.log >&2
    fail "apt-get cannot install ${missing[*]} on $(hostname)"
  fi
  rm -f /var/log/spdk-k8s-apt.log
}
record_packages() {
  installed | comm -13 "$STATE/packages.before" - >>"$STATE/packages"
  rm -f "$STATE/packages.before"
}
installed() { dpkg-query -W -f '${Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort -u; }

# keep FILE        saves a file of the machine's own, or that there was none, before a step first writes it
# give_back FILE   puts it back, or removes ours where there was none; true when it was kept
keep() {
  local kept=$STATE/kept$1
  if [ -e "$kept" ] || [ -e "$kept.none" ]; then return; fi
  install -d "$(dirname "$kept")"
  if [ -e "$1" ]; then cp -a "$1" "$kept.part" && mv "$kept.part" "$kept"; else touch "$kept.none"; fi
}
give_back() {
  local kept=$STATE/kept$1
  if [ -e "$kept" ]; then mv "$kept" "$1"; elif [ -e "$kept.none" ]; then rm -f "$1" "$kept.none"; else return 1; fi
}

# unpack IMAGE FOLDER   an image of the private registry, pulled and mounted read-only; forget IMAGE FOLDER undoes that
unpack() {
  if [ -d "$2" ]; then forget "$1" "$2" 2>/dev/null || true; fi # a step that was cut off may leave another image there
  ctr images pull --hosts-dir /etc/containerd/certs.d "$1" >/dev/null
  install -d "$2"
  ctr images mount "$1" "$2" >/dev/null
}
forget() {
  ctr images unmount --rm "$2" >/dev/null
  ctr images rm "$1" >/dev/null
  rmdir "$2" 2>/dev/null || true
}

# ca_hash   of the cluster that this machine is in, as kubeadm writes it, without "sha256:"
ca_hash() { openssl x509 -pubkey -noout -in /etc/kubernetes/pki/ca.crt | openssl pkey -pubin -outform der | sha256sum | cut -d' ' -f1; }

# enable UNIT   starts it at boot; asks first, because enabling reloads systemd, which takes an emulated CPU seconds
enable() { systemctl is-enabled --quiet "$1" 2>/dev/null || systemctl enable --quiet "$1"; }

is_container() { systemd-detect-virt --quiet --container; }

# pods_never_end   AppArmor confines runc by a profile of its own, and containerd's profile for pods takes no signals from
# that one, as with the containerd that Ubuntu 24.04 was released with
pods_never_end() {
  [ "$(cat "${SYS:-/sys}/module/apparmor/parameters/enabled" 2>/dev/null)" = Y ] &&
    [ -e /etc/apparmor.d/runc ] && [ ! -e /etc/apparmor.d/disable/runc ] &&
    [ -e /usr/bin/containerd ] && ! grep -q 'peer=runc' /usr/bin/containerd
}

# cores LIST          each core of a list such as 0-2,5, one a line
# numa_nodes LIST     the NUMA nodes that these cores are on, one a line; nothing where the kernel knows of none
cores() {
  local part
  for part in ${1//,/ }; do seq "${part%-*}" "${part#*-}"; done
}
numa_nodes() {
  local core node
  for core in $(cores "$1"); do
    for node in "${SYS:-/sys}/devices/system/cpu/cpu$core/node"*; do
      if [ -e "$node" ]; then echo "${node##*/node}"; fi
    done
  done | sort -nu
}

# plan_flaws   what is wrong with the CPU plan ROLES ("target=0-5 vms[0]=12-23 …") on this machine: lines "FAIL|what|remedy",
# or "warn|what|remedy" where the plan works but is not what it seems
plan_flaws() {
  local at=${SYS:-/sys}/devices/system/cpu pair role core nodes online isolated rest home other split=()
  local -A owner=()
  online=$(cores "$(cat "$at/online")")
  isolated=$(cores "$(cat "$at/isolated" 2>/dev/null)")
  home='' rest=''
  for pair in $ROLES; do
    role=cpus.${pair%%=*}
    for core in $(cores "${pair#*=}"); do
      owner[$core]=$role
      if [ ! -d "$at/cpu$core" ]; then
        echo "FAIL|$role names core $core, which is not there|cores of $(cat "$at/online"): pulumi config set --path $role"
      elif ! grep -qx "$core" <<<"$online"; then
        echo "FAIL|$role names core $core, which is offline|echo 1 >$at/cpu$core/online, or other cores: pulumi config set --path $role"
      elif grep -qx "$core" <<<"$isolated"; then
        echo "FAIL|$role names core $core, which the kernel isolates|no isolcpus= on the kernel's command line, or other cores: pulumi config set --path $role"
      fi
    done
    case $role in cpus.target | cpus.vms*)
      nodes=$(numa_nodes "${pair#*=}" | paste -sd ' ')
      if [[ "$nodes" = *' '* ]]; then
        echo "FAIL|$role is on the NUMA nodes $nodes|cores of one of them: pulumi config set --path $role"
      elif [ "$role" = cpus.target ]; then
        home=$nodes
      elif [ -n "$home" ] && [ "$nodes" != "$home" ]; then
        echo "warn|$role is on NUMA node $nodes, cpus.target on $home|each I/O of this VM crosses nodes: give both cores of one, if that VM is to be fast"
      fi
      ;;
    esac
  done
  if [[ " $ROLES" != *" system="* ]]; then
    rest=cpus.system
    for core in $online; do [ "${owner[$core]:-}" ] || split+=("$core"); done
    ((${#split[@]})) || echo "FAIL|the plan leaves no core for the system|fewer cores in cpus.vms or cpus.target"
    split=()
  fi
  for core in "${!owner[@]}"; do
    for other in $(cores "$(cat "$at/cpu$core/topology/thread_siblings_list" 2>/dev/null)"); do
      role=${owner[$other]:-$rest}
      if [ "$role" ] && [ "$role" != "${owner[$core]}" ] && { ((core < other)) || [ -z "${owner[$other]:-}" ]; }; then
        split+=("$core (${owner[$core]}) and $other ($role)")
      fi
    done
  done
  ((!${#split[@]})) || printf 'warn|hyperthreads of one core in two roles: %s|they slow each other down: give both to one role\n' \
    "$(printf '%s\n' "${split[@]}" | sort -n | paste -sd , | sed 's/,/, /g')"
}

# A place of hugepages is their size, 2Mi or 1Gi, or SIZE@NODE on that NUMA node (SYS: a test's).
# hugepage_mib PLACE, hugepages_folder PLACE   MiB of a page; the kernel's folder
hugepage_mib() { numfmt --from=iec-i --to-unit=Mi "${1%@*}"; }
hugepages_folder() {
  local at=kernel/mm
  [[ "$1" != *@* ]] || at=devices/system/node/node${1#*@}
  echo "${SYS:-/sys}/$at/hugepages/hugepages-$(($(hugepage_mib "$1") * 1024))kB"
}

# hugepages_on PLACE   the place of pages for SIZE@CORES: SIZE@NODE where the machine has several NUMA nodes and the cores
# are on one of them, else SIZE
hugepages_on() {
  local nodes=
  if [[ "$1" = *@* ]] && [ -e "${SYS:-/sys}/devices/system/node/node1" ]; then nodes=$(numa_nodes "${1#*@}"); fi
  if [[ "$nodes" =~ ^[0-9]+$ ]]; then echo "${1%@*}@$nodes"; else echo "${1%@*}"; fi
}

# idle_hugepages PLACE   how many are neither used nor reserved; 0 in a container, which sees those of the machine below it
idle_hugepages() {
  local dir reserved
  dir=$(hugepages_folder "$1")
  if is_container || [ ! -d "$dir" ]; then
    echo 0
    return
  fi
  reserved=$(cat "$(hugepages_folder "${1%@*}")/resv_hugepages") # the kernel does not tell of which node
  reserved=$(($(cat "$dir/free_hugepages") - reserved))
  echo $((reserved > 0 ? reserved : 0))
}

# main up|down   runs the step. UNDO (the step's name) and TEXT (its text without secrets) are set on machines that will be
# given back: the text is kept in STATE/undo from before the step changes anything until its `down` has ended well, because
# Pulumi has no undo of a step that failed. scripts/ready.sh runs what is left there.
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
