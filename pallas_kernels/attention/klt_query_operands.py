"""What products of queries are made of, as a lane has it: queries, maps of codes, and turns of a page's tokens.

A step of a product's depth has eight channels of the first half of a head and the same of the second, which turn
together; which ones, ``klt_query_rows`` and the operands here have in common.
"""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_values import load_exact
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, UNIT_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_MAP_LARGEST = 1024.0
"""What the largest entry of 16 channels becomes in float16: those 2^24 times smaller still have all their bits."""


def query_vectors(ops: Any, shape: KltShape, lane: Lane, query_ref: Any, head: Any, first: Any) -> list[list[Any]]:
    """This lane's channels of the warp's two queries: two of the first half of a head, and of the second."""
    dtype, group = shape.dtype, shape.group
    found = []
    base = ops.offset(ops.address(query_ref), head, group * DIM * dtype.itemsize)
    for index in range(2):
        query = ops.add(first, ops.integer(index))
        there = ops.less(query, ops.integer(group))
        where = ops.offset(base, ops.smaller(query, ops.integer(group - 1)), DIM * dtype.itemsize)
        where = ops.offset(where, ops.times(lane.lane, 2 * dtype.itemsize))
        values = [x for half in range(2) for x in load_exact(ops, where, 2, dtype, half * DIM // 2 * dtype.itemsize)]
        found.append([ops.select(there, value, ops.real(0.0)) for value in values])
    return found


def times_mean(
    ops: Any, shape: KltShape, lane: Lane, vectors: list[list[Any]], means: Any, kv_head: Any
) -> list[list[Any]]:
    """Vectors whose products with the cosines and sines of a token are logits: the query times the mean, as pairs
    of channels that turn."""
    where = ops.offset(ops.offset(means, kv_head, 4 * DIM), ops.times(lane.lane, 8))
    near, far = ([ops.scaled(x, ops.real(shape.scale)) for x in ops.load_reals(where, 2, at)] for at in (0, 2 * DIM))
    found = []
    for vector in vectors:
        pairs = list(zip(vector[:2], vector[2:], near, far, strict=True))
        found.append(
            [ops.fused(y, m, ops.scaled(x, n)) for x, y, n, m in pairs]
            + [ops.minus(ops.scaled(y, n), ops.scaled(x, m)) for x, y, n, m in pairs]
        )
    return found


def load_maps(ops: Any, lane: Lane, maps: Any, kv_head: Any) -> list[list[list[Any]]]:
    """Of this warp's 32 channels, for each 16: entries of the map as ``map_operands`` takes them."""
    where = ops.offset(ops.offset(maps, kv_head, 4 * DIM * DIM), ops.times(lane.warp, 128 * DIM))
    channel = ops.add(ops.times(ops.divide(lane.row, 2), 4), ops.modulo(lane.row, 2))
    where = ops.offset(where, ops.add(ops.times(channel, 4 * DIM), ops.times(lane.column, 16)))
    return [
        [
            ops.load_reals(where, 4, 4 * DIM * (GROUP * group + 2 * block) + 256 * half + 64 * part)
            for block in range(2)
            for part in range(4)
            for half in range(2)
        ]
        for group in range(2)
    ]


def map_operands(
    ops: Any, lane: Lane, entries: list[list[list[Any]]], units: Any, kv_head: Any
) -> tuple[list[list[list[Any]]], list[Any]]:
    """For each eight of this warp's 32 channels and each step, this lane's two words; and for each 16 channels what
    makes their products numbers of codes. Of 16 channels, four results of a lane are neighbours."""
    units = ops.offset(units, ops.add(ops.times(kv_head, UNIT_WORDS), ops.times(lane.warp, 2)), 4)
    found, weights = [], []
    for fours, unit in zip(entries, ops.load_reals(units, 2, 12 * GROUPS), strict=True):
        size = functools.reduce(ops.maximum, [ops.magnitude(x) for four in fours for x in four])
        size = ops.maximum(over_warp(ops, size), ops.real(1e-30))
        weights.append(ops.scaled(ops.scaled(size, unit), ops.real(1.0 / _MAP_LARGEST)))
        factor = ops.scaled(ops.reciprocal(size), ops.real(_MAP_LARGEST))
        words = [
            ops.pack_halves(*(ops.scaled(x, factor) for x in four[at : at + 2])) for four in fours for at in (0, 2)
        ]
        # Block, part, half, step of the part.
        for block in range(2):
            of_block = words[16 * block : 16 * block + 16]
            found.append([[of_block[4 * part + n], of_block[4 * part + 2 + n]] for part in range(4) for n in range(2)])
    return found, weights


def token_operands(ops: Any, lane: Lane, where: Any, columns: int) -> list[list[list[Any]]]:
    """For each block of columns and step, this lane's two words."""
    where = ops.offset(where, ops.times(lane.lane, 16))
    found = []
    for block in range(columns):
        fours = [ops.load_words(where, 4, 512 * (4 * block + index), once=False) for index in range(4)]
        found.append([four[2 * step : 2 * step + 2] for four in fours for step in range(2)])
    return found


def over_warp(ops: Any, value: Any, combine: Any = None) -> Any:
    """The largest of a warp's lanes, or another combination."""
    for distance in (1, 2, 4, 8, 16):
        value = (combine or ops.maximum)(value, ops.exchange(value, distance))
    return value
