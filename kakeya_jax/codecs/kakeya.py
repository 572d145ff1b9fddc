"""Kakeya block codec: principal components, a k-means direction, and a rotated, scalar-quantised residual.

    c = U (x - mean),    c = t m_segment + r,    z = H (s * r) / ||r||  ->  Lloyd-Max indices

``H`` is the Hadamard matrix, ``s`` fixed random signs; every entry of ``z`` has mean square one, whatever the
data. The residual is decoded with the norm that was stored for it (least mean squared error). Follows the
KakeyaTurbo reference except for the layout, which is tight: packed segment ids, no unused fields, and a fixed
number of outlier slots.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from kakeya_jax import bitpack, hadamard, kmeans, lloyd_max, outliers, pca, smallrng
from kakeya_jax.codec import CodecConfig
from kakeya_jax.numeric import EPS, check_finite, finite, to_f16
from kakeya_jax.outliers import Outliers
from kakeya_jax.pytree import (
    fitted_field,
    payload_field,
    pytree_dataclass,
    seeded_field,
    side_field,
    static_field,
)
from kakeya_jax.typing import Array, Float, Int, RopeClass, StreamName


@dataclasses.dataclass(frozen=True, kw_only=True)
class KakeyaConfig(CodecConfig):
    """Principal components for every block (or one shared set), then 1 to 4 bits for each coefficient.

    All shapes are static, so two things differ from the reference: a ``variance_ratio`` below one sets the
    coefficients beyond the effective rank of a block to zero but stores as many, and outliers have a fixed
    number of slots.

    Attributes:
        block_size: tokens that share a skeleton (mean, basis and centres).
        bits: 1 to 4 for each of ``L`` coefficients, ``L`` the power of two at or above the rank.
        pca: ``"exact"``, or ``"randomized"`` from a sketch of ``rank + oversample`` columns.
        rank: coefficients kept; None for all ``D`` (exact) or half of them (randomized).
        variance_ratio: keep only the leading components that hold this share of a block's variance (of the
            sketch's variance if randomized); 1 keeps ``rank`` of them.
        oversample: extra columns of the sketch.
        power_iterations: of the sketch.
        skeleton_dtype: of the stored mean and basis. Centres, projections and norms are always float16.
        basis: ``"block"``, or ``"shared"`` for one mean and basis in the tables ``"mean"`` ``[D]`` and
            ``"basis"`` ``[rank, D]`` (``fit_shared`` makes them); centres stay per block.
        kmeans_centers: directions of each block.
        kmeans_iterations: bound on the assignment passes.
        centroids: ``"gaussian"``, or ``"calibrated"`` for levels in the table ``"centroids"`` ``[2**bits]``.
        outlier_threshold: entries of ``z`` (root mean square one) beyond it are also stored as float16; None
            for none.
        outlier_slots: the most entries of a vector that are stored, those of largest magnitude; each takes
            ``log2(L) + 16`` bits, used or not. None for the mean and one deviation of the number a Gaussian
            has.
        seed: of signs, first centres and, with a fixed offset, the sketch.
    """

    name: ClassVar[str] = "kakeya"
    rope: ClassVar[RopeClass] = "pre"

    block_size: int = 512
    bits: int = 3
    pca: Literal["exact", "randomized"] = "exact"
    rank: int | None = None
    variance_ratio: float = 1.0
    oversample: int = 8
    power_iterations: int = 2
    skeleton_dtype: Literal["float16", "float32"] = "float16"
    basis: Literal["block", "shared"] = "block"
    kmeans_centers: int = 16
    kmeans_iterations: int = 32
    centroids: Literal["gaussian", "calibrated"] = "gaussian"
    outlier_threshold: float | None = None
    outlier_slots: int | None = None
    seed: int = 0xCAFEBABE

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("bits", self.bits, 1, 4)
        _check_range("rank", 1 if self.rank is None else self.rank, 1)
        _check_range("oversample", self.oversample, 0)
        _check_range("power_iterations", self.power_iterations, 0)
        _check_range("kmeans_centers", self.kmeans_centers, 1, 2**16)
        _check_range("kmeans_iterations", self.kmeans_iterations, 0)
        _check_range("outlier_slots", 1 if self.outlier_slots is None else self.outlier_slots, 1)
        _check_range("seed", self.seed, 0, 2**64 - 1)
        if not 0.0 < self.variance_ratio <= 1.0:
            raise ValueError(f"kakeya: variance_ratio={self.variance_ratio} must be above 0 and at most 1")
        if self.basis == "shared" and self.variance_ratio < 1.0:
            raise ValueError("kakeya: a shared basis has one rank for all blocks; use rank instead of variance_ratio")
        if self.outlier_threshold is not None and not self.outlier_threshold >= 0.1:
            raise ValueError(f"kakeya: outlier_threshold={self.outlier_threshold} must be at least 0.1")
        if self.outlier_threshold is None and self.outlier_slots is not None:
            raise ValueError("kakeya: outlier_slots needs an outlier_threshold, for example 2.0")

    def rank_of(self, head_dim: int) -> int:
        """The rank for vectors of dimension ``head_dim``.

        Raises:
            ValueError: ``rank`` is larger than that.
        """
        if self.rank is None:
            return head_dim if self.pca == "exact" else max(1, head_dim // 2)
        if self.rank > head_dim:
            raise ValueError(f"kakeya: rank={self.rank} must be at most head_dim={head_dim}")
        return self.rank

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "Kakeya":
        """The codec for vectors of dimension ``head_dim``.

        Raises:
            ValueError: ``rank`` exceeds ``head_dim``, or a table is missing or has the wrong shape.
        """
        del layer, stream
        tables = tables or {}
        rank = self.rank_of(head_dim)
        mean = basis = levels = None
        if self.basis == "shared":
            mean = _table(tables, "mean", (head_dim,), _SHARED_HINT).astype(self.skeleton_dtype)
            basis = _table(tables, "basis", (rank, head_dim), _SHARED_HINT).astype(self.skeleton_dtype)
        if self.centroids == "calibrated":
            levels = _table(tables, "centroids", (2**self.bits,), _CENTROIDS_HINT).astype(jnp.float32)
            if not isinstance(levels, Tracer) and not bool(jnp.all(levels[1:] > levels[:-1])):
                raise ValueError("kakeya: table 'centroids' must ascend strictly; sort it")
        signs = smallrng.signs(self.seed, hadamard.next_power_of_two(rank))
        return Kakeya(config=self, rank=rank, signs=jnp.asarray(signs), centroids=levels, mean=mean, basis=basis)


@pytree_dataclass
class KakeyaCode:
    """``n`` vectors of dimension ``d``, rank ``r`` padded to ``L``; ``k`` centres, ``m`` outlier slots.

    Attributes:
        codes: Lloyd-Max indices, packed: uint8 ``[n, ceil(L bits / 8)]``.
        segment: index of each vector's centre, ``ceil(log2 k)`` bits, packed along the block: uint8
            ``[ceil(n log2(k) / 8)]`` (empty for one centre).
        projection: float16 ``[n]``, coefficient of the vector along its centre.
        norm: float16 ``[n]``, length of what is left.
        centers: float16 ``[k, r]``.
        mean: ``[d]`` and
        basis: ``[r, d]`` in the skeleton's dtype; None if shared.
        outlier_index: packed positions of outliers, uint8 ``[n, ceil(m log2(L) / 8)]``, and
        outlier_value: float16 ``[n, m]``, 0 in unused slots; None if off.
    """

    codes: Array = payload_field()
    segment: Array = side_field()
    projection: Array = side_field()
    norm: Array = side_field()
    centers: Array = side_field()
    mean: Array | None = side_field()
    basis: Array | None = side_field()
    outlier_index: Array | None = side_field()
    outlier_value: Array | None = side_field()


@pytree_dataclass
class Kakeya:
    """The codec of ``KakeyaConfig``."""

    config: KakeyaConfig = static_field()
    rank: int = static_field()
    signs: Array = seeded_field()
    centroids: Array | None = fitted_field()
    mean: Array | None = fitted_field()
    basis: Array | None = fitted_field()

    @property
    def levels(self) -> Array:
        """The quantiser's levels, ascending."""
        if self.centroids is None:
            return jnp.asarray(lloyd_max.gaussian_levels(self.config.bits))
        return self.centroids

    def encode(self, block: Float[Array, "n d"], key: Array | None = None) -> KakeyaCode:
        """The code of one block; draws nothing, so equal blocks give equal codes.

        Statistics and coefficients refer to the skeleton as stored, so its rounding adds no bias. Non-finite
        inputs are clipped (see ``numeric.finite``); projections and norms saturate at the largest float16.
        """
        del key
        return _encode(self, block)

    def decode(self, code: KakeyaCode) -> Float[Array, "n d"]:
        """``mean + U^T (t m_segment + s * (H (z norm)) / L)``, ``z`` dequantised with outliers in place."""
        length = self.signs.shape[0]
        z = lloyd_max.dequantize(bitpack.unpack(code.codes, self.config.bits, length), self.levels)
        if code.outlier_index is not None and code.outlier_value is not None:
            z = outliers.restore(Outliers(code.outlier_index, code.outlier_value), z)
        residual = hadamard.unrotate(z * code.norm.astype(jnp.float32)[:, None], self.signs)[:, : self.rank]
        segment = _unpack_segments(code.segment, self.config.kmeans_centers, len(code.norm))
        direction = code.centers.astype(jnp.float32)[segment]
        coefficients = code.projection.astype(jnp.float32)[:, None] * direction + residual
        mean = code.mean if self.mean is None else self.mean
        basis = code.basis if self.basis is None else self.basis
        assert mean is not None
        assert basis is not None
        return pca.reconstruct(coefficients, mean.astype(jnp.float32), basis.astype(jnp.float32))

    def standard_residual(self, block: Float[Array, "n d"]) -> Float[Array, "n L"]:
        """What the levels quantise: ``z``, of mean square one; samples for ``lloyd_max.fit_levels``."""
        return _residual(self, _skeleton(self, finite(block))[2])[2]


