"""A warp's tiles, one after the other through shared memory: while it works on one, the next are on their way."""

from collections.abc import Callable, Sequence
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import TileShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

Step = Callable[[Any, Any, list[Any]], list[Any]]
"""Takes the number of a tile, the stage it is in, and the state."""


def share_of(ops: Any, shape: TileShape, lane: Lane, split: Any, tiles: Any) -> tuple[Any, Any]:
    """A warp's first tile of a head's, and the one after its last."""
    early, (weight, late_weight) = shape.splits - shape.late, shape.weights
    parts = shape.warps * (early * weight + shape.late * late_weight)
    warps_before = ops.add(ops.times(split, shape.warps), lane.warp)
    before, mine = ops.times(warps_before, weight), ops.integer(weight)
    if shape.late:
        is_late = ops.less(ops.integer(early - 1), split)
        further = ops.times(ops.subtract(warps_before, ops.integer(early * shape.warps)), late_weight)
        before = ops.select(is_late, ops.add(further, ops.integer(shape.warps * early * weight)), before)
        mine = ops.select(is_late, ops.integer(late_weight), mine)
    first = ops.divide(ops.product(before, tiles), parts)
    return first, ops.divide(ops.product(ops.add(before, mine), tiles), parts)


def over_tiles(
    ops: Any,
    shape: TileShape,
    lane: Lane,
    shared_ref: Any,
    share: tuple[Any, Any],
    start: Callable[[Any, Any], None],
    begin: Callable[[], tuple[Step, Sequence[Any]]],
) -> list[Any]:
    """The state after ``state = step(tile, slot, state)`` for every tile of a warp's share.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes; a stage holds one tile.
        lane: who this thread is.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
        share: see ``share_of``.
        start: starts the copies of a tile into a stage.
        begin: gives the step and the first state, once the copies of the first tiles are on their way; all that is
            to be done meanwhile, it does. The last stage of a warp is free until then.
    """
    first, stop = share
    nbytes = shape.stages * shape.stage_nbytes
    base = ops.shared_offset(ops.shared_address(shared_ref), ops.times(lane.warp, shape.warp_nbytes))
    ahead = shape.stages - 1

    def start_tile(tile: Any, slot: Any) -> None:
        ops.only_if(ops.less(tile, stop), lambda: start(tile, ops.shared_offset(base, slot)))
        ops.commit_copies()

    for index in range(ahead):
        start_tile(ops.add(first, ops.integer(index)), ops.integer(index * shape.stage_nbytes))

    def turn(tile: Any, carried: list[Any]) -> list[Any]:
        place, state = carried[0], carried[1:]
        slot = ops.shared_offset(base, place)
        ops.wait_for_copies(max(ahead - 1, 0))
        # The stage before this one is free now: every lane is past its tile.
        before = ops.less(place, ops.integer(shape.stage_nbytes))
        free = ops.select(
            before,
            ops.integer(nbytes - shape.stage_nbytes),
            ops.subtract(place, ops.integer(shape.stage_nbytes)),
        )
        start_tile(ops.add(tile, ops.integer(ahead)), free)
        if not ahead:
            ops.wait_for_copies(0)
        ops.mark("first tile", lambda: ops.less(tile, ops.add(first, ops.integer(1))))
        state = step(tile, slot, state)
        following = ops.add(place, ops.integer(shape.stage_nbytes))
        wraps = ops.less(following, ops.integer(nbytes))
        return [ops.select(wraps, following, ops.integer(0)), *state]

    step, begun = begin()
    ops.mark("queries")
    state_after = ops.loop(first, stop, [ops.integer(0), *begun], turn)[1:]
    ops.wait_for_copies(0)
    ops.mark("tiles")
    return state_after
