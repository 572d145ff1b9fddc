"""How much attention depends on each key of a block, estimated from the keys alone.

An encoder sees no query, but calibration knows their second moment ``S``. A key's logit ``q . k / sqrt(D)`` differs
from that of the block's mean key ``m`` by a variable of mean square ``(k - m)^T S (k - m) / D``: keys for which it is
small get about equal attention from every query, those for which it is large are what some queries look for.
"""

import jax.numpy as jnp

from kakeya_jax.numeric import EPS
from kakeya_jax.typing import Array, Float


def logit_energy(
    keys: Float[Array, "n d"], query_second_moment: Float[Array, "d d"] | None = None
) -> Float[Array, " n"]:
    """Mean squared logit of every key against the block's mean key, over the block's average; all one if all are equal.

    Args:
        keys: before their rotary embedding, or whitened.
        query_second_moment: ``E[q q^T]`` before its rotary embedding, in the same coordinates; None for whitened keys,
            in whose coordinates it is the identity.
    """
    deviation = keys - jnp.mean(keys, axis=0)
    mapped = deviation
    if query_second_moment is not None:
        mapped = jnp.einsum("nd,de->ne", deviation, query_second_moment, precision="highest")
    energy = jnp.maximum(jnp.sum(deviation * mapped, axis=-1), 0.0)
    average = jnp.mean(energy)
    return jnp.where(average > EPS, energy / jnp.maximum(average, EPS), 1.0)
