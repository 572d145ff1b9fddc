"""Tiles of exact tokens on their way through shared memory to the registers of a warp."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_shape import ExactShape
from kakeya_jax.pallas_kernels.attention.float_shape import CHUNK, PART
from kakeya_jax.pallas_kernels.attention.float_tiles import FloatStages
from kakeya_jax.pallas_kernels.attention.seen_tokens import SeenTokens
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_LINE = 128
"""Bytes that memory gives at once."""


class ExactTiles(FloatStages):
    """Tiles of the exact tokens of one head.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        seen: the tokens.
        refs: sinks and ring of keys, and of values.
    """

    shape: ExactShape

    def __init__(self, ops: Any, shape: ExactShape, lane: Lane, seen: SeenTokens, refs: list[tuple[Any, Any]]) -> None:
        super().__init__(ops, shape, lane)
        self._seen, self._refs = seen, refs
        self._last = ops.larger(ops.subtract(seen.count, ops.integer(1)), ops.integer(0))
        self._copied = self._place(lane.row, lane.column)

    def tokens(self, tile: Any) -> list[Any]:
        """Of a tile, those of this lane's rows, product after product; some are behind the last one."""
        ops, shape = self.ops, self.shape
        first = ops.add(ops.times(tile, shape.tile), self.lane.row)
        return [ops.add(first, ops.integer(eight)) for eight in range(0, shape.tile, 8)]

    def start(self, tile: Any, slot: Any) -> None:
        """Starts the copies of a tile into a stage; the last token stands where there are none."""
        ops, shape = self.ops, self.shape
        mine = ops.times(self.lane.column, CHUNK)
        keys, parts = ops.shared_offset(slot, self._wide), shape.key_row // PART
        for index, (key, value) in enumerate(self._rows(tile)):
            key, value = ops.offset(key, mine), ops.offset(value, mine)
            for part in range(parts):
                ops.copy(keys, key, CHUNK, 512 * (index * parts + part), PART * part)
            for part in range(shape.value_row // PART):
                place = ops.shared_offset(slot, ops.differing(self._copied, ops.integer(PART * part)))
                ops.copy(place, value, CHUNK, shape.stage_values + 8 * index * shape.value_row, PART * part)

    def fetch(self, tile: Any) -> None:
        """Brings a tile to the second-level cache; the four lanes of a row take a line each."""
        ops, shape, column = self.ops, self.shape, self.lane.column
        lines = shape.key_row // _LINE
        of_keys = ops.less(column, ops.integer(lines))
        line = ops.times(ops.modulo(column, lines), _LINE)
        inside = ops.less(column, ops.integer(2 * lines))
        for key, value in self._rows(tile):
            where = ops.offset(ops.select_address(of_keys, key, value), line)
            ops.only_if(inside, lambda where=where: ops.prefetch(where))

    def _rows(self, tile: Any) -> list[list[Any]]:
        """Where keys and values of this lane's tokens are."""
        ops, sizes = self.ops, [self.shape.key_row, self.shape.value_row]
        return [self._seen.rows(ops.smaller(token, self._last), self._refs, sizes) for token in self.tokens(tile)]
