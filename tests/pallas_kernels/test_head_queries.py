"""Queries that programs find for themselves: rotated, rounded and handed to every warp, against float64."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from byte_queries import byte_queries

from kakeya_jax import level_words
from kakeya_jax.pallas_kernels.attention.coded_shape import CodedShape, Codes
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.launch import launch
from kakeya_jax.pallas_kernels.attention.query_coordinates import HadamardQueries, RotatedQueries
from kakeya_jax.pallas_kernels.attention.query_form import ROWS, Coordinates, QueryForm
from kakeya_jax.pallas_kernels.attention.tile_logits import load_factors, load_queries
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC_BITS, Lane
from kakeya_jax.rotation import RotationKind, haar_rotation, hadamard_rotation, rotation_matrix

HEADS, SCALE = 3, 0.3
SEEDS = (0, 8)
"""Of rotations of kind ``hadamard`` whose first entry is positive, and negative."""
CASES = [(128, 4), (64, 5), (128, 8), (64, 1), (128, 7)]


def found(query: jax.Array, rotation: jax.Array, form: QueryForm) -> list[np.ndarray]:
    """What each warp of each program reads: parts ``[N, 4, 2 rows, D]``, starts ``[N, 4, 2 rows]``, factors."""
    heads, group, dim = query.shape
    shape = shape_of(dim, group, form)
    leads = (heads, shape.warps)
    row_words = dim * form.nbytes // 4
    outputs = [
        jax.ShapeDtypeStruct((*leads, 2 * shape.rows, row_words), jnp.int32),
        jax.ShapeDtypeStruct((*leads, 2 * shape.rows), jnp.int32),
        jax.ShapeDtypeStruct((*leads, shape.rows), jnp.float32),
    ]
    arrays = launch(
        functools.partial(_program, shape=shape, words=row_words), outputs, [query, rotation], programs=heads,
        warps=shape.warps, shared_floats=shape.shared_floats, interpret=True,
    )  # fmt: skip
    parts, starts, factors = map(np.asarray, arrays)
    kind = np.int8 if form.parts is None else form.parts
    parts = parts.view(kind).reshape(*parts.shape[:-1], dim)
    rows = np.arange(shape.rows)
    high, to_low = 2 * rows, 1
    if form.parts is not None and shape.blocks > 1:  # a block of high parts, and one of low ones
        high, to_low = 2 * (rows % 4) + rows // 4, 8
    return [
        parts[:, :, np.concatenate([high, high + to_low])],
        starts.reshape(*leads, shape.rows, 2).swapaxes(2, 3).reshape(starts.shape),
        factors,
    ]


def shape_of(dim: int, group: int, form: QueryForm) -> CodedShape:
    codes = Codes(bits=4, table=tuple(range(16)))
    sizes: dict[str, Any] = {"dim": dim, "group": group, "splits": 1, "states": 1, "warps": 4, "capacity": 64}
    return CodedShape(key=codes, value=codes, queries=form, **sizes)


def _program(ops: Any, *refs: Any, shape: CodedShape, words: int) -> None:
    query_ref, rotation_ref, part_ref, start_ref, factor_ref, shared_ref = refs
    lane, number = Lane(ops), ops.program_index()
    queries = HeadQueries(ops, shape, shape.queries, lane, number, query_ref, rotation_ref, shared_ref).share()
    warp = ops.add(ops.times(number, shape.warps), lane.warp)
    for first in range(0, 2 * shape.rows * words, 32):
        at = ops.times(ops.add(lane.lane, ops.integer(first)), 4)
        target = ops.offset(ops.offset(ops.address(part_ref), warp, 8 * shape.rows * words), at)
        ops.store_words(target, ops.shared_words(ops.shared_offset(queries, at), 1, ROWS))
    if shape.queries.parts is None:
        _, starts, _ = load_queries(ops, shape, lane, queries)
        target = ops.offset(ops.offset(ops.address(start_ref), warp, 8 * shape.rows), ops.times(lane.column, 8))
        for block, pair in enumerate(starts):
            ops.store_words(target, [ops.subtract(each, ops.integer(MAGIC_BITS)) for each in pair], 32 * block)
    target = ops.offset(ops.offset(ops.address(factor_ref), warp, 4 * shape.rows), ops.times(lane.column, 4))
    for block, factor in enumerate(load_factors(ops, shape, lane, queries)):
        ops.store_reals(target, [factor], 16 * block)


def random_queries(dim: int, group: int, dtype: Any) -> jax.Array:
    """Of sizes of many orders of magnitude, one of them zero."""
    sizes = 10.0 ** np.linspace(-6, 6, HEADS * group).reshape(HEADS, group, 1)
    query = np.random.default_rng(group).normal(size=(HEADS, group, dim)) * sizes
    query[1, group - 1] = 0.0
    return jnp.asarray(query, dtype)


def matrix(coordinates: Coordinates, dim: int) -> np.ndarray:
    """What a vector is multiplied with, float32."""
    if coordinates == "rotated":
        return np.asarray(haar_rotation(dim, 0), np.float32)
    if coordinates == "hadamard":
        return hadamard_rotation(dim, SEEDS[1])
    even = np.eye(dim, dtype=np.float32)
    return even if coordinates == "channels" else np.asarray(level_words.to_lane_order(jnp.asarray(even)).T)


@pytest.mark.parametrize("coordinates", ["rotated", "hadamard", "channels", "lanes"])
@pytest.mark.parametrize(("dim", "group"), CASES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_bytes_are_those_of_exact_queries(coordinates: Coordinates, dim: int, group: int, dtype: Any):
    query, rotation = random_queries(dim, group, dtype), matrix(coordinates, dim)
    form = QueryForm(dtype=query.dtype, scale=SCALE, coordinates=coordinates)
    parts, starts, factors = found(query, jnp.asarray(rotation), form)
    turned = np.asarray(query, np.float64) @ rotation.T.astype(np.float64)
    expected = byte_queries(jnp.asarray(turned, jnp.float32), SCALE * np.log(2.0))
    for values in (parts, starts, factors):
        np.testing.assert_array_equal(values, values[:, :1].repeat(4, axis=1))  # every warp reads the same
    numbers, exact = numbers_of(parts[:, 0]), numbers_of(np.asarray(expected.numbers))
    np.testing.assert_array_equal(numbers_of(starts[:, 0]), numbers.sum(axis=-1) // 2)
    if coordinates == "hadamard":  # where units have the sign of the rotation's first entry
        numbers, factors = -numbers, -factors
    assert np.abs(numbers - exact).max() <= 1
    # Where they differ, both are within a half of the number, nearly.
    used = factors[:, 0, :group, None].astype(np.float64)
    assert (np.abs(numbers[:, :group] * used - turned * SCALE) <= 0.52 * used).all()
    assert not numbers[:, group:].any()
    factor = np.asarray(expected.factor)[:, :group]
    np.testing.assert_allclose(factors[:, 0, :group], factor, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize(("kind", "bound"), [("hadamard", 2.0**-23), ("haar", 2.0**-21)])
@pytest.mark.parametrize(("dim", "group"), CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_rotated_queries_are_those_of_float64(kind: RotationKind, bound: float, dim: int, group: int, seed: int):
    """Before they are rounded: within ``bound`` of a query's length; of a transform, as exact as float32."""
    query, rotation = random_queries(dim, group, jnp.float32), rotation_matrix(kind, dim, seed)
    form = QueryForm(dtype=query.dtype, coordinates="hadamard" if kind == "hadamard" else "rotated")
    (turned,) = launch(
        functools.partial(_coordinates, shape=shape_of(dim, group, form)),
        [jax.ShapeDtypeStruct((HEADS, 8, dim), jnp.float32)], [query, jnp.asarray(rotation)], programs=HEADS,
        warps=4, shared_floats=0, interpret=True,
    )  # fmt: skip
    turned, exact = np.asarray(turned, np.float64), np.asarray(query, np.float64)
    expected = exact @ rotation.T.astype(np.float64)
    error = np.linalg.norm(turned[:, :group] - expected, axis=-1)
    assert (error <= bound * np.linalg.norm(exact, axis=-1)).all()
    assert not turned[:, group:].any()


