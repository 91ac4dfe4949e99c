# shellcheck shell=bash
# Checks whether a server can be used, before any other step runs on it, as the plain user: nothing is changed or installed.
# Prints one table: what is needed, what was found, and the remedy. What this stack made itself on the server is accepted.
# shellcheck disable=SC2153 # the values
# in: OWNER ADDRESS REGISTRY PORTS NETWORKS CPUS MEMORY_MIB DISK_MIB   on a storage host: HUGEPAGES ACCEL VMS NIC MEDIA_DIR PLAYLISTS
#     AT (the server's config key)   VMS: ADDRESS=MAC=KEY of each VM   ROLES (of a CPU plan, see lib.sh)
#     NOW (at the first run: seconds since 1970 on the machine that runs pulumi)
rows=() wrong=0 ours=

step() {
  local check
  [ "$(cat "$STATE/owner" 2>/dev/null)" != "$OWNER" ] || ours=1
  for check in system sudo cluster containerd cpus plan virtualization memory hugepages disk swap ports address networks firewall card vacant media clock names components mirror registry; do
    "$check"
  done
  table >&2
  ((!wrong)) || fail "$(hostname) ($ADDRESS) cannot serve: $wrong checks failed; nothing was changed"
}

pass() { rows+=("$1|pass|$2|"); }
warn() { rows+=("$1|warn|$2|$3"); }
miss() {
  rows+=("$1|FAIL|$2|$3")
  wrong=$((wrong + 1))
}

table() {
  local row check result found remedy width=0
  for row in "${rows[@]}"; do
    IFS='|' read -r check result found remedy <<<"$row"
    ((${#found} <= width)) || width=${#found}
  done
  printf '%s (%s)\n' "$(hostname)" "$ADDRESS"
  for row in "CHECK|RESULT|FOUND|REMEDY" "${rows[@]}"; do
    IFS='|' read -r check result found remedy <<<"$row"
    printf "%-15s %-7s %-${width}s  %s\n" "$check" "$result" "$found" "$remedy"
  done | sed 's/ *$//'
}

system() {
  local name id version least
  # shellcheck source=/dev/null
  IFS='|' read -r name id version < <(. /etc/os-release && echo "${PRETTY_NAME:-?}|$ID|${VERSION_ID:-999}") || true
  name="$name, $(uname -m)"
  case $id in debian) least=13 ;; ubuntu) least=24 ;; *) least=1000 ;; esac
  if [ "$(uname -m)" != x86_64 ] || [ ! -d /run/systemd/system ]; then
    miss system "$name" "an x86_64 machine that runs systemd"
  elif ((${version%%.*} >= least)); then
    pass system "$name"
  else
    miss system "$name" "install Debian 13 or Ubuntu 24.04, or a later release"
  fi
}

sudo() {
  local user
  user=$(id -un)
  if [ "$(id -u)" = 0 ]; then
    pass sudo "root"
  elif ! type -P sudo >/dev/null; then
    miss sudo "not installed" "as root: apt-get install sudo, then the line of visudo: $user ALL=(ALL) NOPASSWD: ALL"
  elif command sudo -n true 2>/dev/null; then
    pass sudo "$user, without a password"
  else
    miss sudo "it asks $user for a password" "visudo -f /etc/sudoers.d/$user, with the line: $user ALL=(ALL) NOPASSWD: ALL"
  fi
}

cluster() {
  local owner
  owner=$(cat "$STATE/owner" 2>/dev/null) || owner=
  if [ -n "$ours" ]; then
    pass cluster "of this stack already"
  elif [ -n "$owner" ]; then
    miss cluster "belongs to stack $owner" "pulumi destroy of that stack (or, if its state is lost: sudo bash $STATE/undo/*-ready down)"
  elif [ -e /etc/kubernetes/admin.conf ] || [ -e /etc/kubernetes/kubelet.conf ]; then
    miss cluster "belongs to another Kubernetes cluster" "another host, or give this one up there: kubeadm reset"
  else
    pass cluster "none"
  fi
}

