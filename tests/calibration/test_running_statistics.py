"""Running sums in float32 against float64, where float32 alone would fail."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.calibration.statistics import Moments, SecondMoment, Sum

HEADS, TEXTS, LENGTH, DIM = 2, 6, 300, 8

add = jax.jit(lambda state, vectors: state.update(vectors))


@pytest.fixture(scope="module")
def far_vectors() -> np.ndarray:
    """Unit deviations about a million: a float32 there has two decimal digits after the point."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(HEADS, TEXTS, LENGTH, DIM)) @ rng.normal(size=(DIM, DIM))
    return (1e6 + mixed).astype(np.float32)


def moments_of(vectors: np.ndarray) -> Moments:
    """Of ``[K, texts, n, D]``, text after text."""
    return functools.reduce(
        lambda state, text: add(state, jnp.asarray(vectors[:, text])),
        range(vectors.shape[1]),
        Moments.init(HEADS, DIM),
    )


def exact_moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = vectors.reshape(HEADS, -1, DIM).astype(np.float64)
    mean = flat.mean(axis=1)
    deviations = flat - mean[:, None]
    return mean, np.einsum("knd,kne->kde", deviations, deviations) / flat.shape[1]


def mean_of(moments: Moments) -> np.ndarray:
    return np.asarray(moments.mean.total, np.float64) + np.asarray(moments.mean.lost, np.float64)


def test_moments_far_from_zero(far_vectors: np.ndarray):
    found = moments_of(far_vectors)
    mean, covariance = exact_moments(far_vectors)
    np.testing.assert_allclose(mean_of(found), mean, rtol=0, atol=1e-6)  # measured 1.2e-7
    np.testing.assert_allclose(found.covariance(), covariance, rtol=0, atol=2e-6 * covariance.max())  # 2.5e-7
    np.testing.assert_array_equal(found.largest, np.abs(far_vectors).max(axis=(1, 2)))
    assert float(found.count.value()) == TEXTS * LENGTH


def test_merging_is_associative_and_gives_the_whole(far_vectors: np.ndarray):
    parts = [moments_of(far_vectors[:, [text]]) for text in range(3)]
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    whole = moments_of(far_vectors[:, :3])
    scale = float(jnp.max(whole.covariance()))
    for other in (right, whole):
        np.testing.assert_allclose(left.covariance(), other.covariance(), rtol=0, atol=2e-6 * scale)
        np.testing.assert_allclose(mean_of(left), mean_of(other), rtol=0, atol=1e-6)
        assert float(left.count.value()) == float(other.count.value())


def test_merging_with_nothing_changes_nothing(far_vectors: np.ndarray):
    found = moments_of(far_vectors[:, :2])
    empty = Moments.init(HEADS, DIM)
    chex.assert_trees_all_close(empty.merge(found).covariance(), found.covariance(), rtol=0, atol=0)
    chex.assert_trees_all_close(found.merge(empty).covariance(), found.covariance(), rtol=0, atol=0)
    np.testing.assert_allclose(mean_of(found.merge(empty)), mean_of(found), rtol=0, atol=0)
    assert not np.isnan(np.asarray(empty.merge(empty).covariance())).any()


def test_a_sum_keeps_what_rounding_loses():
    small = jnp.float32(2.0**-26)

    def step(total: Sum, _: None) -> tuple[Sum, None]:
        return total.add(small), None

    total, _ = jax.jit(lambda: jax.lax.scan(step, Sum.zeros(()).add(jnp.float32(1.0)), length=4096))()
    assert float(total.value()) == 1.0 + 4096 * 2.0**-26  # one by one, float32 would stay at 1


def test_second_moment_counts_what_it_is_told():
    vectors = np.random.default_rng(1).normal(size=(HEADS, 50, DIM)).astype(np.float32)
    vectors[:, 30:] = 0.0
    all_of_them = add(SecondMoment.init(HEADS, DIM), jnp.asarray(vectors))
    some = SecondMoment.init(HEADS, DIM).update(jnp.asarray(vectors), jnp.int32(30))
    expected = np.einsum("knd,kne->kde", vectors, vectors, dtype=np.float64)
    np.testing.assert_allclose(all_of_them.value(), expected / 50, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(some.value(), expected / 30, rtol=1e-5, atol=1e-6)
    both = some.merge(all_of_them)
    np.testing.assert_allclose(both.value(), 2 * expected / 80, rtol=1e-5, atol=1e-6)