def fit_shared(samples: Float[Array, "N d"], rank: int | None = None) -> dict[str, Array]:
    """The tables of ``basis="shared"``: mean and exact principal components of one layer's stream.

    Args:
        samples: vectors of all tokens and heads that will share the basis, pooled.
        rank: components kept; all ``d`` if None. Must be the rank of the config.

    Raises:
        ValueError: ``rank`` is not in 1..d, or a sample is not finite.
    """
    d = samples.shape[-1]
    rank = d if rank is None else rank
    if not 1 <= rank <= d:
        raise ValueError(f"fit_shared: rank={rank} must be between 1 and the vectors' dimension {d}")
    check_finite(samples, "samples")
    components = pca.exact_pca(finite(samples), rank)
    return {"mean": components.mean, "basis": components.basis}


_SHARED_HINT = "fit it with kakeya.fit_shared on the stream's vectors, or use basis='block'"
_CENTROIDS_HINT = "fit it with lloyd_max.fit_levels on standard_residual, or use centroids='gaussian'"


@jax.jit
def _encode(codec: Kakeya, block: Array) -> KakeyaCode:
    """One compiled program even when called op by op: fused products round differently from separate ones."""
    x = finite(block)
    mean, basis, coefficients = _skeleton(codec, x)
    centers, assignment, z, norm = _residual(codec, coefficients)
    found = _outliers(codec, z)
    return KakeyaCode(
        codes=bitpack.pack(lloyd_max.quantize(z, codec.levels), codec.config.bits),
        segment=_pack_segments(assignment.segment, codec.config.kmeans_centers),
        projection=to_f16(assignment.projection),
        norm=to_f16(norm),
        centers=centers,
        mean=mean if codec.mean is None else None,
        basis=basis if codec.basis is None else None,
        outlier_index=None if found is None else found.position,
        outlier_value=None if found is None else found.value,
    )


