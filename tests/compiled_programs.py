"""Keeps a test process below the operating system's limit of memory mappings."""

import gc
from pathlib import Path

import jax

_MAPPINGS = Path("/proc/self/maps")

MOST = 20_000
"""Mappings from which on programs are let go: Linux allows 65,530, and XLA ends the process that asks for more."""


def release_programs() -> bool:
    """Lets go of all compiled programs if there are so many that more could end the process; says whether it did.

    Every compiled program holds a few mappings of memory, and a process that runs half of the tests compiles tens of
    thousands. Tests that come later read theirs from the compile cache.
    """
    if not _MAPPINGS.exists() or _MAPPINGS.read_bytes().count(b"\n") < MOST:
        return False
    jax.clear_caches()
    gc.collect()
    return True
