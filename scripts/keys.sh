#!/usr/bin/env bash
# One SSH key pair for the stack and one host key for each machine it makes.
# usage: keys.sh NAME...   prints {"NAME": {"private": "…", "public": "…"}, …}; the caller keeps it secret
# in: PULUMI_COMMAND_STDOUT, what it printed before: those keys stay
set -euo pipefail
shopt -s nullglob
umask 077
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
before=$(jq -c 'objects' <<<"${PULUMI_COMMAND_STDOUT:-}" 2>/dev/null) || before=
[ -n "$before" ] || before={}
missing=$(jq -r '$ARGS.positional - keys | .[]' --args "$@" <<<"$before")
for name in $missing; do
  ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$dir/$name" >&2
done
# all of them are made before any is printed: the output of a command that fails is shown
for public in "$dir"/*.pub; do
  name=${public##*/} name=${name%.pub}
  printf '%s\0' "$name" "$(<"${public%.pub}")"$'\n' "$(<"$public")"
done | jq -Rsc --slurpfile before <(printf '%s\n' "$before") '
  split("\u0000") as $made
  | reduce range(0; ($made | length) - 2; 3) as $i ($before[0]; .[$made[$i]] = {private: $made[$i + 1], public: $made[$i + 2]})
  | with_entries(select(.key | IN($ARGS.positional[])))' --args "$@"
