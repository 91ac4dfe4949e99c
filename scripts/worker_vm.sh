# shellcheck shell=bash
# Makes a worker VM on its host: bridge, media share, the guest's disks, and QEMU as a systemd unit.
# in: REGISTRY GUEST PRELOAD BUNDLE QEMU_ARGS (one a line, @ACCEL@: KVM_ARGS or TCG_ARGS; @NUMA@) ACCEL USER_DATA META_DATA NETWORK_CONFIG
#     VM (its name on this host: vm, vm-2, …) DEFINITION (the name that QEMU is to have) BRIDGE TAP MAC
#     CORES (of the vCPUs, in a CPU plan) NIC (empty: the card with HOST_ADDRESS) MEDIA_IMAGE MEDIA_DIR DISK_GIB BRIDGE_SCRIPT ALIVE_SCRIPT (of scripts/host)
vm=$STATE/$VM
unit=spdk-k8s-$VM
lib=/usr/local/lib/spdk-k8s

step() {
  if [ "$1" = down ]; then
    down
    return
  fi
  packages curl qemu-system-x86 virtiofsd socat
  install -d -m 0700 "$vm" "$vm/seed"
  exec 8>>"$STATE/worker_vm.lock" # the VMs of one host share its container images and media
  flock -w 300 8 || fail "another VM's set-up on $(hostname) takes over 300 s"
  trap wait EXIT # a step that fails waits for its background jobs
  bridge
  write 0600 "$vm/seed/user-data" <<<"$USER_DATA" || true
  write 0600 "$vm/seed/meta-data" <<<"$META_DATA" || true
  write 0600 "$vm/seed/network-config" <<<"$NETWORK_CONFIG" || true
  local media_pid images_pid
  media &
  media_pid=$!
  images_disk &
  images_pid=$!
  root_disk # brings the kernel for the probe
  accelerator
  wait $media_pid || fail "the media could not be unpacked"
  wait $images_pid || fail "the disk of container images could not be made"
  units
  printf '%s\n' "$(cat "$vm/accel")"
}

bridge() {
  local nic now file=/etc/systemd/system/$unit-bridge.service
  nic=$(card)
  [ -n "$nic" ] || fail "no card of $(hostname) carries $HOST_ADDRESS; mend: the name of its card as this server's nic in spdk-k8s:machines"
  # the undo of one card's bridge would give its addresses to the other
  now=$(sed -n 's/^ExecStart=.* up [^ ]* \([^ ]*\) .*/\1/p' "$file" 2>/dev/null) || now=
  [ "${now:-$nic}" = "$nic" ] || fail "the VM is connected to $now of $(hostname), which cannot change while it is there; mend: $now as this server's nic in spdk-k8s:machines, or make down first"
  # a bridge of the host's own is used as it is
  if [ -d "/sys/class/net/$nic/bridge" ]; then BRIDGE=$nic; fi
  write 0755 "$lib/bridge" <<<"$BRIDGE_SCRIPT" || true
  write 0644 "$file" <<EOF || true
[Unit]
Description=Bridge and tap of the worker VM
# the card must have its address before the bridge can take it over
Wants=network-online.target
After=network-online.target
Before=kubelet.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$lib/bridge up $BRIDGE $nic $TAP $MAC
ExecStop=$lib/bridge down $BRIDGE $nic $TAP $MAC
[Install]
WantedBy=multi-user.target
EOF
  units_changed "$unit-bridge"
  enable "$unit-bridge"
  systemctl start "$unit-bridge"
  "$lib/bridge" up "$BRIDGE" "$nic" "$TAP" "$MAC" # a unit that is active does not run a script that changed
}

card() { # recorded, because the bridge takes its address over
  if [ -n "$NIC" ]; then
    echo "$NIC"
    return
  fi
  [ -s "$STATE/card" ] || ip -4 -o addr show to "$HOST_ADDRESS" | awk '{print $2; exit}' | write 0644 "$STATE/card" || true
  cat "$STATE/card"
}

