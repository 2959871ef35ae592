#!/usr/bin/env bash
# Make the project's virtual environment, once. Called by every make target; does nothing when it is up to date.
#
#   scripts/setup.sh [VENV]          environment to make (default .venv)
#
#   PYTHON=...   interpreter to use, instead of the newest usable one of python3.13, 3.12, 3.11 and python3
#   UV=...       uv to use; empty: pip even if uv is there
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
requested=${PYTHON:-}
uv=${UV-$(command -v uv || true)}
stamp=$venv/.jaxsched-setup

fail() { # fail MESSAGE HINT
    printf 'setup: %s\n       %s\n' "$1" "$2" >&2
    exit 1
}

# What the environment was made from: other requirements, another place (environments do not survive a move) or another
# interpreter, if one is asked for, make it stale.
fingerprint() {
    printf 'python %s\nfolder %s\n' "$requested" "$PWD"
    cksum pyproject.toml scripts/setup.sh
}

if [ -z "$requested" ] && [ -f "$stamp" ]; then # as last time, unless that one is gone
    read -r _ before <"$stamp" || true
    "${before:-false}" -c '' 2>/dev/null && requested=$before
fi

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# An interpreter is tried by running it: pyenv leaves shims on the PATH for versions that are not active, and Debian
# ships pythons that cannot make environments (ensurepip is a package of its own there; uv does without).
needs="sys, venv, ensurepip"
[ -n "$uv" ] && needs="sys, venv"
too_old= no_venv=
usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || {
        version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) && too_old=${too_old:-$1 is $version}
        return 1
    }
    "$1" -c "import $needs" >/dev/null 2>&1 || { no_venv=$1; return 1; }
}

python=
if [ -n "$requested" ]; then
    usable "$requested" && python=$requested
else
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if usable "$candidate"; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ]; then
    [ -z "$no_venv" ] || fail "$no_venv cannot make virtual environments (no ensurepip)." \
        "On Debian or Ubuntu: apt install python3-venv. Or install uv, or point to another one: make PYTHON=/path/to/python3.12"
    fail "no usable Python >= 3.11 found${too_old:+ ($too_old)}${requested:+ (asked for $requested)}." \
        "Install one, or point to it: make PYTHON=/path/to/python3.12"
fi

printf 'setup: %s (%s) into %s with %s; downloads about 400 MB the first time\n' \
    "$python" "$("$python" -c 'import platform; print(platform.python_version())')" "$venv" "$([ -n "$uv" ] && echo uv || echo pip)"
started=$SECONDS
rm -f "$stamp"
offline="Is the package index reachable? Behind a proxy or mirror set PIP_INDEX_URL (uv: UV_DEFAULT_INDEX), then run it again."
if [ -n "$uv" ]; then
    "$uv" venv --quiet --clear --seed --python "$python" "$venv" || fail "uv could not make $venv." "Its message is above."
    "$uv" pip install --quiet --python "$venv/bin/python" --editable ".[dev]" || fail "the installation failed." "$offline"
else
    "$python" -m venv --clear "$venv" || fail "$python could not make $venv." "Its message is above."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 --editable ".[dev]" ||
        fail "the installation failed." "$offline"
fi
"$venv/bin/python" -c 'import jax' || fail "jax was installed but cannot be imported." "Its message is above."
fingerprint >"$stamp"
printf 'setup: done in %d s\n' $((SECONDS - started))
