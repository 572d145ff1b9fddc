"""Small integers packed into bytes, least significant bit first.

Index ``i`` of ``b`` bits occupies bits ``[i b, i b + b)`` of the stream; bit ``j`` of the stream is bit
``j % 8`` of byte ``j // 8``. Four bytes read as a little-endian word give the same order, so ``uint32`` words
and bytes are one layout.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array, Int, UInt8


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes that ``count`` values of ``bits`` bits occupy: ``ceil(count * bits / 8)``."""
    return -(-count * bits // 8)


def pack(values: Int[Array, "*batch n"], bits: int) -> UInt8[Array, "*batch packed"]:
    """Packs the last axis of ``values`` (each in ``[0, 2**bits)``, 1 <= bits <= 16) into bytes.

    Values outside the range are truncated to their low ``bits`` bits. The last byte is padded with zero bits.
    """
    _check_bits(bits)
    n, batch = values.shape[-1], values.shape[:-1]
    if bits == 8:
        return values.astype(jnp.uint8)
    fields = values.astype(jnp.uint32) & jnp.uint32((1 << bits) - 1)
    if bits in (1, 2, 4):  # fields do not straddle words; on a CPU, four bytes at once are twice as fast as one
        shifts = jnp.arange(0, 32, bits, dtype=jnp.uint32)
        words = jnp.sum(_in_rows_of(fields, 32 // bits) << shifts, axis=-1, dtype=jnp.uint32)
        stream = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*batch, -1)
        return stream[..., : packed_nbytes(n, bits)]
    fields = _in_rows_of(fields, 8)  # eight values of b bits are b bytes
    packed = [
        _or_all(_shift_left(fields[..., i], i * bits - 8 * byte) for i in _overlapping(byte, bits))
        for byte in range(bits)
    ]
    stream = jnp.stack(packed, axis=-1).astype(jnp.uint8).reshape(*batch, -1)
    return stream[..., : packed_nbytes(n, bits)]


def unpack(packed: UInt8[Array, "*batch packed"], bits: int, count: int) -> Int[Array, "*batch count"]:
    """The ``count`` values that ``pack`` put there, as int32.

    Raises:
        ValueError: the last axis is not ``packed_nbytes(count, bits)`` long.
    """
    _check_bits(bits)
    needed, batch = packed_nbytes(count, bits), packed.shape[:-1]
    if packed.shape[-1] != needed:
        raise ValueError(f"{count} values of {bits} bits need {needed} bytes, got {packed.shape[-1]}")
    if bits in (1, 2, 4, 8):  # fields do not straddle bytes
        shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
        fields = (packed[..., None] >> shifts) & jnp.uint8((1 << bits) - 1)
    else:
        bytes_ = _in_rows_of(packed.astype(jnp.uint32), bits)
        values = [
            _or_all(
                _shift_left(bytes_[..., byte], 8 * byte - i * bits)
                for byte in range(bits)
                if i in _overlapping(byte, bits)
            )
            for i in range(8)
        ]
        fields = jnp.stack(values, axis=-1) & jnp.uint32((1 << bits) - 1)
    return fields.reshape(*batch, -1)[..., :count].astype(jnp.int32)


def swapped(fields: Array, first: int, second: int) -> Array:
    """Of the last axis, ``first`` rows of ``second`` entries become ``second`` rows of ``first``, again and again.

    Unless its length is a multiple of their product, entries stay where they are.
    """
    if fields.shape[-1] % (first * second):
        return fields
    rows = fields.reshape(*fields.shape[:-1], -1, first, second)
    return jnp.swapaxes(rows, -1, -2).reshape(fields.shape)


def _overlapping(byte: int, bits: int) -> range:
    """Which of eight consecutive values have bits in byte ``byte`` of the ``bits`` bytes they fill."""
    return range(8 * byte // bits, (8 * byte + 7) // bits + 1)


def _shift_left(word: Array, amount: int) -> Array:
    return word << amount if amount >= 0 else word >> -amount


def _or_all(words: Iterator[Array]) -> Array:
    return functools.reduce(jnp.bitwise_or, words)


def _in_rows_of(array: Array, length: int) -> Array:
    """The last axis, padded with zeros, split into rows: ``[..., rows, length]``."""
    padding = [(0, 0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % length, 0)]
    return jax.lax.pad(array, jnp.zeros((), array.dtype), padding).reshape(*array.shape[:-1], -1, length)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"bits={bits} must be between 1 and 16")
