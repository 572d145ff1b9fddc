"""The lattices D4 and E8 inside a box: the closest point, and a number for every point.

``D_n`` holds the vectors of whole numbers with an even sum; ``E8`` is ``D_8`` and ``D_8`` moved by one half in every
coordinate. The box is ``[-Q, Q]^n`` for ``Q = scale_levels``. Closest points follow Conway and Sloane, "Fast
Quantizing and Decoding Algorithms for Lattice Quantizers and Codes", IEEE Trans. Inform. Theory 28 (1982), with the
parity repaired inside the box: what is found is a point of the lattice *and* of the box, and of those the closest.

Numbering: with base ``M = 2 Q + 1``, odd, the mixed-radix number of a point of ``D_n`` has the parity of its sum, so
half of it counts the points without a gap: ``(M^n + 1) / 2`` of them. The points of ``E8`` with halves come first,
numbered with base ``2 Q`` and the last digit halved: ``(2 Q)^8 / 2`` of them.
"""

from typing import Literal

import jax.numpy as jnp

from kakeya_jax import wide_index
from kakeya_jax.typing import Array, Float, Int
from kakeya_jax.wide_index import Limbs

LatticeName = Literal["d4", "e8"]

MAX_SCALE_LEVELS = (wide_index.MAX_RADIX - 1) // 2
"""Largest ``Q``: a digit fits a limb."""


def block_length(lattice: LatticeName) -> int:
    """Coordinates of a point."""
    return {"d4": 4, "e8": 8}[lattice]


def num_points(lattice: LatticeName, scale_levels: int) -> int:
    """Points in the box ``[-Q, Q]^n``."""
    return _num_half_points(lattice, scale_levels) + _num_whole_points(lattice, scale_levels)


def index_bits(lattice: LatticeName, scale_levels: int) -> int:
    """Bits that number the points: the fewest whole bits for each block of ``block_length`` coordinates."""
    return (num_points(lattice, scale_levels) - 1).bit_length()


def closest_point(x: Float[Array, "*batch n"], lattice: LatticeName, scale_levels: int) -> Float[Array, "*batch n"]:
    """The point of the lattice in the box with the least squared distance to ``x`` (finite), float32.

    At equal distances halves round to even, the first of several coordinates moves to repair the sum, upwards if it is
    whole, and a whole point of E8 goes before one with halves.
    """
    whole = _closest_checkerboard(x, -scale_levels, scale_levels)
    if lattice == "d4":
        return whole
    half = _closest_checkerboard(x - 0.5, -scale_levels, scale_levels - 1) + 0.5
    return jnp.where(_squared_distance(x, half) < _squared_distance(x, whole), half, whole)


def point_index(points: Float[Array, "*batch n"], lattice: LatticeName, scale_levels: int) -> Limbs:
    """The number of each point, in ``[0, num_points)``: limbs ``[*batch]``."""
    digits = jnp.floor(points).astype(jnp.int32) + scale_levels
    limit = num_points(lattice, scale_levels)
    base = 2 * scale_levels + 1
    number = wide_index.from_digits(_columns(digits), base)
    whole, _ = wide_index.divide(number, 2, base ** digits.shape[-1])
    if lattice == "d4":
        return whole
    *lower, last = _columns(digits)
    half = wide_index.add(wide_index.from_digits([*lower, last >> 1], 2 * scale_levels), 0, limit)
    whole = wide_index.add(whole, _num_half_points(lattice, scale_levels), limit)
    is_half = points[..., 0] != jnp.floor(points[..., 0])
    return tuple(jnp.where(is_half, h, w) for h, w in zip(half, whole, strict=True))


def indexed_point(number: Limbs, lattice: LatticeName, scale_levels: int) -> Float[Array, "*batch n"]:
    """The point with that number: the inverse of ``point_index``, float32."""
    if lattice == "d4":
        return _whole_point(number, lattice, scale_levels)
    from_whole, is_half = wide_index.subtract(number, _num_half_points(lattice, scale_levels))
    whole = _whole_point(from_whole, lattice, scale_levels)
    half = _half_point(number, lattice, scale_levels)
    return jnp.where((is_half == 1)[..., None], half, whole)


def _closest_checkerboard(x: Float[Array, "*batch n"], low: int, high: int) -> Float[Array, "*batch n"]:
    """The closest whole vector with an even sum and coordinates in ``[low, high]``.

    Round every coordinate; if the sum is odd, move the one for which that costs least by one, to the other side of
    ``x`` or, at the wall of the box, back inside. Moving costs ``1 - 2 gain``.
    """
    nearest = jnp.clip(jnp.round(x), low, high)
    error = x - nearest
    direction = jnp.where(error >= 0, 1.0, -1.0)
    at_wall = jnp.where(error >= 0, nearest == high, nearest == low)
    gain = jnp.where(at_wall, -jnp.abs(error), jnp.abs(error))
    moved = jnp.arange(x.shape[-1]) == jnp.argmax(gain, axis=-1, keepdims=True)
    is_odd = jnp.sum(nearest.astype(jnp.int32), axis=-1, keepdims=True) & 1
    step = jnp.where(at_wall, -direction, direction)
    return nearest + jnp.where(moved & (is_odd == 1), step, 0.0)


def _squared_distance(x: Array, points: Array) -> Array:
    return jnp.sum((x - points) ** 2, axis=-1, keepdims=True)


def _whole_point(number: Limbs, lattice: LatticeName, scale_levels: int) -> Array:
    base, length = 2 * scale_levels + 1, block_length(lattice)
    doubled = wide_index.multiply_add(number, 2, 0, base**length)
    digits = wide_index.to_digits(doubled, base, length, base**length)
    return jnp.stack([_signed(digit) - scale_levels for digit in digits], axis=-1).astype(jnp.float32)


def _half_point(number: Limbs, lattice: LatticeName, scale_levels: int) -> Array:
    limit = _num_half_points(lattice, scale_levels)
    *lower, last = wide_index.to_digits(number, 2 * scale_levels, block_length(lattice), limit)
    parity = sum(lower[1:], lower[0]) & jnp.uint32(1)
    digits = [*lower, (last << 1) | parity]
    return jnp.stack([_signed(digit) - scale_levels for digit in digits], axis=-1).astype(jnp.float32) + 0.5


def _num_whole_points(lattice: LatticeName, scale_levels: int) -> int:
    return ((2 * scale_levels + 1) ** block_length(lattice) + 1) // 2


def _num_half_points(lattice: LatticeName, scale_levels: int) -> int:
    return (2 * scale_levels) ** 8 // 2 if lattice == "e8" else 0


def _columns(digits: Int[Array, "*batch n"]) -> list[Array]:
    return [digits[..., i].astype(jnp.uint32) for i in range(digits.shape[-1])]


def _signed(digit: Array) -> Array:
    return digit.astype(jnp.int32)
