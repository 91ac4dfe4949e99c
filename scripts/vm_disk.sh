# shellcheck shell=bash
# One vhost disk of the VM: listed for every later start, and plugged into the running VM now.
# in: VM (its name on this host) ORDINAL SLOT (number of its root port)
list=/etc/spdk-k8s/$VM.disks.d

step() {
  if [ "$1" = down ]; then
    rm -f "$list/$ORDINAL"
    ! systemctl is-active --quiet "spdk-k8s-$VM" || timeout 180 /usr/local/lib/spdk-k8s/vm-disks "$VM"
    return
  fi
  install -d "$list"
  echo "$SLOT" >"$list/$ORDINAL"
  timeout 180 /usr/local/lib/spdk-k8s/vm-disks "$VM" "$ORDINAL" || fail "disk $ORDINAL could not be plugged into $VM on $(hostname), as said above; see also: journalctl -u spdk-k8s-$VM"
}
