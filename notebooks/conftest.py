"""Notebooks run in CI with the compile cache of the tests: several measure the same recipes."""

import os
from pathlib import Path

_ROOT = Path(__file__).parent.parent

# Inherited by the kernels that nbmake starts.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see eval.environment.one_lapack_thread
