# shellcheck shell=bash
# The gate before every other step on a machine: it has booted, we are root on it, and it is this stack's from now on.
# Its undo is the last one there: steps that failed are undone, packages that the steps installed go, and what they kept.
# in: OWNER (project/stack). Result: "container" or "machine", as it shows itself.
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

# Steps that Pulumi does not know of, because they failed or its state is lost; newest first.
left() {
  local name
  # shellcheck disable=SC2045 # names of steps
  for name in $(ls -t "$STATE/undo" 2>/dev/null); do
    if [ "$name" = "${UNDO:-}" ]; then continue; fi
    say "undoing $name"
    bash "$STATE/undo/$name" down || fail "$name cannot be undone on $(hostname): mend what is said above, then pulumi destroy again"
  done
}

# Exactly what was installed: dpkg leaves what something else needs by now.
purge() {
  local names code=0
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
