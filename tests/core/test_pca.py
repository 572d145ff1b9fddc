import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import pca
from kakeya_jax.testing import synthetic_kv

exact = jax.jit(pca.exact_pca, static_argnums=1)
randomized = jax.jit(pca.randomized_pca, static_argnums=1, static_argnames=("oversample", "power_iterations", "seed"))


def low_rank(n: int, d: int, rank: int, noise: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    planted = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    return (planted + noise * rng.standard_normal((n, d)) + 5).astype(np.float32)


def captured(block: np.ndarray, basis: jax.Array) -> float:
    centred = block - block.mean(axis=0)
    return float(np.sum((centred @ np.asarray(basis).T) ** 2) / np.sum(centred**2))


def test_exact_agrees_with_numpy_svd() -> None:
    block = np.asarray(synthetic_kv(0, 256, 32, "value"))
    components = exact(jnp.asarray(block), 32)
    _, singular, rows = np.linalg.svd(block.astype(np.float64) - block.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(components.mean, block.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(components.variances, singular**2 / 256, rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(components.basis) * rows, axis=1)), 1, atol=1e-4)


def test_basis_signs_are_fixed() -> None:
    basis = exact(synthetic_kv(1, 128, 16, "key"), 16).basis
    assert np.all(np.max(basis, axis=1) == np.max(np.abs(basis), axis=1))


def test_weights_count_rows() -> None:
    block = synthetic_kv(2, 60, 8, "value")
    counts = np.random.default_rng(0).integers(0, 4, 60)
    weighted = exact(block, 8, weights=jnp.asarray(counts, jnp.float32))
    repeated = exact(jnp.asarray(np.repeat(np.asarray(block), counts, axis=0)), 8)
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-5)
    np.testing.assert_allclose(weighted.variances, repeated.variances, rtol=1e-4)
    np.testing.assert_allclose(weighted.basis, repeated.basis, atol=1e-3)


def test_projection_and_reconstruction_invert_each_other() -> None:
    block = synthetic_kv(3, 100, 16, "value")
    full = exact(block, 16)
    coefficients = pca.project(block, full.mean, full.basis)
    np.testing.assert_allclose(pca.reconstruct(coefficients, full.mean, full.basis), block, atol=1e-4)


def test_sketch_captures_planted_rank() -> None:
    block = low_rank(256, 64, rank=6, noise=1e-3)
    components = randomized(jnp.asarray(block), 6, oversample=4)
    assert captured(block, components.basis) > 1 - 1e-5
    np.testing.assert_allclose(components.basis @ components.basis.T, np.eye(6), atol=1e-5)


def test_power_iterations_sharpen_the_sketch() -> None:
    block = np.asarray(synthetic_kv(4, 256, 64, "value"))
    best = captured(block, exact(jnp.asarray(block), 16).basis)
    shares = [
        captured(block, randomized(jnp.asarray(block), 16, oversample=2, power_iterations=q).basis) for q in (0, 2, 5)
    ]
    assert shares[0] + 0.02 < shares[1] < shares[2] <= best + 1e-5
    assert shares[2] > 0.99 * best


def test_sketch_agrees_with_the_literal_alternating_algorithm() -> None:
    from kakeya_jax.codecs.kakeya import KakeyaConfig
    from kakeya_jax.eval.numpy_codecs import kakeya as oracle

    block = np.asarray(synthetic_kv(5, 128, 32, "key"))
    config = KakeyaConfig(pca="randomized", skeleton_dtype="float32", oversample=4, seed=9)
    literal = oracle.fit_skeleton(block, config).basis
    ours = np.asarray(randomized(jnp.asarray(block), 16, oversample=4, seed=9).basis)
    np.testing.assert_allclose(np.abs(np.sum(ours * literal, axis=1)), 1, atol=2e-3)
    np.testing.assert_allclose(ours.T @ ours, literal.T @ literal, atol=2e-3)


def test_effective_rank() -> None:
    variances = jnp.asarray([6.0, 3.0, 1.0, 0.0])
    assert [int(pca.effective_rank(variances, ratio)) for ratio in (0.1, 0.6, 0.61, 0.9, 1.0)] == [1, 1, 2, 2, 3]
    assert int(pca.effective_rank(jnp.zeros(4), 0.9)) == 1


@pytest.mark.parametrize("method", ["exact", "randomized"])
def test_zero_block_gives_a_finite_basis(method: str) -> None:
    block = jnp.zeros((32, 16))
    components = exact(block, 8) if method == "exact" else randomized(block, 8)
    assert components.basis.shape == (8, 16)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(components))
