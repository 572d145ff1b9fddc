"""What all tests share: a compile cache, quick compilation, few programs at a time, markers, the hypothesis profile."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from quick_compilation import xla_flags

# Set before the first import of jax, and inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("XLA_FLAGS", xla_flags())
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two test processes share one GPU
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # and the cores: see eval.environment.one_lapack_thread

import hypothesis
import jax
import pytest
from compiled_programs import release_programs

hypothesis.settings.register_profile("local", deadline=None)  # the first example of a jitted function compiles
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

_NO_GPU = "no NVIDIA GPU found"
_NO_TORCH = "torch is not installed (`pip install 'kakeya-jax[parity]'`)"


def has_nvidia_gpu() -> bool:
    """Whether jax's default device is an NVIDIA GPU."""
    return jax.devices()[0].device_kind.startswith("NVIDIA")


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    yield
    release_programs()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not has_nvidia_gpu():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=_NO_GPU))
    if importlib.util.find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("parity"):
                item.add_marker(pytest.mark.skip(reason=_NO_TORCH))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for kind, reason in (("GPU", _NO_GPU), ("parity", _NO_TORCH)):
        count = sum(reason in text for text in reasons)
        if count:
            terminalreporter.write_line(f"{count} {kind} test{'s' * (count > 1)} skipped: {reason}", yellow=True)
