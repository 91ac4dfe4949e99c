# shellcheck shell=bash
# uv, and the environment that uv.lock pins, in .venv.

python_environment() {
  local uv mark=.venv/spdk-k8s said TMPDIR
  if [ -x .venv/bin/python ] && [ "$(head -n 1 "$mark" 2>/dev/null)" = "$(python_key)" ]; then
    did "$(tail -n 1 "$mark")"
    return
  fi
  rm -f "$mark"
  TMPDIR=$(mktemp -d "$CACHE/tmp.XXXXXX") && export TMPDIR # uv leaves a lock in it
  uv=$(uv_path)
  export UV_PROJECT_ENVIRONMENT=$ROOT/.venv UV_PYTHON_PREFERENCE=system
  # a distribution's own Python is built with profiles, one of a version manager mostly is not: a fifth of each preview
  if /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    export UV_PYTHON=/usr/bin/python3
  fi
  # compiled here: providers' SDKs are large, and where Python may not write bytecode each preview would compile them
  "$uv" sync --frozen --quiet --compile-bytecode
  rm -r "$TMPDIR"
  said="$(.venv/bin/python --version), $(.venv/bin/python -c 'import importlib.metadata as m; print(len(list(m.distributions())))') packages of uv.lock"
  printf '%s\n' "$(python_key)" "$said" >"$mark"
  did "$said"
}

# What an environment is made for; it does not survive a move of the checkout either.
python_key() { echo "$(hash uv.lock pyproject.toml) $(realpath .venv/bin/python) $ROOT"; }

# the user's uv if it is one that reads this lock, else ours
uv_path() {
  if has uv && uv lock --check --offline --quiet >/dev/null 2>&1; then
    command -v uv
  else
    cached "uv-$UV" uv_install >&2
    echo "$CACHE/uv-$UV/bin/uv"
  fi
}

uv_install() { # by its package: PyPI is needed for the rest of the lock anyhow
  python3 -m venv "$1" && "$1/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV"
}