def _coordinates(ops: Any, *refs: Any, shape: CodedShape) -> None:
    query_ref, rotation_ref, out_ref, _ = refs
    lane, number = Lane(ops), ops.program_index()
    query = ops.offset(ops.address(query_ref), number, shape.group * shape.dim * 4)
    source = HadamardQueries if shape.queries.coordinates == "hadamard" else RotatedQueries
    fours, unit = source(ops, shape, shape.queries, lane, query, ops.address(rotation_ref)).found()
    row = ops.add(ops.times(number, 8), lane.row)
    first = ops.add(ops.times(lane.warp, shape.dim // shape.warps), ops.times(lane.column, 4))
    target = ops.offset(ops.offset(ops.address(out_ref), row, 4 * shape.dim), first, 4)
    for step, four in enumerate(fours):
        ops.store_reals(target, [ops.scaled(value, unit) for value in four], 64 * step)


@pytest.mark.parametrize("parts", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(("dim", "group"), CASES)
def test_two_parts_are_exact_queries(parts: Any, dim: int, group: int):
    query = random_queries(dim, group, jnp.float32)
    form = QueryForm(dtype=query.dtype, scale=SCALE, parts=jnp.dtype(parts))
    high_and_low, _, factors = found(query, jnp.zeros((dim, dim)), form)
    high, low = np.split(high_and_low[:, 0].astype(np.float64), 2, axis=1)
    values = ((high + low) * factors[:, 0, :, None])[:, :group]
    exact = np.asarray(query, np.float64) * SCALE
    assert (np.abs(values - exact) <= 2.0**-16 * np.abs(exact).max(axis=-1, keepdims=True)).all()


@pytest.mark.parametrize(
    ("dtype", "parts", "coordinates"),
    [
        (jnp.bfloat16, jnp.bfloat16, "channels"),
        (jnp.bfloat16, jnp.float16, "lanes"),
        (jnp.float16,) * 2 + ("channels",),
    ],
)
@pytest.mark.parametrize(("dim", "group"), CASES)
def test_one_part_has_all_of_a_query_of_16_bits(dim: int, group: int, dtype: Any, parts: Any, coordinates: Coordinates):
    """So low parts are zero, or a block of them is neither written nor read; sizes are powers of two."""
    query = jnp.clip(random_queries(dim, group, jnp.float32), -6e4, 6e4).astype(dtype)
    form = QueryForm(dtype=query.dtype, scale=1.0, parts=jnp.dtype(parts), coordinates=coordinates)
    assert not form.low_parts
    assert dataclasses.replace(form, coordinates="rotated").low_parts
    assert dataclasses.replace(form, coordinates="hadamard").low_parts
    assert dataclasses.replace(form, dtype=jnp.dtype(jnp.float32)).low_parts
    high_and_low, _, factors = found(query, jnp.zeros((dim, dim)), form)
    high, low = np.split(high_and_low[:, 0].astype(np.float64), 2, axis=1)
    if group <= 4:
        assert not low.any()
    exact = np.asarray(query, np.float64) @ matrix(coordinates, dim).T
    least = 2.0**-25 * np.abs(exact).max(axis=-1, keepdims=True)
    assert (np.abs(high[:, :group] * factors[:, 0, :group, None] - exact) <= least).all()
    used = factors[:, 0, :group]
    np.testing.assert_array_equal(np.frexp(used)[0], 0.5)


def numbers_of(parts: np.ndarray) -> np.ndarray:
    """Of high parts, and as many low ones behind them."""
    high, low = np.split(parts.astype(np.int64), 2, axis=1)
    return 256 * high + low
