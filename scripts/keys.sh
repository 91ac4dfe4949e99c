#!/usr/bin/env bash
# One SSH key pair for the stack and one host key for each machine it makes.
# usage: keys.sh NAME...   prints {"NAME": {"private": "…", "public": "…"}, …}; the caller keeps it secret
# in: PULUMI_COMMAND_STDOUT, what it printed before: those keys stay
set -euo pipefail
umask 077
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# all of them are made before any is printed: the output of a command that fails is shown
for name in "$@"; do
  if kept=$(jq -ne --arg name "$name" 'env.PULUMI_COMMAND_STDOUT | fromjson | {($name): (.[$name] // error)}' 2>/dev/null); then
    printf '%s\n' "$kept" >>"$dir/.pairs"
    continue
  fi
  ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$dir/$name" >&2
  jq -n --arg name "$name" --rawfile private "$dir/$name" --rawfile public "$dir/$name.pub" \
    '{($name): {private: $private, public: ($public | rtrimstr("\n"))}}' >>"$dir/.pairs"
done
jq -sc add "$dir/.pairs"
