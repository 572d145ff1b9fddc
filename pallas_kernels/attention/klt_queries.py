"""Queries of every page, and the logits that do not come from codes: what a program finds before it reads a code.

The key of token ``d`` of a page that starts at position ``p`` is ``R_(p + d) mean + R_p (page mean + s gain c) B``
(``codecs.klt``). So with the query turned back by ``p``, ``q_p``, its logit is ``s (gain c) . (B q_p)``, which
codes are read for, and ``page mean . (B q_p) + q_p . R_d mean``. Rows of a product are the queries of four pages, or of
two if a head has more than four; each of a program's four warps holds a quarter of the columns in its registers, first
of the maps' channels, then of a page's tokens. Products are of float16, sums of float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.exact_values import load_exact
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, UNIT_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, Lane

_STEPS = DIM // 16
"""Of the depth of a product."""

_STEP_NBYTES = 512 + 64
"""Of a step's left operands in shared memory; what is more than 512 keeps writers apart."""

_ROWS_NBYTES = _STEPS * _STEP_NBYTES
"""Of left operands; there is room for two, and then for the largest numbers of each row and warp, twice as well."""

_TOPS, _TOPS_NBYTES = 2 * _ROWS_NBYTES, 4 * 4 * 16
_SIZES = _TOPS + 2 * _TOPS_NBYTES
"""Where sizes of queries are, and of their products with the mean."""

_MAP_LARGEST = 1024.0
"""What the largest entry of 16 channels becomes in float16: those 2^24 times smaller still have all their bits."""

_QUERY_LARGEST = 64.0
"""What a query's largest entry becomes in float16."""

_NUMBER_LARGEST = LARGEST * (1 - 2.0**-20)
"""What the largest number of a query becomes, approximately: the reciprocal of it may be a little too large."""

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


def write_queries(
    ops: Any,
    shape: KltShape,
    lane: Lane,
    head: Any,
    pages: tuple[Any, Any],
    query_ref: Any,
    tables: QueryTables,
    queries: PageQueries,
    ahead: Callable[[Any], None],
    shared_ref: Any,
) -> None:
    """Writes the queries of pages, which all warps of the program may read afterwards.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        head: of all rows.
        pages: the first one, and the one after the last.
        query_ref: ``[N, group, 128]`` of ``shape.dtype``, after their rotary embedding.
        tables: references.
        queries: references.
        ahead: called while products are on their way, with every other page from the first one on.
        shared_ref: shared memory.
    """
    writer = _Writer(ops, shape, lane, head, pages, query_ref, tables, queries, shared_ref)
    writer.write_numbers(ahead)
    ops.barrier()
    writer.write_logits()


