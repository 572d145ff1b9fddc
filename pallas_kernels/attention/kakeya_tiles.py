"""Tiles of ``kakeya`` keys and of packed values on their way through shared memory to the registers of a warp."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS, TILE
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

    def lengths(self, slot: Any) -> tuple[list[list[Any]], list[list[Any]]]:
        """For each product and row what sums over codes are multiplied by, and how much of its centre a token has
        beside that, packed float16, the upper half zero."""
        ops, shape = self.ops, self.sizes
        norms = [self._halves(words[0]) for words in self.scale_words(slot, 0)]
        norms = [[ops.scaled(each, ops.real(shape.level_unit / shape.length)) for each in pair] for pair in norms]
        if not shape.centers:
            return norms, []
        where = ops.shared_offset(slot, ops.times(self.token, 2))
        shares = []
        for product, pair in enumerate(norms):
            word = ops.shared_words(where, 1, shape.stage_projection + 8 * product)[0]
            parts = [ops.scaled(each, ops.real(1 / CENTER_FACTOR)) for each in self._halves(word)]
            for half, part in enumerate(parts):
                least = ops.maximum(ops.scaled(ops.magnitude(part), ops.real(1 / _LARGEST)), ops.real(_SMALLEST))
                pair[half] = ops.maximum(pair[half], least)
            found = [ops.scaled(part, ops.reciprocal(norm)) for part, norm in zip(parts, pair, strict=True)]
            shares.append([ops.pack_halves(each, ops.real(0.0)) for each in found])
        return norms, shares

    def centers(self, slot: Any, shares: list[list[Any]]) -> list[list[Any]]:
        """For each product a left operand of 16 centres: a token's share where its centre is."""
        ops, shape = self.ops, self.sizes
        where = ops.shared_offset(slot, ops.times(ops.divide(self.lane.row, 2), 8))
        words = ops.shared_words(where, 2, shape.stage_segment)
        odd = ops.times(ops.modulo(self.lane.row, 2), 8)
        words = [ops.shifted_right(word, odd) for word in words]
        found = []
        for product in range(PRODUCTS):
            shifts = []
            for half in range(2):
                number = ops.both(ops.right(words[product // 2], 16 * (product % 2) + 4 * half), ops.integer(15))
                behind = ops.subtract(number, ops.times(self.lane.column, 2))
                shifts.append(ops.times(behind, 16))
            near = [ops.shifted_left(share, shift) for share, shift in zip(shares[product], shifts, strict=True)]
            far = [
                ops.shifted_left(share, ops.subtract(shift, ops.integer(128)))
                for share, shift in zip(shares[product], shifts, strict=True)
            ]
            found.append([*near, *far])
        return found

    def _halves(self, word: Any) -> list[Any]:
        return [self.ops.half_of(word, upper=upper) for upper in (False, True)]