# MEDIA_DIR/.image names the image whose media are there; it is empty while they are copied.
media() {
  [ -n "${MEDIA_IMAGE:-}" ] || return 0 # the user's own folder
  if [ "$(cat "$MEDIA_DIR/.image" 2>/dev/null)" = "$MEDIA_IMAGE" ]; then return; fi
  if [ ! -e "$MEDIA_DIR/.image" ] && [ -n "$(ls -A "$MEDIA_DIR" 2>/dev/null)" ]; then
    fail "$MEDIA_DIR on $(hostname) holds something else; mend: move it, or serve it: pulumi config set --path video.mediaDir $MEDIA_DIR"
  fi
  say "unpacking sample media to $MEDIA_DIR"
  unpack "$MEDIA_IMAGE" "$vm/media"
  install -d "$MEDIA_DIR"
  : >"$MEDIA_DIR/.image"
  cp -a "$vm/media/media/." "$MEDIA_DIR/"
  # what is taken away at last, and nothing that was put beside it
  (cd "$vm/media/media" && find . -mindepth 1 -depth) >"$STATE/media.list"
  forget "$MEDIA_IMAGE" "$vm/media"
  write 0644 "$MEDIA_DIR/.image" <<<"$MEDIA_IMAGE" || true
}

# The guest's root disk: the guest image with the node bundle over it, so that an emulated CPU has nothing to unpack.
root_disk() {
  if [ -f "$vm/root.img" ]; then return; fi
  say "making the guest's root disk"
  ! mountpoint -q "$vm/root" || umount "$vm/root" # of a step that was cut off
  unpack "$GUEST" "$vm/guest"
  unpack "$BUNDLE" "$vm/bundle"
  install -d "$vm/stamp/usr/local/lib/spdk-k8s" "$vm"/stamp/{var/lib/containerd,srv/media} "$vm/root"
  printf '%s\n' "$BUNDLE" >"$vm/stamp/usr/local/lib/spdk-k8s/bundle"
  printf 'LABEL=root / ext4 rw,relatime 0 1\nLABEL=containers /var/lib/containerd ext4 rw,relatime 0 2\nhost0 /srv/media virtiofs ro,nofail 0 0\n' |
    write 0644 "$vm/stamp/etc/fstab" || true
  mount -t overlay overlay -o "ro,lowerdir=$vm/stamp:$vm/bundle:$vm/guest" "$vm/root"
  cp -L "$vm"/root/boot/vmlinuz-* "$vm/vmlinuz"
  cp -L "$vm"/root/boot/initrd.img-* "$vm/initrd"
  rm -f "$vm/root.img.new"
  mke2fs -q -t ext4 -L root -E lazy_itable_init=1,nodiscard -d "$vm/root" "$vm/root.img.new" "${DISK_GIB}G"
  umount "$vm/root"
  forget "$BUNDLE" "$vm/bundle"
  forget "$GUEST" "$vm/guest"
  mv "$vm/root.img.new" "$vm/root.img"
}

# The guest's /var/lib/containerd, filled here: to pull and unpack images costs an emulated CPU minutes.
images_disk() {
  if [ -f "$vm/containers.img" ]; then return; fi
  local run=/run/$unit-preload root=$vm/containers image pid
  rm -rf "$root" "$run"
  install -d "$root" "$run"
  if [ -n "$PRELOAD" ]; then
    say "preloading container images for the guest"
    # containerd 2 has CRI in three plugins, and NRI's socket is the one of the machine's containerd
    printf 'version = 2\nroot = "%s"\nstate = "%s"\ndisabled_plugins = [%s]\n[grpc]\n  address = "%s/sock"\n' "$root" "$run/state" \
      '"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"' \
      "$run" >"$run/config.toml"
    containerd --config "$run/config.toml" >"$run/log" 2>&1 8>&- &
    pid=$!
    # shellcheck disable=SC2064 # this one
    trap "kill $pid" EXIT # of the shell in the background that this runs in
    wait_for 60 "the preloading containerd to answer (its log: $run/log)" ctr --address "$run/sock" version
    for image in $PRELOAD; do
      ctr --address "$run/sock" -n k8s.io images pull --hosts-dir /etc/containerd/certs.d "$image" >/dev/null
    done
    kill "$pid"
    wait "$pid" || true
    trap - EXIT
  fi
  rm -f "$vm/containers.img.new"
  mke2fs -q -t ext4 -L containers -E lazy_itable_init=1,nodiscard -d "$root" "$vm/containers.img.new" "${DISK_GIB}G"
  rm -rf "$root" "$run"
  mv "$vm/containers.img.new" "$vm/containers.img"
}

