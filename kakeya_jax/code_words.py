"""Small codes packed so that a GPU turns them into bytes with few instructions: the order of codes inside words.

Codes of 2, 3, 4, 6 and 8 bits whose number is a multiple of 16 are packed in *units* of 16, four *quads* of four. A
byte permutation (``prmt``) looks four codes up in a table at once if they are the four lowest nibbles of a word, so

* 4 bits: natural order, but as sign and magnitude: an index below 8 has its three lower bits inverted. Levels that are
  symmetric about zero then need a table of half of them;
* 2 bits: code ``4 i + k`` (quad ``i``) stands in nibble ``4 (i % 2) + k`` of its word, in the lower half of it for
  quads 0 and 1: a mask, or a shift and a mask, leaves quads in nibbles;
* 3 bits: first the lower two bits of all codes, as codes of 2 bits; then the highest bits, 16 to a half word: that of
  code ``4 i + k`` is bit ``4 k + (i + 2) % 4``, one shift away from bit 2 of nibble ``k``;
* 6 bits: as sign and magnitude too, an index below 32 with its five lower bits inverted. In each unit first the signs
  and lower three bits of all codes, as codes of 4 bits; then the upper two bits, as codes of 2 bits: which of four
  tables of eight levels a code means;
* 8 bits: bytes.

Everything else is packed by ``bitpack``. The bytes are the same in number.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, Int, UInt8

UNIT = 16
"""Codes that are packed together."""

_CODES = np.arange(UNIT, dtype=np.uint32)
_CRUMB_SHIFTS = 16 * (_CODES // 4 % 2) + 4 * (_CODES % 4) + 2 * (_CODES // 8)
"""Where a unit's lower two bits of each code are in their word,"""
_HIGH_SHIFTS = 4 * (_CODES % 4) + (_CODES // 4 + 2) % 4
"""and their highest bits in a half word."""


def in_units(count: int, bits: int) -> bool:
    """Whether so many codes are packed in units."""
    return bits in (2, 3, 4, 6, 8) and count % UNIT == 0


def pack(codes: Int[Array, "*batch n"], bits: int) -> UInt8[Array, "*batch packed"]:
    """Packs the last axis of ``codes``, each in ``[0, 2**bits)``, into ``ceil(n bits / 8)`` bytes."""
    if not in_units(codes.shape[-1], bits) or bits == 8:
        return bitpack.pack(codes, bits)
    if bits == 4:
        return bitpack.pack(_signed(codes, 4), 4)
    if bits == 6:
        signed = _signed(codes, 6)
        units = (signed >> 2 & 8 | signed & 7).reshape(*codes.shape[:-1], -1, UNIT)
        tables = (signed >> 3 & 3).reshape(units.shape)
        words = [bitpack.pack(units, 4), _in_words(tables, _CRUMB_SHIFTS, jnp.uint32)]
        return jnp.concatenate(words, axis=-1).reshape(*codes.shape[:-1], -1)
    crumbs = _in_words(codes & 3, _CRUMB_SHIFTS, jnp.uint32)
    if bits == 2:
        return crumbs
    return jnp.concatenate([crumbs, _in_words(codes >> 2, _HIGH_SHIFTS, jnp.uint16)], axis=-1)


def unpack(packed: UInt8[Array, "*batch packed"], bits: int, count: int) -> Int[Array, "*batch count"]:
    """The ``count`` codes that ``pack`` put there, as int32.

    Raises:
        ValueError: the last axis is not ``ceil(count bits / 8)`` long.
    """
    if not in_units(count, bits) or bits == 8:
        return bitpack.unpack(packed, bits, count)
    if bits == 4:
        return _signed(bitpack.unpack(packed, 4, count), 4)
    needed = bitpack.packed_nbytes(count, bits)
    if packed.shape[-1] != needed:
        raise ValueError(f"{count} values of {bits} bits need {needed} bytes, got {packed.shape[-1]}")
    if bits == 6:
        units = packed.reshape(*packed.shape[:-1], -1, UNIT * 6 // 8)
        fields, tables = (
            bitpack.unpack(units[..., :8], 4, UNIT),
            _of_words(units[..., 8:], _CRUMB_SHIFTS, jnp.uint32, 3),
        )
        return _signed((fields & 8) << 2 | tables << 3 | fields & 7, 6).reshape(*packed.shape[:-1], -1)
    crumbs = _of_words(packed[..., : count // 4], _CRUMB_SHIFTS, jnp.uint32, 3)
    if bits == 2:
        return crumbs
    return crumbs | _of_words(packed[..., count // 4 :], _HIGH_SHIFTS, jnp.uint16, 1) << 2


def _signed(codes: Array, bits: int) -> Array:
    """Index to sign and magnitude, and back."""
    half = 1 << (bits - 1)
    return jnp.where(codes < half, codes ^ (half - 1), codes)


def _in_words(fields: Array, shifts: np.ndarray, word: type) -> Array:
    """Each unit's fields, shifted, in one little-endian word, as bytes."""
    units = fields.astype(word).reshape(*fields.shape[:-1], -1, UNIT)
    words = jnp.sum(units << shifts.astype(word), axis=-1, dtype=word)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*fields.shape[:-1], -1)


def _of_words(packed: Array, shifts: np.ndarray, word: type, mask: int) -> Array:
    """The fields of units whose words ``_in_words`` gave, int32."""
    words = jax.lax.bitcast_convert_type(packed.reshape(*packed.shape[:-1], -1, np.dtype(word).itemsize), word)
    fields = words[..., None] >> shifts.astype(word) & word(mask)
    return fields.reshape(*packed.shape[:-1], -1).astype(jnp.int32)
