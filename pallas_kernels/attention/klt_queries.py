"""Queries of every page, and the logits that do not come from codes: what a program finds before it reads a code.

The key of token ``d`` of a page that starts at position ``p`` is ``R_(p + d) mean + R_p (page mean + s gain c) B``
(``codecs.klt``). So with the query turned back by ``p``, ``q_p``, its logit is ``s (gain c) . (B q_p)``, which
codes are read for, and ``page mean . (B q_p) + q_p . R_d mean``. The latter is a sum of curves (``klt_curves``), whose
coefficients are products with ``q_p`` as well. Each of a program's four warps holds a quarter of the columns of a
product, of the maps' channels in its registers and of curves in shared memory, while rows of queries pass
(``klt_query_rows``). Products are of float16, sums of float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, LARGEST
from kakeya_jax.pallas_kernels.attention.klt_ahead import fetch_tables
from kakeya_jax.pallas_kernels.attention.klt_block_operands import BlockOperands, one_head
from kakeya_jax.pallas_kernels.attention.klt_curves import EIGHT, QUERY_LARGEST
from kakeya_jax.pallas_kernels.attention.klt_query_operands import HeadOperands, over_warp, query_vectors
from kakeya_jax.pallas_kernels.attention.klt_query_rows import QueryRows, first_query
from kakeya_jax.pallas_kernels.attention.klt_query_shared import SIZES, TOPS, TOPS_NBYTES
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, UNIT_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.query_columns import float_column
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, MAGIC_BITS, Lane, signed_bytes

_NUMBER_LARGEST = LARGEST * (1 - 2.0**-20)
"""What the largest number of a query becomes, approximately: the reciprocal of it may be a little too large."""

_EXTRAS, _EXTRAS_OF_MANY = 6, 4
"""Products whose extras are found at once; with more than four queries, whose registers are fewer."""


class PageQueries(NamedTuple):
    """Of ``N`` heads, ``rows`` queries each; addresses.

    Attributes:
        numbers: int8 ``[N, pages, blocks, 8, 8, 16]``: bytes of queries in the coordinates of a page's codes: for each
            block and group of channels the columns of products one after the other, which is the order of lanes.
        extras: int32 ``[N, pages, 16 blocks + 32]``: what sums of products start from, numbers plus ``MAGIC_BITS``,
            those of a query's two columns twice, which are four sums of a lane; bits of the queries' factors; bits of
            those of the page mean of values, one for each group of channels; bits of the units of curves, and of what
            is added to logits.
        tops: float32 ``[N, pages, rows]``: the largest number of each query before it is rounded.
        coefficients: int32 ``[N, pages, blocks, R / 8, 8, 4]``: of curves, packed float16 of two of them, as right
            operands: what float16 has of a coefficient, and the rest.
    """

    numbers: Any
    extras: Any
    tops: Any
    coefficients: Any


def scratch(shape: KltShape, heads: int) -> PageQueries:
    """The arrays of ``PageQueries``."""
    lead = (heads, shape.pages)
    return PageQueries(
        numbers=jax.ShapeDtypeStruct((*lead, shape.query_nbytes), jnp.int8),
        extras=jax.ShapeDtypeStruct((*lead, shape.extra_nbytes // 4), jnp.int32),
        tops=jax.ShapeDtypeStruct((*lead, shape.rows), jnp.float32),
        coefficients=jax.ShapeDtypeStruct((*lead, shape.coefficient_nbytes // 4), jnp.int32),
    )


class QueryWriter:
    """Writes the queries of pages, which all warps of the program may read afterwards.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        head: of all rows.
        pages_of: says the first page, and the one after the last.
        query_ref: ``[N, group, 128]`` of ``shape.dtype``, after their rotary embedding.
        tables: references.
        queries: references.
        shared_ref: shared memory.
    """

    def __init__(
        self,
        ops: Any,
        shape: KltShape,
        lane: Lane,
        head: Any,
        pages_of: Callable[[], tuple[Any, Any]],
        query_ref: Any,
        tables: QueryTables,
        queries: PageQueries,
        shared_ref: Any,
    ) -> None:
        self.ops, self.shape, self.lane, self.head = ops, shape, lane, head
        self.row, self.kv_head = ops.divide(head, shape.num_kv_heads), ops.modulo(head, shape.num_kv_heads)
        self.tables = QueryTables(*map(ops.address, tables))
        self.queries = PageQueries(*map(ops.address, queries))
        self.shared = ops.shared_address(shared_ref)
        # Loads that wait for nothing come first.
        self.vectors = query_vectors(ops, shape, lane, query_ref, head, first_query(ops, shape, lane))
        together = one_head(ops, shape)
        make = BlockOperands if together else HeadOperands
        self.operands = make(ops, shape, lane, self.tables, self.kv_head, self.shared)
        pages = pages_of()
        fetch_tables(ops, shape, lane, head, pages, self.tables)
        self.at = QueryRows(ops, shape, lane, head, pages, self.tables.turns, self.shared)
        if together:  # and so registers are free
            self.at.load_ahead()

    def write(self) -> None:
        """All of them."""
        self._write_numbers()
        self.ops.barrier()
        self._write_extras()
        self.ops.barrier()

    def _write_numbers(self) -> None:
        """Queries in the coordinates of codes, and coefficients of curves."""
        ops, lane, shape = self.ops, self.lane, self.shape
        sizes = [over_warp(ops, functools.reduce(ops.maximum, map(ops.magnitude, each))) for each in self.vectors]
        sizes = [ops.maximum(each, ops.real(1e-30)) for each in sizes]
        vectors = self._scaled(self.vectors, sizes)
        maps, weights, mean = self.operands.make()
        self._keep_sizes(sizes, mean)
        ahead: list[list[Any]] = []

        def operands(step: int) -> list[list[Any]]:
            if step % 2 == 0:
                ahead[:] = self.operands.curves.two_steps(step)
            first = 2 * (step % 2)
            return [each[step] for each in maps] + [each[first : first + 2] for each in ahead]

        quads = ops.times(lane.row, 16)  # of this lane's row, the largest number of each warp
        first_column = ops.less(lane.column, ops.integer(1))
        of_first_warp = ops.both(first_column, ops.less(lane.thread, ops.integer(32)))

        def finish(bases: list[Any], turn: Any, all_sums: list[list[list[Any]]]) -> None:
            tops = ops.shared_offset(self.shared, ops.add(ops.times(turn, TOPS_NBYTES), quads))
            target, largest = ops.shared_offset(tops, ops.times(lane.warp, 4)), []
            for sums in all_sums:
                for half in range(2):
                    sizes = [[ops.magnitude(each) for each in four[2 * half : 2 * half + 2]] for four in sums[:4]]
                    by_group = [functools.reduce(ops.maximum, sizes[at] + sizes[at + 1]) for at in (0, 2)]
                    top = ops.maximum(*map(ops.scaled, by_group, weights))
                    for distance in (1, 2):
                        top = ops.maximum(top, ops.exchange(top, distance))
                    largest.append(top)
            ops.only_if(
                first_column,
                lambda: [ops.shared_store(target, [top], TOPS + 128 * index) for index, top in enumerate(largest)],
            )
            ops.barrier()
            for index in range(2 * len(bases)):
                sums, half = all_sums[index // 2], index % 2
                top = functools.reduce(ops.maximum, ops.shared_load(tops, 4, TOPS + 128 * index))
                top = ops.maximum(top, ops.real(1e-20))
                factor = ops.scaled(ops.reciprocal(top), ops.real(_NUMBER_LARGEST))
                page, query = self.at.row_of(bases[index // 2], lane.row, half)
                where = ops.offset(self.queries.numbers, page, shape.query_nbytes)
                where = ops.offset(where, ops.add(self._column(query), ops.times(lane.column, 4)))
                where = ops.offset(where, ops.times(lane.warp, 2 * COLUMNS * GROUP))
                for group in range(2):
                    four = [sums[2 * group + n][2 * half + i] for n in range(2) for i in range(2)]
                    unit = ops.scaled(factor, weights[group])
                    high, low = signed_bytes(ops, [ops.fused(each, unit, ops.real(MAGIC + 128.0)) for each in four])
                    at = COLUMNS * GROUP * group
                    ops.store_words(where, [high], at)
                    ops.store_words(where, [low], at + GROUP)
                self._write_coefficients(page, query, [four[2 * half : 2 * half + 2] for four in sums[4:]])
                where = self._top(page, query)
                ops.only_if(of_first_warp, lambda where=where, top=top: ops.store_reals(where, [top]))

        self.at.over_pages(vectors, operands, finish)

    def _write_coefficients(self, page: Any, query: Any, blocks: list[list[Any]]) -> None:
        """Two of every 32 curves."""
        ops, shape, lane = self.ops, self.shape, self.lane
        where = ops.offset(self.queries.coefficients, page, shape.coefficient_nbytes)
        column, to_low = float_column(ops, shape, query)
        low = 16 if to_low < COLUMNS else shape.coefficient_nbytes // 2
        where = ops.offset(where, ops.add(ops.times(column, 16), ops.times(lane.column, 4)))
        where = ops.offset(where, ops.times(lane.warp, 128))
        for block, two in enumerate(blocks):
            word = ops.pack_halves(*two)
            rest = [ops.minus(each, ops.half_of(word, upper)) for each, upper in zip(two, (False, True), strict=True)]

            def store(at: int = 512 * block, words: tuple[Any, Any] = (word, ops.pack_halves(*rest))) -> None:
                ops.store_words(where, [words[0]], at)
                ops.store_words(where, [words[1]], at + low)

            if 32 * block + 32 <= shape.curves:
                store()
            else:
                ops.only_if(ops.less(lane.warp, ops.integer((shape.curves - 32 * block) // EIGHT)), store)

    def _write_extras(self) -> None:
        """What belongs to a page's queries besides; of several products at once, which wait for each other nowhere."""
        ops, pages = self.ops, self.at.pages
        count = _EXTRAS if self.shape.blocks == 1 else _EXTRAS_OF_MANY

        def rows(base: Any, nothing: list[Any]) -> list[Any]:
            bases = [ops.add(base, ops.integer(pages * index)) for index in range(count)]
            for notes in [self._notes(each) for each in bases]:
                self._write_notes(notes)
            return nothing

        ops.loop(self.at.first, self.at.stop, [ops.integer(0)], rows, count * pages)

    def _notes(self, base: Any) -> "_Notes":
        """Of this warp's four of 16 rows; eight lanes have a row, a group each."""
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        row = ops.add(ops.times(self.lane.warp, 4), ops.divide(lane, GROUPS))
        group = ops.modulo(lane, GROUPS)
        page, query = self.at.row_of(base, row)
        inside = ops.subtract(page, ops.times(self.head, shape.pages))
        of_head = ops.add(ops.times(self.row, shape.pages), inside)
        of_head = ops.add(ops.times(of_head, shape.num_kv_heads), self.kv_head)
        numbers = ops.offset(self.queries.numbers, page, shape.query_nbytes)
        numbers = ops.offset(numbers, ops.add(ops.times(group, COLUMNS * GROUP), self._column(query)))
        means = ops.offset(ops.offset(self.tables.page_means, of_head, DIM), ops.times(group, GROUP))
        scales = (self.tables.page_mean_scales, self.tables.value_mean_scales)
        return _Notes(
            page=page,
            query=query,
            group=group,
            high=list(map(ops.as_integer, ops.load_fresh(numbers, 4))),
            low=list(map(ops.as_integer, ops.load_fresh(numbers, 4, GROUP))),
            top=ops.load_fresh(self._top(page, query), 1)[0],
            means=ops.load_words(means, 4, once=False),
            scales=[ops.load_short(ops.offset(each, of_head, 2)) for each in scales],
        )

    def _write_notes(self, notes: "_Notes") -> None:
        """Of this warp's four of 16 rows."""
        ops, shape, group = self.ops, self.shape, notes.group
        units = ops.offset(ops.offset(self.tables.units, self.kv_head, 4 * UNIT_WORDS), ops.times(group, 4))
        unit, coded, value_unit = (ops.load_words(units, 1, 4 * GROUPS * part, once=False)[0] for part in range(3))
        offset, total = (self._dot([notes.high, notes.low], words) for words in (notes.means, [coded] * 4))
        offset = self._over_groups(ops.scaled(ops.converted(offset), ops.as_real(unit)))
        start = ops.right_signed(ops.nearest(self._over_groups(ops.converted(total))), 1)  # below 2^24: exact

        size, curve_unit = (
            ops.shared_load(ops.shared_offset(self.shared, ops.times(notes.query, 4)), 1, SIZES + at)[0]
            for at in (0, 4 * COLUMNS)
        )
        factor = ops.scaled(notes.top, ops.real(shape.scale / (_NUMBER_LARGEST * QUERY_LARGEST)))
        factor = ops.scaled(factor, size)
        of_keys, of_values = (ops.half_of(each, upper=False) for each in notes.scales)
        added = ops.scaled(ops.scaled(offset, of_keys), factor)
        high = ops.right_signed(ops.add(start, ops.integer(128)), 8)

        def of_row() -> None:
            where = self._extra(notes.page, notes.query)
            starts = ops.offset(self.queries.extras, notes.page, shape.extra_nbytes)
            starts = ops.offset(starts, ops.times(notes.query, 16))
            parts = (high, ops.subtract(start, ops.left(high, 8)))
            ops.store_words(starts, [ops.add(part, ops.integer(MAGIC_BITS)) for part in parts] * 2)
            ops.store_reals(where, [factor])
            ops.store_reals(where, [curve_unit], 4 * (COLUMNS + GROUPS))
            ops.store_reals(where, [added], 4 * (2 * COLUMNS + GROUPS))

        ops.only_if(ops.equal(group, 0), of_row)
        of_group = ops.scaled(of_values, ops.as_real(value_unit))
        where = self._extra(notes.page, group)
        ops.only_if(ops.equal(notes.query, 0), lambda: ops.store_reals(where, [of_group], 4 * COLUMNS))

    def _dot(self, parts: list[list[Any]], words: list[Any]) -> Any:
        """Of numbers, as high and low bytes, and bytes."""
        ops = self.ops
        high, low = ops.integer(0), ops.integer(0)
        for high_word, low_word, word in zip(*parts, words, strict=True):
            high, low = ops.dot_bytes(high_word, word, high), ops.dot_bytes(low_word, word, low)
        return ops.add(ops.left(high, 8), low)

    def _column(self, query: Any) -> Any:
        """Where a query's high bytes are, before its low ones, of the first group of channels."""
        ops = self.ops
        if self.shape.blocks == 1:
            return ops.times(query, 2 * GROUP)
        block = ops.times(ops.divide(query, FOUR), COLUMNS * DIM)
        return ops.add(block, ops.times(ops.modulo(query, FOUR), 2 * GROUP))

    def _top(self, page: Any, query: Any) -> Any:
        return self.ops.offset(self.ops.offset(self.queries.tops, page, 4 * self.shape.rows), self.ops.times(query, 4))

    def _extra(self, page: Any, index: Any) -> Any:
        """Where the factors of queries are, from ``index`` on."""
        ops, shape = self.ops, self.shape
        where = ops.offset(self.queries.extras, page, shape.extra_nbytes)
        return ops.offset(where, ops.add(ops.times(index, 4), ops.integer(shape.start_nbytes)))

    def _keep_sizes(self, sizes: list[Any], mean: Any) -> None:
        """All lanes write the same, and so do warps that have the same queries."""
        ops = self.ops
        where = ops.shared_offset(self.shared, ops.times(self.at.query, 4))
        mean = ops.scaled(mean, ops.real(self.shape.scale / QUERY_LARGEST))
        ops.shared_store(where, sizes, SIZES)
        ops.shared_store(where, [ops.scaled(size, mean) for size in sizes], SIZES + 4 * COLUMNS)

    def _scaled(self, vectors: list[list[Any]], sizes: list[Any]) -> list[list[Any]]:
        ops, found = self.ops, []
        for vector, size in zip(vectors, sizes, strict=True):
            factor = ops.scaled(ops.reciprocal(size), ops.real(QUERY_LARGEST))
            found.append([ops.scaled(each, factor) for each in vector])
        return found

    def _over_groups(self, value: Any) -> Any:
        for distance in (1, 2, 4):
            value = self.ops.plus(value, self.ops.exchange(value, distance))
        return value


class _Notes(NamedTuple):
    """What a lane reads of a page besides, long before it needs it.

    Attributes:
        page: of all heads',
        query: and query of its row.
        group: of channels.
        high: their numbers' bytes, and
        low: likewise.
        top: the largest number of the query before it was rounded.
        means: of the page's keys.
        scales: of page means, of keys and of values.
    """

    page: Any
    query: Any
    group: Any
    high: list[Any]
    low: list[Any]
    top: Any
    means: list[Any]
    scales: list[Any]
