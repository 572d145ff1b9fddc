import jax.numpy as jnp
import numpy as np

from kakeya_jax.attention_weights import logit_energy


def test_energy_is_the_mean_squared_logit_deviation() -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((32, 16)) + 5
    queries = rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16)) + 1
    logits = queries @ (keys - keys.mean(axis=0)).T
    expected = np.mean(logits**2, axis=0)
    moment = jnp.asarray((queries.T @ queries / 200).astype(np.float32))
    found = logit_energy(jnp.asarray(keys.astype(np.float32)), moment)
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-4)


def test_whitened_keys_need_no_moment() -> None:
    """With ``S = L L^T`` the energy of ``k`` under ``S`` is that of ``k L``."""
    rng = np.random.default_rng(1)
    keys = jnp.asarray(rng.standard_normal((32, 8)).astype(np.float32))
    root = jnp.asarray(np.tril(rng.standard_normal((8, 8))).astype(np.float32))
    np.testing.assert_allclose(logit_energy(keys, root @ root.T), logit_energy(keys @ root), rtol=1e-4)


def test_a_common_offset_and_a_common_scale_change_nothing() -> None:
    keys = jnp.asarray(np.random.default_rng(2).standard_normal((16, 4)).astype(np.float32))
    np.testing.assert_allclose(logit_energy(3 * keys + 7), logit_energy(keys), rtol=1e-4)


def test_equal_keys_have_equal_weights() -> None:
    for value in (0.0, 3.0, 1e4):
        np.testing.assert_array_equal(logit_energy(jnp.full((5, 4), value)), 1.0)
