"""Queries as kernels take them: float16, whatever their size, with a factor that is applied to logits."""

from typing import NamedTuple

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.softmax_state import LN2
from kakeya_jax.typing import Array, Float


class HalfQueries(NamedTuple):
    """For each head ``R`` rows, of which those beyond the group are zero.

    Attributes:
        halves: float16 ``[N, R, D]``, each row over its largest entry.
        factor: float32 ``[N, R]``: logits to the base 2 are the products of ``halves`` times this.
    """

    halves: Array
    factor: Array


def half_queries(query: Float[Array, "N G D"], rows: int, scale: float) -> HalfQueries:
    """Rounds queries to float16 after scaling, so that none overflows, and pads their group to ``rows``.

    Args:
        query: of any size.
        rows: at least ``G``.
        scale: factor of the natural logits.
    """
    largest = jnp.maximum(jnp.max(jnp.abs(query), axis=-1), jnp.finfo(jnp.float32).tiny)
    padding = ((0, 0), (0, rows - query.shape[1]))
    halves = (query / largest[..., None]).astype(jnp.float16)
    return HalfQueries(jnp.pad(halves, (*padding, (0, 0))), jnp.pad(largest * (scale / LN2), padding))
