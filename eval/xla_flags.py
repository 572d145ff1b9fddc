"""An option of XLA without which a command may never end."""

import importlib.metadata
import os

HANGS = "--xla_cpu_enable_concurrency_optimized_scheduler"
"""On two processors, XLA's CPU runtime (jax 0.10.2) waits for ever in some programs if operations are ordered for
concurrency: `kakeya(pca=randomized,rank=0.75)` on the bundled model is one."""

_SEEN_IN = "0.10."
"""Versions of jaxlib. Later ones may not know the option, and XLA ends a process that gives it an unknown one."""


def avoid_hangs() -> None:
    """Turns that ordering off in ``XLA_FLAGS``, unless it says something of it; before JAX has found its devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    if HANGS not in flags and importlib.metadata.version("jaxlib").startswith(_SEEN_IN):
        os.environ["XLA_FLAGS"] = f"{flags} {HANGS}=false".strip()
