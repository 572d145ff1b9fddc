"""Groups of coordinates as a direction from a codebook and a signed magnitude (the Besicovitch product code).

The directions of a pair cover half a circle, because the sign of the magnitude covers the other half.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np

from kakeya_jax.lloyd_max import dequantize, fit_levels_from, quantize
from kakeya_jax.numeric import EPS
from kakeya_jax.typing import Array, Float, Int


@functools.lru_cache
def direction_table(group_size: int, direction_bits: int) -> np.ndarray:
    """``M = 2**direction_bits`` unit vectors ``[M, g]`` float32.

    Pairs: angles ``pi i / M``, half a circle. Larger groups: a golden-angle spiral on the half sphere of
    the first three coordinates with small harmonics in the others (a poor cover for ``g >= 4``).
    """
    count = 2**direction_bits
    i = np.arange(count)
    if group_size == 2:
        angle = np.pi * i / count
        table = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        table[i * 2 == count] = (0.0, 1.0)  # not cos(pi / 2) = 6e-17: ties with axis vectors stay exact
    else:
        golden = (1 + math.sqrt(5)) / 2
        height = 1 - 2 * (i + 0.5) / count
        radius = np.sqrt(1 - height**2)
        turn = 2 * np.pi * i / golden
        columns = [np.abs(height), radius * np.cos(turn), radius * np.sin(turn)]
        columns += [0.1 * np.cos(turn * (k + 1)) for k in range(3, group_size)]
        table = np.stack(columns, axis=1)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
    table = table.astype(np.float32)
    table.flags.writeable = False
    return table


def nearest_direction(
    groups: Float[Array, "*batch g"], directions: Float[Array, "M g"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """Index of the direction with the largest absolute projection (first of equals), and that projection.

    Pairs must come with the half circle of ``direction_table``; larger groups with any directions.
    """
    count, group_size = directions.shape
    if group_size == 2:
        index = _nearest_of_half_circle(groups[..., 0], groups[..., 1], count)
    else:  # a sum of products, not a matrix product: it fuses with the argmax, so no [..., M] array is held
        projection = sum(groups[..., k, None] * directions[:, k] for k in range(group_size))
        index = jnp.argmax(jnp.abs(projection), axis=-1).astype(jnp.int32)
    return index, jnp.sum(groups * directions_at(directions, index), axis=-1)


def directions_at(directions: Float[Array, "M g"], index: Int[Array, "*batch"]) -> Float[Array, "*batch g"]:
    """``directions[index]``, as selects instead of a gather (see ``lloyd_max.dequantize``)."""
    return jnp.stack([dequantize(index, column) for column in directions.T], axis=-1)


@functools.lru_cache
def signed_magnitude_levels(group_size: int, direction_bits: int, magnitude_bits: int, group_count: int) -> np.ndarray:
    """Lloyd-Max levels ``[2**m]`` of the signed magnitudes of Gaussian groups over their vector's rms.

    The absolute magnitude is almost a chi variable of ``g`` degrees (for pairs: Rayleigh; a little less, because
    the nearest direction is not exact), and both signs are equally likely. So half of the levels are the
    Lloyd-Max levels of the absolute magnitude, fitted to 2^17 seeded samples, and half their mirror image: none
    is wasted near zero, where a chi variable has no mass.
    """
    vectors = 2**17 // group_count
    groups = np.random.default_rng(0).standard_normal((vectors, group_count, group_size))
    absolute = np.zeros((vectors, group_count))
    for direction in direction_table(group_size, direction_bits):
        np.maximum(absolute, np.abs(groups @ direction), out=absolute)
    absolute /= np.sqrt(np.mean(absolute**2, axis=1, keepdims=True))
    count = 2 ** (magnitude_bits - 1)
    half = fit_levels_from(absolute, np.quantile(absolute, (np.arange(count) + 0.5) / count), iterations=1000)
    levels = np.concatenate([-half[::-1], half])
    levels.flags.writeable = False
    return levels


def quantize_magnitudes(
    magnitude: Float[Array, "n G"], levels: Float[Array, " levels"]
) -> tuple[Int[Array, "n G"], Float[Array, " n"]]:
    """Level indices of magnitudes over their vector's rms, and the scale that suits the chosen levels best.

    The scale is the least-squares one, float32; indices do not change with it. A vector of zeros has scale 0.
    """
    rms = jnp.sqrt(jnp.mean(magnitude * magnitude, axis=-1, keepdims=True))
    index = quantize(jnp.where(rms > EPS, magnitude / jnp.maximum(rms, EPS), 0.0), levels)
    level = dequantize(index, levels)
    scale = jnp.sum(magnitude * level, axis=-1) / jnp.sum(level * level, axis=-1)
    return index, jnp.where(rms[:, 0] > EPS, scale, 0.0)


def _nearest_of_half_circle(x: Array, y: Array, count: int) -> Array:
    """Index of the nearest of the lines at angles ``pi i / count``: the angle's nearest multiple, no search.

    Two lines are equally near only at odd multiples of ``pi / (2 count)``. For ``count >= 4`` no float pair
    lies there (the tangent is irrational); for 2 it is the diagonal, where comparing is exact.
    """
    if count == 2:
        return (jnp.abs(y) > jnp.abs(x)).astype(jnp.int32)
    steps = jnp.round(jnp.arctan2(y, x) * (count / math.pi)).astype(jnp.int32)
    return steps & (count - 1)  # count is a power of two, so this is the remainder, for negative angles too
