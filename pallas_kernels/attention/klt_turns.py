"""A warp's tiles of transform-coded pages, one after the other through shared memory, keys and values by turns.

While a warp works on a tile's keys, values have their place, and the other way round: so codes need a place less than
two for each of ``shape.stages`` tiles. Places are a ring. When keys are done, values of a later tile go where they
were; and the page of that tile, of whose coefficients and queries there is one less than of stages, where theirs was.
"""

from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.klt_shape import KltShape
from kakeya_jax.pallas_kernels.attention.klt_tiles import KltTiles, Slots
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


def over_turns(
    ops: Any,
    shape: KltShape,
    lane: Lane,
    shared_ref: Any,
    share: tuple[Any, Any],
    tiles: KltTiles,
    keys: Callable[[Slots], Any],
    values: Callable[[Any, Slots, list[Any], Any], list[Any]],
    state: list[Any],
) -> list[Any]:
    """The state after ``state = values(tile, slots, state, keys(slots))`` for every tile of a warp's share.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
        share: see ``tile_loop.share_of``.
        tiles: of the head.
        keys: what values need of them; curves are loaded.
        values: the state with a tile's.
        state: the first one.
    """
    first, stop = share
    start = ops.shared_offset(ops.shared_address(shared_ref), ops.times(lane.warp, shape.warp_nbytes))
    ahead = shape.stages - 1
    pending = 3 * (ahead - 1) + 1  # copies of so many parts may be under way when keys begin, and when values do
    parts = _Ring(ops, ops.shared_offset(start, ops.integer(shape.warp_parts)), shape.part_nbytes, shape.parts)
    stages = _Ring(ops, start, shape.stage_nbytes, shape.stages)
    pages = _Ring(ops, ops.shared_offset(start, ops.integer(shape.warp_pages)), shape.page_nbytes, ahead)

    def begin(copies: Callable[[Any, Slots], None], tile: Any, slots: Slots) -> None:
        ops.only_if(ops.less(tile, stop), lambda: copies(tile, slots))
        ops.commit_copies()

    for index in range(ahead):
        places = (parts.place(2 * index), parts.place(2 * index + 1), stages.place(index), pages.place(index))
        slots = Slots(*map(_Ring.at, (parts, parts, stages, pages), places))
        for copies in (tiles.start_keys, tiles.start_page, tiles.start_values):
            begin(copies, ops.add(first, ops.integer(index)), slots)

    def turn(tile: Any, carried: list[Any]) -> list[Any]:
        (part_before, part, stage_before, stage, page), state = carried[:5], carried[5:]
        of_values, later = parts.after(part), ops.add(tile, ops.integer(ahead))
        slots = Slots(parts.at(part), parts.at(of_values), stages.at(stage), pages.at(page))
        free = Slots(parts.at(part_before), slots.keys, stages.at(stage_before), slots.page)
        ops.wait_for_copies(pending)
        tiles.load_curves(tile, slots)  # they would wait for copies that are started before
        begin(tiles.start_keys, later, free)  # every lane is past the tile before
        found = keys(slots)
        ops.wait_for_copies(pending)
        begin(tiles.start_page, later, free)
        begin(tiles.start_values, later, free)
        state = values(tile, slots, state, found)
        return [of_values, parts.after(of_values), stage, stages.after(stage), pages.after(page), *state]

    places = [parts.place(-1), parts.place(0), stages.place(-1), stages.place(0), pages.place(0)]
    state_after = ops.loop(first, stop, places + state, turn)[len(places) :]
    ops.wait_for_copies(0)
    return state_after


class _Ring:
    """Places of one size, one behind the other, told by how far they are from the first."""

    def __init__(self, ops: Any, start: Any, nbytes: int, count: int) -> None:
        self._ops, self._start, self._nbytes, self._count = ops, start, nbytes, count

    def place(self, index: int) -> Any:
        """How far a place is from the first."""
        return self._ops.integer(index % self._count * self._nbytes)

    def at(self, place: Any) -> Any:
        """Its address."""
        return self._ops.shared_offset(self._start, place)

    def after(self, place: Any) -> Any:
        """The one that follows."""
        ops, last = self._ops, self.place(-1)
        if self._count == 1:
            return place
        if self._count == 2:
            return ops.subtract(last, place)
        return ops.select(ops.less(place, last), ops.add(place, ops.integer(self._nbytes)), ops.integer(0))
