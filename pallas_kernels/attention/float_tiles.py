"""Tiles of numbers of floating point on their way through shared memory to the registers of a warp."""

from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.float_shape import CHUNK, PART, FloatShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


class FloatRefs(NamedTuple):
    """The arrays of a stream; ``scales`` is not read if there are none."""

    numbers: Any
    scales: Any


class FloatStages:
    """Tiles of one head in shared memory.

    A stage holds what lanes will read of keys, one lane's words beside another's; values, token after token, the chunks
    of each in an order of its own, so that those of eight tokens are in different banks; and the scales of both.
    """

    def __init__(self, ops: Any, shape: FloatShape, lane: Lane) -> None:
        self.ops, self.shape, self.lane = ops, shape, lane
        self._wide = ops.times(lane.lane, CHUNK)
        few = shape.tile == 16
        token = ops.modulo(lane.lane, 16) if few else lane.lane
        self._read = self._place(token, ops.divide(lane.lane, 16) if few else ops.integer(0))

    def _place(self, token: Any, chunk: Any) -> Any:
        """Where in the values of a tile a chunk of a token is."""
        ops, row = self.ops, self.shape.value_row
        turn = ops.modulo(token, 8) if row >= 128 else ops.modulo(ops.divide(token, 2), 4)
        return ops.add(ops.times(token, row), ops.times(ops.differing(chunk, turn), CHUNK))

    def key_words(self, slot: Any, product: int, part: int) -> list[list[Any]]:
        """Of a product's two rows four words each: neighbouring channels."""
        ops, parts = self.ops, self.shape.key_row // PART
        where = ops.shared_offset(slot, self._wide)
        return [ops.shared_words(where, 4, 512 * ((2 * product + half) * parts + part)) for half in range(2)]

    def value_words(self, slot: Any, pair: int) -> list[list[Any]]:
        """Of two neighbouring chunks for each eight tokens a word: two bytes of each of two tokens, as ``transpose``
        returns them."""
        ops, shape = self.ops, self.shape

        def load(chunk: int, first: int = 0) -> list[Any]:
            where = ops.shared_offset(slot, ops.differing(self._read, ops.integer(CHUNK * chunk)))
            return ops.shared_transposes(where, shape.stage_values + first * shape.value_row)

        if shape.tile == 16:
            both = load(2 * pair)
            return [both[:2], both[2:]]
        return [
            [word for first in range(0, shape.tile, 32) for word in load(2 * pair + chunk, first)] for chunk in range(2)
        ]

    def scales(self, slot: Any, stream: int) -> list[list[Any]]:
        """Of keys (0) or values (1), for each product those of its two rows; none if there are none."""
        ops, shape = self.ops, self.shape
        if not (shape.key, shape.value)[stream].scaled:
            return []
        where = ops.shared_offset(slot, ops.times(self.lane.row, 2))
        at = shape.stage_scales[stream]
        return [
            [ops.half_of(ops.shared_short(where, at + 2 * (16 * product + 8 * half)), upper=False) for half in range(2)]
            for product in range(shape.products)
        ]


class FloatTiles(FloatStages):
    """Tiles of one head, page after page."""

    def __init__(self, ops: Any, shape: FloatShape, lane: Lane, head: Any, refs: tuple[FloatRefs, FloatRefs]) -> None:
        super().__init__(ops, shape, lane)
        key, value = (
            ops.offset(ops.address(ref.numbers), head, shape.capacity * row)
            for ref, row in zip(refs, (shape.key_row, shape.value_row), strict=True)
        )
        mine = ops.add(ops.times(lane.row, shape.key_row), ops.times(lane.column, CHUNK))
        self._key, self._value = ops.offset(key, mine), ops.offset(value, self._wide)
        self._scales = [
            ops.offset(ops.offset(ops.address(ref.scales), head, 2 * shape.capacity), self._wide)
            if codes.scaled
            else None
            for ref, codes in zip(refs, (shape.key, shape.value), strict=True)
        ]
        chunks = shape.value_row // CHUNK
        self._copied = self._place(ops.divide(lane.lane, chunks), ops.modulo(lane.lane, chunks))

    def start(self, tile: Any, slot: Any) -> None:
        """Starts the copies of a tile into a stage."""
        ops, shape = self.ops, self.shape
        target, where = ops.shared_offset(slot, self._wide), ops.offset(self._key, tile, shape.tile * shape.key_row)
        parts = shape.key_row // PART
        for index in range(shape.tile // 8 * parts):
            eight, part = divmod(index, parts)
            ops.copy(target, where, CHUNK, 512 * index, 8 * eight * shape.key_row + PART * part)
        where = ops.offset(self._value, tile, shape.tile * shape.value_row)
        together = 512 // shape.value_row  # tokens
        for first in range(0, shape.tile, together):
            turn = first % 8 if shape.value_row >= 128 else 0
            target = ops.shared_offset(slot, ops.differing(self._copied, ops.integer(CHUNK * turn)))
            at = first * shape.value_row
            ops.copy(target, where, CHUNK, shape.stage_values + at, at)
        target = ops.shared_offset(slot, self._wide)
        for scales, to in zip(self._scales, shape.stage_scales, strict=True):
            if scales is not None:
                where = ops.offset(scales, tile, 2 * shape.tile)
                few = ops.less(self.lane.lane, ops.integer(2 * shape.tile // CHUNK))
                ops.only_if(few, lambda where=where, to=to: ops.copy(target, where, CHUNK, to))
