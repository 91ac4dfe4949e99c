# shellcheck shell=bash
# The Pulumi CLI with its Python language host, and the providers that the program uses.
export PULUMI_HOME=$CACHE/pulumi-home PULUMI_SKIP_UPDATE_CHECK=true # of the set-up itself

pulumi_cli() {
  cached "pulumi-$PULUMI" pulumi_released || cached "pulumi-$PULUMI" pulumi_offline
  did "$("$CACHE/pulumi-$PULUMI/bin/pulumi" version), $(cat "$CACHE/pulumi-$PULUMI/source")"
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
  go_ready && "$ROOT/offline/build" pulumi "$1/bin" && "$ROOT/offline/build" pulumi-python "$1/bin" &&
    echo "built from its Go module: releases cannot be reached" >"$1/source"
}

# Each at the version of its Python SDK: first the user's own on PATH, then the released one, then offline/plugins.
pulumi_providers() {
  local name version
  for name in docker command kubernetes; do
    version=$(sed -nE "s/^ *\"pulumi-$name==([0-9.]+)\".*/\1/p" "$ROOT/pyproject.toml")
    if has "pulumi-resource-$name"; then
      did "$name: $(command -v "pulumi-resource-$name")"
    elif [ -d "$PULUMI_HOME/plugins/resource-$name-v$version" ] || provider_released "$name" "$version"; then
      did "$name $version: released"
    else
      cached "$(plugins)" plugins_offline || return 1
      [ -x "$CACHE/$(plugins)/bin/pulumi-resource-$name" ] || die "offline/plugins has no pulumi-resource-$name"
      did "$name $version: offline/plugins"
    fi
  done
}

provider_released() {
  local server=${SPDK_K8S_PLUGINS_URL:-}
  reachable "${server:-https://get.pulumi.com}" && timeout 600 \
    "$CACHE/pulumi-$PULUMI/bin/pulumi" plugin install resource "$1" "v$2" ${server:+--server "$server"}
}

plugins() { echo "plugins-$(hash "$ROOT/offline/plugins" "$ROOT/offline/build")"; }

plugins_offline() { go_ready && "$ROOT/offline/build" plugins "$1/bin"; }

# A Go that is new enough: the machine's, or the toolchain that the Go module proxy serves as a module.
go_ready() {
  export PATH=$PATH:$CACHE/go-$GO/bin GOFLAGS=-buildvcs=false
  local have
  have=$(cd "$ROOT/offline/pulumi" && go env GOVERSION 2>/dev/null) || have=
  [[ "$have" =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= ${GO:2:2})) && return 0
  cached "go-$GO" go_offline || return 1
  export PATH=$CACHE/go-$GO/bin:$PATH
}

go_offline() { python3 "$ROOT/offline/go_toolchain.py" "$GO" "$GO_SUM" "$1"; }
