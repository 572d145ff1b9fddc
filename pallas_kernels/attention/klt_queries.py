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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR
from kakeya_jax.pallas_kernels.attention.klt_ahead import fetch_tables
from kakeya_jax.pallas_kernels.attention.klt_block_operands import BlockOperands, one_head
from kakeya_jax.pallas_kernels.attention.klt_curves import EIGHT, QUERY_LARGEST
from kakeya_jax.pallas_kernels.attention.klt_query_notes import NUMBER_LARGEST, QueryNotes, largest_number
from kakeya_jax.pallas_kernels.attention.klt_query_operands import HeadOperands, over_lanes, query_vectors
from kakeya_jax.pallas_kernels.attention.klt_query_rows import QueryRows, first_query
from kakeya_jax.pallas_kernels.attention.klt_query_shared import SIZES, TOPS, TOPS_NBYTES, written_rows
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, KltShape
from kakeya_jax.pallas_kernels.attention.query_columns import float_column
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, Lane, signed_bytes


class PageQueries(NamedTuple):
    """Of ``N`` heads, ``rows`` queries each; addresses.

    Attributes:
        numbers: int8 ``[N, pages, blocks, 8, columns, 16]``: bytes of queries in the coordinates of a page's codes: for
            each block and group of channels the columns of products one after the other, which is the order of lanes.
        extras: int32 ``[N, pages, 16 blocks + 32]``: what sums of products start from, numbers plus ``MAGIC_BITS``,
            those of a query's two columns twice, which are four sums of a lane; bits of the queries' factors; bits of
            those of the page mean of values, one for each group of channels; bits of the units of curves, and of what
            is added to logits.
        coefficients: int32 ``[N, pages, blocks, R / 8, columns, 4]``: of curves, packed float16 of two of them, as
            right operands: what float16 has of a coefficient, and the rest.
    """

    numbers: Any
    extras: Any
    coefficients: Any


