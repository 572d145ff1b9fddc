"""Besicovitch product codec: small groups of coordinates, each a direction from a codebook and a signed
magnitude.

The directions of a pair cover half a circle, because the sign of the magnitude covers the other half. The
codec keeps no basis: its only state for a block is the mean.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp

from kakeya_jax import bitpack
from kakeya_jax.codec import CodecConfig
from kakeya_jax.directions import (
    direction_table,
    directions_at,
    nearest_direction,
    quantize_magnitudes,
    signed_magnitude_levels,
)
from kakeya_jax.lloyd_max import dequantize, gaussian_levels, quantize
from kakeya_jax.numeric import finite, to_f16
from kakeya_jax.pytree import payload_field, pytree_dataclass, seeded_field, side_field, static_field
from kakeya_jax.typing import Array, Float, RopeClass, StreamName


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
    source: ClassVar[str] = "KakeyaTurbo"
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
            reference = self.config.magnitude_levels == "reference"
            code = _reference_magnitudes if reference else quantize_magnitudes
            level_index, factor = code(magnitude, self.levels)
            scale = to_f16(factor)
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
        groups = magnitude[..., None] * directions_at(self.directions, index)
        x = groups.reshape(groups.shape[0], -1)
        return x if code.mean is None else x + code.mean.astype(jnp.float32)


def _reference_magnitudes(magnitude: Array, levels: Array) -> tuple[Array, Array]:
    """The reference's rule: the scale is the largest absolute magnitude of the vector."""
    scale = jnp.maximum(jnp.max(jnp.abs(magnitude), axis=-1), 1e-12)
    return quantize(magnitude / scale[:, None], levels), scale
