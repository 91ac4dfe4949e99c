# shellcheck shell=bash
# The images that the program's Dockerfiles start FROM, in the local engine under their upstream names:
# pulled, or made here.
BASE=debian:$DEBIAN-slim
BINARIES=spdk-k8s/kubernetes:v$KUBERNETES # /usr/local/bin/{kubelet,kubeadm,kubectl} and /opt/cni/bin
UPSTREAM=(registry.k8s.io/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy}:v"$KUBERNETES"
  registry.k8s.io/etcd:"$ETCD" registry.k8s.io/coredns/coredns:v"$COREDNS" registry.k8s.io/pause:"$PAUSE")

pull() { [ -z "${SPDK_K8S_OFFLINE:-}" ] && timeout 900 docker pull "$1"; }

base_image() {
  if docker image inspect "$BASE" >/dev/null 2>&1; then
    did "$BASE, there already"
  elif pull "$BASE"; then
    did "$BASE, released"
  else
    base_offline
    did "$BASE, made from the Debian mirror: its registry cannot be reached"
  fi
}

base_offline() {
  local mirror=http://deb.debian.org tree
  has mmdebstrap || install_packages mmdebstrap debian-archive-keyring
  tree=$(mktemp -d "$CACHE/tmp.XXXXXX")
  # shellcheck disable=SC2016 # $1 is mmdebstrap's
  mmdebstrap --variant=minbase --include=ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/etc/hostname "$1"/etc/resolv.conf' \
    "$DEBIAN" "$tree/base.tar" "deb $mirror/debian $DEBIAN main" "deb $mirror/debian $DEBIAN-updates main" \
    "deb $mirror/debian-security $DEBIAN-security main"
  docker import --change 'CMD ["bash"]' --change 'LABEL io.spdk-k8s.source=offline' "$tree/base.tar" "$BASE"
  rm -r "$tree"
}

