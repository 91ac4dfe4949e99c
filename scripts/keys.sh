#!/usr/bin/env bash
# One SSH key pair for the stack and one host key for each machine it makes.
# usage: keys.sh NAME...   prints {"NAME": {"private": "…", "public": "…"}, …}; the caller keeps it secret
set -euo pipefail
umask 077
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for name in "$@"; do
  ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$dir/$name"
  jq -n --arg name "$name" --rawfile private "$dir/$name" --rawfile public "$dir/$name.pub" \
    '{($name): {private: $private, public: ($public | rtrimstr("\n"))}}'
done | jq -sc add
