# shellcheck shell=bash
# Waits, on the VM's host, until the guest's SSH server answers; it asks more often than an SSH client that dials again.
# in: ADDRESS VM (its name on this host)
step() {
  [ "$1" = up ] || return 0
  wait_for 300 "the VM to answer SSH at $ADDRESS; its console: $STATE/$VM/console.log" timeout 2 bash -c "read -r -t 2 banner </dev/tcp/$ADDRESS/22"
}
