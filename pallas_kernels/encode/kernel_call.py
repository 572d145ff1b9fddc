"""A Triton kernel over whole arrays that its program takes by name."""

import functools
from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.typing import Array


def kernel_call(
    program: Callable[..., None],
    grid: tuple[int, ...],
    inputs: dict[str, Array],
    results: dict[str, jax.ShapeDtypeStruct],
    *,
    interpret: bool,
    warps: int,
    stages: int = 1,
) -> dict[str, Array]:
    """The results of a program, whose name is the kernel's.

    Args:
        program: takes references to all inputs and results by name.
        grid: how many programs there are.
        inputs: what it reads, and
        results: shapes and types of what it writes.
        interpret: run without a GPU, slowly.
        warps: of one program, and
        stages: steps of its loops whose loads are under way at a time.
    """
    names = (*inputs, *results)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    found = pl.pallas_call(
        functools.wraps(program)(lambda *refs: program(**dict(zip(names, refs, strict=True)))),
        grid=grid,
        in_specs=[whole] * len(inputs),
        out_specs=[whole] * len(results),
        out_shape=list(results.values()),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=program.__name__,
    )(*inputs.values())
    return dict(zip(results, found, strict=True))
