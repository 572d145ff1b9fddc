"""Weighted principal components of one block: exact, or from a random sketch."""

import functools

import jax
import jax.numpy as jnp

from kakeya_jax import smallrng
from kakeya_jax.frequent_directions import sketch_block
from kakeya_jax.numeric import EPS
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.typing import Array, Float, Int

# All sums over tokens are contractions written with their indices: under `jit`, under `vmap` over any number
# of blocks, and op by op these compile to the same order of summation on a CPU, so a block's code does not
# depend on how it was batched.
_contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_SKETCH_SEED_OFFSET = 0x9E3779B97F4A7C15


@pytree_dataclass
class PrincipalComponents:
    """Where a block lies.

    Attributes:
        mean: float32 ``[d]``.
        basis: float32 ``[r, d]``, orthonormal rows in order of falling variance; the sign of each row is
            fixed so that its entry of largest magnitude is positive.
        variances: float32, falling, at least zero; all ``d`` of them (exact) or those of the sketch
            (randomized), so that shares of the total refer to what was looked at.
    """

    mean: Array
    basis: Array
    variances: Array


def exact_pca(
    block: Float[Array, "n d"], rank: int, *, weights: Float[Array, " n"] | None = None
) -> PrincipalComponents:
    """The first ``rank`` principal components, by an eigendecomposition of the covariance.

    Args:
        block: float32 vectors.
        rank: at most ``d``.
        weights: nonnegative; all one if None.
    """
    mean, scatter, total, _ = _moments(block, weights)
    variances, vectors = jnp.linalg.eigh(scatter / total)
    return _components(mean, vectors, variances, rank)


def randomized_pca(
    block: Float[Array, "n d"],
    rank: int,
    *,
    oversample: int = 8,
    power_iterations: int = 2,
    seed: int = 0,
    weights: Float[Array, " n"] | None = None,
) -> PrincipalComponents:
    """About the first ``rank`` principal components, from ``rank + oversample`` random mixes of the tokens.

    Randomised range finder with power iterations, re-orthonormalised by QR after each (Halko, Martinsson and
    Tropp, arXiv:0909.4061, algorithm 4.4), on the rows of the centred block ``A``; the sketch ``Omega`` is
    the same for every block. The small singular value decomposition of ``A Q`` is taken as the
    eigendecomposition of ``Q^T (A^T A) Q``, and the power steps multiply by ``A^T A``: the same spans as with
    ``A`` and ``A^T`` in turn, without tall factorisations. Directions of less than about ``1e-7`` of the
    largest variance are lost in float32, far below float16 storage.

    Args:
        block: float32 vectors.
        rank: at most ``d``.
        oversample: extra columns of the sketch.
        power_iterations: times the spectrum is sharpened.
        seed: of the sketch.
        weights: nonnegative; all one if None.
    """
    n, d = block.shape
    width = min(rank + oversample, d)
    omega = jnp.asarray(smallrng.normal_matrix(seed ^ _SKETCH_SEED_OFFSET, n, width))
    mean, gram, total, centred = _moments(block, weights)
    omega = omega + 0.0 * mean[0]  # a copy for each block under `vmap`, lest XLA merge the blocks into one product
    span = _contract("nd,nr->dr", centred, omega)
    for _ in range(power_iterations):
        span = _contract("de,er->dr", gram, jnp.linalg.qr(span).Q)
    span = jnp.linalg.qr(span).Q
    small = _contract("dr,ds->rs", span, _contract("de,er->dr", gram, span))
    variances, vectors = jnp.linalg.eigh(small / total)
    return _components(mean, _contract("dr,rs->ds", span, vectors), variances, rank)


def streaming_pca(
    block: Float[Array, "n d"], rank: int, *, oversample: int = 8, weights: Float[Array, " n"] | None = None
) -> PrincipalComponents:
    """About the first ``rank`` principal components, from a sketch that could have seen one vector at a time.

    See ``frequent_directions``: the scatter that the sketch misses is at most one part in ``rank + oversample`` of the
    block's, in every direction. Variances are those of the sketch. Of a block that is at hand anyway it is slower than
    ``exact_pca``; what it saves is holding the block.

    Args:
        block: float32 vectors.
        rank: at most ``d``.
        oversample: sketch rows beyond the rank.
        weights: nonnegative; all one if None.
    """
    sketch = sketch_block(block, max(2, rank + oversample), weights=weights)
    scatter = _contract("nd,ne->de", sketch.rows, sketch.rows)
    variances, vectors = jnp.linalg.eigh(scatter / jnp.maximum(sketch.weight, EPS))
    return _components(sketch.mean, vectors, variances, rank)


def effective_rank(variances: Float[Array, " m"], variance_ratio: float) -> Int[Array, ""]:
    """How many leading ``variances`` hold at least ``variance_ratio`` of their sum; 1 if all are zero."""
    total = jnp.sum(variances)
    share = jnp.cumsum(variances) / jnp.where(total > EPS, total, 1.0)
    needed = 1 + jnp.sum(share < variance_ratio, dtype=jnp.int32)
    return jnp.where(total > EPS, jnp.minimum(needed, len(variances)), 1)


def project(block: Float[Array, "n d"], mean: Float[Array, " d"], basis: Float[Array, "r d"]) -> Float[Array, "n r"]:
    """Coefficients ``basis (x - mean)`` of every vector."""
    return _contract("nd,rd->nr", block - mean, basis)


def reconstruct(
    coefficients: Float[Array, "n r"], mean: Float[Array, " d"], basis: Float[Array, "r d"]
) -> Float[Array, "n d"]:
    """``mean + basis^T c`` for every row ``c``."""
    return mean + _contract("nr,rd->nd", coefficients, basis)


def _moments(block: Array, weights: Array | None) -> tuple[Array, Array, Array, Array]:
    """Mean, scatter ``A^T A``, total weight and ``A``, the centred rows times the roots of their weights."""
    if weights is None:
        total = jnp.full((), len(block), jnp.float32)
        mean = jnp.sum(block, axis=0) / total
        centred = block - mean
    else:
        weights = jnp.maximum(weights, 0.0)
        total = jnp.maximum(jnp.sum(weights), EPS)
        mean = _contract("n,nd->d", weights, block) / total
        centred = jnp.sqrt(weights)[:, None] * (block - mean)
    return mean, _contract("nd,ne->de", centred, centred), total, centred


def _components(mean: Array, vectors: Array, variances: Array, rank: int) -> PrincipalComponents:
    """Turns columns in order of rising variance into ``rank`` rows in order of falling variance."""
    basis = vectors[:, ::-1][:, :rank].T
    peak = jnp.max(basis, axis=1, keepdims=True) + jnp.min(basis, axis=1, keepdims=True)
    return PrincipalComponents(
        mean=mean,
        basis=jnp.where(peak < 0, -basis, basis),
        variances=jnp.maximum(variances[::-1], 0.0),
    )
