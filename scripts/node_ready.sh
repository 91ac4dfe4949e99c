# shellcheck shell=bash
# Labels a node that has joined, waits until it is Ready, and deletes its join token. A node that scripts/drained.sh has
# drained takes pods again, and this waits for those that were ready on it. Runs on the control plane's machine, because
# each kubectl would cost an emulated CPU seconds.
# in: NODE LABELS DEFINITION (of its VM, empty: it is none)
export KUBECONFIG=/etc/kubernetes/admin.conf

step() {
  [ "$1" = up ] || return 0
  wait_for 60 "node $NODE to be listed" kubectl get node "$NODE"
  # shellcheck disable=SC2086 # a list of labels
  kubectl label --overwrite node "$NODE" $LABELS >&2
  local mark
  mark=$(kubectl get node "$NODE" -o json | jq -r '.metadata.annotations["spdk-k8s/changing"] // empty')
  # its kubelet is just starting: pods that are bound to it now start as soon as it does
  [ "${mark%% *}" != schedulable ] || kubectl uncordon "$NODE" >&2
  kubectl wait --for=condition=Ready --timeout=300s "node/$NODE" >&2 || fail "node $NODE does not become Ready: $(why)"
  [ "${mark%% *}" != schedulable ] || pods_are_back "${mark#* }"
  [ -z "${DEFINITION:-}" ] || kubectl annotate --overwrite node "$NODE" "spdk-k8s/definition=$DEFINITION" spdk-k8s/changing- >&2
  kubeadm token list -o json | jq -r --arg use "join of $NODE" 'select(.description == $use) | .token' |
    xargs -rn1 kubeadm token delete >&2
}

why() { kubectl get node "$NODE" -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}'; }

# pods_are_back NAMES   those that nobody wants any more are not waited for, nor those that a smaller N is about to end
pods_are_back() {
  local names
  read -ra names <<<"$1"
  ((${#names[@]})) || return 0
  wait_for $((300 + 10 * ${#names[@]})) "the pods of node $NODE to be ready again; look: kubectl -n spdk-k8s get pods -o wide" back "${names[@]}"
}
back() {
  local name pods wanted=() ordinals
  ordinals=$(kubectl -n spdk-k8s get configmaps -o json | jq -r '.items[].data["vhost.json"] // empty | fromjson.disks[].ordinal') || return
  for name; do
    if grep -qx "${name##*-}" <<<"$ordinals"; then wanted+=("$name"); fi
  done
  ((${#wanted[@]})) || return 0
  pods=$(kubectl -n spdk-k8s get pods "${wanted[@]}" --ignore-not-found -o name) || return
  # shellcheck disable=SC2086 # a list of names
  [ -z "$pods" ] || kubectl -n spdk-k8s wait --for=condition=Ready --timeout=20s $pods
}
