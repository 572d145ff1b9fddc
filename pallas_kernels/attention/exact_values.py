"""Numbers of 16 or 32 bits in global memory, read and written as floats by programs of ``warp_ops``."""

from typing import Any

import jax.numpy as jnp

DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16), jnp.dtype(jnp.float32))
"""What programs read and write."""


def load_exact(ops: Any, where: Any, count: int, dtype: Any, at: int = 0, *, pinned: bool = False) -> list[Any]:
    """``count`` consecutive numbers, ``at`` bytes from ``where``; aligned to their size, at most 16 bytes a load."""
    nbytes = jnp.dtype(dtype).itemsize
    words: list[Any] = []
    total = count * nbytes // 4
    for first in range(0, total, 4):
        words += ops.load_words(where, min(4, total - first), at + 4 * first, once=False, pinned=pinned)
    if nbytes == 4:
        return [ops.as_real(word) for word in words]
    return [value for word in words for value in unpacked(ops, word, dtype)]


def store_exact(ops: Any, where: Any, value: Any, dtype: Any, at: int = 0) -> None:
    """One number."""
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float32:
        ops.store_reals(where, [value], at)
        return
    ops.store_short(where, pack_pair(ops, [value, value], dtype), at)


def pack_pair(ops: Any, pair: list[Any], dtype: Any) -> Any:
    """Two floats rounded to packed bfloat16 or float16."""
    return (ops.pack_brain_halves if jnp.dtype(dtype) == jnp.bfloat16 else ops.pack_halves)(*pair)


def packed_in_two(ops: Any, values: list[Any], dtype: Any) -> tuple[list[Any], list[Any]]:
    """Pairs of bfloat16 or float16: what those have of some floats, and of the rest."""
    pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
    high = [pack_pair(ops, pair, dtype) for pair in pairs]
    rest = [
        [ops.minus(*both) for both in zip(pair, unpacked(ops, word, dtype), strict=True)]
        for pair, word in zip(pairs, high, strict=True)
    ]
    return high, [pack_pair(ops, pair, dtype) for pair in rest]


def unpacked(ops: Any, word: Any, dtype: Any) -> list[Any]:
    """Two packed bfloat16 or float16 as floats."""
    half = ops.brain_half_of if jnp.dtype(dtype) == jnp.bfloat16 else ops.half_of
    return [half(word, upper=upper) for upper in (False, True)]
