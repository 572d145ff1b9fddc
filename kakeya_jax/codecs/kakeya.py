"""Kakeya block codec: principal components, a k-means direction, and a rotated, scalar-quantised residual.

    c = U (x - mean),    c = t m_segment + r,    z = H (s * r) / ||r||  ->  Lloyd-Max indices

``H`` is the Hadamard matrix, ``s`` fixed random signs; every entry of ``z`` has mean square one, whatever the
data. The residual is decoded with the norm that was stored for it (least mean squared error). Follows the
KakeyaTurbo reference except for the layout, which is tight: packed segment ids, no unused fields, and a fixed
number of outlier slots.

Options: the residual as directions and magnitudes of groups (``residual_code``), principal components from a sketch
that takes one vector at a time (``frequent_directions``), keys weighted by how much attention depends on them
(``attention_weights``), and a few vectors of a block kept exact (``exact_rows``).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax import bitpack, code_words, exact_rows, hadamard, kmeans, lloyd_max, outliers, pca
from kakeya_jax.attention_weights import logit_energy
from kakeya_jax.batching import one_by_one_on_cpu
from kakeya_jax.codecs.kakeya_config import KakeyaConfig as KakeyaConfig
from kakeya_jax.exact_rows import ExactRows
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
from kakeya_jax.residual_code import GroupCode, decode_groups, encode_groups
from kakeya_jax.typing import Array, Float, Int

# A product's order of summation must not depend on how blocks are batched: see pca.py.
_contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@pytree_dataclass
class KakeyaCode:
    """``n`` vectors of dimension ``d``, rank ``r`` padded to ``L``; ``k`` centres, ``m`` outlier slots.

    Attributes:
        codes: Lloyd-Max indices, packed (``code_words``): uint8 ``[n, ceil(L bits / 8)]``; or directions of the
            residual's groups.
        magnitudes: of these groups (see ``residual_code.GroupCode``); None without groups.
        segment: index of each vector's centre, ``ceil(log2 k)`` bits, packed along the block: uint8
            ``[ceil(n log2(k) / 8)]`` (empty for one centre). None without centres, as are
        projection: float16 ``[n]``, coefficient of the vector along its centre, and
        centers: float16 ``[k, r]``.
        norm: float16 ``[n]``, length of what is left; of quantised groups, times their best factor.
        mean: ``[d]`` and
        basis: ``[r, d]`` in the skeleton's dtype; None if shared.
        outlier_index: packed positions of outliers, uint8 ``[n, ceil(m log2(L) / 8)]``, and
        outlier_value: float16 ``[n, m]``, 0 in unused slots; None if off.
        exact_position: packed indices of exact rows, and
        exact_value: float16 ``[e, d]``; None if there are none.
    """

    codes: Array = payload_field()
    magnitudes: Array | None = payload_field(default=None)
    segment: Array | None = side_field()
    projection: Array | None = side_field()
    norm: Array = side_field()
    centers: Array | None = side_field()
    mean: Array | None = side_field()
    basis: Array | None = side_field()
    outlier_index: Array | None = side_field()
    outlier_value: Array | None = side_field()
    exact_position: Array | None = side_field(default=None)
    exact_value: Array | None = side_field(default=None)


@pytree_dataclass
class Kakeya:
    """The codec of ``KakeyaConfig``."""

    config: KakeyaConfig = static_field()
    rank: int = static_field()
    signs: Array = seeded_field()
    centroids: Array | None = fitted_field()
    mean: Array | None = fitted_field()
    basis: Array | None = fitted_field()
    query_second_moment: Array | None = fitted_field()

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
        z = _decode_residual(self, code)
        coefficients = hadamard.unrotate(z * code.norm.astype(jnp.float32)[:, None], self.signs)[:, : self.rank]
        if code.centers is not None and code.segment is not None and code.projection is not None:
            segment = _unpack_segments(code.segment, self.config.kmeans_centers, len(code.norm))
            direction = code.centers.astype(jnp.float32)[segment]
            coefficients = code.projection.astype(jnp.float32)[:, None] * direction + coefficients
        mean = code.mean if self.mean is None else self.mean
        basis = code.basis if self.basis is None else self.basis
        assert mean is not None
        assert basis is not None
        x = pca.reconstruct(coefficients, mean.astype(jnp.float32), basis.astype(jnp.float32))
        if code.exact_position is None or code.exact_value is None:
            return x
        return exact_rows.restore(ExactRows(code.exact_position, code.exact_value), x)

    def standard_residual(self, block: Float[Array, "n d"]) -> Float[Array, "n L"]:
        """What the levels quantise: ``z``, of mean square one; samples for ``lloyd_max.fit_levels``."""
        x = finite(block)
        weights, _ = _weigh(self, x)
        return _residual(self, _skeleton(self, x, weights), x, weights)[2]


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


class _Skeleton(NamedTuple):
    """Mean and basis as stored, and which rows of the basis are in use (None: all)."""

    mean: Array
    basis: Array
    kept: Array | None


@jax.jit
def _encode(codec: Kakeya, block: Array) -> KakeyaCode:
    """One compiled program even when called op by op: fused products round differently from separate ones."""
    x = finite(block)
    weights, rows = _weigh(codec, x)
    code = _encode_in(codec, _skeleton(codec, x, weights), x, weights)
    if rows is None:
        return code
    return dataclasses.replace(code, exact_position=rows.position, exact_value=rows.value)


@one_by_one_on_cpu
def _encode_in(codec: Kakeya, skeleton: _Skeleton, x: Array, weights: Array | None) -> KakeyaCode:
    """The code of ``x`` in a given skeleton."""
    centers, assignment, z, norm = _residual(codec, skeleton, x, weights)
    found = _outliers(codec, z)
    groups = codec.config.groups
    if groups is None:
        codes, magnitudes = code_words.pack(lloyd_max.quantize(z, codec.levels), codec.config.bits), None
    else:
        (codes, magnitudes), factor = encode_groups(z, groups)
        norm = norm * factor
    return KakeyaCode(
        codes=codes,
        magnitudes=magnitudes,
        segment=None if assignment is None else _pack_segments(assignment.segment, codec.config.kmeans_centers),
        projection=None if assignment is None else to_f16(assignment.projection),
        norm=to_f16(norm),
        centers=centers,
        mean=skeleton.mean if codec.mean is None else None,
        basis=skeleton.basis if codec.basis is None else None,
        outlier_index=None if found is None else found.position,
        outlier_value=None if found is None else found.value,
    )


def _weigh(codec: Kakeya, x: Array) -> tuple[Array | None, ExactRows | None]:
    """Weights of the vectors in their block's statistics, None if all are equal, and the vectors kept exact."""
    config, weights = codec.config, None
    if config.weights == "attention":
        weights = logit_energy(x, codec.query_second_moment)
    if not config.exact_rows:
        return weights, None
    importance = kmeans.row_norms(x - jnp.mean(x, axis=0)) if weights is None else weights
    rows, kept = exact_rows.select(x, importance, config.exact_rows)
    return jnp.where(kept, 0.0, 1.0 if weights is None else weights), rows


