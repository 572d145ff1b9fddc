"""Softmax states of a program's warps, added up in shared memory."""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import TileShape
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
    top, (total, shift, weighted) = state[:2], parts_of(shape, state[2:])
    total, shift = ([over_rows(ops, each, ops.plus) for each in part] for part in (total, shift))
    if shape.paired:  # high and low parts lie two columns of lanes apart
        weighted = [ops.plus(each, ops.exchange(each, 2)) for each in weighted]
    if halves is not None:
        of_group = len(weighted) // shape.shifts
        weighted = [
            ops.fused(shift[2 * (index // of_group) + index % 2], half, each)
            for index, (half, each) in enumerate(zip(halves, weighted, strict=True))
        ]
    start = ops.shared_address(shared)
    rows, warps, dim = shape.rows, shape.warps, shape.dim
    writes = ops.less(lane.column, ops.integer(rows // 2))
    sums_at = 4 * warps * rows  # behind the largest logits
    weighted_at = 2 * sums_at
    mine = ops.add(ops.times(lane.warp, 4 * rows), ops.times(lane.column, 8))

    def put_tops() -> None:
        ops.shared_store(ops.shared_offset(start, mine), top)

    ops.only_if(writes, put_tops)
    ops.barrier()
    column = ops.modulo(lane.column, rows // 2)
    tops = [
        ops.shared_load(ops.shared_offset(start, ops.times(column, 8)), 2, 4 * rows * warp) for warp in range(warps)
    ]
    all_top = [functools.reduce(ops.maximum, (each[n] for each in tops)) for n in (0, 1)]
    decay = [ops.power_of_two(ops.minus(top[n], all_top[n])) for n in (0, 1)]

    def put_sums() -> None:
        ops.shared_store(ops.shared_offset(start, mine), [ops.scaled(total[n], decay[n]) for n in (0, 1)], sums_at)
        for n in (0, 1):
            row = ops.add(ops.times(lane.warp, rows), ops.add(ops.times(lane.column, 2), ops.integer(n)))
            where = ops.shared_offset(start, ops.add(ops.times(row, 4 * dim), ops.times(lane.row, 4)))
            for index in range(n, len(weighted), 2):
                channel = 8 * (index // 2)
                ops.shared_store(where, [ops.scaled(weighted[index], decay[n])], weighted_at + 4 * channel)

    ops.only_if(writes, put_sums)
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