def _skeleton(codec: Kakeya, x: Array) -> tuple[Array, Array, Array]:
    """Mean and basis as stored, and the coefficients they give."""
    config = codec.config
    kept = None
    if codec.mean is not None and codec.basis is not None:
        mean, basis = codec.mean, codec.basis
    else:
        components = _principal_components(config, x, codec.rank)
        # Entries are bounded by the inputs' limit and by one: neither overflows float16.
        mean = components.mean.astype(config.skeleton_dtype)
        basis = components.basis.astype(config.skeleton_dtype)
        if config.variance_ratio < 1.0:
            kept = jnp.arange(codec.rank) < pca.effective_rank(components.variances, config.variance_ratio)
    coefficients = pca.project(x, mean.astype(jnp.float32), basis.astype(jnp.float32))
    return mean, basis, coefficients if kept is None else jnp.where(kept, coefficients, 0.0)


def _residual(codec: Kakeya, coefficients: Array) -> tuple[Array, kmeans.Assignment, Array, Array]:
    """Centres as stored, the assignment, and what is left: its rotated direction ``z`` and its length."""
    config = codec.config
    centers = kmeans.fit_centers(
        coefficients, config.kmeans_centers, iterations=config.kmeans_iterations, seed=config.seed
    ).astype(jnp.float16)
    stored = centers.astype(jnp.float32)
    assignment = kmeans.assign(coefficients, stored)
    residual = coefficients - assignment.projection[:, None] * stored[assignment.segment]
    norm = kmeans.row_norms(residual)
    rotated = hadamard.rotate(_pad_last(residual, len(codec.signs)), codec.signs)
    z = rotated / jnp.where(norm > EPS, norm, 1.0)[:, None]
    return centers, assignment, z, norm


