# shellcheck shell=bash
# Drains the node of a worker VM that is about to boot anew with another definition: one VM of the cluster at a time. Runs
# on the control plane's machine. A node that is not listed, as at the first bring-up, has nothing to drain.
# in: NODE DEFINITION (the name that QEMU is to have)
#
# Two annotations of the node: spdk-k8s/definition is the one that it runs with; spdk-k8s/changing says, from here on, that
# the node is drained, whether its owner had cordoned it before, and which video pods were ready on it. scripts/node_ready.sh
# writes the first and removes the second, once these pods are back.
export KUBECONFIG=/etc/kubernetes/admin.conf

step() {
  [ "$1" = up ] || return 0
  [ -f "$STATE/control-plane" ] || return 0 # there is no cluster yet
  wait_for 180 "the API server on $(hostname) to answer" kubectl --request-timeout 10s get --raw /readyz
  local node mark
  # shellcheck disable=SC2153 # NODE is a value of the step
  node=$(kubectl get node "$NODE" --ignore-not-found -o json)
  mark=$(annotation changing <<<"$node")
  if [ -z "$node" ] || { [ -z "$mark" ] && [ "$(annotation definition <<<"$node")" = "$DEFINITION" ]; }; then return; fi
  exec 8>>"$STATE/drained.lock"
  flock -w 2100 8 || fail "waited 2100 s for the other VMs of the cluster that are to be changed"
  if [ -n "$(others)" ]; then say "waiting: $(others) comes first"; fi
  wait_for 1800 "the VM of node $(others) to be changed and back; mend that one first" alone
  node=$(kubectl get node "$NODE" -o json)
  mark=$(annotation changing <<<"$node")
  local pods before=schedulable limit
  if [ "$(jq .spec.unschedulable <<<"$node")" = true ]; then before=cordoned; fi
  pods=$(ready_pods)
  # of a step that was cut off: what was so before it counts
  [ -z "$mark" ] || before=${mark%% *} pods+=" ${mark#* }"
  # shellcheck disable=SC2086 # words
  kubectl annotate --overwrite node "$NODE" "spdk-k8s/changing=$before $(printf '%s\n' $pods | sort -u | xargs)" >&2
  say "draining node $NODE, because the definition of its VM changes"
  kubectl cordon "$NODE" >&2
  if ! ready <<<"$node"; then return; fi # its kubelet ends no pod
  limit=$((120 + 5 * $(wc -w <<<"$pods"))) # an emulated CPU ends one pod after the other
  kubectl drain "$NODE" --ignore-daemonsets --delete-emptydir-data --timeout="${limit}s" >&2 ||
    fail "node $NODE is not drained within $limit s, so its VM was not touched; mend what kubectl drain says above, then make up; or take the change of the config back and make up"
}

annotation() { jq -r --arg key "spdk-k8s/$1" '.metadata.annotations[$key] // empty'; }
ready() { jq -e '.status.conditions[]? | select(.type == "Ready" and .status == "True")' >/dev/null; }

# Other nodes whose VMs are being changed.
others() {
  kubectl get nodes -o json |
    jq -r --arg node "$NODE" '[.items[].metadata | select(.annotations["spdk-k8s/changing"] and .name != $node).name] | join(" and ")'
}
alone() { local names && names=$(others) && [ -z "$names" ]; }

# The video pods here that will be back on this node.
ready_pods() {
  kubectl -n spdk-k8s get pods --field-selector "spec.nodeName=$NODE" -o json | jq -r '[.items[]
    | select(any(.metadata.ownerReferences[]?; .kind == "StatefulSet"))
    | select(any(.status.conditions[]?; .type == "Ready" and .status == "True")).metadata.name] | join(" ")'
}
