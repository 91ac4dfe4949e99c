# shellcheck shell=bash
# The first step on each machine: waits until it has booted, checks for root, and records whose machine it is from now on.
# Its undo is the last one: it undoes the steps that failed, removes the packages that the steps installed, and STATE.
# in: OWNER (project/stack)   prints "container" or "machine"
step() {
  if [ "$1" = down ]; then
    left
    purge
    rm -rf "$STATE"
    return
  fi
  [ "$(id -u)" = 0 ] || fail "not root on $(hostname): give the user sudo without a password"
  wait_for 120 "$(hostname) to finish booting" booted
  write 0644 "$STATE/owner" <<<"$OWNER" || true
  if is_container; then printf container; else printf machine; fi
}

booted() {
  case "$(systemctl is-system-running 2>/dev/null)" in running | degraded) ;; *) return 1 ;; esac
}

# Undoes the steps that Pulumi has no undo of, because they failed or its state is lost; the newest first.
left() {
  local name
  # shellcheck disable=SC2045 # names of steps
  for name in $(ls -t "$STATE/undo" 2>/dev/null); do
    if [ "$name" = "${UNDO:-}" ]; then continue; fi
    say "undoing $name"
    bash "$STATE/undo/$name" down || fail "$name cannot be undone on $(hostname): mend what is said above, then pulumi destroy again"
  done
}

# Removes exactly the packages that were installed; dpkg leaves those that something else needs by now.
purge() {
  local names code=0
  [ ! -e "$STATE/packages.before" ] || record_packages
  [ -s "$STATE/packages" ] || return 0
  mapfile -t names < <(sort -u "$STATE/packages")
  say "removing ${#names[@]} packages"
  dpkg --purge "${names[@]}" >>/var/log/spdk-k8s-purge.log 2>&1 || code=$?
  case $code in
  0) rm -f /var/log/spdk-k8s-purge.log ;;
  1) say "some packages stay, because others need them; see $(hostname):/var/log/spdk-k8s-purge.log" ;;
  *) tail -n 5 /var/log/spdk-k8s-purge.log >&2 && fail "dpkg is busy or broken on $(hostname); pulumi destroy again when it is not" ;;
  esac
}
