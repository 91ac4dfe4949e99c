# shellcheck shell=bash
# Checks, before anyone logs in, that a machine answers and shows the host key that is in the config.
# in: AT (the machine's config key, such as machines.worker1) ADDRESS PORT HOST_KEY

step() {
  local said kind shown
  if ! said=$(timeout 10 bash -c "exec 3<>/dev/tcp/$ADDRESS/$PORT" 2>&1); then
    said=${said##*: }
    fail "spdk-k8s:$AT.address = $ADDRESS: nobody answers at port $PORT (${said:-no word in 10 s}); mend: start the machine and its sshd, or: pulumi config set --path $AT.address ADDRESS"
  fi
  # a jump host may have no SSH client; then the login checks the key
  command -v ssh-keyscan >/dev/null || return 0
  kind=${HOST_KEY%% *} kind=${kind#ssh-} kind=${kind%%-*}
  shown=$(timeout 20 ssh-keyscan -T 10 -p "$PORT" -t "$kind" "$ADDRESS" 2>/dev/null | grep -v '^#' | cut -d' ' -f2-3 | head -n 1) || true # some versions print more lines
  if [ "$shown" != "$(cut -d' ' -f1-2 <<<"$HOST_KEY")" ]; then
    fail "spdk-k8s:$AT.hostKey = ${HOST_KEY:0:40}…: the machine at $ADDRESS:$PORT shows another key (${shown:-none of that kind}): it is another machine, or somebody is between; if it really is this one: pulumi config set --path $AT.hostKey '${shown:-ssh-ed25519 AAAA…}'"
  fi
}
