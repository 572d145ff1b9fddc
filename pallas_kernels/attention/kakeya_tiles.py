"""Tiles of ``kakeya`` keys and of packed values on their way through shared memory to the registers of a warp."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import TILE
from kakeya_jax.pallas_kernels.attention.coded_tiles import StreamRefs, Tiles
from kakeya_jax.pallas_kernels.attention.kakeya_shape import CENTER_FACTOR, DIM, KakeyaShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_LARGEST = 60000.0
"""Of a coefficient as float16."""

_SMALLEST = 1e-30


class KakeyaTiles(Tiles):
    """Tiles of one head; each warp has room for one of them, keys and values apart."""

    def __init__(
        self, ops: Any, shape: KakeyaShape, lane: Lane, head: Any, refs: tuple[Any, ...], shared_ref: Any
    ) -> None:
        key, norm, projection, segment, value, value_scale, turn = refs
        streams = StreamRefs(key, norm, norm), StreamRefs(value, value_scale, value_scale)
        super().__init__(ops, shape, lane, head, streams, shared_ref)
        self.sizes = shape
        lanes = ops.times(lane.lane, 4)
        self.projection = ops.offset(ops.offset(ops.address(projection), head, 2 * shape.capacity), lanes)
        self.segment = ops.offset(ops.offset(ops.address(segment), head, shape.capacity // 2), lanes)
        self.turn = ops.offset(ops.address(turn), ops.times(lane.lane, 16))

    def start_keys(self, tile: Any, slot: Any) -> None:
        """Starts the copies of keys and of all that belongs to them."""
        super().start_keys(tile, slot)
        ops, shape = self.ops, self.sizes
        lanes = ops.shared_offset(slot, ops.times(self.lane.lane, 4))
        if shape.centers:
            ops.copy(lanes, ops.offset(self.projection, tile, 2 * TILE), 4, shape.stage_projection)
            few = ops.less(self.lane.lane, ops.integer(TILE // 8))
            ops.only_if(few, lambda: ops.copy(lanes, ops.offset(self.segment, tile, TILE // 2), 4, shape.stage_segment))
        wide = ops.shared_offset(slot, ops.times(self.lane.lane, 16))
        ops.copy(wide, ops.offset(self.turn, tile, 4 * DIM), 16, shape.stage_turn)

    def start_values(self, tile: Any, slot: Any) -> None:
        """Starts those of values and their scales."""
        super().start_values(tile, slot)
        self._start_scales(tile, slot, 1)

    def lengths(self, slot: Any, product: int) -> tuple[list[Any], list[Any]]:
        """For both rows of a product what sums over codes are multiplied by, and how much of its centre a token has
        beside that, packed float16, the upper half zero."""
        ops, shape = self.ops, self.sizes
        norms = self._halves(self._word(slot, shape.stage_scales, product))
        norms = [ops.scaled(each, ops.real(shape.level_unit / shape.length)) for each in norms]
        if not shape.centers:
            return norms, []
        parts = self._halves(self._word(slot, shape.stage_projection, product))
        shares = []
        for half, part in enumerate(parts):
            part = ops.scaled(part, ops.real(1 / CENTER_FACTOR))
            least = ops.maximum(ops.scaled(ops.magnitude(part), ops.real(1 / _LARGEST)), ops.real(_SMALLEST))
            norms[half] = ops.maximum(norms[half], least)
            shares.append(ops.pack_halves(ops.scaled(part, ops.reciprocal(norms[half])), ops.real(0.0)))
        return norms, shares

    def centers(self, slot: Any, product: int, shares: list[Any]) -> list[Any]:
        """A product's left operand of 16 centres: a token's share where its centre is."""
        ops, shape = self.ops, self.sizes
        where = ops.shared_offset(slot, ops.times(ops.divide(self.lane.row, 2), 8))
        word = ops.shared_words(where, 1, shape.stage_segment + 4 * (product // 2))[0]
        word = ops.shifted_right(word, ops.times(ops.modulo(self.lane.row, 2), 8))
        near, far = [], []
        for half, share in enumerate(shares):
            number = ops.both(ops.right(word, 16 * (product % 2) + 4 * half), ops.integer(15))
            shift = ops.times(ops.subtract(number, ops.times(self.lane.column, 2)), 16)
            near.append(ops.shifted_left(share, shift))
            far.append(ops.shifted_left(share, ops.subtract(shift, ops.integer(128))))
        return [*near, *far]

    def _word(self, slot: Any, at: int, product: int) -> Any:
        """Packed float16 of a product's two rows."""
        where = self.ops.shared_offset(slot, self.ops.times(self.token, 2))
        return self.ops.shared_words(where, 1, at + 8 * product)[0]

    def _halves(self, word: Any) -> list[Any]:
        return [self.ops.half_of(word, upper=upper) for upper in (False, True)]
