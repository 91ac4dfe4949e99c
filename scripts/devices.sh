# shellcheck shell=bash
# The devices that the vhost target takes from this machine: refused where anything uses them; NVMe devices are handed
# from the kernel's driver to vfio-pci, and back on undo.
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
  if ((${#wrong[@]})); then
    printf 'error: spdk-k8s:vhost.devices: %s\n' "${wrong[@]}" >&2
    fail "these devices of $(hostname) cannot be served; nothing was changed; mend: pulumi config set --path vhost.devices '[\"…\"]'"
  fi
  [ "$BDEV" != nvme ] || for device in $DEVICES; do hand "$device" vfio-pci; done
}

# used BLOCK_DEVICE   prints what uses it or a part of it
used() { { lsblk -nrpo NAME,MOUNTPOINTS,TYPE "$1" 2>/dev/null || true; } | awk 'NF > 2 {print $1 " is mounted at " $2} $NF ~ /^(lvm|raid|crypt)/ {print $1 " is part of it"}' | head -n 1; }

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
  else
    by=$(used "$1")
    [ -z "$by" ] || wrong+=("$1 is in use: $by")
    large_enough "$1" "$(basename "$(readlink -f "$1")")"
  fi
}

nvme_fits() {
  local dir=$pci/devices/$1 block by
  if [ ! -d "$dir" ]; then
    wrong+=("$1: there is no such PCI device")
    return
  fi
  [[ "$(cat "$dir/class")" == 0x0108* ]] || wrong+=("$1 is no NVMe device")
  for block in "$dir"/nvme/nvme*/nvme*n*; do
    [ -e "$block" ] || continue
    by=$(used "/dev/${block##*/}")
    [ -z "$by" ] || wrong+=("$1 is in use: $by")
  done
  # the one that is served; unknown where the device is with vfio-pci already
  for block in "$dir"/nvme/nvme*/nvme*n1; do
    [ ! -e "$block" ] || large_enough "$1" "${block##*/}"
  done
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
