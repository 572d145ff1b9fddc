"""Every reachable point has a number of its own, and the point that is found is the closest one in the box."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kakeya_jax import lattices
from kakeya_jax.lattices import LatticeName

closest_point = jax.jit(lattices.closest_point, static_argnums=(1, 2))
point_index = jax.jit(lattices.point_index, static_argnums=(1, 2))
indexed_point = jax.jit(lattices.indexed_point, static_argnums=(1, 2))


@functools.cache
def all_points(lattice: LatticeName, scale_levels: int) -> np.ndarray:
    """The definition: even sums, and for E8 the same moved by one half; all in the box."""
    length = lattices.block_length(lattice)
    whole = np.array(list(itertools.product(range(-scale_levels, scale_levels + 1), repeat=length)), np.float32)
    points = whole[whole.sum(-1) % 2 == 0]
    if lattice == "e8":
        moved = points[(points < scale_levels).all(-1)] + 0.5
        points = np.concatenate([points, moved])
    return points


def is_point(points: np.ndarray, lattice: LatticeName, scale_levels: int) -> np.ndarray:
    whole = (points == np.floor(points)).all(-1) & (points.sum(-1) % 2 == 0)
    half = (points - 0.5 == np.floor(points)).all(-1) & ((points - 0.5).sum(-1) % 2 == 0)
    return (whole | (half & (lattice == "e8"))) & (np.abs(points) <= scale_levels).all(-1)


def numbers(limbs: tuple[jax.Array, ...]) -> np.ndarray:
    """The numbers as Python integers."""
    total = np.zeros(limbs[0].shape, object)
    for i, limb in enumerate(limbs):
        total += np.asarray(limb).astype(object) << (16 * i)
    return total


EXHAUSTIVE: list[tuple[LatticeName, int]] = [("d4", 1), ("d4", 2), ("d4", 5), ("d4", 8), ("e8", 1), ("e8", 2)]
LARGE: list[tuple[LatticeName, int]] = [
    ("d4", 4), ("d4", 10), ("d4", 38), ("d4", 152), ("d4", 32767),
    ("e8", 4), ("e8", 10), ("e8", 38), ("e8", 76), ("e8", 152), ("e8", 32767),
]  # fmt: skip


@pytest.mark.parametrize(("lattice", "scale_levels"), EXHAUSTIVE)
def test_numbering_is_a_bijection(lattice: LatticeName, scale_levels: int) -> None:
    points = all_points(lattice, scale_levels)
    assert len(points) == lattices.num_points(lattice, scale_levels)
    index = point_index(jnp.asarray(points), lattice, scale_levels)
    np.testing.assert_array_equal(np.sort(numbers(index).astype(np.int64)), np.arange(len(points)))
    np.testing.assert_array_equal(indexed_point(index, lattice, scale_levels), points)


@pytest.mark.parametrize(("lattice", "scale_levels"), LARGE)
@given(seed=st.integers(0, 2**32 - 1))
def test_points_come_back_from_their_number(lattice: LatticeName, scale_levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = lattices.block_length(lattice)
    x = rng.uniform(-1.02, 1.02, (64, length)).astype(np.float32) * np.float32(scale_levels)
    x[0], x[1], x[2] = scale_levels, -scale_levels, 0
    x[3:20] = scale_levels * np.sign(x[3:20])
    points = np.asarray(closest_point(jnp.asarray(x), lattice, scale_levels))
    assert is_point(points, lattice, scale_levels).all()
    index = point_index(jnp.asarray(points), lattice, scale_levels)
    assert max(numbers(index)) < lattices.num_points(lattice, scale_levels)
    np.testing.assert_array_equal(indexed_point(index, lattice, scale_levels), points)
    if lattice == "d4":
        base = 2 * scale_levels + 1
        by_hand = [sum((int(c) + scale_levels) * base**i for i, c in enumerate(point)) // 2 for point in points]
        assert numbers(index).tolist() == by_hand


@pytest.mark.parametrize(("lattice", "scale_levels"), [("d4", 1), ("d4", 3), ("e8", 1), ("e8", 2)])
def test_found_point_is_the_closest_of_all(lattice: LatticeName, scale_levels: int) -> None:
    points = all_points(lattice, scale_levels).astype(np.float64)
    x = np.random.default_rng(0).uniform(-1.4, 1.4, (300, points.shape[1])) * scale_levels
    found = np.asarray(closest_point(jnp.asarray(x, jnp.float32), lattice, scale_levels))
    assert is_point(found, lattice, scale_levels).all()
    distance = ((found - x) ** 2).sum(-1)
    least = ((points**2).sum(-1) - 2 * x @ points.T).min(-1) + (x**2).sum(-1)
    np.testing.assert_allclose(distance, least, atol=1e-5)


def test_inside_the_box_it_is_conway_and_sloanes_point() -> None:
    x = np.random.default_rng(1).uniform(-8, 8, (1000, 4)).astype(np.float32)
    nearest = np.round(x)
    error = x - nearest
    odd = nearest.sum(-1) % 2 == 1
    worst = np.argmax(np.abs(error), axis=-1)
    rows = np.arange(len(x))
    expected = nearest.copy()
    expected[rows, worst] += np.where(odd, np.where(error[rows, worst] >= 0, 1, -1), 0)
    np.testing.assert_array_equal(closest_point(jnp.asarray(x), "d4", 9), expected)


def test_parity_at_the_wall_is_repaired_inside() -> None:
    corner = jnp.full((1, 4), 3.4).at[0, 0].set(1.9)
    np.testing.assert_array_equal(closest_point(corner, "d4", 3), [[1, 3, 3, 3]])
    outside = jnp.asarray([[3.45, 0.1, 0.0, 0.0]])
    np.testing.assert_array_equal(closest_point(outside, "d4", 3), [[3, 1, 0, 0]])


@pytest.mark.parametrize("scale_levels", [1, 2, 3, 4, 5, 7, 10, 19, 38, 76, 152, 1000, 32767])
def test_bits_are_at_most_the_published_ones(scale_levels: int) -> None:
    base = 2 * scale_levels + 1
    assert lattices.index_bits("d4", scale_levels) == math.ceil(4 * math.log2(base) - 1)
    published = math.ceil(8 * math.log2(base))
    assert published - 1 <= lattices.index_bits("e8", scale_levels) <= published


def test_bits_of_the_usual_levels() -> None:
    levels = (1, 2, 4, 5, 10, 19, 38, 76, 152)
    assert [lattices.index_bits("d4", q) for q in levels] == [6, 9, 12, 13, 17, 21, 25, 29, 33]
    assert [lattices.index_bits("e8", q) for q in levels] == [12, 18, 25, 28, 35, 43, 51, 59, 67]
