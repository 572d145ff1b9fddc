"""The weighted sum of values that are stored rotated: rotated back once, after the sum, instead of token by token.

``sum_t w_t s_t R^T c_t = R^T sum_t w_t s_t c_t``: the same number up to rounding, because rotating is linear. ``c_t``
are levels, ``s_t`` the scale of a token and ``R`` the rotation of ``turboquant``.
"""

import jax.numpy as jnp

from kakeya_jax.codecs.turboquant import TurboQuant, TurboQuantCode
from kakeya_jax.lloyd_max import dequantize
from kakeya_jax.rotation import unrotate
from kakeya_jax.typing import Array, Float


def decode_then_sum(codec: TurboQuant, code: TurboQuantCode, weights: Float[Array, "G n"]) -> Float[Array, "G D"]:
    """Every token decoded, then summed with the weights of ``G`` queries."""
    return jnp.matmul(weights, codec.decode(code), precision="highest")


def sum_then_rotate(codec: TurboQuant, code: TurboQuantCode, weights: Float[Array, "G n"]) -> Float[Array, "G D"]:
    """Levels summed with the weights times the tokens' scales, then rotated back, once for each query.

    Raises:
        ValueError: the code has a sketch (``qjl``), which lives in a rotation of its own.
    """
    if codec.sketch is not None:
        raise ValueError("values with a QJL sketch have two rotations; use qjl=false")
    levels = dequantize(codec.indices_of(code), codec.levels)
    scaled = weights * code.scale.astype(jnp.float32)
    return unrotate(jnp.matmul(scaled, levels, precision="highest"), codec.rotation)


def multiplications(tokens: int, queries: int, dim: int) -> tuple[int, int]:
    """Multiplications of ``decode_then_sum`` and of ``sum_then_rotate``; unpacking is the same and not counted."""
    summed = queries * tokens * dim
    return tokens * dim * dim + tokens * dim + summed, queries * tokens + summed + queries * dim * dim
