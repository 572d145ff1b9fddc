"""Round to nearest on an evenly spaced grid with float16 parameters.

The grid is the one that is stored: scale and minimum are rounded to float16 before values are rounded to
the grid, so decoding adds no further error.
"""

import jax.numpy as jnp

from kakeya_jax.numeric import to_f16
from kakeya_jax.typing import Array, Float, Int


def quantize_affine(
    x: Float[Array, "*shape"], bits: int, axis: int
) -> tuple[Int[Array, "*shape"], Float[Array, "*groups"], Float[Array, "*groups"]]:
    """``2**bits`` levels from the minimum to the maximum along ``axis``.

    Returns:
        int32 codes in ``[0, 2**bits)`` shaped like ``x``, float16 scale and float16 minimum without
        ``axis``. Where all values are equal the scale is 0 and the codes are 0.
    """
    levels = 2**bits - 1
    minimum = to_f16(jnp.min(x, axis=axis))
    low = minimum.astype(jnp.float32)
    scale = to_f16(jnp.maximum(jnp.max(x, axis=axis) - low, 0.0) / levels)
    steps = divide_or_zero(x - jnp.expand_dims(low, axis), jnp.expand_dims(scale, axis))
    return jnp.clip(jnp.round(steps), 0, levels).astype(jnp.int32), scale, minimum


def dequantize_affine(
    codes: Int[Array, "*shape"], scale: Float[Array, "*groups"], minimum: Float[Array, "*groups"], axis: int
) -> Float[Array, "*shape"]:
    """``minimum + scale * code``, float32."""
    step, low = (jnp.expand_dims(a.astype(jnp.float32), axis) for a in (scale, minimum))
    return codes.astype(jnp.float32) * step + low


def quantize_symmetric(
    x: Float[Array, "*shape"], bits: int, axis: int
) -> tuple[Int[Array, "*shape"], Float[Array, "*groups"]]:
    """``2**bits - 1`` levels symmetric about zero, reaching the absolute maximum along ``axis``.

    Returns:
        int32 codes in ``[0, 2**bits - 1)``, zero being ``2**(bits - 1) - 1``, and the float16 scale.
    """
    largest = 2 ** (bits - 1) - 1
    scale = to_f16(jnp.max(jnp.abs(x), axis=axis) / largest)
    steps = divide_or_zero(x, jnp.expand_dims(scale, axis))
    return jnp.clip(jnp.round(steps), -largest, largest).astype(jnp.int32) + largest, scale


def dequantize_symmetric(
    codes: Int[Array, "*shape"], scale: Float[Array, "*groups"], bits: int, axis: int
) -> Float[Array, "*shape"]:
    """``scale * (code - zero)``, float32."""
    steps = (codes - (2 ** (bits - 1) - 1)).astype(jnp.float32)
    return steps * jnp.expand_dims(scale.astype(jnp.float32), axis)


def divide_or_zero(x: Float[Array, "*shape"], scale: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x / scale`` in float32, 0 where the scale is 0."""
    s = scale.astype(jnp.float32)
    return jnp.where(s > 0, x / jnp.where(s > 0, s, 1.0), 0.0)
