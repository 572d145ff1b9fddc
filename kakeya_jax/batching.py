"""How a function of one block runs over a batch of blocks."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.custom_batching import sequential_vmap

_Result = TypeVar("_Result")


def one_by_one_on_cpu(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """``function`` of arrays, which `vmap` turns into a loop over the batch on a CPU, and batches elsewhere.

    A block then stays in a core's own cache from one operation to the next, a loop inside stops when this block is done
    instead of the slowest, and no sum depends on how blocks are batched. A GPU is filled only by all blocks together.
    """
    traced_once = jax.jit(function)
    one_by_one = sequential_vmap(traced_once)

    @functools.wraps(function)
    def batched(*arguments: Any) -> _Result:
        return jax.lax.platform_dependent(*arguments, cpu=one_by_one, default=traced_once)

    return batched
