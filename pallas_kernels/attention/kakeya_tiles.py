"""Tiles of ``kakeya`` keys and of packed values on their way through shared memory to the registers of a warp."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import TILE
from kakeya_jax.pallas_kernels.attention.coded_tiles import StreamRefs, Tiles
from kakeya_jax.pallas_kernels.attention.kakeya_shape import CENTER_FACTOR, DIM, KakeyaShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, halves_of

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
        self.row, self.kv_head = ops.divide(head, shape.mixed), ops.modulo(head, shape.mixed)
        tokens = shape.capacity * shape.mixed
        self.norm, self.projection = (ops.offset(ops.address(ref), self.row, 2 * tokens) for ref in (norm, projection))
        self.segment = ops.offset(ops.address(segment), self.row, tokens // 2)
        self.turn = ops.offset(ops.address(turn), ops.times(lane.lane, 16))
        if shape.mixed > 1:
            start = ops.offset(ops.address(key), self.row, tokens * shape.key_row)
            self.key = ops.offset(start, ops.times(self.kv_head, shape.key_row))
            self.key_stride = shape.key_row * shape.mixed  # from a token of a head to its next

    def start_keys(self, tile: Any, slot: Any) -> None:
        """Starts the copies of keys and of all that belongs to them."""
        ops, shape = self.ops, self.sizes
        self._start_codes_of_keys(tile, slot)
        if shape.mixed > 1:
            self._start_words(tile, slot)
        else:
            self._start_runs(tile, slot)
        wide = ops.shared_offset(slot, ops.times(self.lane.lane, 16))
        ops.copy(wide, ops.offset(self.turn, tile, 4 * DIM), 16, shape.stage_turn)

    def _start_runs(self, tile: Any, slot: Any) -> None:
        """Of norms, projections and segments, each of which is one run of bytes."""
        ops, shape = self.ops, self.sizes
        lanes = ops.times(self.lane.lane, 4)
        target = ops.shared_offset(slot, lanes)

        def start(where: Any, nbytes: int, at: int) -> None:
            ops.copy(target, ops.offset(ops.offset(where, lanes), tile, nbytes), 4, at)

        start(self.norm, 2 * TILE, shape.stage_norm)
        if shape.centers:
            start(self.projection, 2 * TILE, shape.stage_projection)
            few = ops.less(self.lane.lane, ops.integer(TILE // 8))
            ops.only_if(few, lambda: start(self.segment, TILE // 2, shape.stage_segment))

    def _start_words(self, tile: Any, slot: Any) -> None:
        """The same where those of other heads are between: for each token the words that they are in."""
        ops, shape, lane = self.ops, self.sizes, self.lane.lane
        target = ops.shared_offset(slot, ops.times(lane, 4))
        parts = [(self.norm, 1, shape.stage_norm)]
        if shape.centers:
            parts += [(self.projection, 1, shape.stage_projection), (self.segment, 3, shape.stage_segment)]
        for first in range(0, TILE, 32):
            index = self._index(ops.add(ops.times(tile, TILE), ops.add(lane, ops.integer(first))))
            for where, shift, at in parts:
                ops.copy(target, ops.offset(where, ops.times(ops.right(index, shift), 4)), 4, at + 4 * first)

    def _index(self, token: Any) -> Any:
        """Of a token's vector among those of all heads that share a block."""
        return self.ops.add(self.ops.times(token, self.sizes.mixed), self.kv_head)

    def start_values(self, tile: Any, slot: Any) -> None:
        """Starts those of values and their scales."""
        super().start_values(tile, slot)
        self._start_scales(tile, slot, 1)

    def lengths(self, slot: Any, product: int) -> tuple[list[Any], list[Any]]:
        """For both rows of a product what sums over codes are multiplied by, and how much of its centre a token has
        beside that, packed float16, the upper half zero."""
        ops, shape = self.ops, self.sizes
        norms = self._pair(slot, shape.stage_norm, product)
        norms = [ops.scaled(each, ops.real(shape.level_unit / shape.length)) for each in norms]
        if not shape.centers:
            return norms, []
        parts = self._pair(slot, shape.stage_projection, product)
        shares = []
        for half, part in enumerate(parts):
            part = ops.scaled(part, ops.real(1 / CENTER_FACTOR))
            least = ops.maximum(ops.scaled(ops.magnitude(part), ops.real(1 / _LARGEST)), ops.real(_SMALLEST))
            norms[half] = ops.maximum(norms[half], least)
            shares.append(ops.pack_halves(ops.scaled(part, ops.reciprocal(norms[half])), ops.real(0.0)))
        return norms, shares

    def centers(self, slot: Any, product: int, shares: list[Any]) -> list[Any]:
        """A product's left operand of 16 centres: a token's share where its centre is."""
        ops = self.ops
        near, far = [], []
        for number, share in zip(self._segments(slot, product), shares, strict=True):
            shift = ops.times(ops.subtract(number, ops.times(self.lane.column, 2)), 16)
            near.append(ops.shifted_left(share, shift))
            far.append(ops.shifted_left(share, ops.subtract(shift, ops.integer(128))))
        return [*near, *far]

    def _segments(self, slot: Any, product: int) -> list[Any]:
        """Numbers of the centres of a product's two rows."""
        ops, shape = self.ops, self.sizes
        if shape.mixed > 1:
            words = self._words(slot, shape.stage_segment, product)
            found = []
            for half, word in enumerate(words):
                index = self._index(ops.add(self.token, ops.integer(4 * product + half)))
                found.append(ops.shifted_right(word, ops.times(ops.modulo(index, 8), 4)))
        else:
            where = ops.shared_offset(slot, ops.times(ops.divide(self.lane.row, 2), 8))
            word = ops.shared_words(where, 1, shape.stage_segment + 4 * (product // 2))[0]
            word = ops.shifted_right(word, ops.times(ops.modulo(self.lane.row, 2), 8))
            found = [ops.right(word, 16 * (product % 2) + 4 * half) for half in range(2)]
        return [ops.both(each, ops.integer(15)) for each in found]

    def _pair(self, slot: Any, at: int, product: int) -> list[Any]:
        """float16 of a product's two rows."""
        ops, shape = self.ops, self.sizes
        if shape.mixed == 1:
            where = ops.shared_offset(slot, ops.times(self.token, 2))
            word = ops.shared_words(where, 1, at + 8 * product)[0]
            return halves_of(ops, word)
        found = []
        for half, word in enumerate(self._words(slot, at, product)):
            odd = ops.modulo(ops.add(self.kv_head, ops.integer(half * shape.mixed)), 2)
            found.append(ops.half_of(ops.shifted_right(word, ops.times(odd, 16)), upper=False))
        return found

    def _words(self, slot: Any, at: int, product: int) -> list[Any]:
        """Of a product's two rows, if each token has one."""
        where = self.ops.shared_offset(slot, self.ops.times(self.token, 4))
        return self.ops.shared_words(where, 2, at + 16 * product)