# KVM is taken only if the guest's kernel boots on it: some machines have /dev/kvm, and a kernel on it hangs.
accelerator() {
  # shellcheck disable=SC2153 # ACCEL is the setting, accel what comes of it
  if [ -f "$vm/accel" ] && [ "$(cat "$vm/accel.wanted" 2>/dev/null)" = "$ACCEL" ]; then return; fi
  local accel=tcg
  if [ "$ACCEL" != tcg ] && kvm_boots; then accel=kvm; fi
  if [ "$ACCEL" = kvm ] && [ $accel = tcg ]; then
    fail "vm.accel = kvm, but a kernel does not boot on /dev/kvm of $(hostname): enable virtualization, or: pulumi config set --path vm.accel tcg"
  fi
  say "the VM runs on $accel"
  printf '%s\n' "$accel" >"$vm/accel"
  printf '%s\n' "$ACCEL" >"$vm/accel.wanted"
}

# Boots the kernel without a root filesystem: it panics, reboots, and QEMU ends. A slow machine has as long as the kernel
# goes on writing to its console; a kernel that writes nothing for PROBE_SILENCE seconds hangs.
kvm_boots() {
  [ -c /dev/kvm ] || return 1
  local log=$vm/probe.log pid size=0 now silent=$SECONDS limit=${PROBE_LIMIT:-60}
  rm -f "$log"
  timeout -k 1 "$limit" qemu-system-x86_64 -accel kvm -cpu host -m 256 -nodefaults -display none -no-reboot -kernel "$vm/vmlinuz" \
    -append 'console=ttyS0 earlyprintk=ttyS0 panic=-1 root=/dev/none' -serial "file:$log" >/dev/null 2>&1 8>&- &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if grep -qs 'Kernel panic' "$log"; then break; fi
    now=$(stat -c %s "$log" 2>/dev/null) || now=0
    if ((now > size)); then size=$now silent=$SECONDS; fi
    if ((SECONDS - silent >= ${PROBE_SILENCE:-10})); then
      say "a kernel on /dev/kvm hangs: $size bytes on its console, the last of them $((SECONDS - silent)) s ago"
      break
    fi
    sleep 0.2
  done
  kill "$pid" 2>/dev/null || true
  wait "$pid" || true
  grep -qs 'Kernel panic' "$log"
}

