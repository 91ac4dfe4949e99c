#!/usr/bin/env bash
# Makes the Docker engine that pushes trust the private registry's CA; it reads the folder at each connection.
# usage: engine_trust.sh up|down ADDRESS   (up: the CA on stdin; empty: plain HTTP, nothing to trust)
set -euo pipefail
action=$1 dir=/etc/docker/certs.d/$2
root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

if [ "$action" = down ]; then
  root rm -rf "$dir"
  root rmdir --ignore-fail-on-non-empty /etc/docker/certs.d 2>/dev/null || true
  exit
fi
ca=$(cat)
[ -n "$ca" ] || exit 0 # operate/engine.py has asked whether the engine will do without
root install -d -m 0755 "$dir"
printf '%s\n' "$ca" | root install -m 0644 /dev/stdin "$dir/ca.crt"
