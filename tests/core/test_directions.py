import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from kakeya_jax.directions import direction_table, nearest_direction, quantize_magnitudes, signed_magnitude_levels

nearest = jax.jit(nearest_direction)


@pytest.mark.parametrize("group_size", [2, 3, 4, 8])
@pytest.mark.parametrize("bits", [1, 3, 6, 10])
def test_directions_are_unit_vectors(group_size: int, bits: int) -> None:
    table = direction_table(group_size, bits)
    assert table.shape == (2**bits, group_size)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-6)


def test_pairs_cover_half_a_circle_evenly() -> None:
    table = direction_table(2, 3)
    angles = np.arctan2(table[:, 1], table[:, 0])
    np.testing.assert_allclose(angles, np.pi * np.arange(8) / 8, atol=1e-6)


def test_spiral_by_hand() -> None:
    table = direction_table(4, 2)
    golden, i = (1 + 5**0.5) / 2, 3
    z = 1 - 2 * (i + 0.5) / 4
    turn = 2 * np.pi * i / golden
    r = np.sqrt(1 - z * z)
    vector = np.array([abs(z), r * np.cos(turn), r * np.sin(turn), 0.1 * np.cos(2 * np.pi * i * 4 / golden)])
    np.testing.assert_allclose(table[i], vector / np.linalg.norm(vector), rtol=1e-5)


@pytest.mark.parametrize("bits", range(1, 11))
def test_arithmetic_angle_is_the_argmax(bits: int) -> None:
    table = direction_table(2, bits)
    groups = np.random.default_rng(bits).standard_normal((50_000, 2)).astype(np.float32)
    index, magnitude = nearest(jnp.asarray(groups), jnp.asarray(table))
    projection = np.abs(groups.astype(float) @ table.T.astype(float))
    best = projection.argmax(axis=1)
    wrong = np.flatnonzero(np.asarray(index) != best)
    # Near the middle of two directions the float32 table itself decides; both are equally good to six digits.
    chosen = projection[wrong, np.asarray(index)[wrong]]
    np.testing.assert_allclose(chosen, projection[wrong, best[wrong]], rtol=1e-6)
    assert len(wrong) <= 4e-6 * 2**bits * len(groups)
    np.testing.assert_allclose(np.abs(magnitude), projection.max(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_ties_axes_and_zeros_take_the_first_direction(bits: int) -> None:
    values = np.array([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0], np.float32)
    groups = np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2)
    table = direction_table(2, bits)
    index, magnitude = nearest(jnp.asarray(groups), jnp.asarray(table))
    np.testing.assert_array_equal(index, np.abs(groups @ table.T).argmax(axis=1))
    np.testing.assert_allclose(
        magnitude, np.take_along_axis(groups @ table.T, np.asarray(index)[:, None], 1)[:, 0], atol=1e-6
    )


@pytest.mark.parametrize("group_size", [3, 4, 8])
def test_larger_groups_take_the_argmax(group_size: int) -> None:
    table = direction_table(group_size, 5)
    groups = np.random.default_rng(0).standard_normal((2000, group_size)).astype(np.float32)
    index, _ = nearest(jnp.asarray(groups), jnp.asarray(table))
    assert (np.asarray(index) == np.abs(groups @ table.T).argmax(axis=1)).mean() > 0.999
    assert int(nearest(jnp.zeros((1, group_size)), jnp.asarray(table))[0][0]) == 0


def test_signed_levels_are_symmetric_and_avoid_zero() -> None:
    levels = signed_magnitude_levels(2, 3, 3, 64)
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert (np.diff(levels) > 0).all()


def test_signed_levels_of_pairs_are_the_centroids_of_a_rayleigh_magnitude() -> None:
    positive = signed_magnitude_levels(2, 8, 3, 64)[4:].astype(float)
    edges = [0.0, *(positive[1:] + positive[:-1]) / 2, np.inf]

    def density(x: float) -> float:
        return 2 * x * np.exp(-x * x)  # of unit mean square

    for level, low, high in zip(positive, edges[:-1], edges[1:], strict=True):
        mass = scipy.integrate.quad(density, low, high)[0]
        mean = scipy.integrate.quad(lambda x: x * density(x), low, high)[0] / mass
        assert level == pytest.approx(mean, rel=0.01)


def test_magnitudes_are_scaled_by_least_squares() -> None:
    magnitude = jnp.asarray(np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32))
    levels = jnp.asarray(signed_magnitude_levels(2, 3, 3, 32))
    index, scale = quantize_magnitudes(magnitude, levels)
    chosen = np.asarray(levels)[np.asarray(index)]

    def error(factor: float) -> float:
        return float(np.sum((np.asarray(magnitude) - factor * np.asarray(scale)[:, None] * chosen) ** 2))

    assert error(1.0) < min(error(0.99), error(1.01))
    zero_index, zero_scale = quantize_magnitudes(jnp.zeros((1, 32)), levels)
    assert float(zero_scale[0]) == 0
    assert int(zero_index.max()) < 8