def _outliers(codec: Kakeya, z: Array) -> Outliers | None:
    config, length = codec.config, z.shape[-1]
    if config.outlier_threshold is None:
        return None
    slots = config.outlier_slots or outliers.default_slots(length, config.outlier_threshold)
    return outliers.select(z, config.outlier_threshold, min(slots, length))


def _principal_components(config: KakeyaConfig, x: Array, rank: int) -> pca.PrincipalComponents:
    if config.pca == "exact":
        return pca.exact_pca(x, rank)
    return pca.randomized_pca(
        x, rank, oversample=config.oversample, power_iterations=config.power_iterations, seed=config.seed
    )


def _pack_segments(segment: Int[Array, " n"], centers: int) -> Array:
    bits = (centers - 1).bit_length()
    return bitpack.pack(segment, bits) if bits else jnp.zeros((0,), jnp.uint8)


def _unpack_segments(packed: Array, centers: int, count: int) -> Int[Array, " n"]:
    bits = (centers - 1).bit_length()
    return bitpack.unpack(packed, bits, count) if bits else jnp.zeros((count,), jnp.int32)


def _pad_last(x: Float[Array, "n r"], length: int) -> Float[Array, "n L"]:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[-1])))


def _table(tables: Mapping[str, Array], name: str, shape: tuple[int, ...], hint: str) -> Array:
    if name not in tables:
        raise ValueError(f"kakeya: needs the table {name!r}; {hint}")
    table = jnp.asarray(tables[name])
    if table.shape != shape:
        raise ValueError(f"kakeya: table {name!r} has shape {table.shape}, needs {shape}; {hint}")
    return table


def _check_range(option: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"kakeya: {option}={value} must be {bound}")
