# shellcheck shell=bash
# One vhost disk of the VM: listed for every later start, and plugged into the running VM now.
# in: ORDINAL
list=/etc/spdk-k8s/vm-disks.d

step() {
  if [ "$1" = down ]; then
    rm -f "$list/$ORDINAL"
    ! systemctl is-active --quiet spdk-k8s-vm || timeout 120 /usr/local/lib/spdk-k8s/vm-disks
    return
  fi
  install -d "$list"
  touch "$list/$ORDINAL"
  timeout 180 /usr/local/lib/spdk-k8s/vm-disks "$ORDINAL" || fail "disk $ORDINAL could not be plugged into the VM; see: journalctl -u spdk-k8s-vm, kubectl -n spdk-k8s logs deploy/cb-vhost-p0 --all-containers"
}
