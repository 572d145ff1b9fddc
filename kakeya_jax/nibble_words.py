"""Codes of 4 bits that are their levels, packed so that two masks make bytes of them: ``int4`` as kernels read it.

A field is the level in two's complement, -8 to 7. Eight codes are a *word* of four bytes: byte ``j`` has code ``j`` in
its lower nibble and code ``4 + j`` in its upper one. So ``word & 0xF0F0F0F0`` are four levels as bytes, sixteen times
as large, and so is the word four bits to the left: three instructions for eight codes.

A matrix product 32 deep takes a word from each of four lanes, and each lane reads words that lie side by side. Along
channels, where a product must be of one group of 32, a vector's words are therefore in the order of ``to_lane_order``.
"""

import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, Int, UInt8

WORD = 8
"""Codes of a word."""

_LANES = 4
"""That share a vector."""


def pack(levels: Int[Array, "*batch n"]) -> UInt8[Array, "*batch packed"]:
    """Packs the last axis of ``levels``, each in ``[-8, 8)``, into ``ceil(n / 2)`` bytes.

    Unless ``n`` is a multiple of 8, fields are in the order of ``bitpack``.
    """
    fields = levels & 15
    if fields.shape[-1] % WORD:
        return bitpack.pack(fields, 4)
    halves = fields.astype(jnp.uint8).reshape(*fields.shape[:-1], -1, 2, WORD // 2)
    return (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*fields.shape[:-1], -1)


def unpack(packed: UInt8[Array, "*batch packed"], count: int) -> Int[Array, "*batch count"]:
    """The ``count`` levels that ``pack`` put there, as int32.

    Raises:
        ValueError: the last axis is not ``ceil(count / 2)`` long.
    """
    if count % WORD or packed.shape[-1] != count // 2:
        fields = bitpack.unpack(packed, 4, count)
    else:
        words = packed.reshape(*packed.shape[:-1], -1, 1, WORD // 2)
        fields = jnp.concatenate([words & 15, words >> 4], axis=-2).reshape(*packed.shape[:-1], count)
    return (fields.astype(jnp.int32) ^ 8) - 8


def to_lane_order(vectors: Array) -> Array:
    """Entries of the last axis in the order in which vectors are packed: word ``4 g + lane`` at ``lane n / 32 + g``.

    Unless ``n`` is a multiple of 32, they stay where they are.
    """
    return _swapped(vectors, vectors.shape[-1] // (_LANES * WORD), _LANES)


def from_lane_order(packed: Array) -> Array:
    """What ``to_lane_order`` was given."""
    return _swapped(packed, _LANES, packed.shape[-1] // (_LANES * WORD))


def _swapped(x: Array, first: int, second: int) -> Array:
    if x.shape[-1] % (_LANES * WORD):
        return x
    return jnp.swapaxes(x.reshape(*x.shape[:-1], first, second, WORD), -3, -2).reshape(x.shape)
