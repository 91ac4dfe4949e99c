# shellcheck shell=bash
# The devices that the vhost target takes from this machine: refused where anything uses them, or where that cannot be known;
# NVMe devices are handed from the kernel's driver to vfio-pci, and back on undo.
# in: BDEV (aio or nvme) DEVICES (a list) MIB (each holds so many at least)
# shellcheck disable=SC2153 # SYS: tests have a tree of their own
pci=${SYS:-/sys}/bus/pci

step() {
  local device
  if [ "$1" = down ]; then
    [ "$BDEV" != nvme ] || for device in $DEVICES; do hand "$device" ""; done
    return
  fi
  local wrong=()
  for device in $DEVICES; do "$BDEV"_fits "$device"; done
  [ "$BDEV" != aio ] || overlaps
  if ((${#wrong[@]})); then
    printf 'error: spdk-k8s:vhost.devices: %s\n' "${wrong[@]}" >&2
    fail "these devices of $(hostname) cannot be served; nothing was changed; mend: pulumi config set --path vhost.devices '[\"…\"]'"
  fi
  [ "$BDEV" != nvme ] || for device in $DEVICES; do hand "$device" vfio-pci; done
}

# ours DEVICE   the disk agent serves it, and holds it: it looked at it then
ours() { jq -e --arg path "$1" 'any(.disks[]; .path == $path)' "${AGENT:-/run/spdk-k8s/agent.json}" >/dev/null 2>&1; }

# used BLOCK_DEVICE   prints what uses it or a part of it. The kernel refuses an exclusive open of whatever is mounted, swap, or
# a part of RAID, LVM, ZFS or multipath; a signature is data, also where nothing uses it now.
used() {
  local by why
  by=$({ lsblk -nrpo NAME,MOUNTPOINTS,TYPE "$1" 2>/dev/null || true; } |
    awk 'NF > 2 {print $1 " is mounted at " $2} $NF ~ /^(lvm|raid|crypt|mpath)/ {print $1 " is part of it"}' | head -n 1)
  if [ -n "$by" ]; then
    echo "$by"
  elif ! why=$(perl -MFcntl -e 'sysopen(my $f, $ARGV[0], O_RDONLY | O_EXCL) or print "$!"' "$1") || [ -n "$why" ]; then
    echo "the kernel says: ${why:-it cannot be opened}; see: lsblk $1"
  else
    foreign "$1"
  fi
}

# foreign BLOCK_DEVICE   prints what is on it, unless that is a disk of ours: ext4 with the marker of an instance
foreign() {
  local found code=0
  found=$(blkid -p -o export "$1" 2>/dev/null) || code=$?
  case $code in
  0) ;;
  2) return ;; # nothing is on it
  *) echo "what is on it cannot be told: blkid -p $1" && return ;;
  esac
  found=$(sed -n 's/^\(TYPE\|PTTYPE\)=//p' <<<"$found" | tr '\n' ' ')
  if [ "$found" = "ext4 " ] && debugfs -c -R 'cat /.spdk-k8s.json' "$1" 2>/dev/null | grep -q '"ordinal"'; then return; fi
  echo "it holds ${found:-data}; if nobody needs that: wipefs -a $1"
}

# large_enough DEVICE NAME   its name in /sys/class/block, where sizes are in sectors of 512 bytes
large_enough() {
  local bytes
  bytes=$(($(cat "${SYS:-/sys}/class/block/$2/size") * 512))
  ((bytes >= MIB << 20)) ||
    wrong+=("$1 has $bytes bytes ($((bytes >> 20)) MiB), and a disk must hold $MIB MiB; mend: pulumi config set --path vhost.diskMib $((bytes >> 20))")
}

aio_fits() {
  local by
  if [ ! -b "$1" ]; then
    wrong+=("$1 is no block device")
    return
  fi
  if ! ours "$1"; then
    by=$(used "$1")
    [ -z "$by" ] || wrong+=("$1 is in use: $by")
  fi
  large_enough "$1" "$(basename "$(readlink -f "$1")")"
}

# Two names of one device, or a disk and its partition, would be two disks with one content.
overlaps() {
  local device real disk
  declare -A taken=()
  for device in $DEVICES; do
    real=$(readlink -f "$device")
    disk=$(basename "$real")
    if [ -e "${SYS:-/sys}/class/block/$disk/partition" ]; then
      disk=$(basename "$(dirname "$(readlink -f "${SYS:-/sys}/class/block/$disk")")")
    else
      [ -z "${taken[in $disk]:-}" ] || wrong+=("$device is the disk of ${taken[in $disk]}")
    fi
    [ -z "${taken[$real]:-}" ] || wrong+=("$device and ${taken[$real]} are one device, $real")
    [ -z "${taken[$(dirname "$real")/$disk]:-}" ] || [ "$(basename "$real")" = "$disk" ] ||
      wrong+=("$device is a part of ${taken[$(dirname "$real")/$disk]}")
    taken[$real]=$device taken["in $disk"]=$device
  done
}

nvme_fits() {
  local dir=$pci/devices/$1 name by
  if [ ! -d "$dir" ]; then
    wrong+=("$1: there is no such PCI device")
    return
  fi
  [[ "$(cat "$dir/class")" == 0x0108* ]] || wrong+=("$1 is no NVMe device")
  [ "$(basename "$(readlink -f "$dir/driver")")" != vfio-pci ] || return 0 # handed over before
  if ! namespaces "$dir" >/dev/null; then
    wrong+=("$1: the kernel does not tell which namespaces it has, so nobody knows what uses them")
    return
  fi
  for name in $(namespaces "$dir"); do
    by=$(used "/dev/$name")
    [ -z "$by" ] || wrong+=("$1 is in use: $by")
    [[ "$name" != *n1 ]] || large_enough "$1" "$name" # the one that is served
  done
}

# namespaces DIR   the names of a PCI device's NVMe namespaces in /dev. With native multipath those below the device are
# paths without a node (nvme0c1n1), and the node is that of the subsystem's head (nvme0n1). False where they cannot be told.
namespaces() {
  local controller path subsystem head found=
  for controller in "$1"/nvme/nvme*; do
    for path in "$controller"/nvme*n*; do
      [ -e "$path" ] || continue
      if [[ ! "${path##*/}" =~ ^nvme[0-9]+c[0-9]+n[0-9]+$ ]]; then
        echo "${path##*/}"
        found=1
        continue
      fi
      for subsystem in "${SYS:-/sys}"/class/nvme-subsystem/*; do
        [ -e "$subsystem/${controller##*/}" ] || continue
        head=$subsystem/$(sed -E 's/c[0-9]+n/n/' <<<"${path##*/}")
        [ -e "$head" ] || return 1
        echo "${head##*/}"
        found=1
      done
    done
  done
  [ -n "$found" ]
}

hand() { # hand ADDRESS DRIVER   an empty one: the kernel's choice
  local dir=$pci/devices/$1
  [ -d "$dir" ] || return 0
  [ "$(basename "$(readlink -f "$dir/driver")")" != "${2:-nvme}" ] || return 0
  [ -z "$2" ] || modprobe "$2" 2>/dev/null || true
  printf '%s\n' "$2" >"$dir/driver_override"
  [ ! -e "$dir/driver/unbind" ] || printf '%s' "$1" >"$dir/driver/unbind"
  printf '%s' "$1" >"$pci/drivers_probe"
  say "$1 is with ${2:-the kernel}"
}
