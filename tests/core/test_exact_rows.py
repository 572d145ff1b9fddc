import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.exact_rows import restore, select
from kakeya_jax.testing import synthetic_kv


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (100, 3), (128, 8), (200, 200)])
def test_the_most_important_rows_come_back_as_float16(n: int, count: int) -> None:
    x = synthetic_kv(0, n, 16, "key")
    importance = jnp.asarray(np.random.default_rng(n).permutation(n).astype(np.float32))
    rows, kept = select(x, importance, count)
    assert rows.position.shape == (-(-count * max(1, (n - 1).bit_length()) // 8),)
    assert rows.value.shape == (count, 16)
    expected = np.asarray(importance) >= n - count
    np.testing.assert_array_equal(kept, expected)
    restored = np.asarray(restore(rows, jnp.zeros_like(x)))
    np.testing.assert_array_equal(restored[expected], np.asarray(x)[expected].astype(np.float16))
    np.testing.assert_array_equal(restored[~expected], 0)


def test_equal_importance_takes_the_first_rows() -> None:
    kept = select(jnp.ones((8, 2)), jnp.zeros(8), 3)[1]
    np.testing.assert_array_equal(kept, [True] * 3 + [False] * 5)


def test_batches_are_loops() -> None:
    x = synthetic_kv(1, 256, 8, "value").reshape(4, 64, 8)
    importance = jnp.sum(x * x, axis=-1)
    together = jax.vmap(lambda block, weight: restore(select(block, weight, 5)[0], 0 * block))(x, importance)
    for i in range(4):
        np.testing.assert_array_equal(together[i], restore(select(x[i], importance[i], 5)[0], 0 * x[i]))
