# shellcheck shell=bash
# The private registry: the distribution's package as a systemd service, TLS and login.
# in: CONFIG CERTIFICATE KEY USER_NAME PASSWORD PORT URL
conf=/etc/docker/registry
data=/var/lib/docker-registry

step() {
  if [ "$1" = down ]; then
    systemctl disable --now docker-registry 2>/dev/null || true
    rm -rf "$conf" "$data"
    return
  fi
  packages iproute2
  local other
  other=$(ss -Hltnp "sport = :$PORT" | sed -n 's/.*users:(("\([^"]*\)".*/\1/p' | head -n 1)
  if [ -n "$other" ] && [ "$other" != docker-registry ]; then
    fail "spdk-k8s:registry.port = $PORT: $other on $(hostname) listens there already; mend: stop it, or: pulumi config set --path registry.port 5001"
  fi
  packages docker-registry apache2-utils curl
  local changed=
  write 0644 "$conf/config.yml" <<<"$CONFIG" && changed=1
  install -d -o docker-registry -g docker-registry "$data"
  if [ -n "${CERTIFICATE:-}" ]; then
    write 0644 "$conf/server.crt" <<<"$CERTIFICATE" && changed=1
    write 0600 "$conf/server.key" <<<"$KEY" && changed=1
    chown docker-registry "$conf/server.key"
  fi
  # bcrypt salts anew each time: keep the file while the password still fits it
  if ! htpasswd -vi "$conf/htpasswd" "$USER_NAME" <<<"$PASSWORD" >/dev/null 2>&1; then
    htpasswd -niB "$USER_NAME" <<<"$PASSWORD" | write 0640 "$conf/htpasswd" || true
    chgrp docker-registry "$conf/htpasswd"
    changed=1
  fi
  enable docker-registry
  if [ -n "$changed" ] || ! systemctl is-active --quiet docker-registry; then systemctl restart docker-registry; fi
  wait_for 30 "the registry to let ${USER_NAME} in at ${URL}" login
}

login() { # the password on stdin: never on a command line
  printf 'user = "%s:%s"\n' "$USER_NAME" "$PASSWORD" |
    curl -sf --noproxy '*' -K - ${CERTIFICATE:+--cacert <(printf '%s' "$CA")} "$URL/v2/"
}
