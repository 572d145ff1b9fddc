"""Rounding and range rules every codec shares."""

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.typing import Array, Float

EPS = 2.0**-23
"""Norms at or below this count as zero."""

F16_MAX = 65504.0
"""The largest finite float16."""

LIMIT = 2.0**14
"""Largest magnitude a codec sees; larger inputs are clipped. Scales and single values then fit float16, and
float32 sums of squares over any block stay far from overflow."""


def finite(block: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Float32 with NaN as 0 and magnitudes, infinities included, clipped to ``LIMIT``.

    Every ``encode`` starts here, so that one broken value costs itself and never its block.
    """
    x = block.astype(jnp.float32)
    x = jnp.where(jnp.isnan(x), 0.0, x)
    return jnp.clip(x, -LIMIT, LIMIT)


def to_f16(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Float16, to nearest even, saturating at ``F16_MAX`` instead of overflowing to infinity.

    Rounded before it is converted: on a GPU, XLA takes a conversion back when the result becomes float32 again
    (``xla_allow_excess_precision``), and codes would then be relative to a scale that is not the stored one.
    """
    x = jnp.clip(x.astype(jnp.float32), -F16_MAX, F16_MAX)
    normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)  # flushes what is below 2^-14
    small = jnp.round(x * 2.0**24) * 2.0**-24
    return jnp.where(jnp.abs(x) < 2.0**-14, small, normal).astype(jnp.float16)


def check_finite(tree: object, what: str = "input") -> None:
    """Raises a ``ValueError`` that names the first array of ``tree`` with a NaN or an infinity; for use
    outside ``jit``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.floating) or values.dtype == jnp.bfloat16:
            bad = int(np.size(values) - np.isfinite(values.astype(np.float32)).sum())
            if bad:
                raise ValueError(
                    f"{what}{jax.tree_util.keystr(path)} holds {bad} non-finite values of {np.size(values)}"
                )
