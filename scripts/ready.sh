# shellcheck shell=bash
# The gate that every other step on a machine depends on: it answers, has booted, and we are root on it.
step() {
  [ "$1" = up ] || return 0
  [ "$(id -u)" = 0 ] || fail "not root on $(hostname): give the user sudo without a password"
  wait_for 120 "$(hostname) to finish booting" booted
  uname -r
}
booted() {
  case "$(systemctl is-system-running 2>/dev/null)" in running | degraded) ;; *) return 1 ;; esac
}
