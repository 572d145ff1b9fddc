from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax import frequent_directions
from kakeya_jax.frequent_directions import sketch_block
from kakeya_jax.testing import synthetic_kv

N, D = 300, 64


def deficit(x: jax.Array, rows: jax.Array, weights: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Eigenvalues of ``A^T A - B^T B``, falling, and ``||A||_F^2``."""
    a = np.asarray(x, np.float64)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    a = np.sqrt(w)[:, None] * (a - np.average(a, axis=0, weights=w))
    b = np.asarray(rows, np.float64)
    return np.linalg.eigvalsh(a.T @ a - b.T @ b)[::-1], float(np.sum(a * a))


@jax.jit
def stream(sketch: frequent_directions.Sketch, x: jax.Array, weights: jax.Array) -> frequent_directions.Sketch:
    return jax.lax.scan(lambda s, row: (frequent_directions.update(s, *row), None), sketch, (x, weights))[0]


@pytest.mark.parametrize("kind", ["key", "value"])
@pytest.mark.parametrize("size", [4, 16, 40, 70])
def test_guarantee_of_liberty(kind: Literal["key", "value"], size: int) -> None:
    x = synthetic_kv(0, N, D, kind)
    eigenvalues, energy = deficit(x, frequent_directions.value(sketch_block(x, size)))
    rounding = 1e-6 * energy
    assert eigenvalues[-1] >= -rounding
    assert eigenvalues[0] <= energy / size
    if size <= D // 2:  # something was taken off: the bound is not met by being exact
        assert eigenvalues[0] > 0.005 * energy / size
    else:
        assert eigenvalues[0] < rounding + energy / size / 2


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_deficit_is_bounded_by_the_energy_outside_the_leading_directions(k: int) -> None:
    """The sharper form: at most ``||A - A_k||_F^2 / (l - k)`` (arXiv:1501.01711, theorem 1.1)."""
    size, x = 16, synthetic_kv(1, N, D, "key")
    eigenvalues, energy = deficit(x, sketch_block(x, size).rows)
    a = np.asarray(x - x.mean(axis=0), np.float64)
    tail = np.sum(np.linalg.svd(a, compute_uv=False)[k:] ** 2)
    assert eigenvalues[0] <= tail / (size - k) + 1e-6 * energy


@pytest.mark.parametrize("n", [1, 7, 16, 17, 25, 26, 200])
def test_a_block_at_once_is_one_vector_at_a_time(n: int) -> None:
    x = synthetic_kv(2, n, 32, "key")
    weights = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2.0, n).astype(np.float32))
    whole = sketch_block(x, 8, weights=weights)
    one_by_one = stream(frequent_directions.init(8, 32), x, weights)
    assert int(whole.used) == int(one_by_one.used)
    chex.assert_trees_all_equal_shapes_and_dtypes(whole, one_by_one)
    np.testing.assert_allclose(whole.mean, one_by_one.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole.weight, one_by_one.weight, rtol=1e-5)
    scatter, expected = (np.asarray(s.rows).T @ np.asarray(s.rows) for s in (whole, one_by_one))
    np.testing.assert_allclose(scatter, expected, atol=1e-5 * max(1.0, float(np.trace(expected))))


def test_weights_count_as_repetitions() -> None:
    x = synthetic_kv(3, 40, 16, "value")
    times = np.random.default_rng(0).integers(0, 4, 40)
    weighted = sketch_block(x, 30, weights=jnp.asarray(times, jnp.float32))
    repeated = sketch_block(jnp.repeat(x, times, axis=0), 30)
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-5)
    np.testing.assert_allclose(weighted.rows.T @ weighted.rows, repeated.rows.T @ repeated.rows, atol=1e-3)
    eigenvalues, energy = deficit(x, weighted.rows, times)
    assert np.abs(eigenvalues).max() < 1e-5 * energy


def test_one_eigendecomposition_for_many_vectors() -> None:
    """The work per vector does not grow: between two shrinks lie ``l + 1`` vectors."""
    size, x = 8, synthetic_kv(4, 120, 32, "value")
    sketch, shrinks = frequent_directions.init(size, 32), []
    step = jax.jit(frequent_directions.update)
    for i, vector in enumerate(x):
        before, sketch = int(sketch.used), step(sketch, vector)
        if int(sketch.used) < before:
            shrinks.append(i)
    assert shrinks[0] == 2 * size
    assert set(np.diff(shrinks)) == {size + 1}


def test_vectors_of_few_directions_are_kept_exactly() -> None:
    rng = np.random.default_rng(5)
    x = jnp.asarray((rng.standard_normal((200, 3)) @ rng.standard_normal((3, 24)) + 5).astype(np.float32))
    eigenvalues, energy = deficit(x, sketch_block(x, 6).rows)
    assert np.abs(eigenvalues).max() < 1e-5 * energy


@pytest.mark.parametrize("value", [0.0, 3.0, 2.0**14])
def test_equal_vectors_have_no_scatter(value: float) -> None:
    sketch = sketch_block(jnp.full((50, 8), value), 4)
    np.testing.assert_array_equal(sketch.rows, 0.0)
    np.testing.assert_array_equal(sketch.mean, value)


def test_too_small_a_sketch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 directions, got size=1"):
        frequent_directions.init(1, 8)
