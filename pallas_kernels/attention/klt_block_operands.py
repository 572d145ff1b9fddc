"""Operands of three programs that are one block of threads and have the same head: each makes a part for all.

All programs of a GPU begin at the same time with the same loads, and wait for the second-level cache. Teams 0 and 1
make the maps, each of their warps a group of channels, and team 2 makes the curves.
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention.klt_query_operands import CurveOperands, by_step, load_map, map_unit, map_words
from kakeya_jax.pallas_kernels.attention.klt_query_shared import GROUP_NBYTES, MEAN_SIZE, WEIGHTS
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import GROUP, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_MAP_TEAMS = 2
_FOURS = 16
"""Loads of a lane for a group of channels."""


def one_head(ops: Any, shape: KltShape) -> bool:
    """Whether blocks are three programs of a head: those of its codes follow each other."""
    return ops.teams() == _MAP_TEAMS + 1 and shape.splits % ops.teams() == 0


class BlockOperands:
    """As ``HeadOperands``; all programs of a block call ``make``."""

    def __init__(self, ops: Any, shape: KltShape, lane: Lane, tables: QueryTables, kv_head: Any, shared: Any) -> None:
        self.ops, self.lane, self.shared = ops, lane, shared
        self.curves = CurveOperands(ops, shape, lane, shared)
        self._of_maps = ops.less(ops.team(), ops.integer(_MAP_TEAMS))
        self._of_curves = ops.equal(ops.team(), _MAP_TEAMS)
        ops.only_if(self._of_curves, lambda: self.curves.start(tables, kv_head))
        group = ops.add(ops.times(ops.team(), 4), lane.warp)
        channel = ops.add(ops.times(ops.divide(lane.row, 2), 4), ops.modulo(lane.row, 2))
        channel = ops.add(ops.times(group, GROUP), channel)

        def loaded() -> list[Any]:
            fours = load_map(ops, lane, tables.maps, kv_head, channel, 2)
            return [map_unit(ops, tables.units, kv_head, group), *(x for four in fours for x in four)]

        self._loaded = ops.choose(self._of_maps, loaded, [ops.real(0.0)] * (1 + 4 * _FOURS))

    def make(self) -> tuple[list[list[list[Any]]], Any, Any]:
        """See ``HeadOperands.make``."""
        ops, lane = self.ops, self.lane
        ops.only_if(self._of_maps, self._make_map)
        ops.only_if(self._of_curves, self._make_curves)
        ops.block_barrier()
        team, second = ops.of_team(self.shared, ops.divide(lane.warp, 2)), ops.modulo(lane.warp, 2)
        maps = []
        for block in range(4):
            where = ops.shared_offset(team, self._maker_of(second, block))
            places = range(block % 2 * GROUP_NBYTES // 2, (block % 2 + 1) * GROUP_NBYTES // 2, 512)
            words = [word for at in places for word in ops.shared_words(where, 4, at)]
            maps.append([words[at : at + 2] for at in range(0, len(words), 2)])
        group = ops.add(ops.times(second, 2), ops.divide(lane.column, 2))
        weight = ops.shared_load(ops.shared_offset(team, ops.times(group, 4)), 1, WEIGHTS)[0]
        size = ops.shared_load(ops.of_team(self.shared, ops.integer(0)), 1, MEAN_SIZE)[0]
        ops.block_barrier()  # rows of queries take the place
        return maps, weight, size

    def _maker_of(self, second: Any, block: int) -> Any:
        """Where the lane begins that made this lane's column of a block: see ``HeadOperands``."""
        ops, lane = self.ops, self.lane
        group = ops.add(ops.times(second, 2), ops.divide(lane.row, 4))
        row = ops.add(ops.times(ops.modulo(ops.divide(lane.row, 2), 2), 4), ops.modulo(lane.row, 2))
        row = ops.add(row, ops.integer(2 * (block // 2)))
        maker = ops.add(ops.times(row, 4), lane.column)
        return ops.add(ops.times(group, GROUP_NBYTES), ops.times(maker, 16))

    def _make_map(self) -> None:
        ops, lane, (unit, *entries) = self.ops, self.lane, self._loaded
        words, weight = map_words(ops, [entries[at : at + 4] for at in range(0, 4 * _FOURS, 4)], unit, 32)
        where = ops.add(ops.times(lane.warp, GROUP_NBYTES), ops.times(lane.lane, 16))
        where = ops.shared_offset(self.shared, where)
        ordered = [ops.as_real(word) for eight in by_step(words) for pair in eight for word in pair]
        for at in range(0, len(ordered), 4):
            ops.shared_store(where, ordered[at : at + 4], 128 * at)
        ops.shared_store(ops.shared_offset(self.shared, ops.times(lane.warp, 4)), [weight], WEIGHTS)

    def _make_curves(self) -> None:
        ops = self.ops
        targets = [ops.of_team(self.curves.mine, ops.integer(team)) for team in range(ops.teams())]
        size = self.curves.multiply_for(targets)
        ops.shared_store(ops.of_team(self.shared, ops.integer(0)), [size], MEAN_SIZE)
