"""What belongs to a page's queries besides their numbers: what sums start from, factors, and what logits have beside.

Each of four warps has a quarter of a query's numbers in registers when it rounds them, and keeps its part of two sums
over them in shared memory: of products with the page mean, and of the numbers themselves where codes are. They are
added up and written a turn later, while the next rows are multiplied: nothing is read back, and nothing waited for.
"""

import functools
from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.klt_curves import QUERY_LARGEST
from kakeya_jax.pallas_kernels.attention.klt_query_rows import QueryRows
from kakeya_jax.pallas_kernels.attention.klt_query_shared import SIZES, SUMS_NBYTES, TOGETHER, TOPS, TOPS_NBYTES
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, UNIT_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC_BITS, Lane

NUMBER_LARGEST = LARGEST * (1 - 2.0**-20)
"""What the largest number of a query becomes, approximately: the reciprocal of it may be a little too large."""

_SMALLEST = 1e-20
"""What numbers of a query without any are divided by."""

_ROWS_OF_A_WARP = 8


class PageNotes(NamedTuple):
    """What is read of a page that lane ``4 row + column`` writes notes of.

    Attributes:
        page: of all heads',
        query: and query of its row.
        scales: of page means, of keys and of values.
        value_unit: the inverse of the unit of one of eight groups of values.
    """

    page: Any
    query: Any
    scales: list[Any]
    value_unit: Any


class Units(NamedTuple):
    """Of a lane's group of keys: the inverse of its unit, and bytes that are one if codes are."""

    inverse: Any
    coded: Any


