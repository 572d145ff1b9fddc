"""Rows of products with the queries of pages: turned to where their pages start, through shared memory to all warps."""

from collections.abc import Callable
from functools import partial
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS
from kakeya_jax.pallas_kernels.attention.klt_query_shared import (
    PRODUCT_NBYTES,
    ROWS_NBYTES,
    STEP_NBYTES,
    STEPS,
    TOGETHER,
)
from kakeya_jax.pallas_kernels.attention.klt_shape import KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


def first_query(ops: Any, shape: KltShape, lane: Lane) -> Any:
    """The first of a warp's two queries."""
    return ops.modulo(ops.times(lane.warp, 2), shape.query_rows)


class QueryRows:
    """The 16 rows of a product are the queries of four pages, or of two if a head has more than four, or of eight if it
    has two at most. Each of four warps turns two queries of two pages.

    Attributes:
        rows: of a page,
        pages: and pages of a product.
        first: the first page,
        stop: and the one after the last.
        query: see ``first_query``.
    """

    def __init__(
        self, ops: Any, shape: KltShape, lane: Lane, head: Any, pages: tuple[Any, Any], turns: Any, shared: Any
    ) -> None:
        self.ops, self.lane, self.rows, self.pages = ops, lane, shape.query_rows, 16 // shape.query_rows
        self.first, self.stop = pages
        self._last = ops.larger(ops.subtract(self.stop, ops.integer(1)), ops.integer(0))
        self._before, self._turns, self.shared = ops.times(head, shape.pages), turns, shared
        self._ahead: list[Any] = []
        self.query, self._slot = first_query(ops, shape, lane), ops.divide(ops.times(lane.warp, 2), self.rows)

    def load_ahead(self) -> None:
        """Begins with the angles of the first pages."""
        self._ahead = self._angles(self.first, TOGETHER)

    def over_pages(
        self,
        vectors: list[list[Any]],
        operands: Callable[[int], list[list[Any]]],
        finish: Callable[[list[Any], Any, Any, list[list[list[Any]]]], None],
        copy_out: Callable[[Any, int], None],
        begin_notes: Callable[[Any], Any],
        write_notes: Callable[[Any, Any, Any, int], None],
    ) -> None:
        """``finish(first pages, turn, buffer, sums)`` of every two products, and of one if one is left: vectors turned
        to where pages start, times ``operands(step)``, two words for each block of eight columns.

        Later, when all warps are past that, ``copy_out(first page, products)``, and ``write_notes(begin_notes(first
        page), buffer, turn, products)``. The buffer, of ``ROWS_NBYTES``, is theirs until then.
        """
        ops, two = self.ops, TOGETHER * self.pages
        pairs = ops.divide(ops.add(ops.subtract(self.stop, self.first), ops.integer(self.pages - 1)), two)
        middle = ops.add(self.first, ops.times(pairs, two))

        def rows(base: Any, carried: list[Any], count: int) -> list[Any]:
            turn, angles = carried[0], carried[1:]
            after, buffer = ops.subtract(ops.integer(1), turn), self._buffer(turn)
            for index in range(count):
                self._turn(vectors, angles[8 * index : 8 * index + 8], buffer, PRODUCT_NBYTES * index)
            ahead = self._angles(ops.add(base, ops.integer(count * self.pages)), count)
            before = ops.larger(ops.subtract(base, ops.integer(two)), self.first)
            notes, some = begin_notes(before), ops.less(self.first, base)
            ops.barrier()  # who reads the other buffer comes here before it is written again
            if count == TOGETHER:
                ops.only_if(some, lambda: copy_out(before, count))
            sums = self._products(operands, buffer, count)
            if count == TOGETHER:
                ops.only_if(some, lambda: write_notes(notes, self._buffer(after), after, count))
            finish([ops.add(base, ops.integer(self.pages * index)) for index in range(count)], turn, buffer, sums)
            return [after, *ahead]

        def last(base: Any, turn: Any, count: int) -> None:
            notes, turn = begin_notes(base), ops.subtract(ops.integer(1), turn)
            ops.barrier()
            copy_out(base, count)
            write_notes(notes, self._buffer(turn), turn, count)

        turn = ops.integer(0)
        for start, stop, count in ((self.first, middle, TOGETHER), (middle, self.stop, 1)):
            ahead, self._ahead = self._ahead or self._angles(start, count), []
            turn = ops.loop(start, stop, [turn, *ahead], partial(rows, count=count), count * self.pages)[0]
            base = ops.subtract(middle, ops.integer(two)) if count == TOGETHER else middle
            ops.only_if(ops.less(start, stop), partial(last, base, turn, count))

    def _buffer(self, turn: Any) -> Any:
        return self.ops.shared_offset(self.shared, self.ops.times(turn, ROWS_NBYTES))

    def _products(self, operands: Callable[[int], list[list[Any]]], buffer: Any, count: int) -> list[list[list[Any]]]:
        """Of each product's rows in shared memory, for each block of eight columns."""
        ops = self.ops
        buffer = ops.shared_offset(buffer, ops.times(self.lane.lane, 16))
        found: list[list[list[Any]]] = [[] for _ in range(count)]
        for step in range(STEPS):
            right = operands(step)
            for index in range(count):
                left = ops.shared_words(buffer, 4, PRODUCT_NBYTES * index + STEP_NBYTES * step)
                sums = found[index] or [[ops.real(0.0)] * 4 for _ in right]
                found[index] = [ops.multiply_halves(total, left, two) for total, two in zip(sums, right, strict=True)]
        return found

    def row_of(self, base: Any, row: Any, half: int = 0) -> tuple[Any, Any]:
        """The page of all heads', and the query, of row ``row + 8 half``."""
        ops = self.ops
        slot = ops.add(ops.divide(row, self.rows), ops.integer(half * (COLUMNS // self.rows)))
        page = ops.add(self._before, self._page(base, slot))
        return page, ops.modulo(row, self.rows)

    def _page(self, base: Any, slot: Any) -> Any:
        """Beyond the last page it is done again, with the same result."""
        return self.ops.smaller(self.ops.add(base, slot), self._last)

    def _angles(self, base: Any, count: int) -> list[Any]:
        """For two pages of each of ``count`` products the cosines of this lane's two channels, and the sines."""
        ops, found = self.ops, []
        for half in range(2 * count):
            page = self._page(base, ops.add(self._slot, ops.integer(half * (COLUMNS // self.rows))))
            where = ops.offset(ops.offset(self._turns, page, 16 * 32), ops.times(self.lane.lane, 16))
            found += ops.load_reals(where, 4)
        return found

    def _turn(self, vectors: list[list[Any]], angles: list[Any], buffer: Any, at: int) -> None:
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
        target = ops.add(ops.times(step, STEP_NBYTES), ops.times(column, 16))
        target = ops.shared_offset(buffer, ops.add(target, ops.times(self.lane.warp, 128)))
        for index, four in enumerate(words):
            ops.shared_store(target, [ops.as_real(word) for word in four], at + 64 * index)
