#!/usr/bin/env bash
# Runs the main job on the bundled model: decodes a text through compressed caches and prints what each costs.
#
#   bash scripts/demo.sh [options of `kakeya demo`]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
setup report
exec "$python" -P -m kakeya_jax.eval demo "$@"