units() {
  local args running
  case "$(cat "$vm/accel")" in
  kvm) args=${QEMU_ARGS//@ACCEL@/$KVM_ARGS} ;;
  *) args=${QEMU_ARGS//@ACCEL@/$TCG_ARGS} ;;
  esac
  args=${args//@NUMA@/$(numa "${CORES:-}")}
  # sockets that give away the guest's memory and QEMU's monitors: root's own, also after a boot
  write 0644 /etc/tmpfiles.d/spdk-k8s.conf <<<"d /run/spdk-k8s 0700 root root -" || true
  install -d -m 0700 /run/spdk-k8s
  # Ubuntu's needrestart restarts services by itself when one of their libraries was updated; a VM would boot anew
  # shellcheck disable=SC2016 # Perl
  [ ! -d /etc/needrestart/conf.d ] || write 0644 /etc/needrestart/conf.d/spdk-k8s.conf <<<'$nrconf{override_rc}{qr(^spdk-k8s-)} = 0;' || true
  write 0644 "$lib/powerdown" <<<'{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}' || true
  write 0755 "$lib/alive" <<<"$ALIVE_SCRIPT" || true
  write 0755 "$lib/$VM" <<EOF || true
#!/bin/sh
$lib/alive /run/spdk-k8s/$VM.alive &
exec qemu-system-x86_64 \\
$(sed '$!s/$/ \\/' <<<"$(while IFS= read -r arg; do printf '  %q\n' "$arg"; done <<<"$args")")
EOF
  write 0644 "/etc/systemd/system/$unit-media.service" <<EOF || true
[Unit]
Description=Media share of the worker VM (virtiofs, read-only)
[Service]
ExecStartPre=/bin/mkdir -p -m 0700 /run/spdk-k8s
ExecStart=/usr/libexec/virtiofsd --socket-path=/run/spdk-k8s/$VM-media.sock --shared-dir=$MEDIA_DIR --sandbox=none --cache=auto
# not by virtiofsd's --readonly, which version 1.10 of Ubuntu 24.04 does not know
ReadOnlyPaths=$MEDIA_DIR
# it ends whenever QEMU closes the connection
Restart=always
RestartSec=200ms
[Install]
WantedBy=multi-user.target
EOF
  write 0644 "/etc/systemd/system/$unit.service" <<EOF || true
[Unit]
Description=Worker VM
Requires=$unit-bridge.service
Wants=$unit-media.service
After=$unit-bridge.service $unit-media.service
StartLimitIntervalSec=0
[Service]
# scripts/host/alive notifies. The start ends when QEMU answers: it touches all of the guest's memory first.
Type=notify
NotifyAccess=all
TimeoutStartSec=300
WatchdogSec=30
# no core dump of the guest's memory
WatchdogSignal=SIGKILL
ExecStartPre=/bin/sh -c 'for i in \$(seq 100); do [ -S /run/spdk-k8s/$VM-media.sock ] && exit 0; sleep 0.1; done; echo "waited 10 s for the socket of $unit-media" >&2; exit 1'
ExecStart=$lib/$VM
# until QEMU is gone; by a monitor of its own, because the disk agent is the other's client
ExecStop=-/bin/sh -c 'timeout 60 socat -,ignoreeof UNIX-CONNECT:/run/spdk-k8s/$VM.end.qmp <$lib/powerdown >/dev/null'
TimeoutStopSec=90
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
EOF
  running=$(running_as)
  if [ -n "$running" ] && [ "$running" != "$DEFINITION" ]; then
    say "the VM's definition changed: its guest boots anew"
    systemctl stop "$unit" "$unit-media"
  fi
  systemctl daemon-reload
  enable "$unit-media"
  enable "$unit"
  systemctl start "$unit-media"
  systemctl start --no-block "$unit"
}

# numa CORES   QEMU's words that keep the guest's memory on the NUMA node of these cores; none where there is only one node
numa() {
  local nodes
  nodes=$(numa_nodes "$1")
  if [ -z "$nodes" ] || [ ! -e "${SYS:-/sys}/devices/system/node/node1" ]; then return; fi
  [ "$(wc -l <<<"$nodes")" = 1 ] ||
    fail "cores $1 of $(hostname) are on several NUMA nodes ($(paste -sd ' ' <<<"$nodes")); mend: pulumi config set --path cpus.vms with cores of one node for each VM"
  printf ',host-nodes=%s,policy=bind' "$nodes"
}

# The -name of the VM's QEMU; empty: it does not run.
running_as() {
  local pid
  pid=$(systemctl show -P MainPID "$unit")
  if [ "$pid" != 0 ]; then tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n '/^-name$/{n;p;}'; fi
}

down() {
  local name dir
  for name in "$unit" "$unit-media" "$unit-bridge"; do # some may never have been made
    systemctl disable --now "$name" 2>/dev/null || true
  done
  rm -f "/etc/systemd/system/$unit".service "/etc/systemd/system/$unit"-{media,bridge}.service "$lib/$VM"
  systemctl daemon-reload
  for dir in root guest bundle media; do
    ! mountpoint -q "$vm/$dir" || umount "$vm/$dir"
  done
  rm -rf "$vm"
  if ls "$STATE"/vm* >/dev/null 2>&1; then return; fi
  # the last VM of this host
  rm -rf "$lib"/{alive,bridge,powerdown} /run/spdk-k8s /etc/tmpfiles.d/spdk-k8s.conf /etc/needrestart/conf.d/spdk-k8s.conf \
    "$STATE/worker_vm.lock" "$STATE/card"
  rmdir "$lib" 2>/dev/null || true
  [ -z "${MEDIA_IMAGE:-}" ] || [ ! -e "$MEDIA_DIR/.image" ] || media_down
}

media_down() {
  local path
  while IFS= read -r path; do
    if [ -d "$MEDIA_DIR/$path" ]; then rmdir "$MEDIA_DIR/$path" 2>/dev/null || true; else rm -f "$MEDIA_DIR/$path"; fi
  done < <(cat "$STATE/media.list" 2>/dev/null)
  rm -f "$MEDIA_DIR/.image" "$STATE/media.list"
  rmdir "$MEDIA_DIR" 2>/dev/null || say "$MEDIA_DIR on $(hostname) stays: it holds files that are not the samples"
}
