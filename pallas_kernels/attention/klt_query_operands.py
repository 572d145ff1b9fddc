"""What products of queries are made of, as a lane has it: queries, maps of codes, and curves of a mean that turns.

A step of a product's depth has eight channels of the first half of a head and the same of the second, which turn
together; which ones, ``klt_query_rows`` and the operands here have in common.
"""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_values import load_exact
from kakeya_jax.pallas_kernels.attention.klt_query_shared import CURVES, MEAN_NBYTES, PART_NBYTES, curves_nbytes
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


class CurveOperands:
    """What coefficients of curves are made with, in shared memory, each warp's own: the mean and the table of
    ``klt_curves.curve_coefficients`` are on their way while maps are, without a register.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        coefficients: address of the table.
        means: likewise of the means.
        kv_head: of a row.
        shared: address of shared memory.
    """

    def __init__(
        self, ops: Any, shape: KltShape, lane: Lane, coefficients: Any, means: Any, kv_head: Any, shared: Any
    ) -> None:
        self.ops, self.lane, self.blocks = ops, lane, shape.curve_blocks
        self._mean = ops.shared_offset(shared, ops.times(lane.warp, curves_nbytes(self.blocks)))
        mine = ops.times(lane.lane, 16)
        self._parts = ops.shared_offset(self._mean, mine)
        ops.copy(self._parts, ops.offset(ops.offset(means, kv_head, MEAN_NBYTES), mine), 16, CURVES)
        where = ops.offset(ops.offset(coefficients, lane.warp, _PARTS * PART_NBYTES), mine)
        for block in range(self.blocks):
            for at in range(0, _PARTS * PART_NBYTES, 512):
                ops.copy(self._parts, where, 16, self._at(block) + at, 4 * _PARTS * PART_NBYTES * block + at)
        ops.commit_copies()

    def multiply(self) -> Any:
        """Multiplies the table with the mean divided by its largest entry, which is returned."""
        ops = self.ops
        ops.wait_for_copies(0)
        where = ops.shared_offset(self._mean, ops.times(self.lane.column, 16))

        def mean(part: int) -> list[list[Any]]:
            """Read again where it is needed: registers hold maps by now."""
            return [ops.shared_load(where, 4, CURVES + 256 * half + 64 * part) for half in range(2)]

        size = ops.real(1e-30)
        for part in range(_PARTS):
            size = functools.reduce(ops.maximum, [ops.magnitude(x) for four in mean(part) for x in four], size)
        for distance in (1, 2):
            size = ops.maximum(size, ops.exchange(size, distance))
        factor = ops.reciprocal(size)
        for part in range(_PARTS):
            pair = [[ops.scaled(x, factor) for x in four] for four in mean(part)]
            for block in range(self.blocks):
                at = self._at(block) + PART_NBYTES * part
                fours = [*(ops.shared_load(self._parts, 4, at + 512 * index) for index in range(2)), *pair]
                near, far = [], []
                for cosine, sine, n, m in zip(*fours, strict=True):
                    near.append(ops.minus(ops.scaled(cosine, n), ops.scaled(sine, m)))
                    far.append(ops.fused(cosine, m, ops.scaled(sine, n)))
                words = [ops.pack_halves(*half[step : step + 2]) for step in (0, 2) for half in (near, far)]
                ops.shared_store(self._parts, list(map(ops.as_real, words)), at)
        return size

    def two_steps(self, first: int) -> list[list[Any]]:
        """For each block of eight curves, this lane's two words of a step and of the next."""
        at = first // 2 * PART_NBYTES
        return [self.ops.shared_words(self._parts, 4, self._at(block) + at) for block in range(self.blocks)]

    def _at(self, block: int) -> int:
        return CURVES + MEAN_NBYTES + _PARTS * PART_NBYTES * block


def over_warp(ops: Any, value: Any, combine: Any = None) -> Any:
    """The largest of a warp's lanes, or another combination."""
    for distance in (1, 2, 4, 8, 16):
        value = (combine or ops.maximum)(value, ops.exchange(value, distance))
    return value
