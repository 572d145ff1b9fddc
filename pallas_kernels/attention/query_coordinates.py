"""A head's queries in the coordinates of the keys' codes: a lane has some of one query's, four neighbours at a time.

The query is the lane's row. Of a warp's share of the coordinates, ``dim / warps``, 16 after 16, column ``t`` has those
from ``4 t`` on.
"""

import functools
import itertools
from typing import Any

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import TileShape
from kakeya_jax.pallas_kernels.attention.exact_values import load_exact, packed_in_two
from kakeya_jax.pallas_kernels.attention.query_form import QueryForm
from kakeya_jax.pallas_kernels.attention.walsh_hadamard import across_lanes, butterflies, one_output, with_signs
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

SMALLEST = 1e-30
"""What queries without an entry beyond it are divided by."""

_LARGEST = 64.0
"""What the largest entry of a query becomes in float16, so that low parts keep their bits."""

_TOGETHER = 4
"""Steps of 16 channels whose entries of the rotation are under way at once."""

_RUN = 8
"""Neighbours that lane order keeps together."""


class ChannelQueries:
    """Channels as they are, or in lane order. Making it starts loads; ``found`` waits for them."""

    def __init__(self, ops: Any, shape: TileShape, form: QueryForm, lane: Lane, query: Any) -> None:
        self.ops = ops
        start = ops.add(ops.times(lane.warp, shape.dim // shape.warps), ops.times(lane.column, 4))
        self._fours = [
            _query_entries(ops, shape, form, lane, query, ops.add(start, ops.integer(first)))
            for first in range(0, shape.dim // shape.warps, 16)
        ]

    def prepare(self) -> None:
        """See ``RotatedQueries``."""

    def found(self) -> tuple[list[list[Any]], Any]:
        """This lane's coordinates, and a unit of its row that they are in."""
        return self._fours, self.ops.real(1.0)


class RotatedQueries:
    """Products with a rotation, on tensor cores, as exact as those of float32.

    Rows of a product are queries over their largest entry, as the sum of two float16: row ``g`` is the high part of
    query ``g``, row ``g + 8`` its low part, and a lane adds up both. Columns are rows of the rotation, likewise sums of
    two float16. A lane loads four neighbours of either, which may be any of the product's depth since both agree.
    """

    def __init__(self, ops: Any, shape: TileShape, form: QueryForm, lane: Lane, query: Any, rotation: Any) -> None:
        self.ops, dim = ops, shape.dim
        self._steps = list(range(0, dim // 16, _TOGETHER))
        first = ops.times(lane.column, 4)
        self._query = [
            _query_entries(ops, shape, form, lane, query, ops.add(first, ops.integer(16 * step)))
            for step in range(dim // 16)
        ]
        # Four results of two products are neighbours.
        row = ops.add(ops.times(ops.divide(lane.row, 2), 4), ops.modulo(lane.row, 2))
        row = ops.add(row, ops.times(lane.warp, dim // shape.warps))
        self._rotation = ops.offset(ops.offset(rotation, row, 4 * dim), ops.times(first, 4))
        self._rows = [4 * dim * (16 * part + 2 * half) for part in range(dim // shape.warps // 16) for half in range(2)]
        self._entries = self._load(self._steps[0])
        self._factor: Any = None
        self._sums = [[ops.real(0.0)] * 4 for _ in self._rows]

    def _load(self, step: int) -> list[list[list[Any]]]:
        """For some steps of depth and each block of eight columns, four entries of the rotation."""
        steps = range(step, step + _TOGETHER)
        return [
            [self.ops.load_reals(self._rotation, 4, at + 64 * each, pinned=True) for at in self._rows] for each in steps
        ]

    def prepare(self) -> None:
        """Multiplies with all entries but the last ones, which are under way then: before copies of tiles, for which
        loads that come later would wait."""
        for step, following in itertools.pairwise(self._steps):
            self._multiply(step)
            self._entries = self._load(following)
        self._steps = self._steps[-1:]

    def found(self) -> tuple[list[list[Any]], Any]:
        """This lane's coordinates, and a unit of its row that they are in."""
        ops = self.ops
        self.prepare()
        self._multiply(self._steps[0])
        added = [[ops.plus(four[n], four[2 + n]) for n in range(2)] for four in self._sums]
        fours = [[*added[at], *added[at + 1]] for at in range(0, len(added), 2)]
        return fours, ops.scaled(self._size, ops.real(1.0 / _LARGEST))

    def _multiply(self, step: int) -> None:
        ops = self.ops
        if step == 0:
            size = functools.reduce(ops.maximum, [ops.magnitude(x) for four in self._query for x in four])
            self._size = ops.maximum(over_columns(ops, size), ops.real(SMALLEST))
            self._factor = ops.scaled(ops.reciprocal(self._size), ops.real(_LARGEST))
        for query, blocks in zip(self._query[step:], self._entries, strict=False):
            high, low = packed_in_two(ops, [ops.scaled(x, self._factor) for x in query], jnp.float16)
            left = [high[0], low[0], high[1], low[1]]
            rights = [packed_in_two(ops, four, jnp.float16) for four in blocks]
            for part in range(2):
                self._sums = [
                    ops.multiply_halves(total, left, right[part])
                    for total, right in zip(self._sums, rights, strict=True)
                ]


class HadamardQueries:
    """Products with a rotation of kind ``hadamard``: a transform in registers, in float32 (``walsh_hadamard``).

    A lane has four neighbours of every 16 channels. So two stages are of those, two of a row's lanes, and the others of
    its steps, of which a warp needs but its own.
    """

    def __init__(self, ops: Any, shape: TileShape, form: QueryForm, lane: Lane, query: Any, rotation: Any) -> None:
        self.ops, self.lane, dim = ops, lane, shape.dim
        self._outputs = dim // shape.warps // 16
        first = ops.times(lane.column, 4)
        steps = range(dim // 16)
        self._query = [
            _query_entries(ops, shape, form, lane, query, ops.add(first, ops.integer(16 * step))) for step in steps
        ]
        self._unit = ops.load_reals(rotation, 1, pinned=True)[0]
        of_column = ops.offset(rotation, first, 4)
        self._row = [ops.load_reals(of_column, 4, 64 * step, pinned=True) for step in steps]
        mine = ops.offset(rotation, ops.add(ops.times(lane.warp, dim // shape.warps), first), 4 * dim)
        self._column = [
            [ops.load_reals(mine, 1, 4 * dim * (16 * step + n), pinned=True)[0] for n in range(4)]
            for step in range(self._outputs)
        ]

    def prepare(self) -> None:
        """See ``RotatedQueries``."""

    def found(self) -> tuple[list[list[Any]], Any]:
        """This lane's coordinates, and a unit of its row that they are in; it may be negative."""
        ops, lane = self.ops, self.lane
        fours = [with_signs(ops, *each) for each in zip(self._query, self._row, strict=True)]
        fours = [butterflies(ops, four) for four in one_output(ops, fours, lane.warp, self._outputs)]
        fours = [across_lanes(ops, four, lane.column, 4) for four in fours]
        return [with_signs(ops, *each) for each in zip(fours, self._column, strict=True)], self._unit


def over_columns(ops: Any, value: Any) -> Any:
    """The largest of a row."""
    for distance in (1, 2):
        value = ops.maximum(value, ops.exchange(value, distance))
    return value


def _query_entries(ops: Any, shape: TileShape, form: QueryForm, lane: Lane, query: Any, first: Any) -> list[Any]:
    """Of the query of this lane's row, four coordinates of its own, from ``first`` on; zeros if there is no query."""
    if form.coordinates == "lanes":
        runs, run = shape.dim // (4 * _RUN), ops.divide(first, _RUN)
        run = ops.add(ops.times(ops.modulo(run, runs), 4), ops.divide(run, runs))
        first = ops.add(ops.times(run, _RUN), ops.modulo(first, _RUN))
    size = form.dtype.itemsize
    row = ops.smaller(lane.row, ops.integer(shape.group - 1))
    where = ops.offset(query, ops.add(ops.times(row, shape.dim), first), size)
    there = ops.less(lane.row, ops.integer(shape.group))
    return [ops.select(there, value, ops.real(0.0)) for value in load_exact(ops, where, 4, form.dtype, pinned=True)]
