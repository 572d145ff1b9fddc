"""Queries of every page, and the logits that do not come from codes: what a program finds before it reads a code.

The key of token ``d`` of a page that starts at position ``p`` is ``R_(p + d) mean + R_p (page mean + s gain c) B``
(``codecs.klt``). So with the query turned back by ``p``, ``q_p``, its logit is ``s (gain c) . (B q_p)``, which
codes are read for, and ``page mean . (B q_p) + q_p . R_d mean``. Each of a program's four warps holds a quarter of the
columns of a product in its registers, first of the maps' channels, then of a page's tokens, while rows of queries pass
(``klt_query_rows``). Products are of float16, sums of float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.klt_ahead import fetch_tables
from kakeya_jax.pallas_kernels.attention.klt_query_operands import (
    load_maps,
    map_operands,
    over_warp,
    query_vectors,
    times_mean,
    token_operands,
)
from kakeya_jax.pallas_kernels.attention.klt_query_rows import SHARED_NBYTES, TOGETHER, QueryRows, first_query
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, UNIT_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, Lane

_TOPS, _TOPS_NBYTES = SHARED_NBYTES, TOGETHER * 4 * 4 * 16
"""Where the largest numbers of each row and warp are in shared memory, twice,"""

_SIZES = _TOPS + 2 * _TOPS_NBYTES
"""and where sizes of queries are, and of their products with the mean."""

_QUERY_LARGEST = 64.0
"""What a query's largest entry becomes in float16."""

_NUMBER_LARGEST = LARGEST * (1 - 2.0**-20)
"""What the largest number of a query becomes, approximately: the reciprocal of it may be a little too large."""

_EXTRAS = 4
"""Products whose extras are found at once."""

_BIAS_ZERO = 32768
_BIAS_LARGEST = 32000.0
"""The most that numbers of ``bias`` can be: float16 may add a thousandth."""


class PageQueries(NamedTuple):
    """Of ``N`` heads, ``rows`` queries each; addresses.

    Attributes:
        numbers: int8 ``[N, pages, blocks, 8, 8, 16]``: bytes of queries in the coordinates of a page's codes: for each
            block and group of channels the columns of products one after the other, which is the order of lanes.
        extras: int32 ``[N, pages, 8 blocks + 32]``: what sums start from; bits of the queries' factors; bits of those
            of the page mean of values, one for each group of channels; bits of the factors of ``bias``, and of what is
            added to it.
        tops: float32 ``[N, pages, rows]``: the largest number of each query before it is rounded.
        bias: uint16 ``[N, pages, rows, page]``: numbers of the logits to the base 2 beside those of codes: a number
            plus ``2 ** 23``, times its factor, plus what is added.
    """

    numbers: Any
    extras: Any
    tops: Any
    bias: Any


