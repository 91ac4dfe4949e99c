#!/usr/bin/env bash
# Seconds of `pulumi preview` from nothing: of an empty program, of dev with 3 instances and with 24.
# usage: eval "$(make env)"; bench/preview.sh [ROUNDS]    medians of 5 rounds; each round previews all three in turn
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
unset PULUMI_CONFIG_PASSPHRASE_FILE
export PULUMI_BACKEND_URL=file://$dir PULUMI_CONFIG_PASSPHRASE=bench PULUMI_SKIP_UPDATE_CHECK=true

# project NAME NUMINST   the program and what it reads, with a stack of its own
project() {
  mkdir "$dir/$1"
  ln -s "$PWD"/{Pulumi.yaml,components,images,scripts,versions.env,.venv} "$dir/$1"
  if [ -n "$2" ]; then ln -s "$PWD/__main__.py" "$dir/$1"; else touch "$dir/$1/__main__.py"; fi
  pulumi -C "$dir/$1" stack init "$1" 2>/dev/null
  if [ -n "$2" ]; then pulumi -C "$dir/$1" config set numinst "$2"; fi
}

# preview NAME   seconds that it took, and of them all processors' (a busy machine changes these less)
preview() {
  local TIMEFORMAT='%R %U %S'
  { time pulumi -C "$dir/$1" preview -s "$1" --non-interactive >"$dir/log" 2>&1 || cat "$dir/log" >&3; } 3>&2 2>"$dir/time"
  grep -q ' to create' "$dir/log"
  awk '{print $1, $2 + $3}' "$dir/time"
}

median() { # median NAME COLUMN
  cut -d ' ' -f "$2" "$dir/$1.seconds" | sort -n |
    awk '{s[NR] = $1} END {print (s[int((NR + 1) / 2)] + s[int(NR / 2) + 1]) / 2}'
}

# line TEXT NAME OTHER TEXT
line() {
  printf '%-18s %6.2f s  %5.2f s  ' "$1" "$(median "$2" 1)" "$(median "$2" 2)"
  awk -v a="$(median "$2" 1) $(median "$2" 2)" -v b="$(median "$3" 1) $(median "$3" 2)" -v of="$4" \
    'BEGIN {split(a, x, " "); split(b, y, " "); printf "%5.2f and %.2f x %s\n", x[1] / y[1], x[2] / y[2], of}'
}

project empty ''
project three 3
project many 24
for ((round = 0; round <= rounds; round++)); do # the first one fills the caches and does not count
  for name in empty three many; do
    seconds=$(preview "$name")
    if ((round)); then echo "$seconds" >>"$dir/$name.seconds"; fi
  done
done
echo 'preview of            took  processors'
line 'an empty program' empty empty itself
line 'dev, 3 instances' three empty 'the empty program'
line 'dev, 24 instances' many three '3 instances'
