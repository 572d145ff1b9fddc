"""Mosaic GPU kernels in tests: which versions have them, and lowering them on a machine without a GPU."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import pytest

NEW = jax.__version_info__[:2] >= (0, 11)
needs_mosaic = pytest.mark.skipif(not NEW, reason=f"Mosaic GPU kernels need jax 0.11, this is {jax.__version__}")


def for_an_h200() -> AbstractContextManager[Any]:
    """Lowering for a GPU on a machine without one needs to know which, from jax 0.11 on."""
    if not NEW:
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="cuda")
    return use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


def lowered(function: Callable[..., Any], *arguments: Any) -> str:
    """The program of a function for an NVIDIA GPU."""
    with for_an_h200():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def triton_kernels(program: str) -> int:
    """How many Triton kernels a program, as ``lowered`` gives it, calls."""
    return program.count("custom_call @__gpu$xla.gpu.triton(")
