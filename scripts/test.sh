#!/usr/bin/env bash
# Runs the tests on two processes.
#
#   bash scripts/test.sh [options of pytest]        e.g. -k cache, -m slow, -n 0, tests/codecs
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$root"
exec "$python" -m pytest -n 2 --dist worksteal "$@"
