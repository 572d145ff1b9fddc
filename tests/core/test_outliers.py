import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kakeya_jax import outliers

select = jax.jit(outliers.select, static_argnums=2)
restore = jax.jit(outliers.restore)


@given(st.integers(0, 2**31), st.sampled_from([4, 16, 64]), st.integers(1, 4), st.floats(0.5, 2.5))
def test_keeps_the_largest_beyond_the_threshold(seed: int, length: int, slots: int, threshold: float) -> None:
    z = np.random.default_rng(seed).standard_normal((5, length)).astype(np.float32)
    filler = np.full_like(z, 99.0)
    found = select(jnp.asarray(z), threshold, slots)
    restored = np.asarray(restore(found, jnp.asarray(filler)))
    for row, kept in zip(z, restored, strict=True):
        order = np.argsort(-np.abs(row), kind="stable")[:slots]
        expected = np.full(length, 99.0, np.float32)
        for i in order[np.abs(row[order]) > np.float32(threshold)]:
            expected[i] = np.float16(row[i])
        np.testing.assert_array_equal(kept, expected)


def test_layout_is_tight() -> None:
    found = outliers.select(jnp.ones((10, 64)), 0.5, 5)
    assert found.position.shape == (10, 4)  # 5 positions of 6 bits are 30 bits
    assert found.position.dtype == jnp.uint8
    assert found.value.shape == (10, 5)
    assert found.value.dtype == jnp.float16


def test_unused_slots_restore_nothing() -> None:
    z = jnp.full((3, 8), 0.4)
    np.testing.assert_array_equal(outliers.restore(outliers.select(z, 1.0, 3), z), z)


def test_values_saturate() -> None:
    found = outliers.select(jnp.asarray([[1e9, 0.0]]), 1.0, 1)
    np.testing.assert_array_equal(outliers.restore(found, jnp.zeros((1, 2))), [[65504.0, 0.0]])


@pytest.mark.parametrize(("length", "threshold"), [(64, 2.0), (128, 2.0), (64, 1.5)])
def test_default_slots_hold_most_gaussian_outliers(length: int, threshold: float) -> None:
    z = np.random.default_rng(0).standard_normal((20_000, length))
    count = (np.abs(z) > threshold).sum(axis=1)
    slots = outliers.default_slots(length, threshold)
    stored = np.minimum(count, slots).sum() / count.sum()
    assert 0.92 < stored < 1
    assert slots < 2 * count.mean()
    assert outliers.default_slots(4, 0.1) == 4
