"""Besicovitch product codec: small groups of coordinates, each a direction from a codebook and a signed
magnitude.

The directions of a pair cover half a circle, because the sign of the magnitude covers the other half. The
codec keeps no basis: its only state for a block is the mean.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from kakeya_jax import bitpack, direction_words
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
        del layer, tables
        if head_dim % self.group_size:
            raise ValueError(f"besicovitch: group_size={self.group_size} must divide head_dim={head_dim}")
        directions = direction_table(self.group_size, self.direction_bits)
        levels = self.levels(head_dim)
        return Besicovitch(
            config=self,
            stream=stream,
            head_dim=head_dim,
            directions=jnp.asarray(directions),
            levels=None if levels is None else jnp.asarray(levels),
        )

    def levels(self, head_dim: int) -> np.ndarray | None:
        """Levels of signed magnitudes ``[2**magnitude_bits]``; None if they are exact."""
        if self.magnitude != "quantized":
            return None
        if self.magnitude_levels == "reference":
            return gaussian_levels(self.magnitude_bits)
        groups = head_dim // self.group_size
        return signed_magnitude_levels(self.group_size, self.direction_bits, self.magnitude_bits, groups)


@pytree_dataclass
class BesicovitchCode:
    """Packed directions ``[n, ceil(G db / 8)]`` of each vector's ``G = d / g`` groups, and their magnitudes.

    ``magnitudes`` is packed ``[n, ceil(G m / 8)]`` with float16 ``scale`` ``[n]``, or float16 ``[n, G]``
    with ``scale`` None. ``mean`` is float16 ``[d]``, or None.

    Values of pairs with quantised magnitudes, 8 bits or less for both, in whole tiles of 64 tokens and 32
    channels, have the two in one code, ``direction + (magnitude << direction_bits)``, as kernels read them:
    ``pairs`` ``[n / 64, 4 (db + m) d]`` (``direction_words``), and neither ``directions`` nor ``magnitudes``.
    The bytes are the same in number.
    """

    directions: Array | None = payload_field()
    magnitudes: Array | None = payload_field()
    pairs: Array | None = payload_field()
    scale: Array | None = side_field()
    mean: Array | None = side_field()


@pytree_dataclass
class Besicovitch:
    """The codec of ``BesicovitchConfig``."""

    config: BesicovitchConfig = static_field()
    stream: StreamName = static_field()
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
        bits = self.config.direction_bits
        if self.levels is None:
            directions = bitpack.pack(index, bits)
            return BesicovitchCode(
                directions=directions, magnitudes=to_f16(magnitude), pairs=None, scale=None, mean=mean
            )
        code = _reference_magnitudes if self.config.magnitude_levels == "reference" else quantize_magnitudes
        level_index, factor = code(magnitude, self.levels)
        scale = to_f16(factor)
        if self.in_pairs(len(x)):
            pairs = direction_words.pack(index | level_index << bits, self.width)
            return BesicovitchCode(directions=None, magnitudes=None, pairs=pairs, scale=scale, mean=mean)
        return BesicovitchCode(
            directions=bitpack.pack(index, bits),
            magnitudes=bitpack.pack(level_index, self.config.magnitude_bits),
            pairs=None,
            scale=scale,
            mean=mean,
        )

    def decode(self, code: BesicovitchCode) -> Float[Array, "n d"]:
        """``mean + magnitude * direction``."""
        index, magnitude = self._parts(code)
        groups = magnitude[..., None] * directions_at(self.directions, index)
        x = groups.reshape(groups.shape[0], -1)
        return x if code.mean is None else x + code.mean.astype(jnp.float32)

    @property
    def width(self) -> int:
        """Bits of a direction and a quantised magnitude together."""
        return self.config.direction_bits + self.config.magnitude_bits

    def in_pairs(self, n: int) -> bool:
        """Whether the codes of ``n`` vectors are ``BesicovitchCode.pairs``."""
        fits = self.stream == "value" and self.levels is not None and self.config.group_size == 2
        return fits and direction_words.in_tiles(n, self.head_dim // 2, self.width)

    def _parts(self, code: BesicovitchCode) -> tuple[Array, Array]:
        """Indices of directions and magnitudes, ``[n, G]`` both."""
        group_count, bits = self.head_dim // self.config.group_size, self.config.direction_bits
        if code.pairs is not None:
            pairs = direction_words.unpack(code.pairs, self.width, group_count)
            index, level_index = pairs & (1 << bits) - 1, pairs >> bits
        else:
            assert code.directions is not None
            assert code.magnitudes is not None
            index = bitpack.unpack(code.directions, bits, group_count)
            if self.levels is None:
                return index, code.magnitudes.astype(jnp.float32)
            level_index = bitpack.unpack(code.magnitudes, self.config.magnitude_bits, group_count)
        assert self.levels is not None
        assert code.scale is not None
        return index, dequantize(level_index, self.levels) * code.scale.astype(jnp.float32)[:, None]


def _reference_magnitudes(magnitude: Array, levels: Array) -> tuple[Array, Array]:
    """The reference's rule: the scale is the largest absolute magnitude of the vector."""
    scale = jnp.maximum(jnp.max(jnp.abs(magnitude), axis=-1), 1e-12)
    return quantize(magnitude / scale[:, None], levels), scale
