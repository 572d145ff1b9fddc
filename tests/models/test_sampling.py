import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.models.sampling import keep_top_k, keep_top_p, sample

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]


def kept(logits):
    return np.flatnonzero(np.isfinite(np.asarray(logits[0]))).tolist()


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [1]), (2, [1, 3]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])],
)
def test_top_k_keeps_the_largest(top_k, expected):
    assert kept(keep_top_k(LOGITS, top_k)) == expected


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-6, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 3, 4]),
        (0.86, [0, 1, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p, expected):
    assert kept(keep_top_p(LOGITS, top_p)) == expected


def test_rows_are_cut_independently():
    logits = jnp.concatenate([LOGITS, LOGITS[:, ::-1]])
    cut = keep_top_p(logits, 0.5)
    assert kept(cut[:1]) == [1, 3]
    assert kept(cut[1:]) == [1, 3]
    assert kept(keep_top_k(logits, 1)[1:]) == [3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"temperature": 1.0, "top_k": 2}, PROBABILITIES * [0, 1, 0, 1, 0]),
        ({"temperature": 1.0, "top_p": 0.8}, PROBABILITIES * [0, 1, 0, 1, 1]),
        # Temperature comes first: at 2 the distribution is flatter, and more tokens are needed for the same
        # mass.
        ({"temperature": 2.0, "top_p": 0.8}, PROBABILITIES**0.5 * [1, 1, 0, 1, 1]),
        # top_k comes before top_p, which then sees renormalised probabilities.
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.5}, PROBABILITIES * [0, 1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(options, expected):
    draws = sample(jnp.broadcast_to(LOGITS, (20_000, 5)), jax.random.key(0), **options)
    frequency = np.bincount(draws, minlength=5) / 20_000
    # Four standard deviations of a frequency of 1/2.
    np.testing.assert_allclose(frequency, expected / expected.sum(), atol=4 * 0.5 / np.sqrt(20_000))
    assert np.all(frequency[expected == 0] == 0)


def test_masked_logits_stay_masked():
    logits = LOGITS.at[0, 1].set(-jnp.inf)
    assert kept(keep_top_p(logits, 1.0)) == [0, 2, 3, 4]
    assert kept(keep_top_k(logits, 5)) == [0, 2, 3, 4]
