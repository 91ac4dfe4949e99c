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

# Seconds that another apt may hold a lock: unattended upgrades do for minutes, mostly after a boot.
APT_PATIENCE=600

# apt-get waits for dpkg's lock by itself, but not for that of the lists.
package_lists() {
  local said end=$((SECONDS + APT_PATIENCE))
  until said=$(as_root env LC_ALL=C apt-get update -q 2>&1); do
    echo "$said"
    if [[ "$said" != *"Could not get lock"* ]] || ((SECONDS >= end)); then return 1; fi
    timeout 2 tail -f /dev/null || true
  done
}

has_venv() { python3 -c 'import ensurepip' 2>/dev/null; }

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends -o DPkg::Lock::Timeout=$APT_PATIENCE "$@"
}

install_packages() {
  if ! has apt-get || ! may_root; then
    die "these packages are missing, and this user may not install them. Run, then try again:" \
      "  sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
  fi
  package_lists
  if ! apt_install "$@"; then # apt-get does nothing after a set-up that was interrupted in dpkg's turn
    as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
    apt_install "$@"
  fi
  did "installed $*"
}
