# shellcheck shell=bash
# kubeadm join, once, with a token of this step's own that lives for minutes; node_ready.sh deletes it.
# in: CONFIG (kubeadm v1beta4, with @TOKEN@)   KUBECONFIG_TEXT (secret)   NODE
dir=$(mktemp -d -p /dev/shm) # memory: the admin's credentials never touch this machine's disk
trap 'rm -rf "$dir"' EXIT
export KUBECONFIG=$dir/admin

step() {
  (umask 077 && printf '%s' "$KUBECONFIG_TEXT" >"$KUBECONFIG")
  if [ "$1" = down ]; then
    timeout 60 kubectl delete node "$NODE" --ignore-not-found --timeout=30s >&2 || say "the cluster does not answer: node $NODE stays listed"
    kubeadm reset --force --cleanup-tmp-dir >&2 || true
    rm -f /var/log/spdk-k8s-kubeadm.log
    return
  fi
  if [ -f "$STATE/joined" ] && [ -f /etc/kubernetes/kubelet.conf ]; then
    systemctl start kubelet
  else
    [ ! -f /etc/kubernetes/kubelet.conf ] || kubeadm reset --force >/dev/null 2>&1 || true # half a join
    local token
    token=$(kubeadm token create --ttl 10m --description "join of $NODE")
    (umask 077 && printf '%s' "${CONFIG//@TOKEN@/$token}" >"$dir/join.yaml")
    say "kubeadm join"
    (unset KUBECONFIG && quietly kubeadm join --config "$dir/join.yaml")
    install -d "$STATE"
    touch "$STATE/joined"
  fi
}
