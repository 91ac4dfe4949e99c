#!/usr/bin/env bash
# Is it the right machine? Before anybody logs in there: it answers, and shows the host key that the config says.
# usage: reach.sh KEY ADDRESS PORT HOST_KEY      KEY: where the config speaks of it, such as machines.worker1
set -euo pipefail
key=$1 address=$2 port=$3 expected=$4
fail() {
  printf 'error: spdk-k8s:%s\n' "$1" >&2
  exit 1
}

if ! said=$(timeout 10 bash -c "exec 3<>/dev/tcp/$address/$port" 2>&1); then
  said=${said##*: }
  fail "$key.address = $address: nobody answers at port $port (${said:-no word in 10 s}); mend: start the machine and its sshd, or: pulumi config set --path $key.address ADDRESS"
fi

kind=${expected%% *} kind=${kind#ssh-} kind=${kind%%-*}
shown=$(timeout 20 ssh-keyscan -T 10 -p "$port" -t "$kind" "$address" 2>/dev/null | cut -d' ' -f2-3 | head -n 1) || true
if [ "$shown" != "$(cut -d' ' -f1-2 <<<"$expected")" ]; then
  fail "$key.hostKey = ${expected:0:40}…: the machine at $address:$port shows another key (${shown:-none of that kind}): it is another machine, or somebody is between; if it really is this one: pulumi config set --path $key.hostKey '${shown:-ssh-ed25519 AAAA…}'"
fi
