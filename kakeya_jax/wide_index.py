"""Whole numbers wider than a machine word: indices from mixed-radix digits and back, packed.

A number is a tuple of *limbs*, 16 bits each in a ``uint32`` array, the lowest first. A limb times a radix, plus a
carry, fits 32 bits, so every step is exact without 64-bit arithmetic. The number of limbs is known when tracing.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.typing import Array, UInt8, UInt32

LIMB_BITS = 16
MAX_RADIX = 1 << LIMB_BITS
"""Largest base of a digit."""

Limbs = tuple[UInt32[Array, "*batch"], ...]


def limb_count(limit: int) -> int:
    """Limbs that hold every number below ``limit``; at least one."""
    return max(1, -(-(limit - 1).bit_length() // LIMB_BITS))


def from_digits(digits: Sequence[UInt32[Array, "*batch"]], radix: int) -> Limbs:
    """``sum_i digits[i] radix**i``, the first digit being the lowest; each digit must be below ``radix``."""
    size = _group_size(radix)
    *lower, highest = [list(digits[i : i + size]) for i in range(0, len(digits), size)]
    number, limit = (_join(highest, radix),), radix ** len(highest)
    for group in reversed(lower):
        limit *= radix**size
        number = multiply_add(number, radix**size, _join(group, radix), limit)
    return number


def to_digits(number: Limbs, radix: int, count: int, limit: int) -> list[UInt32[Array, "*batch"]]:
    """The ``count`` digits, lowest first, of a number below ``limit``, at most ``radix**count``."""
    size, digits = _group_size(radix), []
    while count > size:
        number, group = divide(number, radix**size, limit)
        limit = -(-limit // radix**size)
        digits += _split(group, radix, size)
        count -= size
    return digits + _split(number[0], radix, count)


def multiply_add(number: Limbs, factor: int, addend: UInt32[Array, "*batch"] | int, limit: int) -> Limbs:
    """``number * factor + addend`` below ``limit``; ``factor`` at most, and ``addend`` below, 2^16."""
    carry, limbs = jnp.uint32(addend) if isinstance(addend, int) else addend, []
    for limb in number:
        product = limb * jnp.uint32(factor) + carry
        limbs.append(_low(product))
        carry = product >> LIMB_BITS
    return (*limbs, carry)[: limb_count(limit)]


def divide(number: Limbs, divisor: int, limit: int) -> tuple[Limbs, UInt32[Array, "*batch"]]:
    """Quotient and remainder of a number below ``limit``; ``divisor`` at most 2^16."""
    remainder, limbs = jnp.uint32(0), []
    for limb in reversed(number):
        part = (remainder << LIMB_BITS) | limb
        quotient = part // jnp.uint32(divisor)
        limbs.insert(0, quotient)
        remainder = part - quotient * jnp.uint32(divisor)
    return tuple(limbs)[: limb_count(-(-limit // divisor))], remainder


def add(number: Limbs, constant: int, limit: int) -> Limbs:
    """``number + constant`` below ``limit``."""
    carry, limbs = jnp.uint32(0), []
    for position in range(limb_count(limit)):
        limb = number[position] if position < len(number) else jnp.zeros_like(number[0])
        total = limb + jnp.uint32(_limb(constant, position)) + carry
        limbs.append(_low(total))
        carry = total >> LIMB_BITS
    return tuple(limbs)


def subtract(number: Limbs, constant: int) -> tuple[Limbs, UInt32[Array, "*batch"]]:
    """``number - constant`` and 1 where that is negative (the limbs are then without meaning)."""
    borrow, limbs = jnp.uint32(0), []
    for position, limb in enumerate(number):
        total = limb - jnp.uint32(_limb(constant, position)) - borrow
        limbs.append(_low(total))
        borrow = total >> 31
    return tuple(limbs), borrow


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes of ``count`` numbers of ``bits`` bits: ``count * bits / 8`` if ``count`` is a multiple of 8."""
    return count * (bits // 8) + bitpack.packed_nbytes(count, bits % 8)


def pack(number: Limbs, bits: int) -> UInt8[Array, "*batch packed"]:
    """Packs numbers along the last axis: all lowest bytes, all next ones, and so on, then the bits that make no byte.

    The last are in the order of ``bitpack``. Whole bytes need no shifting together, which would cost most of the time
    that an encoder takes to compile.
    """
    planes = [_byte(number, position) for position in range(bits // 8)]
    if bits % 8:
        planes.append(bitpack.pack(_byte(number, bits // 8).astype(jnp.int32), bits % 8))
    return jnp.concatenate(planes, axis=-1)


def unpack(packed: UInt8[Array, "*batch packed"], bits: int, count: int) -> Limbs:
    """The ``count`` numbers that ``pack`` put there.

    Raises:
        ValueError: the last axis is not ``packed_nbytes(count, bits)`` long.
    """
    needed, whole = packed_nbytes(count, bits), bits // 8
    if packed.shape[-1] != needed:
        raise ValueError(f"{count} numbers of {bits} bits need {needed} bytes, got {packed.shape[-1]}")
    planes = [packed[..., i * count : (i + 1) * count].astype(jnp.uint32) for i in range(whole)]
    if bits % 8:
        planes.append(bitpack.unpack(packed[..., whole * count :], bits % 8, count).astype(jnp.uint32))
    pairs = [planes[i : i + 2] for i in range(0, len(planes), 2)]
    return tuple(pair[0] | (pair[1] << 8) if len(pair) == 2 else pair[0] for pair in pairs)


def _group_size(radix: int) -> int:
    """Digits that fit one limb together: as many steps over all limbs are saved."""
    size = 1
    while radix ** (size + 1) <= MAX_RADIX:
        size += 1
    return size


def _join(digits: list[Array], radix: int) -> Array:
    number = digits[-1]
    for digit in reversed(digits[:-1]):
        number = number * jnp.uint32(radix) + digit
    return number


def _split(number: Array, radix: int, count: int) -> list[Array]:
    digits = []
    for _ in range(count - 1):
        quotient = number // jnp.uint32(radix)
        digits.append(number - quotient * jnp.uint32(radix))
        number = quotient
    return [*digits, number]


def _byte(number: Limbs, position: int) -> UInt8[Array, "*batch"]:
    return (number[position // 2] >> (8 * (position % 2))).astype(jnp.uint8)


def _limb(constant: int, position: int) -> int:
    return (constant >> (LIMB_BITS * position)) & (MAX_RADIX - 1)


def _low(word: Array) -> Array:
    return word & jnp.uint32(MAX_RADIX - 1)
