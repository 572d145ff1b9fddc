"""Queries as integer programs find them (``head_queries``): numbers of 16 bits in two signed bytes, and a factor."""

from typing import NamedTuple

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.softmax_state import LN2
from kakeya_jax.typing import Array, Float


class ByteQueries(NamedTuple):
    """The queries of ``N`` heads.

    Attributes:
        numbers: int8 ``[N, R, D]``: high bytes of four or eight queries, and then their low bytes. A number is
            ``256 high + low``.
        start: int32 ``[N, R]``: half the sum of a query's numbers, as ``256 high + low``: what levels
            ``unit (byte + 1/2)`` have beside their bytes.
        factor: float32 ``[N, 8]``: logits to the base 2 are products of numbers and ``byte + 1/2`` times this.
    """

    numbers: Array
    start: Array
    factor: Array


def byte_queries(query: Float[Array, "N G D"], scale: Float[Array, ""] | float) -> ByteQueries:
    """Rounds queries to 1/32512 of each one's largest entry.

    Args:
        query: of any finite size; at most 8 for a head.
        scale: factor of natural logits, that of the unit of the levels in it.
    """
    group = query.shape[1]
    rows = COLUMNS // 2 if group <= COLUMNS // 2 else COLUMNS
    largest = jnp.maximum(jnp.max(jnp.abs(query), axis=-1), jnp.finfo(jnp.float32).tiny)
    numbers = jnp.round(query * (LARGEST / largest)[..., None]).astype(jnp.int32)
    numbers = jnp.pad(numbers, ((0, 0), (0, rows - group), (0, 0)))
    factor = jnp.pad(largest * (scale / (LN2 * LARGEST)), ((0, 0), (0, COLUMNS - group)))
    return ByteQueries(
        numbers=jnp.concatenate(_bytes_of(numbers), axis=1).astype(jnp.int8),
        start=jnp.concatenate(_bytes_of(jnp.sum(numbers, axis=-1) // 2), axis=1),
        factor=factor.astype(jnp.float32),
    )


def _bytes_of(numbers: Array) -> tuple[Array, Array]:
    high = (numbers + 128) >> 8
    return high, numbers - (high << 8)
