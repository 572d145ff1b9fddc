"""Numbers as sums of numbers of bfloat16, so that tensor cores make products whose error is like that of float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array, Float

PARTS = 3
"""Numbers of bfloat16 that hold all of a float32."""


def cut(x: Float[Array, "*shape"], count: int = PARTS) -> list[Array]:
    """Numbers of bfloat16 whose sum is ``x``, if so many hold it. Within a kernel: cut, not rounded, for a compiler may
    take a conversion back."""
    parts = []
    for _ in range(count):
        high = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -65536, jnp.float32)
        parts.append(high.astype(jnp.bfloat16))
        x = x - high
    return parts


def rounded(x: Float[Array, "*batch E D"]) -> Array:
    """Three numbers of bfloat16 whose sum is ``x``: ``[..., 3, E, D]``. Rounded by ``reduce_precision``, for XLA takes
    a conversion back."""
    parts = []
    for _ in range(PARTS):
        parts.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))
        x = x - parts[-1]
    return jnp.stack(parts, axis=-3).astype(jnp.bfloat16)


def add_products(
    total: Float[Array, "I J"], left: Sequence[Float[Array, "I D"]], right: Sequence[Float[Array, "J D"]]
) -> Float[Array, "I J"]:
    """``total + left @ right.T`` of numbers in parts, smallest products first; those of 2^-24 are left out."""
    both = [(one, other) for one in range(len(left)) for other in range(len(right)) if one + other < PARTS]
    for one, other in sorted(both, key=lambda pair: (-sum(pair), -abs(pair[0] - pair[1]), -pair[0])):
        total += jax.lax.dot_general(
            left[one], right[other], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
    return total
