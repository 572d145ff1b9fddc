"""Tiles of packed codes on their way through shared memory to the registers of a warp."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import LANE_TOKENS, PRODUCTS, TILE, CodedShape
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


class Tiles:
    """Tiles of one head on their way through shared memory: each warp has room for ``stages`` of them.

    A stage holds what lanes will read of keys, one lane's words beside another's; a tile of values, channel after
    channel; and the scales of both.
    """

    def __init__(self, ops: Any, shape: CodedShape, lane: Lane, head: Any, refs: tuple[Any, Any, Any, Any]) -> None:
        self.ops, self.shape, self.lane = ops, shape, lane
        key_ref, key_scale_ref, value_ref, value_scale_ref = refs
        key, value = shape.key, shape.value
        self.key_row = shape.key_dim * key.bits // 8
        self.value_row = shape.page * value.bits // 8
        start = ops.offset(ops.address(key_ref), head, shape.capacity * self.key_row)
        token = ops.add(ops.times(ops.divide(lane.row, 2), 16), ops.times(ops.modulo(lane.row, 2), 2))
        start = ops.offset(start, ops.times(token, self.key_row))
        self.key = ops.offset(start, ops.times(lane.column, 4 * shape.key_words))
        # Two lanes share a word of highest bits where each has but half of one.
        self.key_high = ops.offset(start, ops.times(lane.column if shape.units == 2 else ops.divide(lane.column, 2), 4))
        self.value = ops.offset(ops.address(value_ref), head, shape.capacity * shape.dim * value.bits // 8)
        self.scales = [
            ops.offset(
                ops.offset(ops.address(ref), head, 2 * shape.capacity * codes.scales),
                ops.times(lane.lane, 4 * codes.scales),
            )
            for ref, codes in ((key_scale_ref, key), (value_scale_ref, value))
        ]
        self.token = token

    def start(self, tile: Any, slot: Any) -> None:
        """Starts the copies of a tile into a stage."""
        self.start_keys(tile, slot)
        self.start_values(tile, slot)
        self.start_scales(tile, slot, 1)

    def start_keys(self, tile: Any, slot: Any) -> None:
        """Starts those of keys and their scales."""
        ops, shape, lane = self.ops, self.shape, self.lane
        key = shape.key
        where = ops.offset(self.key, tile, TILE * self.key_row)
        size = min(16, 4 * shape.key_words)
        for index, token in enumerate(LANE_TOKENS):
            for part in range(0, 4 * shape.key_words, size):
                target = ops.shared_offset(slot, ops.times(lane.lane, size))
                to = shape.stage_keys + 32 * (index * 4 * shape.key_words + part)
                ops.copy(target, where, size, to, token * self.key_row + part)
        if key.bits == 3:
            where = ops.offset(self.key_high, tile, TILE * self.key_row)
            target = ops.shared_offset(slot, ops.times(lane.lane, 4))
            for index, token in enumerate(LANE_TOKENS):
                ops.copy(
                    target, where, 4, shape.stage_key_high + 128 * index, token * self.key_row + shape.key_dim // 4
                )
        self.start_scales(tile, slot, 0)

    def start_values(self, tile: Any, slot: Any) -> None:
        """Starts those of values."""
        ops, shape, lane, value = self.ops, self.shape, self.lane, self.shape.value
        tiles = shape.page // TILE
        page, inside = ops.divide(tile, tiles), ops.modulo(tile, tiles)
        start = ops.offset(self.value, page, shape.dim * self.value_row)
        # Rows of 64 tokens in chunks, lane after lane.
        row_bytes = 16 * value.unit_words
        size = 16 if self.value_row % 16 == 0 else 8
        chunks = row_bytes // size
        row, chunk = ops.divide(lane.lane, chunks), ops.modulo(lane.lane, chunks)
        where = ops.offset(start, ops.add(ops.times(row, self.value_row), ops.times(chunk, size)))
        where = ops.offset(where, inside, row_bytes)
        target = ops.shared_offset(slot, ops.times(lane.lane, size))
        rows = 32 // chunks
        for first in range(0, shape.dim, rows):
            ops.copy(target, where, size, shape.stage_values + first * row_bytes, first * self.value_row)
        if value.bits == 3:
            where = ops.offset(ops.offset(start, ops.times(lane.lane, self.value_row)), inside, 8)
            target = ops.shared_offset(slot, ops.times(lane.lane, 8))
            for first in range(0, shape.dim, 32):
                at = first * self.value_row + shape.page // 4
                ops.copy(target, where, 8, shape.stage_value_high + 8 * first, at)

    def start_scales(self, tile: Any, slot: Any, stream: int) -> None:
        """Starts those of the scales of keys (0) or values (1)."""
        ops, (at, scales) = self.ops, self._scales_at(stream)
        target = ops.shared_offset(slot, ops.times(self.lane.lane, 4 * scales))
        source = ops.offset(self.scales[stream], tile, 2 * TILE * scales)
        ops.copy(target, source, 4 * scales, at)

    def key_units(self, slot: Any, product: int) -> list[list[list[Any]]]:
        """For both halves of a product's rows, the registers of each unit of this lane."""
        ops, shape = self.ops, self.shape
        size, found = min(16, 4 * shape.key_words), []
        where = ops.shared_offset(slot, ops.times(self.lane.lane, size))
        for index in (2 * product, 2 * product + 1):
            words: list[Any] = []
            for part in range(0, 4 * shape.key_words, size):
                at = shape.stage_keys + 32 * (index * 4 * shape.key_words + part)
                words += ops.shared_words(where, size // 4, at)
            each = shape.key.unit_words
            units = [words[unit * each :][:each] for unit in range(shape.units)]
            if shape.key.bits == 3:
                at = shape.stage_key_high + 128 * index
                high = ops.shared_words(ops.shared_offset(slot, ops.times(self.lane.lane, 4)), 1, at)[0]
                upper = ops.right(high, 16)
                if shape.units == 2:
                    units = [[*units[0], high], [*units[1], upper]]
                else:
                    odd = ops.less(ops.integer(0), ops.modulo(self.lane.column, 2))
                    units = [[*units[0], ops.select(odd, upper, high)]]
            found.append(units)
        return found

    def value_units(self, slot: Any, block: int) -> list[list[Any]]:
        """For both halves of 16 channels, the registers of this lane's 16 tokens."""
        ops, shape, lane = self.ops, self.shape, self.lane
        row_bytes, found = 16 * shape.value.unit_words, []
        where = ops.add(ops.times(lane.row, row_bytes), ops.times(lane.column, 4 * shape.value.unit_words))
        where = ops.shared_offset(slot, where)
        for row in (2 * block, 2 * block + 1):
            unit = ops.shared_words(where, shape.value.unit_words, shape.stage_values + 8 * row * row_bytes)
            if shape.value.bits == 3:
                high = ops.shared_offset(slot, ops.add(ops.times(lane.row, 8), ops.times(lane.column, 2)))
                unit.append(ops.shared_short(high, shape.stage_value_high + 64 * row))
            found.append(unit)
        return found

    def scale_words(self, slot: Any, stream: int) -> list[list[Any]]:
        """Of keys (0) or values (1), for each product the scales of this lane's two tokens, packed float16: all of the
        first token, then all of the second."""
        ops, (at, scales) = self.ops, self._scales_at(stream)
        where = ops.shared_offset(slot, ops.times(self.token, 2 * scales))
        return [ops.shared_words(where, scales, at + 8 * scales * product) for product in range(PRODUCTS)]

    def _scales_at(self, stream: int) -> tuple[int, int]:
        """Where scales are in a stage, and how many a token has."""
        shape = self.shape
        return ((shape.stage_scales, shape.key.scales), (shape.stage_value_scales, shape.value.scales))[stream]
