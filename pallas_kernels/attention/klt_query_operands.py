"""What products of queries are made of, as a lane has it: queries, maps of codes, and curves of a mean that turns.

A step of a product's depth has eight channels of the first half of a head and the same of the second, which turn
together; which ones, ``klt_query_rows`` and the operands here have in common.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_values import load_exact
from kakeya_jax.pallas_kernels.attention.klt_query_shared import CURVES, MEAN_NBYTES, PART_NBYTES, curves_nbytes
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, UNIT_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_MAP_LARGEST = 1024.0
"""What the largest entry of 16 channels becomes in float16: those 2^24 times smaller still have all their bits."""


_PARTS = DIM // 32
"""Of 16 channels of either half of a head, two steps each."""


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


def load_map(ops: Any, lane: Lane, maps: Any, kv_head: Any, first: Any, count: int) -> list[list[Any]]:
    """Of ``count`` channels, ``first`` and every second: entries of the map as ``map_words`` takes them."""
    where = ops.offset(ops.offset(maps, kv_head, 4 * DIM * DIM), first, 4 * DIM)
    where = ops.offset(where, ops.times(lane.column, 16))
    return [
        ops.load_reals(where, 4, 8 * DIM * block + 256 * half + 64 * part)
        for block in range(count)
        for part in range(4)
        for half in range(2)
    ]


def map_unit(ops: Any, units: Any, kv_head: Any, group: Any) -> Any:
    """The unit of a group's codes."""
    where = ops.offset(units, ops.add(ops.times(kv_head, UNIT_WORDS), group), 4)
    return ops.load_reals(where, 1, 12 * GROUPS)[0]


def map_words(ops: Any, fours: list[list[Any]], unit: Any, lanes: int) -> tuple[list[Any], Any]:
    """This lane's words of a group's operands, which so many neighbouring lanes have, and what makes their products
    numbers of codes."""
    size = functools.reduce(ops.maximum, [ops.magnitude(x) for four in fours for x in four])
    size = ops.maximum(over_lanes(ops, size, lanes), ops.real(1e-30))
    weight = ops.scaled(ops.scaled(size, unit), ops.real(1.0 / _MAP_LARGEST))
    factor = ops.scaled(ops.reciprocal(size), ops.real(_MAP_LARGEST))
    words = [ops.pack_halves(*(ops.scaled(x, factor) for x in four[at : at + 2])) for four in fours for at in (0, 2)]
    return words, weight


def by_step(words: list[Any]) -> list[list[list[Any]]]:
    """For each block of a product and each step, this lane's two words of ``map_words``."""
    # Block, part, half, step of the part.
    blocks = [words[at : at + 16] for at in range(0, len(words), 16)]
    return [[[each[4 * part + n], each[4 * part + 2 + n]] for part in range(4) for n in range(2)] for each in blocks]


class HeadOperands:
    """Operands that a program makes for itself: loads begin at once, and what they bring is used in ``make``.

    A warp has 32 channels, two groups, in four blocks of eight columns: block ``b`` has ``2 b`` and ``2 b + 1`` of
    every eight channels. So the eight sums of a row that a lane has are of eight neighbours.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        tables: addresses.
        kv_head: of a row.
        shared: address of shared memory.
    """

    def __init__(self, ops: Any, shape: KltShape, lane: Lane, tables: QueryTables, kv_head: Any, shared: Any) -> None:
        self.ops = ops
        self.curves = CurveOperands(ops, shape, lane, shared)
        self.curves.start(tables, kv_head)
        self.lane = lane
        first = ops.add(ops.times(ops.divide(lane.row, 2), 8), ops.modulo(lane.row, 2))
        first = ops.add(first, ops.times(lane.warp, 2 * GROUP))
        self._entries = load_map(ops, lane, tables.maps, kv_head, first, 4)
        self._unit = map_unit(ops, tables.units, kv_head, ops.divide(first, GROUP))

    def make(self) -> tuple[list[list[list[Any]]], Any, Any]:
        """For each block and each step, this lane's two words; what makes this lane's sums numbers of codes; and the
        largest entry of the mean."""
        ops, lane = self.ops, self.lane
        words, weight = map_words(ops, self._entries, self._unit, 16)
        other = ops.exchange(weight, 16)  # of the other group, which half of the lanes have columns of
        same = ops.equal(ops.differing(ops.divide(lane.row, 4), ops.divide(lane.column, 2)), 0)
        return by_step(words), ops.select(same, weight, other), self.curves.multiply()


