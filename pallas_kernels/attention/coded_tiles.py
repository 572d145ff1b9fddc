"""Tiles of packed codes on their way through shared memory to the registers of a warp."""

from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import GROUP, LANE_TOKENS, PRODUCTS, TILE, CodedShape, Codes
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


class StreamRefs(NamedTuple):
    """The arrays of a stream; ``minima`` is not read if there are none."""

    codes: Any
    scales: Any
    minima: Any


class Tiles:
    """Tiles of one head on their way through shared memory: each warp has room for ``stages`` of them.

    A stage holds what lanes will read of keys, one lane's words beside another's; a tile of values, channel after
    channel; and the scales of both, unless there is room for those of one tile only (``shape.scales_apart``).
    """

    def __init__(
        self, ops: Any, shape: CodedShape, lane: Lane, head: Any, refs: tuple[StreamRefs, StreamRefs], shared_ref: Any
    ) -> None:
        self.ops, self.shape, self.lane = ops, shape, lane
        behind = ops.add(ops.times(lane.warp, shape.warp_nbytes), ops.integer(shape.stages * shape.stage_nbytes))
        behind = ops.subtract(behind, ops.integer(shape.stage_scales))
        self._apart = ops.shared_offset(ops.shared_address(shared_ref), behind) if shape.scales_apart else None
        key, value = shape.key, shape.value
        self.key_row = shape.key_dim * key.bits // 8
        self.value_row = shape.page * value.bits // 8
        start = ops.offset(ops.address(refs[0].codes), head, shape.capacity * self.key_row)
        token = ops.add(ops.times(ops.divide(lane.row, 2), 16), ops.times(ops.modulo(lane.row, 2), 2))
        start = ops.offset(start, ops.times(token, self.key_row))
        self.key = ops.offset(start, ops.times(lane.column, 4 * shape.key_words))
        # Two lanes share a word of highest bits where each has but half of one.
        self.key_high = ops.offset(start, ops.times(lane.column if shape.units == 2 else ops.divide(lane.column, 2), 4))
        self.value = ops.offset(ops.address(refs[1].codes), head, shape.capacity * shape.dim * value.bits // 8)
        self.scales = [
            [
                self._scale_address(ref, codes, head)
                for ref in ((each.scales, each.minima) if codes.step else (each.scales,))
            ]
            for each, codes in zip(refs, (key, value), strict=True)
        ]
        self.token = token

    def start(self, tile: Any, slot: Any) -> None:
        """Starts the copies of a tile into a stage."""
        self._start_codes_of_keys(tile, slot)
        self.start_values(tile, slot)
        if not self.shape.scales_apart:
            self.start_scales(tile, slot)

    def start_keys(self, tile: Any, slot: Any) -> None:
        """Starts those of keys and their scales."""
        self._start_codes_of_keys(tile, slot)
        self._start_scales(tile, slot, 0)

    def start_scales(self, tile: Any, slot: Any) -> None:
        """Starts those of scales; if they are apart, whatever the stage."""
        for stream in range(2):
            self._start_scales(tile, slot, stream)

    def _start_codes_of_keys(self, tile: Any, slot: Any) -> None:
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

    def _scale_address(self, ref: Any, codes: Codes, head: Any) -> Any:
        """Where this lane's part of a head's scales, or minima, begins."""
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        start = ops.address(ref)
        if codes.tokens:
            start = ops.offset(start, head, 2 * shape.dim * shape.capacity // codes.tokens)
            return ops.offset(start, ops.times(ops.modulo(lane, 16), shape.dim // 8))
        return ops.offset(ops.offset(start, head, 2 * shape.capacity * codes.scales), ops.times(lane, 4 * codes.scales))

    def _start_scales(self, tile: Any, slot: Any, stream: int) -> None:
        ops, shape, lane, codes = self.ops, self.shape, self.lane.lane, self._codes[stream]
        nbytes = shape.dim // 8 if codes.tokens else 4 * codes.scales
        target = ops.shared_offset(self._scale_slot(slot), ops.times(lane, nbytes))
        for index, where in enumerate(self.scales[stream]):
            if codes.tokens:  # half the lanes copy those of 32 tokens
                part = ops.add(ops.times(tile, TILE // GROUP), ops.divide(lane, 16))
                source = ops.offset(where, ops.divide(part, codes.tokens // GROUP), 2 * shape.dim)
            else:
                source = ops.offset(where, tile, 2 * TILE * codes.scales)
            ops.copy(target, source, nbytes, self._scales_at(stream) + 32 * nbytes * index)

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

    def scale_words(self, slot: Any, stream: int, *, minima: bool = False) -> list[list[Any]]:
        """Of keys (0) or values (1), for each product the scales of this lane's two tokens, packed float16: all of the
        first token, then all of the second. Or their minima."""
        ops, scales = self.ops, self._codes[stream].scales
        where = ops.shared_offset(self._scale_slot(slot), ops.times(self.token, 2 * scales))
        at = self._scales_at(stream) + 2 * TILE * scales * minima
        return [ops.shared_words(where, scales, at + 8 * scales * product) for product in range(PRODUCTS)]

    def channel_words(self, slot: Any, *, minima: bool = False) -> list[Any]:
        """Scales of a quarter of the channels of keys, packed float16: of the 32 tokens in which this lane's are. Or
        their minima."""
        ops, shape, lane = self.ops, self.shape, self.lane
        of_tokens = ops.times(ops.divide(lane.row, 4), 2 * shape.dim)
        where = ops.shared_offset(self._scale_slot(slot), ops.add(of_tokens, ops.times(lane.column, shape.dim // 2)))
        at = self._scales_at(0) + 2 * (TILE // GROUP) * shape.dim * minima
        return [word for first in range(0, shape.dim // 2, 16) for word in ops.shared_words(where, 4, at + first)]

    def _scale_slot(self, slot: Any) -> Any:
        """A stage, or what makes the same places in it those apart."""
        return slot if self._apart is None else self._apart

    @property
    def _codes(self) -> tuple[Codes, Codes]:
        return self.shape.key, self.shape.value

    def _scales_at(self, stream: int) -> int:
        """Where scales are in a stage."""
        return (self.shape.stage_scales, self.shape.stage_value_scales)[stream]
