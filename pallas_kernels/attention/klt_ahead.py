"""What a program of a page's queries reads, on its way to the second-level cache before it is needed.

All programs begin at the same time and read the same lines: who waits for memory for each page, waits with all others.
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_LINE = 128
"""Bytes that memory gives at once."""


def fetch_tables(ops: Any, shape: KltShape, lane: Lane, head: Any, pages: tuple[Any, Any], tables: QueryTables) -> None:
    """Fetches what belongs to pages and, in programs of the first head, the curves, which tiles need.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        head: of all rows.
        pages: the first one, and the one after the last.
        tables: addresses.
    """
    row, kv_head = ops.divide(head, shape.num_kv_heads), ops.modulo(head, shape.num_kv_heads)
    line = ops.modulo(lane.thread, 4)
    of_row = ops.times(row, shape.pages)
    scales = ops.select_address(ops.equal(line, 1), tables.page_mean_scales, tables.value_mean_scales)
    of_mean = ops.equal(line, 0)
    base = ops.select_address(of_mean, tables.page_means, scales)
    nbytes = ops.select(of_mean, ops.integer(DIM), ops.integer(2))
    first, stop = pages

    def some(page: Any, nothing: list[Any]) -> list[Any]:
        page = ops.add(page, ops.divide(lane.thread, 4))

        def lines() -> None:
            ops.prefetch(ops.offset(ops.offset(tables.turns, page, 4 * DIM), ops.times(line, _LINE)))
            of_head = ops.add(ops.times(ops.add(of_row, page), shape.num_kv_heads), kv_head)
            where = ops.offset_product(base, of_head, nbytes)
            ops.only_if(ops.less(line, ops.integer(3)), lambda: ops.prefetch(where))

        ops.only_if(ops.less(page, stop), lines)
        return nothing

    ops.loop(first, stop, [ops.integer(0)], some, 32)
    where = ops.offset(tables.curves, ops.times(lane.thread, _LINE))

    def curves() -> None:
        nbytes = 2 * shape.page * shape.curves
        for at in range(0, nbytes, 128 * _LINE):
            inside = ops.less(lane.thread, ops.integer((nbytes - at) // _LINE))
            ops.only_if(inside, lambda at=at: ops.prefetch(where, at))

    ops.only_if(ops.equal(head, 0), curves)