# What is installed already, which no step changes.
containerd() {
  if dpkg-query -W -f '${db:Status-Status}' containerd.io 2>/dev/null | grep -qx installed; then
    miss containerd "containerd.io, which excludes the distribution's" "apt-get purge containerd.io and what needs it; for Docker: apt-get install docker.io"
  elif pods_never_end; then
    miss containerd "$(dpkg-query -W -f '${Version}' containerd), which cannot end pods where AppArmor confines runc" "apt-get install --only-upgrade containerd, from the distribution's updates"
  else
    pass containerd "$(dpkg-query -W -f '${Version}' containerd 2>/dev/null || echo "not installed yet")"
  fi
}

cpus() {
  local have
  have=$(nproc)
  if ((have >= CPUS)); then
    pass cpus "$have"
  else
    miss cpus "$have, $CPUS are needed" "a larger machine${ACCEL:+, or lower numbers in vhost.cpuMask or cpus}"
  fi
}

plan() {
  [ -n "${ROLES:-}" ] || return 0
  local result found remedy flaws
  flaws=$(plan_flaws)
  while IFS='|' read -r result found remedy; do
    case $result in FAIL) miss plan "$found" "$remedy" ;; warn) warn plan "$found" "$remedy" ;; esac
  done <<<"$flaws"
  grep -q '^FAIL' <<<"$flaws" || pass plan "$ROLES"
}

virtualization() {
  [ "${ACCEL:-}" = kvm ] || return 0
  if ! grep -qE '^flags.*\<(vmx|svm)\>' /proc/cpuinfo; then
    miss virtualization "the CPU shows neither vmx nor svm" "enable it in the firmware, or: pulumi config set --path vm.accel auto"
  elif [ ! -e /dev/kvm ]; then
    miss virtualization "there is no /dev/kvm" "modprobe kvm_intel or kvm_amd, or: pulumi config set --path vm.accel auto"
  else
    pass virtualization "/dev/kvm"
  fi
}

meminfo() { awk -v key="$1:" '$1 == key {print int($2 / 1024)}' /proc/meminfo; }

