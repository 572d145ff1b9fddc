"""Besicovitch product codec: small groups of coordinates, each a direction from a codebook and a signed
magnitude.

The directions of a pair cover half a circle, because the sign of the magnitude covers the other half. The
codec keeps no basis: its only state for a block is the mean.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from kakeya_jax import bitpack
from kakeya_jax.codec import CodecConfig
from kakeya_jax.lloyd_max import dequantize, fit_levels_from, gaussian_levels, quantize
from kakeya_jax.numeric import EPS, finite, to_f16
from kakeya_jax.pytree import payload_field, pytree_dataclass, seeded_field, side_field, static_field
from kakeya_jax.typing import Array, Float, Int, RopeClass, StreamName


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesicovitchConfig(CodecConfig):
    """``direction_bits / g`` bits per value for directions and ``magnitude_bits / g`` (or ``16 / g``) for sizes.

    Quantised magnitudes add one float16 scale per token, the mean adds ``16 / block_size`` bits per value.

    Attributes:
        group_size: coordinates in a group, ``g``: 2 to 8; must divide the head dimension.
        direction_bits: ``2**direction_bits`` directions, 1 to 10 bits.
        magnitude: ``"quantized"``, or ``"float16"`` for exact magnitudes.
        magnitude_bits: 1 to 4, of quantised magnitudes.
        magnitude_levels: ``"reachable"``: levels fitted to the signed magnitudes of Gaussian groups, with a
            scale for each vector by least squares. ``"reference"``: Gaussian levels of the magnitude over the
            vector's largest one, as the KakeyaTurbo reference does it; the levels above 1 are never used.
        subtract_mean: code deviations from the mean of the block.
    """

    name: ClassVar[str] = "besicovitch"
    rope: ClassVar[RopeClass] = "pre"

    group_size: int = 2
    direction_bits: int = 3
    magnitude: Literal["quantized", "float16"] = "quantized"
    magnitude_bits: int = 4
    magnitude_levels: Literal["reachable", "reference"] = "reachable"
    subtract_mean: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, low, high in (("group_size", 2, 8), ("direction_bits", 1, 10), ("magnitude_bits", 1, 4)):
            if not low <= getattr(self, option) <= high:
                raise ValueError(f"besicovitch: {option}={getattr(self, option)} must be between {low} and {high}")

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Besicovitch":
        """See ``CodecConfig.build``."""
        del layer, stream, tables
        if head_dim % self.group_size:
            raise ValueError(f"besicovitch: group_size={self.group_size} must divide head_dim={head_dim}")
        directions = direction_table(self.group_size, self.direction_bits)
        levels = None
        if self.magnitude == "quantized":
            if self.magnitude_levels == "reference":
                levels = gaussian_levels(self.magnitude_bits)
            else:
                groups = head_dim // self.group_size
                levels = signed_magnitude_levels(self.group_size, self.direction_bits, self.magnitude_bits, groups)
        return Besicovitch(
            config=self,
            head_dim=head_dim,
            directions=jnp.asarray(directions),
            levels=None if levels is None else jnp.asarray(levels),
        )


@pytree_dataclass
class BesicovitchCode:
    """Packed directions ``[n, ceil(G db / 8)]`` of each vector's ``G = d / g`` groups, and their magnitudes.

    ``magnitudes`` is packed ``[n, ceil(G m / 8)]`` with float16 ``scale`` ``[n]``, or float16 ``[n, G]``
    with ``scale`` None. ``mean`` is float16 ``[d]``, or None.
    """

    directions: Array = payload_field()
    magnitudes: Array = payload_field()
    scale: Array | None = side_field()
    mean: Array | None = side_field()


@pytree_dataclass
class Besicovitch:
    """The codec of ``BesicovitchConfig``."""

    config: BesicovitchConfig = static_field()
    head_dim: int = static_field()
    directions: Array = seeded_field()
    levels: Array | None = seeded_field()

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> BesicovitchCode:
        """The direction with the largest absolute projection of each group, and that signed projection.

        A group of zeros is direction 0 with magnitude 0; a vector of zeros decodes to exactly the mean.
        """
        del key
        x = finite(block)
        mean = to_f16(jnp.mean(x, axis=0)) if self.config.subtract_mean else None
        if mean is not None:
            x = x - mean.astype(jnp.float32)
        groups = x.reshape(x.shape[0], -1, self.config.group_size)
        index, magnitude = nearest_direction(groups, self.directions)
        if self.levels is None:
            magnitudes, scale = to_f16(magnitude), None
        else:
            code = _reference_magnitudes if self.config.magnitude_levels == "reference" else _magnitudes
            level_index, scale = code(magnitude, self.levels)
            magnitudes = bitpack.pack(level_index, self.config.magnitude_bits)
        return BesicovitchCode(
            directions=bitpack.pack(index, self.config.direction_bits),
            magnitudes=magnitudes,
            scale=scale,
            mean=mean,
        )

    def decode(self, code: BesicovitchCode) -> Float[Array, "n d"]:
        """``mean + magnitude * direction``."""
        group_count = self.head_dim // self.config.group_size
        index = bitpack.unpack(code.directions, self.config.direction_bits, group_count)
        if self.levels is None or code.scale is None:
            magnitude = code.magnitudes.astype(jnp.float32)
        else:
            level_index = bitpack.unpack(code.magnitudes, self.config.magnitude_bits, group_count)
            magnitude = dequantize(level_index, self.levels) * code.scale.astype(jnp.float32)[:, None]
        groups = magnitude[..., None] * _rows(self.directions, index)
        x = groups.reshape(groups.shape[0], -1)
        return x if code.mean is None else x + code.mean.astype(jnp.float32)


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
    return index, jnp.sum(groups * _rows(directions, index), axis=-1)


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


def _nearest_of_half_circle(x: Array, y: Array, count: int) -> Array:
    """Index of the nearest of the lines at angles ``pi i / count``: the angle's nearest multiple, no search.

    Two lines are equally near only at odd multiples of ``pi / (2 count)``. For ``count >= 4`` no float pair
    lies there (the tangent is irrational); for 2 it is the diagonal, where comparing is exact.
    """
    if count == 2:
        return (jnp.abs(y) > jnp.abs(x)).astype(jnp.int32)
    steps = jnp.round(jnp.arctan2(y, x) * (count / math.pi)).astype(jnp.int32)
    return steps & (count - 1)  # count is a power of two, so this is the remainder, for negative angles too


def _magnitudes(magnitude: Array, levels: Array) -> tuple[Array, Array]:
    """Level indices ``[n, G]`` and the float16 factor ``[n]`` that suits the chosen levels best (least squares)."""
    rms = jnp.sqrt(jnp.mean(magnitude * magnitude, axis=-1, keepdims=True))
    index = quantize(jnp.where(rms > EPS, magnitude / jnp.maximum(rms, EPS), 0.0), levels)
    level = dequantize(index, levels)
    scale = jnp.sum(magnitude * level, axis=-1) / jnp.sum(level * level, axis=-1)
    return index, to_f16(jnp.where(rms[:, 0] > EPS, scale, 0.0))


def _reference_magnitudes(magnitude: Array, levels: Array) -> tuple[Array, Array]:
    """The reference's rule: the scale is the largest absolute magnitude of the vector."""
    scale = jnp.maximum(jnp.max(jnp.abs(magnitude), axis=-1), 1e-12)
    return quantize(magnitude / scale[:, None], levels), to_f16(scale)


def _rows(table: Array, index: Array) -> Array:
    """``table[index]`` for rows of a small table."""
    return jnp.stack([dequantize(index, column) for column in table.T], axis=-1)
