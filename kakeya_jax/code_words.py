"""Small codes packed so that a GPU turns them into bytes with few instructions: the order of codes inside words.

Codes of 2, 3, 4 and 8 bits whose number is a multiple of 16 are packed in *units* of 16, four *quads* of four. A byte
permutation (``prmt``) looks four codes up in a table at once if they stand in the four lowest nibbles of a word, so

* 4 bits: natural order, but as sign and magnitude: an index below 8 has its three lower bits inverted. Levels that are
  symmetric about zero then need a table of half of them;
* 2 bits: code ``4 i + k`` (quad ``i``) stands in nibble ``4 (i % 2) + k`` of its word, in the lower half of it for
  quads 0 and 1: a mask, or a shift and a mask, leaves quads in nibbles;
* 3 bits: first the lower two bits of all codes, as codes of 2 bits; then the highest bits, 16 to a half word: that of
  code ``4 i + k`` is bit ``4 k + (i + 2) % 4``, one shift away from bit 2 of nibble ``k``;
* 8 bits: bytes.

Everything else is packed by ``bitpack``. The bytes are the same in number.
"""

import jax.numpy as jnp
import numpy as np

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, Int, UInt8

UNIT = 16
"""Codes that are packed together."""

_CRUMBS = np.arange(UNIT)
_CRUMB_ORDER = 8 * (_CRUMBS % 2) + 4 * (_CRUMBS // 8) + _CRUMBS // 2 % 4
"""Which code of a unit stands in each pair of bits."""
_CRUMB_OF = np.argsort(_CRUMB_ORDER)
_HIGH_ORDER = np.argsort(4 * (_CRUMBS % 4) + (_CRUMBS // 4 + 2) % 4)
"""Which code's highest bit is each bit of a half word."""
_HIGH_OF = np.argsort(_HIGH_ORDER)


def in_units(count: int, bits: int) -> bool:
    """Whether so many codes are packed in units."""
    return bits in (2, 3, 4, 8) and count % UNIT == 0


def pack(codes: Int[Array, "*batch n"], bits: int) -> UInt8[Array, "*batch packed"]:
    """Packs the last axis of ``codes``, each in ``[0, 2**bits)``, into ``ceil(n bits / 8)`` bytes."""
    if not in_units(codes.shape[-1], bits) or bits == 8:
        return bitpack.pack(codes, bits)
    if bits == 4:
        return bitpack.pack(_signed(codes), 4)
    crumbs = bitpack.pack(_reorder(codes, _CRUMB_ORDER), 2)
    if bits == 2:
        return crumbs
    return jnp.concatenate([crumbs, bitpack.pack(_reorder(codes >> 2, _HIGH_ORDER), 1)], axis=-1)


def unpack(packed: UInt8[Array, "*batch packed"], bits: int, count: int) -> Int[Array, "*batch count"]:
    """The ``count`` codes that ``pack`` put there, as int32.

    Raises:
        ValueError: the last axis is not ``ceil(count bits / 8)`` long.
    """
    if not in_units(count, bits) or bits == 8:
        return bitpack.unpack(packed, bits, count)
    if bits == 4:
        return _signed(bitpack.unpack(packed, 4, count))
    split = count // 4
    crumbs = _reorder(bitpack.unpack(packed[..., :split], 2, count), _CRUMB_OF)
    if bits == 2:
        if packed.shape[-1] != split:
            raise ValueError(f"{count} values of 2 bits need {split} bytes, got {packed.shape[-1]}")
        return crumbs
    return crumbs | _reorder(bitpack.unpack(packed[..., split:], 1, count), _HIGH_OF) << 2


def _signed(codes: Array) -> Array:
    """Index to sign and magnitude, and back."""
    return jnp.where(codes < 8, codes ^ 7, codes)


def _reorder(codes: Array, order: np.ndarray) -> Array:
    units = codes.reshape(*codes.shape[:-1], -1, UNIT)
    return units[..., order].reshape(codes.shape)
