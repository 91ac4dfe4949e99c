# shellcheck shell=bash
# Labels a node that has joined, waits until it is Ready, and deletes its join token. Runs on the control plane's machine,
# because each kubectl would cost an emulated CPU seconds.
# in: NODE LABELS
export KUBECONFIG=/etc/kubernetes/admin.conf

step() {
  [ "$1" = up ] || return 0
  wait_for 60 "node $NODE to be listed" kubectl get node "$NODE"
  # shellcheck disable=SC2086 # a list of labels
  kubectl label --overwrite node "$NODE" $LABELS >&2
  kubectl wait --for=condition=Ready --timeout=180s "node/$NODE" >&2 || fail "node $NODE does not become Ready: $(why)"
  kubeadm token list -o json | jq -r --arg use "join of $NODE" 'select(.description == $use) | .token' |
    xargs -rn1 kubeadm token delete >&2
}

why() { kubectl get node "$NODE" -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}'; }