class CurveOperands:
    """What coefficients of curves are made with, in shared memory, each warp's own: the mean and the table of
    ``klt_curves.curve_coefficients`` are on their way while maps are, without a register.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        shared: address of shared memory.

    Attributes:
        mine: where this lane's part of it begins.
    """

    def __init__(self, ops: Any, shape: KltShape, lane: Lane, shared: Any) -> None:
        self.ops, self.lane, self.blocks = ops, lane, shape.curve_blocks
        self._mean = ops.shared_offset(shared, ops.times(lane.warp, curves_nbytes(self.blocks)))
        self._place = ops.times(lane.lane, 16)
        self.mine = ops.shared_offset(self._mean, self._place)

    def start(self, tables: QueryTables, kv_head: Any) -> None:
        """Starts the copies."""
        ops = self.ops
        ops.copy(self.mine, ops.offset(ops.offset(tables.means, kv_head, MEAN_NBYTES), self._place), 16, CURVES)
        where = ops.offset(ops.offset(tables.coefficients, self.lane.warp, _PARTS * PART_NBYTES), self._place)
        for block in range(self.blocks):
            for at in range(0, _PARTS * PART_NBYTES, 512):
                ops.copy(self.mine, where, 16, self._at(block) + at, 4 * _PARTS * PART_NBYTES * block + at)
        ops.commit_copies()

    def multiply(self) -> Any:
        """Multiplies the table with the mean divided by its largest entry, which is returned."""
        ops = self.ops
        ops.wait_for_copies(0)
        size = self._size(map(self._mean_of, range(_PARTS)))
        factor = ops.reciprocal(size)
        for part in range(_PARTS):
            mean = self._mean_of(part)  # read again where it is needed: registers hold maps by now
            for block in range(self.blocks):
                words = self._words(self._table_of(block, part), mean, factor)
                ops.shared_store(self.mine, words, self._at(block) + PART_NBYTES * part)
        return size

    def multiply_for(self, targets: Sequence[Any]) -> Any:
        """Likewise, for all of ``targets``, addresses as ``mine``; everything is read at once."""
        ops = self.ops
        ops.wait_for_copies(0)
        means = [self._mean_of(part) for part in range(_PARTS)]
        tables = [[self._table_of(block, part) for block in range(self.blocks)] for part in range(_PARTS)]
        size = self._size(means)
        factor = ops.reciprocal(size)
        for part, mean in enumerate(means):
            for block, table in enumerate(tables[part]):
                words = self._words(table, mean, factor)
                for target in targets:
                    ops.shared_store(target, words, self._at(block) + PART_NBYTES * part)
        return size

    def _table_of(self, block: int, part: int) -> list[list[Any]]:
        """Four cosines and four sines."""
        at = self._at(block) + PART_NBYTES * part
        return [self.ops.shared_load(self.mine, 4, at + 512 * index) for index in range(2)]

    def _mean_of(self, part: int) -> list[list[Any]]:
        """Four channels of either half."""
        where = self.ops.shared_offset(self._mean, self.ops.times(self.lane.column, 16))
        return [self.ops.shared_load(where, 4, CURVES + 256 * half + 64 * part) for half in range(2)]

    def _size(self, means: Iterable[list[list[Any]]]) -> Any:
        """The largest entry of the mean."""
        ops, size = self.ops, self.ops.real(1e-30)
        for mean in means:
            size = functools.reduce(ops.maximum, [ops.magnitude(x) for four in mean for x in four], size)
        for distance in (1, 2):
            size = ops.maximum(size, ops.exchange(size, distance))
        return size

    def _words(self, table: list[list[Any]], mean: list[list[Any]], factor: Any) -> list[Any]:
        """Two steps' words, as floats."""
        ops, near, far = self.ops, [], []
        pair = [[ops.scaled(x, factor) for x in four] for four in mean]
        for cosine, sine, n, m in zip(*table, *pair, strict=True):
            near.append(ops.minus(ops.scaled(cosine, n), ops.scaled(sine, m)))
            far.append(ops.fused(cosine, m, ops.scaled(sine, n)))
        return [ops.as_real(ops.pack_halves(*half[step : step + 2])) for step in (0, 2) for half in (near, far)]

    def two_steps(self, first: int) -> list[list[Any]]:
        """For each block of eight curves, this lane's two words of a step and of the next."""
        at = first // 2 * PART_NBYTES
        return [self.ops.shared_words(self.mine, 4, self._at(block) + at) for block in range(self.blocks)]

    def _at(self, block: int) -> int:
        return CURVES + MEAN_NBYTES + _PARTS * PART_NBYTES * block


def over_lanes(ops: Any, value: Any, lanes: int) -> Any:
    """The largest of so many neighbouring lanes, a power of two."""
    for bit in range(lanes.bit_length() - 1):
        value = ops.maximum(value, ops.exchange(value, 1 << bit))
    return value
