#!/usr/bin/env bash
# Makes a Python environment in which this checkout runs.
#
#   bash scripts/setup.sh [EXTRA]        EXTRA: an extra of pyproject.toml, e.g. report (the default), test, dev, cuda13
#
# Uses the active virtual environment, or else creates .venv in the checkout; installs the checkout there, editable, unless
# that was done before for the same pyproject.toml. PYTHON=... chooses the interpreter, VENV=... the folder of .venv.
# demo.sh and test.sh source this file: it leaves the interpreter's path in `python` and the checkout's in `root`.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() {
    echo "kakeya-jax: $*" >&2
    exit 1
}

supported() { # is $1 a Python >= 3.11?
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() { # prints a Python >= 3.11 that can create environments
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if supported "$candidate" && "$candidate" -I -c 'import venv, ensurepip' >/dev/null 2>&1; then
            command -v -- "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 with the venv module found (looked for: ${PYTHON:-python3 python3.13 python3.12 python3.11});" \
        "install one, or name it with PYTHON=/path/to/python"
}

usable() { # does the environment $1 run and have pip?
    supported "$1/bin/python" && "$1/bin/python" -I -m pip --version >/dev/null 2>&1
}

create_environment() { # creates the environment $1, also over a broken or half-made one
    local base
    base=$(find_python)
    echo "kakeya-jax: creating $1 with $("$base" -V)" >&2
    "$base" -I -m venv --clear "$1" || fail "could not create $1"
}

setup() { # setup EXTRA
    local extra=$1 environment stamp wanted
    if [[ -n "${VIRTUAL_ENV:-}" && -z "${VENV:-}" ]]; then
        environment=$VIRTUAL_ENV
        usable "$environment" ||
            fail "the active environment $environment has no Python >= 3.11 with pip; deactivate it or activate another"
    else
        environment=${VENV:-$root/.venv}
        usable "$environment" || create_environment "$environment"
    fi
    python=$(cd -- "$environment/bin" && pwd)/python

    stamp=$environment/.kakeya-jax-$extra
    wanted=$({ cat "$root/pyproject.toml"; echo "$root"; "$python" -V; } | cksum)
    if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
        rm -f "$stamp"
        echo "kakeya-jax: installing into $environment (once; takes a minute or two)" >&2
        "$python" -I -m pip install -qq --disable-pip-version-check --editable "$root[$extra]" >&2 ||
            fail "the installation failed; pip's message above says why"
        echo "$wanted" >"$stamp"
    fi
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    setup "${1:-report}"
    echo "kakeya-jax: ready in $(dirname "$(dirname "$python")")"
fi
