# shellcheck shell=bash
# Installs the OS packages that are missing, by apt; prints the command where this user may not install any.

# needs COMMAND PACKAGE…   notes the packages if the command is missing
needs() {
  local command=$1
  shift
  has "$command" || [ -x "/usr/sbin/$command" ] || missing+=("$@")
}

packages() {
  local missing=()
  [ -n "${ENGINE:-}" ] || needs dockerd docker.io
  needs docker docker.io
  needs iptables iptables
  needs ip iproute2
  needs jq jq
  needs curl curl
  needs git git
  needs openssl openssl
  needs ssh-keygen openssh-client
  [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  has uv || [ -d "$CACHE/uv-$UV" ] || has_venv || missing+=(python3-venv)
  if [ -n "$TESTS" ]; then
    needs ffmpeg ffmpeg
    if ! has chromedriver; then missing+=(chromium chromium-driver); fi
  fi
  if ((!${#missing[@]})); then
    did "nothing is missing"
    return
  fi
  install_packages "${missing[@]}"
  if ! has docker; then # newer releases split the client off
    install_packages docker-cli
  fi
}

has_venv() { python3 -c 'import ensurepip' 2>/dev/null; }

install_packages() {
  if ! has apt-get || ! may_root; then
    die "these packages are missing, and this user may not install them. Run, then try again:" \
      "  sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
  fi
  as_root apt-get update -q
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
  did "installed $*"
}