def scratch(shape: KltShape, heads: int) -> PageQueries:
    """The arrays of ``PageQueries``."""
    lead = (heads, shape.pages)
    return PageQueries(
        numbers=jax.ShapeDtypeStruct((*lead, shape.query_nbytes), jnp.int8),
        extras=jax.ShapeDtypeStruct((*lead, shape.extra_nbytes // 4), jnp.int32),
        tops=jax.ShapeDtypeStruct((*lead, shape.rows), jnp.float32),
        bias=jax.ShapeDtypeStruct((*lead, shape.rows, shape.page), jnp.uint16),
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
        self.entries = load_maps(ops, lane, self.tables.maps, self.kv_head)
        pages = pages_of()
        fetch_tables(ops, shape, lane, head, pages, self.tables)
        self.at = QueryRows(ops, shape, lane, head, pages, self.tables.turns, self.shared)

    def write(self) -> None:
        """All of them."""
        self._write_numbers()
        self.ops.barrier()
        self._write_logits()
        self._write_extras()
        self.ops.barrier()

    def _write_numbers(self) -> None:
        """Queries in the coordinates of codes."""
        ops, lane, shape = self.ops, self.lane, self.shape
        sizes = [over_warp(ops, functools.reduce(ops.maximum, map(ops.magnitude, each))) for each in self.vectors]
        sizes = [ops.maximum(each, ops.real(1e-30)) for each in sizes]
        self._keep_sizes(sizes, 0)
        vectors = self._scaled(self.vectors, sizes, _QUERY_LARGEST)
        operands, weights = map_operands(ops, lane, self.entries, self.tables.units, self.kv_head)
        quads = ops.times(lane.row, 16)  # of this lane's row, the largest number of each warp
        first_column = ops.less(lane.column, ops.integer(1))
        of_first_warp = ops.both(first_column, ops.less(lane.thread, ops.integer(32)))

        def finish(bases: list[Any], turn: Any, all_sums: list[list[list[Any]]]) -> None:
            tops = ops.shared_offset(self.shared, ops.add(ops.times(turn, _TOPS_NBYTES), quads))
            target, largest = ops.shared_offset(tops, ops.times(lane.warp, 4)), []
            for sums in all_sums:
                for half in range(2):
                    sizes = [[ops.magnitude(each) for each in four[2 * half : 2 * half + 2]] for four in sums]
                    by_group = [functools.reduce(ops.maximum, sizes[at] + sizes[at + 1]) for at in (0, 2)]
                    top = ops.maximum(*map(ops.scaled, by_group, weights))
                    for distance in (1, 2):
                        top = ops.maximum(top, ops.exchange(top, distance))
                    largest.append(top)
            ops.only_if(
                first_column,
                lambda: [ops.shared_store(target, [top], _TOPS + 128 * index) for index, top in enumerate(largest)],
            )
            ops.barrier()
            for index in range(2 * len(bases)):
                sums, half = all_sums[index // 2], index % 2
                top = functools.reduce(ops.maximum, ops.shared_load(tops, 4, _TOPS + 128 * index))
                top = ops.maximum(top, ops.real(1e-20))
                factor = ops.scaled(ops.reciprocal(top), ops.real(_NUMBER_LARGEST))
                page, query = self.at.row_of(bases[index // 2], lane.row, half)
                where = ops.offset(self.queries.numbers, page, shape.query_nbytes)
                where = ops.offset(where, ops.add(ops.times(query, GROUP), ops.times(lane.column, 4)))
                where = ops.offset(where, ops.times(lane.warp, 2 * COLUMNS * GROUP))
                for group in range(2):
                    four = [sums[2 * group + n][2 * half + i] for n in range(2) for i in range(2)]
                    unit = ops.scaled(factor, weights[group])
                    high, low = self._bytes([ops.fused(each, unit, ops.real(MAGIC + 128.0)) for each in four])
                    at = COLUMNS * GROUP * group
                    ops.store_words(where, [high], at)
                    ops.store_words(where, [low], at + self._low)
                where = self._top(page, query)
                ops.only_if(of_first_warp, lambda where=where, top=top: ops.store_reals(where, [top]))

        self.at.over_pages(vectors, operands, finish)

    def _write_logits(self) -> None:
        """Logits that do not come from codes."""
        ops, lane, shape = self.ops, self.lane, self.shape
        vectors = times_mean(ops, shape, lane, self.vectors, self.tables.means, self.kv_head)
        sizes = []
        for vector in vectors:
            squares = [ops.fused(x, x, ops.scaled(y, y)) for x, y in zip(vector[:2], vector[2:], strict=True)]
            size = over_warp(ops, ops.plus(*map(ops.square_root, squares)), ops.plus)
            sizes.append(ops.maximum(size, ops.real(1e-30)))
        self._keep_sizes(sizes, 4 * COLUMNS)
        vectors = self._scaled(vectors, sizes, _BIAS_LARGEST)
        columns = shape.query_columns

        def part(index: Any, nothing: list[Any]) -> list[Any]:
            place = ops.add(ops.times(index, 4), lane.warp)
            operands = token_operands(ops, lane, ops.offset(self.tables.tokens, place, 4 * columns * 512), columns)
            token = ops.add(ops.times(place, 8 * columns), ops.times(lane.column, 2 * columns))

            def finish(bases: list[Any], turn: Any, all_sums: list[list[list[Any]]]) -> None:
                del turn
                for base, sums in zip(bases, all_sums, strict=True):
                    for half in range(2):
                        page, query = self.at.row_of(base, lane.row, half)
                        where = ops.offset(self.queries.bias, page, 2 * shape.page * shape.rows)
                        where = ops.offset(where, ops.add(ops.times(query, 2 * shape.page), ops.times(token, 2)))
                        words = []
                        for four in sums:
                            low, high = (
                                ops.as_integer(ops.plus(each, ops.real(MAGIC + _BIAS_ZERO)))
                                for each in four[2 * half : 2 * half + 2]
                            )
                            words.append(ops.permute_bytes(low, high, ops.integer(0x5410)))
                        ops.store_words(where, words)

            self.at.over_pages(vectors, operands, finish)
            ops.barrier()  # left operands are free again
            return nothing

        ops.loop(ops.integer(0), ops.integer(shape.page // (32 * columns)), [ops.integer(0)], part)

    def _write_extras(self) -> None:
        """What belongs to a page's queries besides; of several products at once, which wait for each other nowhere."""
        ops, pages = self.ops, self.at.pages

        def rows(base: Any, nothing: list[Any]) -> list[Any]:
            bases = [ops.add(base, ops.integer(pages * index)) for index in range(_EXTRAS)]
            for notes in [self._notes(each) for each in bases]:
                self._write_notes(notes)
            return nothing

        ops.loop(self.at.first, self.at.stop, [ops.integer(0)], rows, _EXTRAS * pages)

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
        numbers = ops.offset(numbers, ops.add(ops.times(group, COLUMNS * GROUP), ops.times(query, GROUP)))
        means = ops.offset(ops.offset(self.tables.page_means, of_head, DIM), ops.times(group, GROUP))
        scales = (self.tables.page_mean_scales, self.tables.value_mean_scales)
        return _Notes(
            page=page,
            query=query,
            group=group,
            high=list(map(ops.as_integer, ops.load_fresh(numbers, 4))),
            low=list(map(ops.as_integer, ops.load_fresh(numbers, 4, self._low))),
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

        size, bias_size = (
            ops.shared_load(ops.shared_offset(self.shared, ops.times(notes.query, 4)), 1, _SIZES + at)[0]
            for at in (0, 4 * COLUMNS)
        )
        factor = ops.scaled(notes.top, ops.real(shape.scale / (_NUMBER_LARGEST * _QUERY_LARGEST)))
        factor = ops.scaled(factor, size)
        of_keys, of_values = (ops.half_of(each, upper=False) for each in notes.scales)
        offset = ops.scaled(ops.scaled(offset, of_keys), factor)
        bias_unit = ops.scaled(bias_size, ops.real(1.0 / _BIAS_LARGEST))
        added = ops.minus(offset, ops.scaled(bias_unit, ops.real(2.0**23 + _BIAS_ZERO)))
        high = ops.right_signed(ops.add(start, ops.integer(128)), 8)

        def of_row() -> None:
            where = self._extra(notes.page, notes.query)
            starts = ops.offset(where, ops.integer(-4 * COLUMNS * shape.blocks))
            ops.store_words(starts, [high])
            ops.store_words(starts, [ops.subtract(start, ops.left(high, 8))], 4 * self.shape.rows)
            ops.store_reals(where, [factor])
            ops.store_reals(where, [bias_unit], 4 * (COLUMNS + GROUPS))
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

    def _bytes(self, numbers: list[Any]) -> tuple[Any, Any]:
        """High and low bytes of four numbers, whose bits are plus 128."""
        ops = self.ops
        bits = list(map(ops.as_integer, numbers))
        pairs = [ops.permute_bytes(*bits[at : at + 2], ops.integer(0x5140)) for at in (0, 2)]
        low = ops.permute_bytes(*pairs, ops.integer(0x5410))
        return ops.permute_bytes(*pairs, ops.integer(0x7632)), ops.differing(low, ops.integer(0x80808080))

    @property
    def _low(self) -> int:
        """How far low bytes are from high ones: in columns of their own, or in a block."""
        return self.shape.rows * GROUP if self.shape.paired else COLUMNS * DIM

    def _top(self, page: Any, query: Any) -> Any:
        return self.ops.offset(self.ops.offset(self.queries.tops, page, 4 * self.shape.rows), self.ops.times(query, 4))

    def _extra(self, page: Any, index: Any) -> Any:
        """Where the factors of queries are, from ``index`` on."""
        ops, shape = self.ops, self.shape
        where = ops.offset(self.queries.extras, page, shape.extra_nbytes)
        return ops.offset(where, ops.add(ops.times(index, 4), ops.integer(4 * COLUMNS * shape.blocks)))

    def _keep_sizes(self, sizes: list[Any], at: int) -> None:
        """Warps that have the same queries write the same."""
        ops = self.ops
        where = ops.shared_offset(self.shared, ops.times(self.at.query, 4))
        ops.only_if(
            ops.less(self.lane.lane, ops.integer(1)),
            lambda: [ops.shared_store(where, [size], _SIZES + at + 4 * n) for n, size in enumerate(sizes)],
        )

    def _scaled(self, vectors: list[list[Any]], sizes: list[Any], largest: float) -> list[list[Any]]:
        ops, found = self.ops, []
        for vector, size in zip(vectors, sizes, strict=True):
            factor = ops.scaled(ops.reciprocal(size), ops.real(largest))
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
