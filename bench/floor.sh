#!/usr/bin/env bash
# The same bring-up by hand, with plain docker, ssh, kubeadm and kubectl: the lower limit for the time of `make up`.
# usage: eval "$(make env)"; bench/floor.sh [NUMINST]    prints each phase with its seconds, then removes everything
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-3}
# shellcheck source=../versions.env
. versions.env
dir=$(mktemp -d)
registry=172.30.93.2:5000
trap down EXIT

down() {
  docker rm -fv floor-master floor-worker1 >/dev/null 2>&1 || true
  docker volume rm floor-master floor-worker1 >/dev/null 2>&1 || true
  docker network rm floor >/dev/null 2>&1 || true
  scripts/engine_trust.sh down $registry
  rm -rf "$dir"
}
at() { printf '%5d s  %s\n' $((SECONDS - began)) "$*"; }
on() { # on MACHINE STEP
  docker exec -i "floor-$1" bash -s up <"$dir/$2.sh" >"$dir/$2.out" 2>"$dir/$2.log" || { cat "$dir/$2.log" >&2; return 1; }
}
guest() {
  ssh -i "$dir/key" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    -o ConnectTimeout=2 root@172.30.93.4 "$@"
}
until_true() { # until_true SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "gave up on: $*" >&2; return 1; }
    sleep 0.3
  done
}
push() { # push ID NAME:TAG
  docker tag "$1" "$registry/$2"
  docker --config "$dir/docker" push -q "$registry/$2" >/dev/null
}

# The images that an earlier `up` of any stack built from this checkout.
declare -A images=()
add() { # add NAME TAG NAME:TAG   its name and tag in the engine, and the name under which it is pushed
  local id
  id=$(docker images -q --filter "reference=*/$1:$2" | head -n 1)
  [ -n "$id" ] || {
    echo "there is no image $1:$2; remedy: make up && make down, then run this again" >&2
    exit 1
  }
  images[$3]=$id
}
while read -r name tag; do add "$name" "$tag" "$name:floor"; done < <(python -m bench.inputs images)
add etcd "$ETCD" "etcd:$ETCD"
add coredns "v$COREDNS" "coredns:v$COREDNS"
add pause "$PAUSE" "pause:$PAUSE"
for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do
  add "$name" "v$KUBERNETES" "$name:v$KUBERNETES"
done
machine_image=${images[machine:floor]}
unset 'images[machine:floor]'

began=$SECONDS
scripts/keys.sh client master worker1 worker2 >"$dir/keys.json"
scripts/certificate.sh ${registry%:*} >"$dir/certificate.json"
(umask 077 && jq -r .client.private "$dir/keys.json" >"$dir/key")
python -m bench.inputs "$dir" "$count"
docker network create --subnet 172.30.93.0/24 floor >/dev/null
for machine in master:2 worker1:3; do
  name=${machine%:*}
  docker run -d --name "floor-$name" --hostname "$name" --privileged --cgroupns=private --network floor \
    --ip "172.30.93.${machine#*:}" --tmpfs /run --tmpfs /tmp -e SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 \
    -v "floor-$name:/var" "$machine_image" >/dev/null
done
until_true 60 docker exec floor-worker1 systemctl is-active multi-user.target
at "machines run"
on master registry
jq -r .ca "$dir/certificate.json" | scripts/engine_trust.sh up $registry
jq -r .password "$dir/certificate.json" | docker --config "$dir/docker" login -u spdk-k8s --password-stdin $registry >/dev/null 2>&1
pids=()
for image in "${!images[@]}"; do
  push "${images[$image]}" "$image" &
  pids+=($!)
done
wait "${pids[@]}"
at "registry filled"
on master master-node &
on worker1 worker1-node
wait
on worker1 vm &
on master control-plane
at "control plane Ready"
export KUBECONFIG=$dir/kubeconfig
jq -r .kubeconfig "$dir/control-plane.out" >"$KUBECONFIG"
join=$(docker exec floor-master kubeadm token create --print-join-command)
docker exec floor-worker1 sh -c "$join --patches /etc/kubernetes/patches --ignore-preflight-errors=SystemVerification,Swap" >"$dir/join.log" 2>&1
kubectl label node master type1=master --overwrite >/dev/null
until_true 60 kubectl label node worker1 type1=worker1 --overwrite # as soon as the node exists
kubectl apply -f "$dir/vhost.yaml" >/dev/null
kubectl -n spdk-k8s rollout status deploy/cb-vhost-p0 --timeout=180s >/dev/null
at "vhost target serves"
wait
until_true 180 guest true
at "VM answers"
on worker1 disks
guest bash -s up <"$dir/worker2-node.sh" >"$dir/worker2-node.out" 2>&1
guest "$join --patches /etc/kubernetes/patches" >>"$dir/join.log" 2>&1
until_true 60 kubectl label node worker2 type1=worker2 --overwrite
kubectl wait --for=condition=Ready --timeout=180s node/worker2 >/dev/null
at "VM is a Ready node"
kubectl apply -f "$dir/video.yaml" >/dev/null
for ((i = 0; i < count; i++)); do until_true 300 curl -sf --noproxy '*' "http://172.30.93.4:$((8080 + i))/healthz"; done
at "pages answer"
