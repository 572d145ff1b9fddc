"""Selectors against loops over queries, heads and chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.eval import selectors

B, K, G, N, T, D, CHUNK = 1, 2, 3, 4, 48, 8, 8
POSITIONS = jnp.arange(T)[None]
LAST = POSITIONS[:, -N:]


@pytest.fixture(scope="module")
def weights() -> jax.Array:
    logits = 3 * jax.random.normal(jax.random.key(0), (B, K, G, N, T))
    causal = POSITIONS[:, None, :] <= LAST[:, :, None]
    return jax.nn.softmax(jnp.where(causal[:, None, None], logits, -jnp.inf), axis=-1)


def test_recent_sink():
    kept = np.asarray(
        jax.jit(selectors.recent_sink, static_argnames=("sinks", "recent"))(LAST, POSITIONS, sinks=2, recent=5)
    )
    assert kept.shape == (B, 1, 1, N, T)
    for n in range(N):
        position = T - N + n
        assert set(np.flatnonzero(kept[0, 0, 0, n])) == {0, 1, *range(position - 4, position + 1)}


def test_global_block_mass_takes_the_heaviest_chunks_of_all_heads_together(weights: jax.Array):
    kept = np.asarray(selectors.global_block_mass(weights, chunk=CHUNK, keep=2))
    mass = np.asarray(weights).reshape(B, K, G, N, T // CHUNK, CHUNK).sum(axis=(1, 2, 5))
    for n in range(N):
        expected = set(np.argsort(-mass[0, n])[:2])
        assert set(np.flatnonzero(kept[0, 0, 0, n]) // CHUNK) == expected
        assert kept[0, 0, 0, n].sum() == 2 * CHUNK


def test_active_chunks_are_the_fewest_that_hold_the_share(weights: jax.Array):
    kept = np.asarray(selectors.active_chunks(weights, chunk=CHUNK, share=0.8))
    mass = np.asarray(weights, np.float64).sum(axis=2).reshape(B, K, N, T // CHUNK, CHUNK).sum(axis=-1)
    counts = set()
    for k in range(K):
        for n in range(N):
            chosen = np.unique(np.flatnonzero(kept[0, k, 0, n]) // CHUNK)
            held, whole = mass[0, k, n, chosen].sum(), mass[0, k, n].sum()
            assert held >= 0.8 * whole
            assert held - mass[0, k, n, chosen].min() < 0.8 * whole
            counts.add(len(chosen))
    assert len(counts) > 1  # not the same for all


def test_chunk_means_choose_by_the_best_query_and_never_see_the_future():
    keys = jax.random.split(jax.random.key(1))
    query, key = jax.random.normal(keys[0], (B, K, G, N, D)), jax.random.normal(keys[1], (B, K, T, D))
    kept = np.asarray(selectors.chunk_means(query, key, LAST, chunk=CHUNK, keep=2))
    means = np.asarray(key).reshape(B, K, T // CHUNK, CHUNK, D).mean(axis=3)
    for k in range(K):
        for n in range(N):
            scores = (np.asarray(query)[0, k, :, n] @ means[0, k].T).max(axis=0)
            complete = [c for c in range(T // CHUNK) if (c + 1) * CHUNK <= T - N + n]
            expected = set(sorted(complete, key=lambda c: -scores[c])[:2])
            assert set(np.flatnonzero(kept[0, k, 0, n]) // CHUNK) == expected


def test_chunks_that_cannot_be_chosen_are_not():
    scores = jnp.array([[1.0, -jnp.inf, 0.5], [-jnp.inf, -jnp.inf, -jnp.inf]])
    assert selectors.top_chunks(scores, 2).tolist() == [[True, False, True], [False, False, False]]
    assert selectors.top_chunks(jnp.array([1.0, 1.0, 1.0]), 1).tolist() == [True, False, False]
    assert selectors.top_chunks(jnp.array([1.0, 2.0]), 9).tolist() == [True, True]