# What `pulumi up` builds of images/ in most stacks, built ahead while compilers run: it finds the layers in the engine.
# A failure is left to `pulumi up`: it says more.
images_ahead() {
  local socket arguments image pid failed=()
  local -a made=() # by the process that builds it
  socket=$(docker context inspect -f '{{.Endpoints.docker.Host}}')
  if [[ "$socket" != unix://* ]]; then
    did "left to pulumi up: the engine is on another machine"
    return
  fi
  arguments=$(.venv/bin/python -c 'from settings.models import Vm; print(Vm().disk_slots)' |
    jq --raw-input --arg BASE "$BASE" '{BASE: $BASE, COUNT: .}')
  for image in node/machine node/guest vhost/qemu-storage-daemon video/ media/ \
    monitoring/node-exporter monitoring/prometheus; do
    bash "${ROOT:?}/setup/build-ahead" "${image%/*}" "${image#*/}" <<<"$arguments" >"$CACHE/logs/image-${image/\//-}.log" 2>&1 &
    made[$!]=$image
  done
  for pid in "${!made[@]}"; do
    wait "$pid" || failed+=("${made[pid]}")
  done
  did "built ahead${failed[*]:+, but for ${failed[*]}: left to pulumi up}"
}

# SPDK is built inside its image, from a Git tag; here it only matters whether that will be there.
spdk_release() {
  if [ -e "$CACHE/spdk-$SPDK" ] || spdk_in_reach; then
    touch "$CACHE/spdk-$SPDK"
    did "v$SPDK, released: its image is built where vhost.backend asks for it"
  elif [ -n "${SPDK_SOURCE:-}" ]; then
    did "v$SPDK cannot be fetched: its image is built from $SPDK_SOURCE"
  else
    did "v$SPDK cannot be fetched: its image needs a local source (SPDK_SOURCE=DIR), else vhost.backend auto is qemu-storage-daemon"
  fi
}

# Asks for the tag's commit as images/spdk-source will: another answer is not SPDK's release.
spdk_in_reach() {
  [ -z "${SPDK_K8S_OFFLINE:-}" ] &&
    GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote "${SPDK_K8S_SPDK_URL:-https://github.com/spdk/spdk.git}" "refs/tags/v$SPDK" "refs/tags/v$SPDK^{}" |
    grep -q "^$SPDK_COMMIT"
}

# Can the engine serve at all? operate/engine.py decides, on what the engine says of itself.
engine_fits() {
  local said
  said=$(cd "${ROOT:?}" && .venv/bin/python -m operate.engine 2>&1) || die "$said"
  did "${said:-runs on this machine, as root}"
}

# Does the engine grant --privileged, as the dev machines need it? Asked once for each engine.
privileged() {
  local engine mark=$CACHE/privileged
  engine=$(docker info -f '{{.ID}} {{.ServerVersion}} {{.DefaultRuntime}} {{json .SecurityOptions}}')
  if [ "$(cat "$mark" 2>/dev/null)" != "$engine" ]; then
    if ! timeout 60 docker run --rm --privileged --network none "$BASE" true; then
      die "the running Docker engine refuses --privileged containers: probably this machine withholds capabilities from it." \
        "Remedy: stop that engine and run this again, then one is started with a runtime that fits; or make" \
        "${ROOT:?}/setup/runc-bounded its default-runtime in /etc/docker/daemon.json and restart it."
    fi
    echo "$engine" >"$mark"
  fi
  did "the engine grants it"
}

kubernetes() {
  KEY=$(hash offline/{build,go.mod,go.sum,coredns,kube-proxy,pause})
  if kubernetes_present; then
    did "v$KUBERNETES, images there already"
  elif kubernetes_released; then
    did "v$KUBERNETES, released"
  else
    kubernetes_offline
    did "v$KUBERNETES, built from Go modules: releases cannot be reached"
  fi
}

# Are all images there, and those that were built here built from what is in the tree now?
kubernetes_present() {
  docker image inspect "$BINARIES" "${UPSTREAM[@]}" 2>/dev/null |
    jq -e --arg key "$KEY" 'all(.[]; .Config.Labels["io.spdk-k8s.key"] // $key | . == $key)' >/dev/null &&
    [ -d "$CACHE/kubernetes-$KUBERNETES" ]
}

kubernetes_released() {
  local image
  for image in "${UPSTREAM[@]}"; do
    pull "$image" || return 1
  done
  cached "kubernetes-$KUBERNETES" binaries_released && import_binaries released
}

binaries_released() {
  local base=${SPDK_K8S_KUBERNETES_URL:-https://dl.k8s.io/release}/v$KUBERNETES/bin/linux/amd64 name
  local cni=${SPDK_K8S_CNI_URL:-https://github.com/containernetworking/plugins/releases/download}/v$CNI_PLUGINS
  mkdir "$1/bin" "$1/cni"
  for name in kubeadm kubectl kubelet; do
    fetch "$base/$name" "$1/bin/$name" && fetch "$base/$name.sha256" "$1/sum" &&
      sha256sum --check --strict <<<"$(cat "$1/sum")  $1/bin/$name" && chmod 0755 "$1/bin/$name" || return 1
  done
  name=cni-plugins-linux-amd64-v$CNI_PLUGINS.tgz
  fetch "$cni/$name" "$1/$name" && fetch "$cni/$name.sha256" "$1/sum" &&
    (cd "$1" && sha256sum --check --strict sum && tar -xzf "$name" -C cni) && rm "$1/$name" "$1/sum"
}

# Of all that its images are made of, by one build after another: each compiles on all cores.
kubernetes_built() {
  local name
  for name in kubernetes etcd coredns pause; do
    bash "$ROOT/offline/build" "$name" "$1/bin" || return 1
  done
  bash "$ROOT/offline/build" cni "$1/cni" && echo "$KEY" >"$1/key"
}

kubernetes_offline() {
  local root=$CACHE/kubernetes-$KUBERNETES name
  go_ready
  [ "$(cat "$root/key" 2>/dev/null)" = "$KEY" ] || rm -rf "$root" # released, or of another checkout
  cached "kubernetes-$KUBERNETES" kubernetes_built

  import_binaries offline
  for name in kube-apiserver kube-controller-manager kube-scheduler; do
    import "registry.k8s.io/$name:v$KUBERNETES" offline "/usr/local/bin/$name" "$root/bin/$name"
  done
  import "registry.k8s.io/etcd:$ETCD" offline /usr/local/bin/etcd "$root/bin/etcd"
  import "registry.k8s.io/coredns/coredns:v$COREDNS" offline /coredns "$root/bin/coredns"
  import "registry.k8s.io/pause:$PAUSE" offline /pause "$root/bin/pause"
  kube_proxy_offline "$root/bin/kube-proxy"
}

# import IMAGE SOURCE ENTRYPOINT PROGRAM   an image of one program and nothing else
import() {
  local image=$1 source=$2 entrypoint=$3 tree
  tree=$(mktemp -d "$CACHE/tmp.XXXXXX")
  install -D -m 0755 "$4" "$tree$entrypoint"
  install -d -m 1777 "$tree/tmp"
  import_tree "$tree" "$image" "$source" --change "ENTRYPOINT [\"$entrypoint\"]"
}

import_binaries() {
  local root=$CACHE/kubernetes-$KUBERNETES tree
  tree=$(mktemp -d "$CACHE/tmp.XXXXXX")
  mkdir -p "$tree"/{usr/local/bin,opt/cni/bin}
  cp "$root"/bin/{kubeadm,kubectl,kubelet} "$tree/usr/local/bin"
  cp "$root"/cni/{bridge,host-local,loopback,portmap} "$tree/opt/cni/bin"
  import_tree "$tree" "$BINARIES" "$1"
}

# import_tree FOLDER IMAGE SOURCE [OPTION…]
import_tree() {
  local tree=$1 image=$2 source=$3
  shift 3
  chmod -R u=rwX,go+rX "$tree" # whatever the umask is here
  tar -C "$tree" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -c . |
    docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' \
      --change "LABEL io.spdk-k8s.key=$KEY io.spdk-k8s.source=$source" "$@" - "$image"
  rm -r "$tree"
}

kube_proxy_offline() {
  local tree proxy name arguments=(--build-arg "BASE=$BASE")
  tree=$(mktemp -d "$CACHE/tmp.XXXXXX")
  cp "$1" "$ROOT/offline/kube-proxy/Dockerfile" "$tree"
  proxy=$(cd "$ROOT" && .venv/bin/python -m settings.proxy)
  for name in $(jq -r 'keys[]' <<<"$proxy"); do
    export "$name=$(jq -r ".$name" <<<"$proxy")"
    arguments+=(--build-arg "$name") # the value, in which a password may be, comes from the environment
  done
  docker build "${arguments[@]}" --label "io.spdk-k8s.key=$KEY" --label io.spdk-k8s.source=offline \
    --tag "registry.k8s.io/kube-proxy:v$KUBERNETES" "$tree"
  rm -r "$tree"
}