class _Writer:
    def __init__(
        self,
        ops: Any,
        shape: KltShape,
        lane: Lane,
        head: Any,
        pages: tuple[Any, Any],
        query_ref: Any,
        tables: QueryTables,
        queries: PageQueries,
        shared_ref: Any,
    ) -> None:
        self.ops, self.shape, self.lane, self.head = ops, shape, lane, head
        self.row, self.kv_head = ops.divide(head, shape.num_kv_heads), ops.modulo(head, shape.num_kv_heads)
        self.first, self.stop = pages
        self.last = ops.larger(ops.subtract(self.stop, ops.integer(1)), ops.integer(0))
        self.tables = QueryTables(*map(ops.address, tables))
        self.queries = PageQueries(*map(ops.address, queries))
        self.shared = ops.shared_address(shared_ref)
        self.rows, self.pages = shape.rows, 16 // shape.rows
        # A warp turns rows 2 w and 2 w + 1, and those eight further: two queries of two pages.
        twice = ops.times(lane.warp, 2)
        self.query, self.slot = ops.modulo(twice, self.rows), ops.divide(twice, self.rows)
        self.vectors = self._vectors(query_ref)

    def write_numbers(self, ahead: Callable[[Any], None]) -> None:
        """Queries in the coordinates of codes."""
        ops, lane, shape = self.ops, self.lane, self.shape
        sizes = [self._over_warp(functools.reduce(ops.maximum, map(ops.magnitude, each))) for each in self.vectors]
        sizes = [ops.maximum(each, ops.real(1e-30)) for each in sizes]
        self._keep_sizes(sizes, 0)
        vectors = self._scaled(self.vectors, sizes, _QUERY_LARGEST)
        operands, weights = self._maps()
        quads = ops.times(lane.row, 16)  # of this lane's row, the largest number of each warp
        first_column = ops.less(lane.column, ops.integer(1))
        of_first_warp = ops.both(first_column, ops.less(lane.thread, ops.integer(32)))

        def finish(base: Any, turn: Any, sums: list[list[Any]], notes: Any) -> None:
            del notes
            largest = []
            tops = ops.shared_offset(self.shared, ops.add(ops.times(turn, _TOPS_NBYTES), quads))
            for half in range(2):
                sizes = [[ops.magnitude(each) for each in four[2 * half : 2 * half + 2]] for four in sums]
                tops_here = [functools.reduce(ops.maximum, sizes[at] + sizes[at + 1]) for at in (0, 2)]
                top = ops.maximum(*map(ops.scaled, tops_here, weights))
                for distance in (1, 2):
                    top = ops.maximum(top, ops.exchange(top, distance))
                largest.append(top)
            target = ops.shared_offset(tops, ops.times(lane.warp, 4))
            ops.only_if(
                first_column,
                lambda: [ops.shared_store(target, [top], _TOPS + 128 * half) for half, top in enumerate(largest)],
            )
            ops.barrier()
            for half in range(2):
                top = functools.reduce(ops.maximum, ops.shared_load(tops, 4, _TOPS + 128 * half))
                top = ops.maximum(top, ops.real(1e-30))
                factor = ops.scaled(ops.reciprocal(top), ops.real(_NUMBER_LARGEST))
                page, query = self._row_of(base, lane.row, half)
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

        def begin(base: Any) -> None:
            done = ops.times(ops.divide(ops.subtract(base, self.first), self.pages), 2)
            ahead(ops.add(self.first, done))

        self._over_pages(vectors, operands, begin, finish)

    def write_logits(self) -> None:
        """Logits that do not come from codes; and what belongs to a page's queries besides."""
        ops, lane, shape = self.ops, self.lane, self.shape
        vectors = self._times_mean()
        sizes = []
        for vector in vectors:
            squares = [ops.fused(x, x, ops.scaled(y, y)) for x, y in zip(vector[:2], vector[2:], strict=True)]
            size = self._over_warp(ops.plus(*map(ops.square_root, squares)), ops.plus)
            sizes.append(ops.maximum(size, ops.real(1e-30)))
        self._keep_sizes(sizes, 4 * COLUMNS)
        vectors = self._scaled(vectors, sizes, _BIAS_LARGEST)
        columns = shape.query_columns

        def part(index: Any, nothing: list[Any]) -> list[Any]:
            place = ops.add(ops.times(index, 4), lane.warp)
            operands = self._operands(ops.offset(self.tables.tokens, place, 4 * columns * 512), columns)
            token = ops.add(ops.times(place, 8 * columns), ops.times(lane.column, 2 * columns))

            def finish(base: Any, turn: Any, sums: list[list[Any]], notes: "_Notes") -> None:
                del turn
                for half in range(2):
                    page, query = self._row_of(base, lane.row, half)
                    where = ops.offset(self.queries.bias, page, 2 * shape.page * self.rows)
                    where = ops.offset(where, ops.add(ops.times(query, 2 * shape.page), ops.times(token, 2)))
                    words = []
                    for four in sums:
                        low, high = (
                            ops.as_integer(ops.plus(each, ops.real(MAGIC + _BIAS_ZERO)))
                            for each in four[2 * half : 2 * half + 2]
                        )
                        words.append(ops.permute_bytes(low, high, ops.integer(0x5410)))
                    ops.store_words(where, words)
                ops.only_if(ops.equal(index, 0), lambda: self._write_extras(notes))

            self._over_pages(vectors, operands, self._notes, finish)
            ops.barrier()  # left operands are free again
            return nothing

        ops.loop(ops.integer(0), ops.integer(shape.page // (32 * columns)), [ops.integer(0)], part)

    def _over_pages(
        self,
        vectors: list[list[Any]],
        operands: list[list[list[Any]]],
        begin: Callable[[Any], Any],
        finish: Callable[[Any, Any, list[list[Any]], Any], None],
    ) -> None:
        """``finish(first page, turn, sums, begin(first page))`` of every 16 rows: vectors turned to where pages start,
        times operands."""
        ops = self.ops

        def rows(base: Any, carried: list[Any]) -> list[Any]:
            turn, angles = carried[0], carried[1:]
            buffer = ops.shared_offset(self.shared, ops.times(turn, _ROWS_NBYTES))
            self._turn(vectors, angles, buffer)
            ahead = self._angles(ops.add(base, ops.integer(self.pages)))
            notes = begin(base)
            ops.barrier()  # who reads the other buffer comes here before it is written again
            buffer = ops.shared_offset(buffer, ops.times(self.lane.lane, 16))
            sums = [[ops.real(0.0)] * 4 for _ in operands]
            for step in range(_STEPS):
                left = ops.shared_words(buffer, 4, _STEP_NBYTES * step)
                sums = [
                    ops.multiply_halves(total, left, right[step]) for total, right in zip(sums, operands, strict=True)
                ]
            finish(base, turn, sums, notes)
            return [ops.subtract(ops.integer(1), turn), *ahead]

        ops.loop(self.first, self.stop, [ops.integer(0), *self._angles(self.first)], rows, self.pages)

    def _angles(self, base: Any) -> list[Any]:
        """For two pages the cosines of this lane's two channels, and the sines."""
        ops, found = self.ops, []
        for half in range(2):
            page = self._page(base, ops.add(self.slot, ops.integer(half * (COLUMNS // self.rows))))
            where = ops.offset(ops.offset(self.tables.turns, page, 16 * 32), ops.times(self.lane.lane, 16))
            found += ops.load_reals(where, 4)
        return found

    def _turn(self, vectors: list[list[Any]], angles: list[Any], buffer: Any) -> None:
        """This warp's rows, into shared memory."""
        ops, lane = self.ops, self.lane.lane
        words = [[ops.integer(0)] * 4 for _ in vectors]
        for half in range(2):
            cosines, sines = angles[4 * half : 4 * half + 2], angles[4 * half + 2 : 4 * half + 4]
            for vector, found in zip(vectors, words, strict=True):
                near, far = vector[:2], vector[2:]
                turned = [
                    ops.fused(y, sin, ops.scaled(x, cos))
                    for x, y, cos, sin in zip(near, far, cosines, sines, strict=True)
                ]
                back = [ops.minus(ops.real(0.0), x) for x in near]
                turned += [
                    ops.fused(x, sin, ops.scaled(y, cos))
                    for x, y, cos, sin in zip(back, far, cosines, sines, strict=True)
                ]
                found[half::2] = [ops.pack_halves(*turned[:2]), ops.pack_halves(*turned[2:])]
        step = ops.add(ops.times(ops.divide(lane, 8), 2), ops.modulo(lane, 2))
        column = ops.divide(ops.modulo(lane, 8), 2)
        target = ops.add(ops.times(step, _STEP_NBYTES), ops.times(column, 16))
        target = ops.shared_offset(buffer, ops.add(target, ops.times(self.lane.warp, 128)))
        for index, four in enumerate(words):
            ops.shared_store(target, [ops.as_real(word) for word in four], 64 * index)

    def _maps(self) -> tuple[list[list[list[Any]]], list[Any]]:
        """For each eight of this warp's 32 channels and each step, this lane's two words; and for each 16 channels what
        makes their products numbers of codes. Of 16 channels, four results of a lane are neighbours."""
        ops, lane = self.ops, self.lane
        where = ops.offset(ops.offset(self.tables.maps, self.kv_head, 4 * DIM * DIM), ops.times(lane.warp, 128 * DIM))
        channel = ops.add(ops.times(ops.divide(lane.row, 2), 4), ops.modulo(lane.row, 2))
        where = ops.offset(where, ops.add(ops.times(channel, 4 * DIM), ops.times(lane.column, 16)))
        units = ops.offset(self.tables.units, ops.add(ops.times(self.kv_head, UNIT_WORDS), ops.times(lane.warp, 2)), 4)
        found, weights = [], []
        for group, unit in enumerate(ops.load_reals(units, 2, 12 * GROUPS)):
            fours = [
                ops.load_reals(where, 4, 4 * DIM * (GROUP * group + 2 * block) + 256 * half + 64 * part)
                for block in range(2)
                for part in range(4)
                for half in range(2)
            ]
            size = functools.reduce(ops.maximum, [ops.magnitude(x) for four in fours for x in four])
            size = ops.maximum(self._over_warp(size), ops.real(1e-30))
            weights.append(ops.scaled(ops.scaled(size, unit), ops.real(1.0 / _MAP_LARGEST)))
            factor = ops.scaled(ops.reciprocal(size), ops.real(_MAP_LARGEST))
            words = [
                ops.pack_halves(*(ops.scaled(x, factor) for x in four[at : at + 2])) for four in fours for at in (0, 2)
            ]
            # Block, part, half, step of the part.
            for block in range(2):
                of_block = words[16 * block : 16 * block + 16]
                found.append(
                    [[of_block[4 * part + n], of_block[4 * part + 2 + n]] for part in range(4) for n in range(2)]
                )
        return found, weights

    def _operands(self, where: Any, columns: int) -> list[list[list[Any]]]:
        """For each block of columns and step, this lane's two words."""
        ops = self.ops
        where = ops.offset(where, ops.times(self.lane.lane, 16))
        found = []
        for block in range(columns):
            fours = [ops.load_words(where, 4, 512 * (4 * block + index), once=False) for index in range(4)]
            found.append([four[2 * step : 2 * step + 2] for four in fours for step in range(2)])
        return found

    def _vectors(self, query_ref: Any) -> list[list[Any]]:
        """This lane's channels of the warp's two queries: two of the first half of a head, and of the second."""
        ops, dtype, group = self.ops, self.shape.dtype, self.shape.group
        found = []
        base = ops.offset(ops.address(query_ref), self.head, group * DIM * dtype.itemsize)
        for index in range(2):
            query = ops.add(self.query, ops.integer(index))
            there = ops.less(query, ops.integer(group))
            where = ops.offset(base, ops.smaller(query, ops.integer(group - 1)), DIM * dtype.itemsize)
            where = ops.offset(where, ops.times(self.lane.lane, 2 * dtype.itemsize))
            values = [
                x for half in range(2) for x in load_exact(ops, where, 2, dtype, half * DIM // 2 * dtype.itemsize)
            ]
            found.append([ops.select(there, value, ops.real(0.0)) for value in values])
        return found

    def _times_mean(self) -> list[list[Any]]:
        """Vectors whose products with the cosines and sines of a token are logits: the query times the mean, as pairs
        of channels that turn."""
        ops = self.ops
        where = ops.offset(ops.offset(self.tables.means, self.kv_head, 4 * DIM), ops.times(self.lane.lane, 8))
        near, far = (
            [ops.scaled(x, ops.real(self.shape.scale)) for x in ops.load_reals(where, 2, at)] for at in (0, 2 * DIM)
        )
        found = []
        for vector in self.vectors:
            pairs = list(zip(vector[:2], vector[2:], near, far, strict=True))
            found.append(
                [ops.fused(y, m, ops.scaled(x, n)) for x, y, n, m in pairs]
                + [ops.minus(ops.scaled(y, n), ops.scaled(x, m)) for x, y, n, m in pairs]
            )
        return found

    def _notes(self, base: Any) -> "_Notes":
        """Of this warp's four of 16 rows; eight lanes have a row, a group each."""
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        row = ops.add(ops.times(self.lane.warp, 4), ops.divide(lane, GROUPS))
        group = ops.modulo(lane, GROUPS)
        page, query = self._row_of(base, row)
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

    def _write_extras(self, notes: "_Notes") -> None:
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
            ops.store_words(starts, [ops.subtract(start, ops.left(high, 8))], 4 * self.rows)
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
        return self.rows * GROUP if self.shape.paired else COLUMNS * DIM

    def _row_of(self, base: Any, row: Any, half: int = 0) -> tuple[Any, Any]:
        """The page of all heads', and the query, of row ``row + 8 half``."""
        ops = self.ops
        slot = ops.add(ops.divide(row, self.rows), ops.integer(half * (COLUMNS // self.rows)))
        page = ops.add(ops.times(self.head, self.shape.pages), self._page(base, slot))
        return page, ops.modulo(row, self.rows)

    def _page(self, base: Any, slot: Any) -> Any:
        """Beyond the last page it is done again, with the same result."""
        return self.ops.smaller(self.ops.add(base, slot), self.last)

    def _top(self, page: Any, query: Any) -> Any:
        return self.ops.offset(self.ops.offset(self.queries.tops, page, 4 * self.rows), self.ops.times(query, 4))

    def _extra(self, page: Any, index: Any) -> Any:
        """Where the factors of queries are, from ``index`` on."""
        ops, shape = self.ops, self.shape
        where = ops.offset(self.queries.extras, page, shape.extra_nbytes)
        return ops.offset(where, ops.add(ops.times(index, 4), ops.integer(4 * COLUMNS * shape.blocks)))

    def _keep_sizes(self, sizes: list[Any], at: int) -> None:
        """Warps that have the same queries write the same."""
        ops = self.ops
        where = ops.shared_offset(self.shared, ops.times(self.query, 4))
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

    def _over_warp(self, value: Any, combine: Any = None) -> Any:
        for distance in (1, 2, 4, 8, 16):
            value = (combine or self.ops.maximum)(value, self.ops.exchange(value, distance))
        return value

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
