# shellcheck shell=bash
# Puts the CPU plan of a storage host in force. Where the machine has cgroup v2, systemd keeps the system and the pods off
# the planned cores. The unit spdk-k8s-cpus gives each thread the cores of its role (see scripts/host/cpus).
# shellcheck disable=SC2153 # the values
# in: PLAN (JSON) ROLES (the config's part of it, see lib.sh) VMS (names of the VMs that have cores here) CPUS_SCRIPT (scripts/host/cpus)
lib=/usr/local/lib/spdk-k8s
units=/etc/systemd/system
plan=$STATE/cpus.json
slices=({system,user,kubepods,kubepods-burstable,kubepods-besteffort}.slice init.scope)

step() {
  if [ "$1" = down ]; then
    down
    return
  fi
  local flaws
  flaws=$(plan_flaws)
  [ -z "$flaws" ] || say "$(cut -d'|' -f2 <<<"$flaws")"
  ! grep -q '^FAIL' <<<"$flaws" ||
    fail "the CPU plan does not fit $(hostname); mend: $(sed -n 's/^FAIL|.*|//p' <<<"$flaws" | head -n 1)"
  packages python3
  write 0755 "$lib/cpus" <<<"$CPUS_SCRIPT" || true
  write 0644 "$plan" <<<"$PLAN" || true
  limits
  write 0644 "$units/spdk-k8s-cpus.service" <<EOF || true
[Unit]
Description=CPU plan of the storage host
[Service]
ExecStart=$lib/cpus keep
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
EOF
  systemctl daemon-reload # it applies the limits to slices that are there
  enable spdk-k8s-cpus
  follow spdk-k8s-cpus "$plan" "$lib/cpus"
}

# A limit on a slice binds all below it. So the VMs are in another slice than the system. Of the pods only those of the QoS
# class Guaranteed are not in a slice of their class: the vhost pod.
limits() {
  local system emulator pods vcpus vm name file
  system=$("$lib/cpus" cores system)
  emulator=$("$lib/cpus" cores emulator)
  pods=$("$lib/cpus" cores pods)
  for name in "${slices[@]}"; do
    case $name in
    kubepods.slice) limit "$name" Slice "$pods" ;;
    *.slice) limit "$name" Slice "$system" ;;
    *) limit "$name" Scope "$system" ;;
    esac
  done
  for file in "$units"/spdk-k8s-vm{,-[0-9],-[0-9][0-9]}.service.d/cpus.conf; do
    name=${file#"$units/spdk-k8s-"} name=${name%%.*}
    [[ " $VMS " == *" $name "* ]] || unlimit "spdk-k8s-$name.service" cpus.conf
  done
  for vm in $VMS; do # QEMU starts on its own threads' cores, its vCPUs are moved to theirs
    vcpus=$("$lib/cpus" cores "$vm") # none: they are with QEMU's own threads
    printf '[Service]\nSlice=machine.slice\nAllowedCPUs=%s\nCPUAffinity=%s\n' "${vcpus:+$vcpus,}$emulator" "$emulator" |
      write 0644 "$units/spdk-k8s-$vm.service.d/cpus.conf" || true
  done
}

# limit UNIT SECTION CORES
limit() { printf '[%s]\nAllowedCPUs=%s\n' "$2" "$3" | write 0644 "$units/$1.d/spdk-k8s-cpus.conf" || true; }

# unlimit UNIT FILE   systemd forgets a limit whose file is gone, but leaves it in the cgroup
unlimit() {
  local group
  if [ ! -e "$units/$1.d/$2" ]; then return; fi
  rm -f "$units/$1.d/$2"
  rmdir "$units/$1.d" 2>/dev/null || true
  systemctl daemon-reload
  group=/sys/fs/cgroup$(systemctl show -P ControlGroup "$1")
  if [ -w "$group/cpuset.cpus" ]; then echo >"$group/cpuset.cpus"; fi
}

down() {
  local name
  systemctl disable --now spdk-k8s-cpus 2>/dev/null || true
  for name in "${slices[@]}"; do unlimit "$name" spdk-k8s-cpus.conf; done
  for name in "$units"/spdk-k8s-vm{,-[0-9],-[0-9][0-9]}.service.d; do
    name=${name#"$units/"}
    unlimit "${name%.d}" cpus.conf
  done
  rm -f "$units/spdk-k8s-cpus.service"
  systemctl daemon-reload
  [ ! -e "$plan" ] || "$lib/cpus" release
  rm -f "$lib/cpus" "$plan" /run/spdk-k8s/cpus.json
  rmdir "$lib" 2>/dev/null || true
}