def _decode_residual(codec: Kakeya, code: KakeyaCode) -> Float[Array, "n L"]:
    """``z`` as stored, up to the norm."""
    length, groups = codec.signs.shape[0], codec.config.groups
    if groups is not None:
        assert code.magnitudes is not None
        return decode_groups(GroupCode(code.codes, code.magnitudes), groups, length)
    z = lloyd_max.dequantize(code_words.unpack(code.codes, codec.config.bits, length), codec.levels)
    if code.outlier_index is None or code.outlier_value is None:
        return z
    return outliers.restore(Outliers(code.outlier_index, code.outlier_value), z)


def _skeleton(codec: Kakeya, x: Array, weights: Array | None) -> _Skeleton:
    config = codec.config
    if codec.mean is not None and codec.basis is not None:
        return _Skeleton(codec.mean, codec.basis, None)
    components = _principal_components(config, x, codec.rank, weights)
    kept = None
    if config.variance_ratio < 1.0:
        kept = jnp.arange(codec.rank) < pca.effective_rank(components.variances, config.variance_ratio)
    # Entries are bounded by the inputs' limit and by one: neither overflows float16.
    return _Skeleton(
        components.mean.astype(config.skeleton_dtype), components.basis.astype(config.skeleton_dtype), kept
    )


def _residual(
    codec: Kakeya, skeleton: _Skeleton, x: Array, weights: Array | None
) -> tuple[Array | None, kmeans.Assignment | None, Array, Array]:
    """Centres as stored, the assignment, and what is left: its rotated direction ``z`` and its length.

    The rotation ``c -> H (s * c) / sqrt(L)`` keeps lengths and inner products, and k-means sees nothing else. So it is
    the basis and the centres that are rotated here, not every vector.
    """
    config, length = codec.config, len(codec.signs)
    basis = skeleton.basis.astype(jnp.float32)
    if skeleton.kept is not None:
        basis = jnp.where(skeleton.kept[:, None], basis, 0.0)
    rotation = (codec.signs[:, None] * hadamard.hadamard_matrix(length))[: codec.rank] * length**-0.5
    residual = pca.project(x, skeleton.mean.astype(jnp.float32), _contract("rl,rd->ld", rotation, basis))
    centers = assignment = None
    if config.kmeans_centers:
        rotated_centers = kmeans.fit_centers(
            residual,
            config.kmeans_centers,
            iterations=config.kmeans_iterations,
            seed=config.seed,
            weights=weights,
        )
        centers = to_f16(_contract("kl,rl->kr", rotated_centers, rotation))
        stored = _contract("kr,rl->kl", centers.astype(jnp.float32), rotation)
        assignment = kmeans.assign(residual, stored)
        residual = residual - assignment.projection[:, None] * stored[assignment.segment]
    norm = kmeans.row_norms(residual)
    z = residual * (length**0.5 / jnp.where(norm > EPS, norm, 1.0))[:, None]
    return centers, assignment, z, norm


def _outliers(codec: Kakeya, z: Array) -> Outliers | None:
    config, length = codec.config, z.shape[-1]
    if config.outlier_threshold is None:
        return None
    slots = config.outlier_slots or outliers.default_slots(length, config.outlier_threshold)
    return outliers.select(z, config.outlier_threshold, min(slots, length))


def _principal_components(config: KakeyaConfig, x: Array, rank: int, weights: Array | None) -> pca.PrincipalComponents:
    if config.pca == "exact":
        return pca.exact_pca(x, rank, weights=weights)
    if config.pca == "frequent_directions":
        return pca.streaming_pca(x, rank, oversample=config.oversample, weights=weights)
    return pca.randomized_pca(
        x,
        rank,
        oversample=config.oversample,
        power_iterations=config.power_iterations,
        seed=config.seed,
        weights=weights,
    )


def _pack_segments(segment: Int[Array, " n"], centers: int) -> Array:
    bits = (centers - 1).bit_length()
    return bitpack.pack(segment, bits) if bits else jnp.zeros((0,), jnp.uint8)


def _unpack_segments(packed: Array, centers: int, count: int) -> Int[Array, " n"]:
    bits = (centers - 1).bit_length()
    return bitpack.unpack(packed, bits, count) if bits else jnp.zeros((count,), jnp.int32)
