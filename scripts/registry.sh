# shellcheck shell=bash
# The private registry: the distribution's package as a systemd service, with TLS and a login.
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
  write 0644 "$conf/config.yml" <<<"$CONFIG" || true
  install -d -o docker-registry -g docker-registry "$data"
  if [ -n "${CERTIFICATE:-}" ]; then
    write 0644 "$conf/server.crt" <<<"$CERTIFICATE" || true
    write 0600 "$conf/server.key" <<<"$KEY" || true
    chown docker-registry "$conf/server.key"
  fi
  # bcrypt salts anew each time: the file stays as long as the password fits it
  htpasswd -vi "$conf/htpasswd" "$USER_NAME" <<<"$PASSWORD" >/dev/null 2>&1 ||
    htpasswd -niB "$USER_NAME" <<<"$PASSWORD" | write 0640 "$conf/htpasswd" || true
  chgrp docker-registry "$conf/htpasswd"
  enable docker-registry
  follow docker-registry "$conf"/{config.yml,server.crt,server.key,htpasswd}
  wait_for 60 "the registry to let $USER_NAME in at $URL; see on $(hostname): journalctl -u docker-registry" login
}

login() { # the password goes in by a pipe, never on a command line
  printf 'user = "%s:%s"\n' "$USER_NAME" "$PASSWORD" |
    curl -sf --noproxy '*' -K - ${CERTIFICATE:+--cacert <(printf '%s' "$CA")} "$URL/v2/"
}
