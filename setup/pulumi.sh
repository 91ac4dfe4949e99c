# shellcheck shell=bash
# The Pulumi CLI with its Python language host, and the providers that the program uses.
export PULUMI_HOME=$CACHE/pulumi-home PULUMI_SKIP_UPDATE_CHECK=true # the set-up's own home of the CLI

pulumi_cli() {
  cached "pulumi-$PULUMI" pulumi_released || cached "pulumi-$PULUMI" pulumi_offline
  did "v$PULUMI, $(cat "$CACHE/pulumi-$PULUMI/source")"
}

pulumi_released() {
  local base=${SPDK_K8S_PULUMI_URL:-https://github.com/pulumi/pulumi/releases/download/v$PULUMI}
  local archive=pulumi-v$PULUMI-linux-x64.tar.gz
  reachable "$base/pulumi-$PULUMI-checksums.txt" &&
    fetch "$base/pulumi-$PULUMI-checksums.txt" "$1/checksums" &&
    fetch "$base/$archive" "$1/$archive" &&
    (cd "$1" && awk -v name="$archive" '$2 == name' checksums | sha256sum --check --strict) &&
    mkdir "$1/bin" && tar -xzf "$1/$archive" --strip-components=1 -C "$1/bin" &&
    rm "$1/$archive" && echo "released" >"$1/source"
}

pulumi_offline() {
  go_ready || return 1
  (cd "$ROOT/offline" && go mod download) & # while this compiles: what the other builds need
  bash "$ROOT/offline/build" pulumi "$1/bin" && bash "$ROOT/offline/build" pulumi-python "$1/bin" && wait &&
    echo "built from its Go module: releases cannot be reached" >"$1/source"
}

PROVIDERS=(docker command kubernetes)

# provider_version NAME   that of its Python SDK
provider_version() { sed -nE "s/^ *\"pulumi-$1==([0-9.]+)\".*/\1/p" "$ROOT/pyproject.toml"; }

# Each provider plugin: the user's own on PATH, else the released one, else that of offline/plugins.
pulumi_providers() {
  local name version made
  made=$(plugins)
  for name in "${PROVIDERS[@]}"; do
    version=$(provider_version "$name")
    if has "pulumi-resource-$name"; then
      did "$name: $(command -v "pulumi-resource-$name")"
    elif provider_installed "$name" "$version" "$made"; then
      did "$name $version: $provider"
    elif provider_released "$name" "$version"; then
      did "$name $version: released"
    else
      cached "$made" plugins_offline || return 1
      provider_offline "$name" "$version" "$made" || return 1
      did "$name $version: offline/plugins"
    fi
  done
}

# Folders of the plugins that were built here, with a colon before each.
offline_providers() {
  local name folder
  for name in "${PROVIDERS[@]}"; do
    folder=$PULUMI_HOME/plugins/resource-$name-v$(provider_version "$name")
    if [ -e "$folder/offline" ]; then printf ':%s' "$folder"; fi
  done
}

# An installed one serves if it is released, or was built of what is in the tree now.
provider_installed() {
  local folder=$PULUMI_HOME/plugins/resource-$1-v$2
  provider=released
  [ -x "$folder/pulumi-resource-$1" ] || return 1
  [ -e "$folder/offline" ] || return 0
  provider=offline/plugins
  [ "$(cat "$folder/offline")" = "$3" ]
}

provider_released() {
  local server=${SPDK_K8S_PLUGINS_URL:-}
  reachable "${server:-https://get.pulumi.com}" && timeout 600 \
    "$CACHE/pulumi-$PULUMI/bin/pulumi" plugin install --reinstall resource "$1" "v$2" ${server:+--server "$server"}
}

# provider_offline NAME VERSION BUILD   installed as a folder, in which the file `offline` says which build it is
provider_offline() {
  local folder
  [ -x "$CACHE/$3/bin/pulumi-resource-$1" ] || die "offline/plugins has no pulumi-resource-$1"
  folder=$(mktemp -d "$CACHE/tmp.XXXXXX")
  ln "$CACHE/$3/bin/pulumi-resource-$1" "$folder"
  echo "$3" >"$folder/offline"
  "$CACHE/pulumi-$PULUMI/bin/pulumi" plugin install --reinstall resource "$1" "$2" --file "$folder"
  rm -r "$folder"
}

plugins() { echo "plugins-$(hash offline/plugins offline/go.mod offline/go.sum offline/build)"; }

plugins_offline() { go_ready && bash "$ROOT/offline/build" plugins "$1/bin"; }

# A Go that is new enough: the machine's, or the toolchain that the Go module proxy serves as a module.
go_ready() {
  export PATH=$PATH:$CACHE/go-$GO/bin
  local have
  have=$(cd "$ROOT/offline" && go env GOVERSION 2>/dev/null) || have=
  [[ "$have" =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= ${GO:2:2})) && return 0
  cached "go-$GO" go_offline || return 1
  export PATH=$CACHE/go-$GO/bin:$PATH
}

go_offline() { python3 "$ROOT/offline/go_toolchain.py" "$GO" "$GO_SUM" "$1"; }