def scratch(shape: KltShape, heads: int) -> PageQueries:
    """The arrays of ``PageQueries``."""
    lead = (heads, shape.pages)
    return PageQueries(
        numbers=jax.ShapeDtypeStruct((*lead, shape.query_nbytes), jnp.int8),
        extras=jax.ShapeDtypeStruct((*lead, shape.extra_nbytes // 4), jnp.int32),
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
        self.tables = QueryTables(*map(ops.address, tables))
        self.queries = PageQueries(*map(ops.address, queries))
        self.shared = ops.shared_address(shared_ref)
        self._pair, self._odd = ops.divide(lane.column, 2), ops.modulo(lane.column, 2)
        self._first_thread = ops.less(lane.thread, ops.integer(1))
        # Loads that wait for nothing come first.
        self.vectors = query_vectors(ops, shape, lane, query_ref, head, first_query(ops, shape, lane))
        together = one_head(ops, shape)
        make = BlockOperands if together else HeadOperands
        self.operands = make(ops, shape, lane, self.tables, ops.modulo(head, shape.num_kv_heads), self.shared)
        pages = pages_of()
        fetch_tables(ops, shape, lane, head, pages, self.tables)
        self.at = QueryRows(ops, shape, lane, head, pages, self.tables.turns, self.shared)
        if together:  # and so registers are free
            self.at.load_ahead()
        self.notes = QueryNotes(ops, shape, lane, head, self.tables, self.queries.extras, self.at)

    def write(self) -> None:
        """All of them."""
        ops, lane = self.ops, self.lane
        sizes = [over_lanes(ops, functools.reduce(ops.maximum, map(ops.magnitude, each)), 32) for each in self.vectors]
        sizes = [ops.maximum(each, ops.real(1e-30)) for each in sizes]
        vectors = self._scaled(self.vectors, sizes)
        maps, weight, mean = self.operands.make()
        self._keep_sizes(sizes, mean)
        ahead: list[list[Any]] = []

        def operands(step: int) -> list[list[Any]]:
            if step % 2 == 0:
                ahead[:] = self.operands.curves.two_steps(step)
            first = 2 * (step % 2)
            return [each[step] for each in maps] + [each[first : first + 2] for each in ahead]

        quads = ops.times(lane.row, 16)  # of this lane's row, the largest number of each warp
        first_column = ops.less(lane.column, ops.integer(1))

        def finish(bases: list[Any], turn: Any, buffer: Any, all_sums: list[list[list[Any]]]) -> None:
            pages = [self.at.row_of(base, lane.row, half)[0] for base in bases for half in range(2)]
            units, means = self.notes.begin_sums(pages)
            tops = ops.shared_offset(self.shared, ops.add(ops.times(turn, TOPS_NBYTES), quads))
            target, largest = ops.shared_offset(tops, ops.times(lane.warp, 4)), []
            for sums in all_sums:
                for half in range(2):
                    sizes = [ops.magnitude(each) for four in sums[:4] for each in four[2 * half : 2 * half + 2]]
                    top = ops.scaled(functools.reduce(ops.maximum, sizes), weight)
                    largest.append(over_lanes(ops, top, 4))
            ops.only_if(
                first_column,
                lambda: [ops.shared_store(target, [top], TOPS + 128 * index) for index, top in enumerate(largest)],
            )
            ops.only_if(self._first_thread, lambda: ops.wait_for_copies_out(read=True))
            ops.barrier()
            for index in range(2 * len(bases)):
                sums, half = all_sums[index // 2], index % 2
                top = largest_number(ops, tops, 128 * index)
                factor = ops.scaled(ops.reciprocal(top), ops.real(NUMBER_LARGEST))
                unit = ops.scaled(factor, weight)
                values = [x for four in sums[:4] for x in four[2 * half : 2 * half + 2]]
                places = [ops.fused(each, unit, ops.real(MAGIC + 128.0)) for each in values]
                numbers = [signed_bytes(ops, places[at : at + 4]) for at in (0, 4)]
                self.notes.keep_sums(units, means[index], numbers, buffer, index)
                curves = [four[2 * half : 2 * half + 2] for four in sums[4:]]
                self._write_row(index, numbers, curves)
            ops.order_copies_out()

        self.at.over_pages(vectors, operands, finish, self._copy_out, self.notes.begin_notes, self.notes.write)
        ops.only_if(self._first_thread, ops.wait_for_copies_out)
        ops.barrier()

    def _write_row(self, index: int, numbers: list[tuple[Any, Any]], curves: list[list[Any]]) -> None:
        """Numbers and coefficients of this lane's row of half a product, ``index`` halves after the turn's first: eight
        neighbours, and four of every 64 curves; where they wait to be copied."""
        ops, shape, lane = self.ops, self.shape, self.lane
        slot, query = ops.divide(lane.row, shape.query_rows), ops.modulo(lane.row, shape.query_rows)
        slots = index * (COLUMNS // shape.query_rows)
        group = ops.add(ops.times(lane.warp, 2), self._pair)
        place = ops.add(self._column(query), ops.times(group, shape.columns * GROUP))
        place = ops.add(place, ops.add(ops.times(slot, shape.query_nbytes), ops.times(self._odd, GROUP)))
        self._store(place, self._pieces(numbers), slots * shape.query_nbytes)

        column, to_low = float_column(ops, shape, query)
        low = 16 if to_low < COLUMNS else shape.coefficient_nbytes // 2
        row = ops.add(ops.times(slot, shape.coefficient_nbytes), ops.times(column, 16))
        halves, nbytes = [self._halves(two) for two in curves], 16 * shape.columns
        first = self._coefficients + slots * shape.coefficient_nbytes
        eight = ops.add(ops.times(self._pair, 4), lane.warp)
        mine = ops.add(row, ops.add(ops.times(eight, nbytes), ops.times(self._odd, low)))
        paired = len(halves) // 2 * 2
        for block in range(0, paired, 2):
            words = self._pieces(halves[block : block + 2])
            self._if_so_many(eight, 8, block, partial(self._store, mine, words, first + 4 * nbytes * block))
        mine = ops.add(row, ops.add(ops.times(lane.warp, nbytes), ops.times(lane.column, 4)))
        for block in range(paired, len(halves)):
            for word, to in zip(halves[block], (0, low), strict=True):
                store = partial(self._store, mine, [word], first + 4 * nbytes * block + to)
                self._if_so_many(lane.warp, 4, block, store)

    @property
    def _coefficients(self) -> int:
        """How far they are from numbers where both wait to be copied."""
        return self.shape.turn_pages * self.shape.query_nbytes

    def _store(self, place: Any, words: list[Any], at: int) -> None:
        """Where rows wait to be copied."""
        where = self.ops.shared_offset(self.shared, place)
        self.ops.shared_store(where, list(map(self.ops.as_real, words)), written_rows(self.shape.curve_blocks) + at)

    def _if_so_many(self, eight: Any, count: int, block: int, store: Callable[[], None]) -> None:
        """Of one of ``count`` eights of curves, from those of a block on, if there are so many."""
        ops, left = self.ops, self.shape.curves // EIGHT - 4 * block
        store() if left >= count else ops.only_if(ops.less(eight, ops.integer(left)), store)

    def _copy_out(self, base: Any, count: int) -> None:
        """Copies of the rows of ``count`` products to where their pages have them: a thread starts them."""
        ops, shape = self.ops, self.shape

        def copy() -> None:
            page = ops.add(ops.times(self.head, shape.pages), base)
            pages = ops.smaller(ops.subtract(self.at.stop, base), ops.integer(count * self.at.pages))
            place = written_rows(shape.curve_blocks)
            for target, nbytes, at in (
                (self.queries.numbers, shape.query_nbytes, 0),
                (self.queries.coefficients, shape.coefficient_nbytes, self._coefficients),
            ):
                source = ops.shared_offset(self.shared, ops.integer(place + at))
                ops.copy_out(ops.offset(target, page, nbytes), source, ops.times(pages, nbytes))
            ops.commit_copies_out()

        ops.only_if(self._first_thread, copy)

    def _halves(self, two: list[Any]) -> tuple[Any, Any]:
        """Packed float16 of two coefficients, and of what it leaves."""
        ops = self.ops
        word = ops.pack_halves(*two)
        rest = [ops.minus(each, ops.half_of(word, upper)) for each, upper in zip(two, (False, True), strict=True)]
        return word, ops.pack_halves(*rest)

    def _pieces(self, pairs: list[tuple[Any, Any]]) -> list[Any]:
        """16 bytes to be written at once. Of two lanes that have two words of high parts each, and two of low ones, the
        first gets all high ones, and the second all low ones."""
        ops, odd = self.ops, self.ops.equal(self._odd, 1)
        kept = [ops.select(odd, low, high) for high, low in pairs]
        given = [ops.select(odd, high, low) for high, low in pairs]
        found = [ops.as_integer(ops.exchange(ops.as_real(word), 1)) for word in given]
        both = list(zip(kept, found, strict=True))
        return [ops.select(odd, b, a) for a, b in both] + [ops.select(odd, a, b) for a, b in both]

    def _column(self, query: Any) -> Any:
        """Where a query's high bytes are, before its low ones, of the first group of channels."""
        ops = self.ops
        if self.shape.blocks == 1:
            return ops.times(query, 2 * GROUP)
        block = ops.times(ops.divide(query, FOUR), COLUMNS * DIM)
        return ops.add(block, ops.times(ops.modulo(query, FOUR), 2 * GROUP))

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
