"""What a measurement ran on: date, versions and devices, for results files and ``kakeya doctor``."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

PACKAGES = (
    "kakeya-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "transformers",
    "tokenizers",
    "safetensors",
    "orbax-checkpoint",
)


def environment() -> dict[str, Any]:
    """Python, platform, package versions, and the devices JAX sees; plain data for JSON."""
    import jax

    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "packages": package_versions(),
        "backend": devices[0].platform,
        "devices": [device.device_kind for device in devices],
    }


def compile_cache_folder() -> str | None:
    """Where JAX keeps compiled programs; ``None`` if it does not."""
    import jax

    return jax.config.values["jax_compilation_cache_dir"]


def package_versions() -> dict[str, str | None]:
    """Version of each package the library stands on; ``None`` if it is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def configure(*, offline: bool = False) -> None:
    """Sets what must be set before huggingface_hub is imported and JAX compiles; keeps what the user has set.

    Compiled programs are kept in ``~/.cache/kakeya/xla``, so that a second run starts at once.

    Args:
        offline: never ask the network (huggingface_hub reads its variable once, when it is imported).
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
    import jax

    if not compile_cache_folder():
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "kakeya" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    one_lapack_thread()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Lets numpy use one thread for matrices; what the user has set stays.

    Tables are made of a calibration by hundreds of decompositions of small matrices. With other work on the cores,
    threads that wait for each other make that many times slower; and eigenvectors differ in their last digit with the
    number of threads.
    """
    import threadpoolctl

    if "OPENBLAS_NUM_THREADS" in os.environ:
        yield
        return
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def one_lapack_thread() -> None:
    """Lets scipy's LAPACK, which JAX calls for eigenvectors on a CPU, use one thread; numpy keeps its own.

    The matrices here have at most a few hundred rows. More threads gain nothing on those, and when other work runs on
    the cores, threads that wait for each other turn a decomposition of milliseconds into one of seconds.
    """
    import scipy.linalg  # noqa: F401  (loads the library)
    import threadpoolctl

    if "OPENBLAS_NUM_THREADS" not in os.environ:
        for library in threadpoolctl.ThreadpoolController().lib_controllers:
            if library.internal_api == "openblas" and "scipy.libs" in str(library.filepath):
                library.set_num_threads(1)
