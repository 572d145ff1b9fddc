"""Riemannian Besicovitch codec: directions of pairs, magnitudes in fixed units from calibration.

As ``besicovitch``, but no vector has a scale of its own: the unit of each pair's magnitude is fitted once for a layer's
stream. Meant for whitened keys (``whiten=true``), where plain error is the error of attention logits; that metric is
all that is Riemannian about it. Follows the KakeyaTurbo reference, which fits the units on the very keys it codes and
does not charge them; here they come from other text and are charged.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import scipy.special

from kakeya_jax import bitpack
from kakeya_jax.codec import CodecConfig
from kakeya_jax.directions import direction_table, directions_at, nearest_direction
from kakeya_jax.fitted_tables import fitted_table
from kakeya_jax.lloyd_max import check_table, dequantize, fit_levels_from, gaussian_levels, quantize
from kakeya_jax.numeric import check_finite, finite, to_f16
from kakeya_jax.pytree import fitted_field, payload_field, pytree_dataclass, seeded_field, side_field, static_field
from kakeya_jax.typing import Array, Float, RopeClass, StreamName

ScaleMode = Literal["sqrt_trace", "rms", "pct95", "pct99", "pct999"]

_GROUP_SIZE = 2
_FIT_DIRECTION_BITS = 4
"""Scales are fitted to projections on so many bits of directions, whatever the codec uses (as in the reference)."""

_OUTERMOST_LEVEL = 2.7
"""A percentile of the magnitudes is put at the outermost of 16 Gaussian levels (as in the reference)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RiemannianConfig(CodecConfig):
    """``(direction_bits + magnitude_bits) / 2`` bits per value, and ``16 / block_size`` for the mean.

    There is no scale for a vector and no level at zero: a vector of zeros decodes to one of about the smallest level's
    size, and vectors far larger than those of the calibration text are clipped.

    Attributes:
        direction_bits: ``2**direction_bits`` directions on a half circle, 1 to 8 bits.
        magnitude: ``"quantized"``, or ``"float16"`` for exact magnitudes (which need no tables).
        magnitude_bits: 1 to 4, of quantised magnitudes.
        scale_mode: how the table ``"scales"`` ``[d / 2]`` is fitted, see ``fit_scales``.
        centroids: levels of a magnitude in units of its scale: ``"calibrated"`` for the table ``"centroids"``
            ``[2**magnitude_bits]`` of each stream, ``"pooled"`` for one fitted over all layers, ``"gaussian"`` for
            the Lloyd-Max levels of N(0, 1), ``"quantile"`` for its quantiles (the reference without calibration).
        subtract_mean: code deviations from the mean of the block.
    """

    name: ClassVar[str] = "riemannian"
    source: ClassVar[str] = "KakeyaTurbo"
    rope: ClassVar[RopeClass] = "pre"

    direction_bits: int = 4
    magnitude: Literal["quantized", "float16"] = "quantized"
    magnitude_bits: int = 4
    scale_mode: ScaleMode = "rms"
    centroids: Literal["calibrated", "pooled", "gaussian", "quantile"] = "calibrated"
    subtract_mean: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, low, high in (("direction_bits", 1, 8), ("magnitude_bits", 1, 4)):
            if not low <= getattr(self, option) <= high:
                raise ValueError(f"riemannian: {option}={getattr(self, option)} must be between {low} and {high}")

    def needs_tables(self) -> tuple[str, ...]:
        """See ``CodecConfig.needs_tables``."""
        if self.magnitude == "float16":
            return super().needs_tables()
        fitted = ("centroids",) if self.centroids in ("calibrated", "pooled") else ()
        return (*super().needs_tables(), "scales", *fitted)

    def neutral_tables(self, head_dim: int, *, num_kv_heads: int = 1) -> dict[str, Array]:
        """See ``CodecConfig.neutral_tables``."""
        own = {
            "scales": jnp.ones(head_dim // _GROUP_SIZE),
            "centroids": jnp.asarray(gaussian_levels(self.magnitude_bits)),
        }
        needed = self.needs_tables()
        return super().neutral_tables(head_dim, num_kv_heads=num_kv_heads) | {
            name: table for name, table in own.items() if name in needed
        }

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Riemannian":
        """The codec of one layer's stream; ``fit_tables`` makes its tables.

        Raises:
            ValueError: the head dimension is odd, or a table is missing, of another shape, or not ascending.
        """
        del layer, stream
        if head_dim % _GROUP_SIZE:
            raise ValueError(f"riemannian: pairs of coordinates need an even head_dim, got {head_dim}")
        scales = levels = None
        if self.magnitude == "quantized":
            given = fitted_table(tables, "scales", (head_dim // _GROUP_SIZE,), of=self.name)
            scales = jnp.asarray(given, jnp.float32)
            if self.centroids in ("calibrated", "pooled"):
                given = fitted_table(tables, "centroids", (2**self.magnitude_bits,), of=self.name)
                check_table("riemannian", given)
                levels = jnp.asarray(given, jnp.float32)
        return Riemannian(
            config=self,
            head_dim=head_dim,
            directions=jnp.asarray(direction_table(_GROUP_SIZE, self.direction_bits)),
            scales=scales,
            centroids=levels,
        )


@pytree_dataclass
class RiemannianCode:
    """Packed directions ``[n, ceil(G db / 8)]`` of each vector's ``G = d / 2`` pairs, and their magnitudes.

    ``magnitudes`` is packed ``[n, ceil(G m / 8)]``, or float16 ``[n, G]``. ``mean`` is float16 ``[d]``, or None.
    """

    directions: Array = payload_field()
    magnitudes: Array = payload_field()
    mean: Array | None = side_field()


@pytree_dataclass
class Riemannian:
    """The codec of ``RiemannianConfig``."""

    config: RiemannianConfig = static_field()
    head_dim: int = static_field()
    directions: Array = seeded_field()
    scales: Array | None = fitted_field()
    centroids: Array | None = fitted_field()

    @property
    def levels(self) -> Array:
        """The magnitude's levels in units of a pair's scale, ascending."""
        if self.centroids is not None:
            return self.centroids
        bits = self.config.magnitude_bits
        return jnp.asarray(normal_quantiles(bits) if self.config.centroids == "quantile" else gaussian_levels(bits))

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> RiemannianCode:
        """The direction with the largest absolute projection of each pair, and that projection in its fixed unit."""
        del key
        x = finite(block)
        mean = to_f16(jnp.mean(x, axis=0)) if self.config.subtract_mean else None
        if mean is not None:
            x = x - mean.astype(jnp.float32)
        index, magnitude = nearest_direction(x.reshape(x.shape[0], -1, _GROUP_SIZE), self.directions)
        if self.scales is None:
            magnitudes = to_f16(magnitude)
        else:
            magnitudes = bitpack.pack(quantize(magnitude / self.scales, self.levels), self.config.magnitude_bits)
        return RiemannianCode(
            directions=bitpack.pack(index, self.config.direction_bits), magnitudes=magnitudes, mean=mean
        )

    def decode(self, code: RiemannianCode) -> Float[Array, "n d"]:
        """``mean + level * scale * direction``."""
        group_count = self.head_dim // _GROUP_SIZE
        index = bitpack.unpack(code.directions, self.config.direction_bits, group_count)
        if self.scales is None:
            magnitude = code.magnitudes.astype(jnp.float32)
        else:
            level_index = bitpack.unpack(code.magnitudes, self.config.magnitude_bits, group_count)
            magnitude = dequantize(level_index, self.levels) * self.scales
        groups = magnitude[..., None] * directions_at(self.directions, index)
        x = groups.reshape(groups.shape[0], -1)
        return x if code.mean is None else x + code.mean.astype(jnp.float32)


def fit_tables(config: RiemannianConfig, blocks: Float[Array, "b n d"]) -> dict[str, Any]:
    """The tables that ``config`` needs (``whiten`` and ``static_mean`` apart), fitted on blocks as it will see them.

    Args:
        config: of the codec.
        blocks: a layer's stream, whitened if the config whitens, cut into blocks; heads pooled.

    Raises:
        ValueError: no blocks, or a value is not finite.
    """
    needed = config.needs_tables()
    tables: dict[str, Any] = {}
    if "scales" in needed:
        tables["scales"] = fit_scales(deviations(config, blocks), config.scale_mode)
    if "centroids" in needed:
        tables["centroids"] = fit_centroids(unit_magnitudes(config, blocks, tables["scales"]), config.magnitude_bits)
    return tables


def fit_scales(samples: Float[Array, "N d"] | np.ndarray, mode: ScaleMode) -> Float[np.ndarray, " G"]:
    """The unit of each pair's magnitude.

    ``"sqrt_trace"``: the root mean square of the pair's two coordinates; ``"rms"``: that of its projection on the
    nearest of 16 directions; ``"pct95"``, ``"pct99"``, ``"pct999"``: that percentile of the projection's absolute value
    (95, 99, 99.9 %) over 2.7, about the outermost of 16 Gaussian levels.

    Args:
        samples: vectors as the codec sees them (``deviations``).
        mode: one of the above.

    Returns:
        float32 ``[d / 2]``, above zero also where all samples are zero.

    Raises:
        ValueError: an unknown mode, no samples, or a sample that is not finite.
    """
    check_finite(samples, "samples")
    groups = np.asarray(samples, np.float32).reshape(-1, samples.shape[-1] // _GROUP_SIZE, _GROUP_SIZE)
    if not groups.size:
        raise ValueError("fit_scales needs samples, got an empty array")
    if mode == "sqrt_trace":
        return _root_mean_square(groups, axes=(0, 2))
    directions = jnp.asarray(direction_table(_GROUP_SIZE, _FIT_DIRECTION_BITS))
    projection = np.asarray(nearest_direction(jnp.asarray(groups), directions)[1])
    if mode == "rms":
        return _root_mean_square(projection, axes=(0,))
    percentiles = {"pct95": 95.0, "pct99": 99.0, "pct999": 99.9}
    if mode not in percentiles:
        raise ValueError(f"fit_scales: mode={mode!r} must be one of sqrt_trace, rms, {', '.join(percentiles)}")
    scales = np.percentile(np.abs(projection), percentiles[mode], axis=0) / _OUTERMOST_LEVEL
    return np.maximum(scales, 1e-12).astype(np.float32)


def fit_centroids(samples: np.ndarray, magnitude_bits: int) -> np.ndarray:
    """Lloyd-Max levels ``[2**magnitude_bits]`` of ``unit_magnitudes``, of one stream or of many together.

    Starts at the samples' own quantiles: a signed magnitude has no mass at zero, where normal quantiles are densest.

    Raises:
        ValueError: no samples, fewer distinct ones than levels, or samples that are not finite.
    """
    check_finite(samples, "samples")
    count = 2**magnitude_bits
    if not np.size(samples):
        raise ValueError("fit_centroids needs samples, got an empty array")
    start = np.quantile(samples, (np.arange(count) + 0.5) / count)
    if not (np.diff(start) > 0).all():
        raise ValueError(f"fit_centroids: the samples take too few values for {count} levels; use fewer bits")
    return fit_levels_from(samples, start, iterations=1000, tol=1e-7)


def deviations(config: RiemannianConfig, blocks: Float[Array, "b n d"]) -> Float[Array, "N d"]:
    """Vectors of many blocks as directions are sought for: without their block's stored mean, if it has one."""
    blocks = finite(blocks)
    if config.subtract_mean:
        blocks = blocks - to_f16(jnp.mean(blocks, axis=1, keepdims=True)).astype(jnp.float32)
    return blocks.reshape(-1, blocks.shape[-1])


def unit_magnitudes(
    config: RiemannianConfig, blocks: Float[Array, "b n d"], scales: Float[Array, " G"] | np.ndarray
) -> Float[np.ndarray, "N G"]:
    """What the levels quantise: signed magnitudes over their scales; samples for ``fit_centroids``."""
    groups = deviations(config, blocks).reshape(-1, len(scales), _GROUP_SIZE)
    directions = jnp.asarray(direction_table(_GROUP_SIZE, config.direction_bits))
    return np.asarray(nearest_direction(groups, directions)[1] / scales)


def normal_quantiles(bits: int) -> np.ndarray:
    """The quantiles ``(i + 1/2) / 2**bits`` of N(0, 1), float32: the reference's levels without calibration."""
    count = 2**bits
    return scipy.special.ndtri((np.arange(count) + 0.5) / count).astype(np.float32)


def _root_mean_square(samples: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    mean_square = np.mean(np.square(samples, dtype=np.float64), axis=axes)
    return np.sqrt(np.maximum(mean_square, 1e-12)).astype(np.float32)
