"""Codes of 2 and 4 bits that are their levels, packed so that masks make bytes of them: ``int4`` and the values of
``kivi`` as kernels read them.

A field of 2 bits is a level from 0 to 3, one of 4 bits a level from -8 to 7, in two's complement. A *word* is four
bytes; byte ``k`` has code ``4 j + k`` in field ``j``. So of 4 bits ``word & 0xF0F0F0F0`` are four levels as bytes,
sixteen times as large, and so is the word four bits to the left: three instructions for eight codes. Of 2 bits a shift
and a mask make four bytes: seven for sixteen.

A matrix product 32 deep takes a word from each of four lanes, and each lane reads words that lie side by side. Along
channels, where a product of codes of 4 bits must be of one group of 32, a vector's words are therefore in the order of
``to_lane_order``.
"""

import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, Int, UInt8

_BYTES = 4
"""Of a word."""

_LANES = 4
"""That share a vector."""


def pack(levels: Int[Array, "*batch n"], bits: int) -> UInt8[Array, "*batch packed"]:
    """Packs the last axis of ``levels`` into ``ceil(n bits / 8)`` bytes.

    Unless ``n`` is a multiple of ``32 / bits``, fields are in the order of ``bitpack``.
    """
    return bitpack.pack(bitpack.swapped(levels & (2**bits - 1), 8 // bits, _BYTES), bits)


def unpack(packed: UInt8[Array, "*batch packed"], bits: int, count: int) -> Int[Array, "*batch count"]:
    """The ``count`` levels that ``pack`` put there, as int32.

    Raises:
        ValueError: the last axis is not ``ceil(count bits / 8)`` long.
    """
    fields = bitpack.swapped(bitpack.unpack(packed, bits, count), _BYTES, 8 // bits)
    return fields if bits == 2 else (fields ^ 8) - 8


def to_lane_order(vectors: Array) -> Array:
    """Entries of the last axis in the order in which vectors are packed: word ``4 g + lane`` at ``lane n / 32 + g``.

    Unless ``n`` is a multiple of 32, they stay where they are.
    """
    return _lanes_swapped(vectors, vectors.shape[-1] // 32, _LANES)


def from_lane_order(packed: Array) -> Array:
    """What ``to_lane_order`` was given."""
    return _lanes_swapped(packed, _LANES, packed.shape[-1] // 32)


def _lanes_swapped(x: Array, first: int, second: int) -> Array:
    if x.shape[-1] % 32:
        return x
    return jnp.swapaxes(x.reshape(*x.shape[:-1], first, second, 8), -3, -2).reshape(x.shape)
