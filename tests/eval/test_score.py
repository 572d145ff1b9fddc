import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from kakeya_jax.eval.score import kl_divergence, score


def log_probabilities(logits: np.ndarray) -> jax.Array:
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))


def exact_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    p, q = (scipy.special.log_softmax(x.astype(np.float64), axis=-1) for x in (p, q))
    return np.sum(np.exp(p) * (p - q), axis=-1)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 10.0, 30.0]),
    noise=st.sampled_from([1e-3, 1e-2, 0.1, 1.0, 10.0]),
)
def test_kl_matches_float64(seed: int, spread: float, noise: float):
    rng = np.random.default_rng(seed)
    p = rng.normal(0, spread, (4, 500)).astype(np.float32)
    q = (p + rng.normal(0, noise, p.shape)).astype(np.float32)
    ours = kl_divergence(log_probabilities(p), log_probabilities(q))
    np.testing.assert_allclose(ours, exact_kl(p, q), rtol=1e-3, atol=1e-9)


def test_kl_of_equal_distributions_is_far_below_the_textbook_sum():
    """A large vocabulary and shifted logits: the normalisers round differently."""
    logits = np.random.default_rng(0).normal(0, 4, (32, 15104)).astype(np.float32)
    p, q = log_probabilities(logits), log_probabilities(logits[:, ::-1] + 7)[:, ::-1]
    textbook = np.abs(np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=-1))).max()
    ours = np.asarray(kl_divergence(p, q))
    assert (ours >= 0).all()
    assert ours.max() < 1e-10
    assert textbook > 1e-7


def test_kl_where_probabilities_underflow():
    p, q = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)
    p[0, 0], q[0, 1] = 300.0, 300.0
    assert float(kl_divergence(log_probabilities(p), log_probabilities(q))[0]) == pytest.approx(300.0)
    assert not np.isfinite(kl_divergence(log_probabilities(p), log_probabilities(q * np.nan))).any()


def test_scores_of_a_token():
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]))
    candidate = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]])) + 3.0  # logits, not normalised
    scores = score(log_probabilities(reference), jnp.asarray(candidate), jnp.array([0, 1]))
    np.testing.assert_allclose(scores.reference_nll, -np.log([0.5, 0.7]), rtol=1e-6)
    np.testing.assert_allclose(scores.candidate_nll, -np.log([0.25, 0.8]), rtol=1e-6)
    np.testing.assert_array_equal(scores.agree, [False, True])
    np.testing.assert_allclose(scores.kl, exact_kl(reference, candidate), rtol=1e-5)
