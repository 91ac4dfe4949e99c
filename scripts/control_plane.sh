# shellcheck shell=bash
# kubeadm init, once. Result: {"kubeconfig", "caHash"} (secret).
# in: CONFIG (kubeadm v1beta4)   NODE
kubeconfig=/etc/kubernetes/admin.conf

step() {
  if [ "$1" = down ]; then
    timeout 180 kubeadm reset --force --cleanup-tmp-dir >&2 || true
    [ "$(readlink /root/.kube/config)" != $kubeconfig ] || rm -rf /root/.kube/config /root/.kube/cache
    rmdir /root/.kube 2>/dev/null || true
    rm -rf /var/lib/etcd /var/log/spdk-k8s-kubeadm.log "$STATE/control-plane"
    return
  fi
  write 0600 /etc/kubernetes/kubeadm.yaml <<<"$CONFIG" || true
  if [ -f "$STATE/control-plane" ]; then systemctl start containerd kubelet; fi
  if ! [ -f $kubeconfig ] || ! kubectl --kubeconfig $kubeconfig get --raw /readyz >/dev/null 2>&1; then
    # a control plane that was set up before only needs its time to start; half a one is made anew
    if [ -f "$STATE/control-plane" ]; then
      wait_for 180 "the API server to start" kubectl --kubeconfig $kubeconfig get --raw /readyz
    else
      kubeadm reset --force >/dev/null 2>&1 || true
      systemctl restart spdk-k8s-routes
      say "kubeadm init"
      quietly kubeadm init --config /etc/kubernetes/kubeadm.yaml --skip-token-print
    fi
  fi
  install -d "$STATE"
  touch "$STATE/control-plane"
  install -d -m 0700 /root/.kube
  [ -e /root/.kube/config ] || ln -s $kubeconfig /root/.kube/config # not over one of the user's own
  if ! listed; then # its object was deleted: a kubelet registers it only as it starts
    systemctl restart kubelet
    wait_for 60 "node $NODE to be listed" listed
    kubeadm init phase mark-control-plane --config /etc/kubernetes/kubeadm.yaml >&2
  fi
  wait_for 120 "node $NODE to be Ready" node_ready
  kubectl --kubeconfig $kubeconfig label --overwrite node "$NODE" "type1=$NODE" >&2
  jq -nc --rawfile kubeconfig $kubeconfig --arg caHash "sha256:$(ca_hash)" '{$kubeconfig, $caHash}'
}

listed() { kubectl --kubeconfig $kubeconfig get node "$NODE"; } >/dev/null 2>&1
node_ready() { kubectl --kubeconfig $kubeconfig wait --for=condition=Ready --timeout=1s "node/$NODE"; }
ca_hash() { openssl x509 -pubkey -noout -in /etc/kubernetes/pki/ca.crt | openssl pkey -pubin -outform der | sha256sum | cut -d' ' -f1; }
