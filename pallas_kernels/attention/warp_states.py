"""Softmax states of a program's warps, added up in shared memory."""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, TileShape
from kakeya_jax.pallas_kernels.attention.tile_shares import parts_of
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, over_rows


def write_state(
    ops: Any,
    shape: TileShape,
    lane: Lane,
    place: Any,
    state: list[Any],
    halves: list[Any] | None,
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    shared: Any,
) -> None:
    """Adds up the states of a program's warps, in shared memory, in a fixed order.

    ``halves`` are what a value's level has beside its byte, one for each of ``weighted``: so many of ``shift``, that of
    its group of channels; None for nothing.
    """
    queries = shape.blocks
    top, (total, shift, weighted) = state[:queries], parts_of(shape, state[queries:])
    total, shift = ([over_rows(ops, each, ops.plus) for each in part] for part in (total, shift))
    if halves is not None:
        of_group = len(weighted) // shape.shifts
        weighted = [
            ops.fused(shift[queries * (index // of_group) + index % queries], half, each)
            for index, (half, each) in enumerate(zip(halves, weighted, strict=True))
        ]
    start = ops.shared_address(shared)
    rows, warps, dim = shape.rows, shape.warps, shape.dim
    sums_at = 4 * warps * rows  # behind the largest logits
    weighted_at = 2 * sums_at
    column = ops.shared_offset(start, ops.times(lane.column, 4))
    mine = ops.shared_offset(column, ops.times(lane.warp, 4 * rows))
    for n in range(queries):
        ops.shared_store(mine, [top[n]], 4 * FOUR * n)
    ops.barrier()
    row = ops.add(ops.times(lane.warp, rows), lane.column)
    where = ops.shared_offset(start, ops.add(ops.times(row, 4 * dim), ops.times(lane.row, 4)))
    for n in range(queries):
        tops = [ops.shared_load(column, 1, 4 * (rows * warp + FOUR * n))[0] for warp in range(warps)]
        decay = ops.power_of_two(ops.minus(top[n], functools.reduce(ops.maximum, tops)))
        ops.shared_store(mine, [ops.scaled(total[n], decay)], sums_at + 4 * FOUR * n)
        for eight, each in enumerate(weighted[n::queries]):
            at = weighted_at + 4 * (FOUR * n * dim + COLUMNS * eight)
            ops.shared_store(where, [ops.scaled(each, decay)], at)
    ops.barrier()
    threads = 32 * warps
    place = ops.times(place, rows)

    def put_state() -> None:
        """One thread for each query."""
        where = ops.shared_offset(start, ops.times(lane.thread, 4))
        top = [ops.shared_load(where, 1, 4 * rows * warp)[0] for warp in range(warps)]
        sums = [ops.shared_load(where, 1, sums_at + 4 * rows * warp)[0] for warp in range(warps)]
        at = ops.times(ops.add(place, lane.thread), 4)
        ops.store_reals(ops.offset(ops.address(top_ref), at), [functools.reduce(ops.maximum, top)])
        ops.store_reals(ops.offset(ops.address(total_ref), at), [functools.reduce(ops.plus, sums)])

    ops.only_if(ops.less(lane.thread, ops.integer(rows)), put_state)
    out = ops.offset(ops.address(weighted_ref), place, 4 * dim)
    for first in range(0, rows * dim, threads):
        index = ops.add(lane.thread, ops.integer(first))

        def put(index: Any = index) -> None:
            where = ops.shared_offset(start, ops.times(index, 4))
            parts = [ops.shared_load(where, 1, weighted_at + 4 * rows * dim * warp)[0] for warp in range(warps)]
            ops.store_reals(ops.offset(out, ops.times(index, 4)), [functools.reduce(ops.plus, parts)])

        ops.only_if(ops.less(index, ops.integer(rows * dim)), put)
