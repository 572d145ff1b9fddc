"""A few vectors of a block kept exact: those that no code of the others fits, such as attention sinks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.numeric import to_f16
from kakeya_jax.typing import Array, Bool, Float


class ExactRows(NamedTuple):
    """``m`` vectors of a block of ``n``.

    Attributes:
        position: their indices, ``ceil(log2 n)`` bits each, packed: uint8 ``[ceil(m log2(n) / 8)]``.
        value: float16 ``[m, d]``.
    """

    position: Array
    value: Array


def select(
    block: Float[Array, "n d"], importance: Float[Array, " n"], count: int
) -> tuple[ExactRows, Bool[Array, " n"]]:
    """The ``count`` vectors of largest importance (the first of equals), and which of all vectors they are.

    Args:
        block: vectors, at most 65504 in magnitude.
        importance: of each vector.
        count: 1 to ``n``.
    """
    index = jax.lax.top_k(importance, count)[1]
    rows = ExactRows(position=bitpack.pack(index, _index_bits(len(block))), value=to_f16(block[index]))
    return rows, jnp.any(index[:, None] == jnp.arange(len(block)), axis=0)


def restore(rows: ExactRows, block: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """``block`` with the stored vectors put in place."""
    index = bitpack.unpack(rows.position, _index_bits(len(block)), len(rows.value))
    return block.at[index].set(rows.value.astype(block.dtype), mode="promise_in_bounds")


def _index_bits(n: int) -> int:
    return max(1, (n - 1).bit_length())
