import itertools

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import kmeans, smallrng

fit = jax.jit(kmeans.fit_centers, static_argnums=1, static_argnames=("iterations", "seed"))
assign = jax.jit(kmeans.assign)


def lines(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Points near four lines through the origin, on both sides and at many distances."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((8, 8)))[0][:4]
    distance = rng.uniform(0.5, 5, (200, 1)) * rng.choice([-1, 1], (200, 1))
    points = distance * axes[np.arange(200) % 4] + noise * rng.standard_normal((200, 8))
    return points.astype(np.float32), axes


def test_finds_planted_lines() -> None:
    points, axes = lines(noise=0.02)
    # Farthest-first is signed, so both ends of a line may start a centre; eight centres surely cover four lines.
    centers = np.asarray(fit(jnp.asarray(points), 8, iterations=32, seed=1))
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-5)
    np.testing.assert_array_less(0.999, np.abs(axes @ centers.T).max(axis=1))


def test_start_is_farthest_first_by_signed_cosine() -> None:
    points = jnp.asarray(np.random.default_rng(2).standard_normal((50, 6)).astype(np.float32))
    centers = np.asarray(fit(points, 5, iterations=0, seed=3))
    unit = np.asarray(points) / np.linalg.norm(points, axis=1, keepdims=True)
    expected = [unit[smallrng.first_index_table(3, 50)[50]]]
    for _ in range(4):
        expected.append(unit[np.argmax(1 - np.max(unit @ np.array(expected).T, axis=1))])
    np.testing.assert_allclose(centers, expected, atol=1e-6)


def test_a_single_centre_is_never_updated() -> None:
    points = jnp.asarray(lines(noise=0.3)[0])
    np.testing.assert_array_equal(fit(points, 1, iterations=32, seed=1), fit(points, 1, iterations=0, seed=1))


def test_passes_do_not_lower_the_captured_energy() -> None:
    points = jnp.asarray(np.random.default_rng(4).standard_normal((300, 16)).astype(np.float32))
    unit = points / jnp.linalg.norm(points, axis=1, keepdims=True)
    energy = [
        float(jnp.sum(jnp.abs(assign(unit, fit(points, 8, iterations=i, seed=1)).projection))) for i in (0, 1, 2, 4, 32)
    ]
    assert all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(energy))
    assert energy[-1] > 1.1 * energy[0]


def test_rows_of_zero_norm_or_weight_are_ignored() -> None:
    points = np.random.default_rng(5).standard_normal((40, 6)).astype(np.float32)
    weights = jnp.concatenate([jnp.ones(40), jnp.zeros(10), jnp.ones(10)])
    padded = jnp.asarray(np.concatenate([points, 100 + points[:10], np.zeros((10, 6), np.float32)]))
    np.testing.assert_allclose(
        fit(padded, 4, iterations=32, seed=1, weights=weights),
        fit(jnp.asarray(points), 4, iterations=32, seed=1),
        atol=1e-5,
    )


def test_fewer_points_than_centres_leave_zero_rows() -> None:
    points = jnp.zeros((20, 4)).at[5, 1].set(2.0).at[9, 2].set(-3.0)
    centers = np.asarray(fit(points, 8, iterations=32, seed=1))
    assert sorted(map(tuple, np.abs(centers[:2]))) == [(0, 0, 1, 0), (0, 1, 0, 0)]
    assert not centers[2:].any()
    segment, projection = assign(points, jnp.asarray(centers))
    assert set(np.asarray(segment)) <= {0, 1}
    np.testing.assert_array_equal(np.abs(projection[jnp.asarray([5, 9])]), [2, 3])


def test_all_zero_points_give_zero_centres() -> None:
    assert not np.any(fit(jnp.zeros((10, 4)), 3, iterations=32, seed=1))


def test_assignment_takes_the_first_of_equal_centres() -> None:
    centers = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    segment, projection = assign(jnp.asarray([[2.0, 0.0], [-3.0, 3.0], [0.0, 0.0]]), centers)
    np.testing.assert_array_equal(segment, [1, 0, 0])
    np.testing.assert_array_equal(projection, [2, 3, 0])
