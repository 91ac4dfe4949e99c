# shellcheck shell=bash
# Makes the machine a node by `kubeadm join`, with a token of this step's own that lives for minutes; node_ready.sh deletes
# it.
# in: CONFIG (kubeadm v1beta4, with @TOKEN@)   KUBECONFIG_TEXT (secret)   NODE
#
# STATE/joined says that `kubeadm join` came to its end. Without it, or if the node has joined another cluster (the control
# plane was made anew since), whatever there is of the node is removed and it joins anew.
dir=$(mktemp -d -p /dev/shm) # memory: the admin's credentials never touch this machine's disk
trap 'rm -rf "$dir"' EXIT
export KUBECONFIG=$dir/admin
kubernetes=/etc/kubernetes

step() {
  (umask 077 && printf '%s' "${KUBECONFIG_TEXT:-}" >"$KUBECONFIG")
  if [ "$1" = down ]; then
    # a VM lets go of its disks while the target still serves them
    systemctl stop spdk-k8s-vm.service 'spdk-k8s-vm-[0-9].service' 'spdk-k8s-vm-[0-9][0-9].service' 2>/dev/null || true
    timeout 60 kubectl delete node "$NODE" --ignore-not-found --timeout=30s --request-timeout=15s >&2 || say "the cluster does not answer: node $NODE stays listed"
    timeout 180 kubeadm reset --force --cleanup-tmp-dir >&2 || true
    rm -f /var/log/spdk-k8s-kubeadm.log "$STATE/joined"
    return
  fi
  if joined; then
    systemctl start containerd kubelet
    # a kubelet registers its node only as it starts
    kubectl get node "$NODE" >/dev/null 2>&1 || systemctl restart kubelet
    return
  fi
  rm -f "$STATE/joined"
  if [ -e $kubernetes/kubelet.conf ] || [ -e $kubernetes/bootstrap-kubelet.conf ] || [ -e $kubernetes/pki/ca.crt ]; then
    say "removing what is left of an earlier kubeadm join"
    kubeadm reset --force >/dev/null 2>&1 || true
    # kubeadm refuses the name of a node that still counts as Ready
    kubectl delete node "$NODE" --ignore-not-found --timeout=60s >&2
  fi
  local token
  token=$(kubeadm token create --ttl 10m --description "join of $NODE")
  (umask 077 && printf '%s' "${CONFIG//@TOKEN@/$token}" >"$dir/join.yaml")
  say "kubeadm join"
  (unset KUBECONFIG && quietly kubeadm join --config "$dir/join.yaml")
  install -d "$STATE"
  touch "$STATE/joined"
}

joined() { [ -f "$STATE/joined" ] && [ -f $kubernetes/kubelet.conf ] && ! of_another_cluster; }
of_another_cluster() { local hash && hash=$(ca_hash) && [[ "$CONFIG" != *"sha256:$hash"* ]]; } 2>/dev/null
