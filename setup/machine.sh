# shellcheck shell=bash
# Refuses a machine that lacks memory, disk, rights or a usable engine, with every reason at once.

check_machine() {
  local wrong=() available need=12 data=/var/lib/docker folder free why
  [ "$(uname -sm)" = "Linux x86_64" ] || wrong+=("system is $(uname -sm): Linux x86_64 is needed")

  available=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  ((available >= 6)) || wrong+=("memory: $available GiB available, 6 GiB are needed; end other programs or use a larger machine")

  ENGINE=$(docker info -f '{{.DockerRootDir}}' 2>/dev/null) || ENGINE='' # for later steps: empty where none answers
  if [ -n "$ENGINE" ]; then
    data=$ENGINE
  elif has docker && ! why=$(bash "$ROOT/setup/engine" check); then
    wrong+=("Docker: $why")
  fi

  [ ! -e "$CACHE/complete" ] || need=4 # no toolchain left to build
  for folder in "$CACHE" "$data"; do
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1048576)}')
    ((free >= need)) || wrong+=("disk: $free GiB free at $folder, $need GiB are needed; make room there, or move the cache with SPDK_K8S_CACHE and Docker's data with data-root in /etc/docker/daemon.json")
  done

  if ! has docker && ! may_root; then
    wrong+=("user $(id -un): neither root nor sudo without a password, and Docker is not installed; run as root, or install it: sudo apt-get install docker.io")
  fi
  if ((${#wrong[@]})); then
    die "this machine does not serve; nothing was changed:" "${wrong[@]/#/  - }"
  fi
  echo "✓ machine             $available GiB memory, $free GiB disk available, $(nproc) CPUs"
}