memory() {
  local have pair place idle
  have=$(meminfo "$([ -n "$ours" ] && echo MemTotal || echo MemAvailable)")
  for pair in ${HUGEPAGES:-}; do # idle pages are used before free memory is
    [ -z "$ours" ] || break
    place=$(hugepages_on "${pair%=*}")
    idle=$(idle_hugepages "$place")
    have=$((have + (idle < ${pair#*=} ? idle : ${pair#*=}) * $(hugepage_mib "$place")))
  done
  if ((have >= MEMORY_MIB)); then
    pass memory "$have MiB"
  else
    miss memory "$have MiB are free, $MEMORY_MIB are needed" "more memory${ACCEL:+, or less for vm.memoryMib, vhost.diskMib or numinst}"
  fi
}

node_mib() { awk '$3 == "MemTotal:" {print int($4 / 1024)}' "${SYS:-/sys}/devices/system/node/node$1/meminfo"; }

hugepages() {
  local pair place
  for pair in ${HUGEPAGES:-}; do
    place=$(hugepages_on "${pair%=*}")
    if [ -n "$ours" ]; then
      pass hugepages "of this stack already"
    elif [[ "$place" = *@* ]] && (($(node_mib "${place#*@}") < ${pair#*=} * $(hugepage_mib "$place"))); then
      miss hugepages "NUMA node ${place#*@} has $(node_mib "${place#*@}") MiB, ${pair#*=} pages of ${place%@*} are wanted there" \
        "cores of another node in cpus, or less for vm.memoryMib, vhost.memoryMib or vhost.diskMib"
    elif [ -d "$(hugepages_folder "$place")" ]; then
      pass hugepages "${pair#*=} of ${place/@/ on NUMA node } can be tried"
    else
      miss hugepages "the kernel has none of ${place/@/ on NUMA node }" "pulumi config set --path vhost.hugepageSize 2Mi (or none)"
    fi
  done
}

disk() {
  local have
  have=$(df -m --output=avail /var/lib | tail -n 1 | tr -d ' ')
  if [ -n "$ours" ] || ((have >= DISK_MIB)); then
    pass disk "$have MiB free at /var/lib"
  else
    miss disk "$have MiB are free at /var/lib, $DISK_MIB are needed" "make room there, or a larger disk"
  fi
}

swap() {
  local on
  on=$(awk 'NR > 1 {print $1}' /proc/swaps | paste -sd ' ')
  if [ -z "$on" ]; then
    pass swap "off"
  elif is_container; then
    pass swap "the machine's below this container"
  else
    miss swap "on: $on" "swapoff -a, and a # before its lines in /etc/fstab: kubelet does not start beside it"
  fi
}

# listening PORT   on TCP, as the kernel lists it
listening() { grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$1") [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6; }

ports() {
  local port taken=()
  for port in $PORTS; do
    if listening "$port"; then taken+=("$port"); fi
  done
  if [ -n "$ours" ] || ((!${#taken[@]})); then
    pass ports "free: $PORTS"
  else
    miss ports "taken: ${taken[*]}" "end what listens there: ss -ltnp$([[ " ${taken[*]} " != *" ${REGISTRY#*:} "* ]] || echo ', or: pulumi config set --path registry.port')"
  fi
}

address() { # kubelet and the registry listen there
  if awk -v at="$ADDRESS" '$1 == "|--" {is = $2 == at} is && /host LOCAL/ {found = 1} END {exit !found}' /proc/net/fib_trie; then
    pass address "$ADDRESS"
  else
    miss address "no card here carries $ADDRESS" "the address that the host itself has, also where SSH is forwarded"
  fi
}

# The cluster's own networks, KEY=NETWORK: no route of the host may lead into one, or pods and what is there hide each
# other. Networks are compared as /proc/net/route writes them, the first byte last.
networks() {
  local pair a b c d bits at size card to mask found
  for pair in ${NETWORKS:-}; do
    IFS=./ read -r a b c d bits <<<"${pair#*=}"
    at=$((a | b << 8 | c << 16 | d << 24)) size=$((0xffffffff << (32 - bits) & 0xffffffff)) found=
    size=$((size >> 24 | size >> 8 & 0xff00 | size << 8 & 0xff0000 | size << 24 & 0xff000000))
    while read -r card to _ _ _ _ _ mask _; do
      if ((0x$mask && (0x$to & 0x$mask & size) == (at & 0x$mask & size))); then found=$card; fi
    done < <(tail -n +2 /proc/net/route)
    if [ -n "$ours" ] || [ -z "$found" ]; then
      pass networks "${pair#*=} is not in use"
    else
      miss networks "${pair#*=} overlaps a route by $found" "one that no route here leads to: pulumi config set --path cluster.${pair%=*}"
    fi
  done
}

# ufw in its default drops what is forwarded: between pods, and, by br_netfilter, between the VM and the network.
firewall() {
  local conf=/etc/ufw/ufw.conf defaults=/etc/default/ufw
  if grep -qsix 'ENABLED="\?yes"\?' "$conf" && ! grep -qsix 'DEFAULT_FORWARD_POLICY="\?ACCEPT"\?' "$defaults"; then
    miss firewall "ufw is active and drops what is forwarded" "ufw default allow routed, and ufw allow from the addresses of the nodes; or ufw disable"
  else
    pass firewall "none that drops what is forwarded, as far as files tell"
  fi
}

card() {
  [ -n "${NIC:-}" ] || return 0
  if [ -e "/sys/class/net/$NIC" ]; then
    pass card "$NIC"
  else
    miss card "there is no $NIC" "pulumi config set --path $AT.nic to one of: $(cd /sys/class/net && echo *)"
  fi
}

# answers ADDRESS PORT   true also when the port is closed, because then a machine is there
answers() {
  local said
  said=$(timeout 4 bash -c "exec 3<>/dev/tcp/$1/$2" 2>&1) || [[ "$said" == *refused* ]]
}

vacant() {
  local vm key at mac
  for vm in ${VMS:-}; do
    IFS='=' read -r at mac key <<<"$vm"
    if answers "$at" 22 && ! { [ -n "$ours" ] && own "$at" "$mac"; }; then
      miss vacant "somebody is at $at already" "a free address for the VM: pulumi config set --path $key.address"
    else
      pass vacant "$at, for the VM"
    fi
  done
}

# own ADDRESS MAC   whether the VM with this MAC address is the one that answered
own() { awk -v at="$1" -v mac="${2,,}" '$1 == at && $4 == mac {found = 1} END {exit !found}' /proc/net/arp; }

media() { # the user's own folder
  [ -n "${MEDIA_DIR:-}" ] || return 0
  local i lacking=() found
  for ((i = 1; i <= PLAYLISTS; i++)); do
    # what images/video/video/playlist.py lists
    found=$(find "$MEDIA_DIR/mp4-$i" ! -type d ! -name '.*' -iregex '.*\.\(mp4\|m4v\|mov\|webm\|mkv\)' -print -quit 2>/dev/null) || true
    [ -n "$found" ] || lacking+=("mp4-$i")
  done
  if ((!${#lacking[@]})); then
    pass media "movies in $MEDIA_DIR, mp4-1 to mp4-$PLAYLISTS"
  else
    miss media "no movie (.mp4 .m4v .mov .webm .mkv) in ${#lacking[@]} of $PLAYLISTS folders, first $MEDIA_DIR/${lacking[0]}" \
      "movies there, which $(id -un) can read, a lower numinst, or samples: pulumi config rm --path video.mediaDir"
  fi
}

clock() {
  [ -n "${NOW:-}" ] || return 0
  local off=$(($(date +%s) - NOW))
  if ((off > -60 && off < 60)); then
    pass clock "right"
  else
    miss clock "${off#-} s $([ $off -lt 0 ] && echo behind || echo ahead)" "timedatectl set-ntp true: certificates are not valid before their time"
  fi
}

mirror_url() { apt-get update --print-uris 2>/dev/null | sed -n "s/^'\([^']*\)'.*/\1/p" | head -n 1; }

names() {
  local host
  host=$(mirror_url | sed -E 's,^[a-z+]+://([^/:]+).*,\1,')
  if [ -z "$host" ] || getent hosts "$host" >/dev/null; then
    pass names "${host:-nothing to ask for} is known"
  else
    miss names "$host cannot be resolved" "name servers in /etc/resolv.conf that answer"
  fi
}

# docker-registry and virtiofsd are in Ubuntu's component universe.
components() {
  [ "$(sed -n 's/^ID=//p' /etc/os-release)" = ubuntu ] || return 0
  # shellcheck disable=SC2016 # apt's
  if apt-get indextargets --format '$(COMPONENT)' 'Created-By: Packages' 2>/dev/null | grep -qx universe; then
    pass components "main and universe"
  else
    miss components "no source of packages has universe" "add-apt-repository universe, or add it to Components in /etc/apt/sources.list.d/ubuntu.sources"
  fi
}

mirror() {
  local url file
  url=$(mirror_url)
  file=$(mktemp -u -p /dev/shm)
  if [ -n "$url" ] && timeout 30 /usr/lib/apt/apt-helper -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 download-file "$url" "$file" >/dev/null 2>&1; then
    pass mirror "${url%/dists/*}"
  else
    miss mirror "${url:-no source of packages} cannot be fetched" "a mirror in /etc/apt/sources.list.d that answers, or Acquire::http::Proxy in /etc/apt/apt.conf.d"
  fi
  rm -f "$file"
}

registry() {
  local at=${REGISTRY%:*} port=${REGISTRY#*:}
  if [ "$at" = "$ADDRESS" ]; then # it will run here
    own_registry
    return
  fi
  if answers "$at" "$port"; then
    pass registry "the way to $REGISTRY is open"
  else
    miss registry "no way to $REGISTRY on master" "a route and no firewall between the two hosts"
  fi
}

# A registry of the owner's would get another config, and the undo would delete its images.
own_registry() {
  local path found=()
  for path in /etc/docker/registry /var/lib/docker-registry; do
    [ ! -e "$path" ] || found+=("$path")
  done
  if [ -n "$ours" ] || ((!${#found[@]})); then
    pass registry "none but this stack's"
  else
    miss registry "one of its own: ${found[*]}" "another host for master, or give it up: apt-get purge docker-registry; rm -r ${found[*]}"
  fi
}
