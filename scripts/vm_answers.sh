# shellcheck shell=bash
# Waits, on the VM's host, until the guest's SSH server answers; it asks more often than an SSH client that dials again.
# The wait outlasts guests that hang as they boot, which the disk agent resets.
# in: ADDRESS VM (its name on this host) DEFINITION (of the VM: another one boots anew)
step() {
  [ "$1" = up ] || return 0
  wait_for 570 "the VM to answer SSH at $ADDRESS; its console: $STATE/$VM/console.log" timeout 2 bash -c "read -r -t 2 banner </dev/tcp/$ADDRESS/22"
}