class QueryNotes:
    """Notes of the queries of one program's pages.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        head: of all rows.
        tables: addresses.
        extras: address, see ``klt_queries.PageQueries``.
        at: rows of products.
    """

    def __init__(
        self, ops: Any, shape: KltShape, lane: Lane, head: Any, tables: QueryTables, extras: Any, at: QueryRows
    ) -> None:
        self.ops, self.shape, self.lane, self.at = ops, shape, lane, at
        row, kv_head = ops.divide(head, shape.num_kv_heads), ops.modulo(head, shape.num_kv_heads)
        self._extras = extras
        self._pages_before = ops.times(head, shape.pages)
        of_head = ops.add(ops.times(row, shape.pages * shape.num_kv_heads), kv_head)
        neighbours = ops.add(ops.times(lane.warp, 2 * GROUP), ops.times(lane.column, 8))
        self._means = ops.offset(ops.offset(tables.page_means, of_head, DIM), neighbours)
        self._scales = [ops.offset(each, of_head, 2) for each in (tables.page_mean_scales, tables.value_mean_scales)]
        self._units = ops.offset(tables.units, kv_head, 4 * UNIT_WORDS)

    def begin_sums(self, pages: list[Any]) -> tuple[Units, list[list[Any]]]:
        """Begins with loads: of the lane's group, and of the page means of rows' ``pages``, two words each."""
        ops, lane = self.ops, self.lane
        group = ops.add(ops.times(lane.warp, 2), ops.divide(lane.column, 2))
        where = ops.offset(self._units, group, 4)
        units = Units(ops.load_reals(where, 1)[0], ops.load_words(where, 1, 4 * GROUPS, once=False)[0])
        return units, [ops.load_words(self._of_page(self._means, page, DIM), 2, once=False) for page in pages]

    def keep_sums(
        self, units: Units, means: list[Any], numbers: list[tuple[Any, Any]], buffer: Any, index: int
    ) -> None:
        """This lane's part of the sums of a row: ``numbers`` are high and low bytes of two times four neighbours."""
        ops = self.ops
        offset = ops.scaled(self._dot(numbers, means), units.inverse)
        total = self._dot(numbers, [units.coded] * 2)  # below 2^24: exact, and sums of it
        mine = ops.add(ops.times(self.lane.warp, 8 * 32), ops.times(self.lane.lane, 8))
        ops.shared_store(ops.shared_offset(buffer, mine), [offset, total], SUMS_NBYTES * index)

    def _dot(self, numbers: list[tuple[Any, Any]], words: list[Any]) -> Any:
        """Of numbers and bytes, as a float."""
        ops, (high, low) = self.ops, [self.ops.integer(0)] * 2
        for both, word in zip(numbers, words, strict=True):
            high, low = (ops.dot_bytes(part, word, total) for part, total in zip(both, (high, low), strict=True))
        return ops.converted(ops.add(ops.left(high, 8), low))

    def begin_notes(self, base: Any) -> PageNotes:
        """Begins with loads of this warp's eight rows of products that begin with page ``base``."""
        ops, warp = self.ops, self.lane.warp
        base = ops.add(base, ops.times(ops.divide(warp, 2), self.at.pages))
        page, query = self.at.row_of(base, ops.add(self.lane.row, ops.times(ops.modulo(warp, 2), _ROWS_OF_A_WARP)))
        units = ops.offset(self._units, ops.modulo(ops.add(ops.times(query, 4), self.lane.column), GROUPS), 4)
        return PageNotes(
            page=page,
            query=query,
            scales=[ops.load_short(self._of_page(each, page, 2)) for each in self._scales],
            value_unit=ops.load_reals(units, 1, 8 * GROUPS)[0],
        )

    def write(self, notes: PageNotes, buffer: Any, turn: Any, count: int) -> None:
        """Notes of ``count`` products, of which ``turn`` has the largest numbers."""
        if count == TOGETHER:
            self._write(notes, buffer, turn)
        else:
            there = self.ops.less(self.lane.warp, self.ops.integer(2 * count))
            self.ops.only_if(there, lambda: self._write(notes, buffer, turn))

    def _write(self, notes: PageNotes, buffer: Any, turn: Any) -> None:
        ops, shape, lane, query = self.ops, self.shape, self.lane, notes.query
        offset, total = self._summed(buffer)
        start = ops.right_signed(ops.nearest(total), 1)
        at = ops.add(ops.times(turn, TOPS_NBYTES), ops.add(ops.times(lane.warp, 128), ops.times(lane.row, 16)))
        shared = self.at.shared
        top = largest_number(ops, ops.shared_offset(shared, at))
        size, curve_unit = (
            ops.shared_load(ops.shared_offset(shared, ops.times(query, 4)), 1, SIZES + at)[0] for at in (0, 4 * COLUMNS)
        )
        factor = ops.scaled(ops.scaled(top, ops.real(shape.scale / (NUMBER_LARGEST * QUERY_LARGEST))), size)
        of_keys, of_values = (ops.half_of(each, upper=False) for each in notes.scales)
        added = ops.scaled(ops.scaled(offset, of_keys), factor)

        page = ops.offset(self._extras, notes.page, shape.extra_nbytes)
        high = ops.right_signed(ops.add(start, ops.integer(128)), 8)
        parts = [ops.add(part, ops.integer(MAGIC_BITS)) for part in (high, ops.subtract(start, ops.left(high, 8)))]
        first_column = ops.equal(lane.column, 0)
        there = ops.less(query, ops.integer(shape.group))  # what is not written is not read
        starts = ops.offset(page, query, 16)
        ops.only_if(ops.both(there, first_column), lambda: ops.store_words(starts, parts * 2))
        of_query = ops.offset(page, query, 4)
        numbers = [(factor, 0), (curve_unit, COLUMNS + GROUPS), (added, 2 * COLUMNS + GROUPS)]

        def store() -> None:
            value, place = numbers[0][0], ops.integer(0)
            for column, (number, after) in enumerate(numbers[1:], 2):
                mine = ops.equal(lane.column, column)
                value, place = ops.select(mine, number, value), ops.select(mine, ops.integer(4 * after), place)
            ops.store_reals(ops.offset(of_query, place), [value], shape.start_nbytes)

        ops.only_if(ops.both(there, ops.less(ops.integer(0), lane.column)), store)
        group = ops.add(ops.times(query, 4), lane.column)
        of_group = ops.scaled(of_values, notes.value_unit)
        where = ops.offset(page, group, 4)
        ops.only_if(
            ops.less(group, ops.integer(GROUPS)),
            lambda: ops.store_reals(where, [of_group], shape.start_nbytes + 4 * COLUMNS),
        )

    def _summed(self, buffer: Any) -> list[Any]:
        """Both sums of this lane's row, of all warps and columns."""
        ops, lane = self.ops, self.lane
        mine = ops.add(ops.times(lane.warp, SUMS_NBYTES), ops.times(lane.lane, 8))
        parts = [ops.shared_load(ops.shared_offset(buffer, mine), 2, 8 * 32 * warp) for warp in range(4)]
        sums = [functools.reduce(ops.plus, each) for each in zip(*parts, strict=True)]
        for distance in (1, 2):
            sums = [ops.plus(each, ops.exchange(each, distance)) for each in sums]
        return sums

    def _of_page(self, where: Any, page: Any, nbytes: int) -> Any:
        """Of the head's page that is ``page`` of all heads'."""
        inside = self.ops.subtract(page, self._pages_before)
        return self.ops.offset(where, inside, nbytes * self.shape.num_kv_heads)


def largest_number(ops: Any, where: Any, at: int = 0) -> Any:
    """Of a row, from what four warps told of it, ``at`` bytes from ``where``; before it is rounded."""
    return ops.maximum(functools.reduce(ops.maximum, ops.shared_load(where, 4, TOPS + at)), ops.real(_SMALLEST))
