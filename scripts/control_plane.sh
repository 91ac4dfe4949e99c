# shellcheck shell=bash
# Makes the control plane by `kubeadm init`. Prints {"kubeconfig", "caHash"} (secret).
# in: CONFIG (kubeadm v1beta4)   NODE
#
# STATE/control-plane says that `kubeadm init` came to its end. Without it, whatever there is of a control plane is half
# of one and is made anew: nothing has been deployed to it yet. STATE/control-plane.data says that only etcd's data is left
# (the machine's container was made anew, its volume was kept): a control plane is made anew around it.
kubeconfig=/etc/kubernetes/admin.conf
file=/etc/kubernetes/kubeadm.yaml
mark=$STATE/control-plane
# the phases of `kubeadm init` up to the one that waits for the API server
early=preflight,certs,kubeconfig,etcd,control-plane,kubelet-start

step() {
  if [ "$1" = down ]; then
    timeout 180 kubeadm reset --force --cleanup-tmp-dir >&2 || true
    [ "$(readlink /root/.kube/config)" != $kubeconfig ] || rm -rf /root/.kube/config /root/.kube/cache
    rmdir /root/.kube 2>/dev/null || true
    rm -rf /var/lib/etcd /var/log/spdk-k8s-kubeadm.log "$mark" "$mark.data"
    return
  fi
  write 0600 $file <<<"$CONFIG" || true
  if [ -f "$mark" ] && [ ! -e /etc/kubernetes/manifests/kube-apiserver.yaml ]; then mv "$mark" "$mark.data"; fi
  if [ -f "$mark" ]; then
    systemctl start containerd kubelet
    wait_for 180 "the API server to start" serves
    whole || later_phases # an earlier version set the mark too soon
  else
    { [ ! -f "$mark.data" ] && whole; } || make_anew
    install -d "$STATE"
    touch "$mark"
    rm -f "$mark.data"
  fi
  install -d -m 0700 /root/.kube
  [ -e /root/.kube/config ] || ln -s $kubeconfig /root/.kube/config # not over one of the user's own
  if ! listed; then # its object was deleted: a kubelet registers it only as it starts
    systemctl restart kubelet
    wait_for 60 "node $NODE to be listed" listed
    kubeadm init phase mark-control-plane --config $file >&2
  fi
  wait_for 120 "node $NODE to be Ready" node_ready
  kubectl --kubeconfig $kubeconfig label --overwrite node "$NODE" "type1=$NODE" >&2
  jq -nc --rawfile kubeconfig $kubeconfig --arg caHash "sha256:$(ca_hash)" '{$kubeconfig, $caHash}'
}

make_anew() {
  local init=(kubeadm init --config "$file" --skip-token-print)
  if [ -f "$mark.data" ] && [ -d /var/lib/etcd/member ]; then
    say "the control plane is made anew around etcd's data"
    kubeadm reset --force --skip-phases remove-etcd-member >/dev/null 2>&1 || true
    init+=(--ignore-preflight-errors DirAvailable--var-lib-etcd)
  else
    kubeadm reset --force >/dev/null 2>&1 || true
    rm -rf /var/lib/etcd
  fi
  systemctl restart spdk-k8s-routes
  say "kubeadm init"
  if ! (quietly "${init[@]}"); then
    # a slow machine: kubeadm gives some of its calls to the API server 10 s, and does not repeat them
    serves || fail "kubeadm init failed before the API server answered; the next \`up\` makes the control plane anew"
    later_phases
  fi
}

# Each of these phases can be repeated.
later_phases() {
  local attempt
  for attempt in 1 2 3; do
    say "kubeadm init, the phases after $early (attempt $attempt of 3)"
    wait_for 120 "the API server to answer" serves
    if (quietly kubeadm init --config $file --skip-token-print --skip-phases $early); then return; fi
  done
  fail "kubeadm init did not come to its end in 3 attempts"
}

serves() { kubectl --kubeconfig $kubeconfig --request-timeout 10s get --raw /readyz; } >/dev/null 2>&1

# What the last phases of `kubeadm init` make, and the admin's right to see it.
whole() {
  kubectl --kubeconfig $kubeconfig --request-timeout 10s -n kube-system get deployment/coredns daemonset/kube-proxy
} >/dev/null 2>&1

listed() { kubectl --kubeconfig $kubeconfig get node "$NODE"; } >/dev/null 2>&1
node_ready() { kubectl --kubeconfig $kubeconfig wait --for=condition=Ready --timeout=1s "node/$NODE"; }
