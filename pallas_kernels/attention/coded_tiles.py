"""Tiles of packed codes on their way through shared memory to the registers of a warp."""

from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import GROUP, PRODUCTS, TILE, CodedShape, Codes
from kakeya_jax.pallas_kernels.attention.key_places import CHUNK, KeyPlaces
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


class StreamRefs(NamedTuple):
    """The arrays of a stream; ``minima`` is not read if there are none."""

    codes: Any
    scales: Any
    minima: Any


class Tiles:
    """Tiles of one head on their way through shared memory: each warp has room for ``stages`` of them.

    A stage holds a tile of keys (``key_places``), one of values as they are stored, channel after channel, and the
    scales of both. There may be room for the scales of one tile only: then these are apart,
    behind the stages (``shape.scales_apart``).
    """

    def __init__(
        self, ops: Any, shape: CodedShape, lane: Lane, head: Any, refs: tuple[StreamRefs, StreamRefs], shared_ref: Any
    ) -> None:
        self.ops, self.shape, self.lane = ops, shape, lane
        behind = ops.add(ops.times(lane.warp, shape.warp_nbytes), ops.integer(shape.stages * shape.stage_nbytes))
        behind = ops.subtract(behind, ops.integer(shape.stage_scales))
        self._apart = ops.shared_offset(ops.shared_address(shared_ref), behind) if shape.scales_apart else None
        key, value = shape.key, shape.value
        self.key_stride = shape.key_row
        self.key = ops.offset(ops.address(refs[0].codes), head, shape.capacity * shape.key_row)
        self.places = KeyPlaces(ops, lane, shape.key_row, 4 * shape.key_words)
        self.value = ops.offset(ops.address(refs[1].codes), head, shape.capacity * shape.dim * value.bits // 8)
        self.scales = [
            [
                self._scale_address(ref, codes, head)
                for ref in ((each.scales, each.minima) if codes.step else (each.scales,))
            ]
            for each, codes in zip(refs, (key, value), strict=True)
        ]
        self.token = self.places.token

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
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        start = ops.offset(self.key, tile, TILE * self.key_stride)
        if self.key_stride == shape.key_row:
            start = ops.offset(start, ops.times(lane, CHUNK))
            for copy in range(TILE * shape.key_row // (32 * CHUNK)):
                place, at = self.places.target(copy)
                ops.copy(ops.shared_offset(slot, place), start, CHUNK, at, 32 * CHUNK * copy)
            return
        size = CHUNK if shape.key_row % CHUNK == 0 else CHUNK // 2  # of which no two change places
        for first in range(0, TILE, 32):
            token = ops.add(lane, ops.integer(first))
            where = ops.offset(start, token, self.key_stride)
            for at in range(0, shape.key_row, size):
                place = ops.add(ops.times(token, shape.key_row), ops.integer(at))
                place = self.places.chunk(ops.divide(place, CHUNK)) if size == CHUNK else place
                ops.copy(ops.shared_offset(slot, place), where, size, 0, at)

    def start_values(self, tile: Any, slot: Any) -> None:
        """Starts those of values."""
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        nbytes = shape.dim * shape.value_row
        start = ops.offset(ops.offset(self.value, tile, nbytes), ops.times(lane, CHUNK))
        target = ops.shared_offset(slot, ops.times(lane, CHUNK))
        for at in range(0, nbytes, 32 * CHUNK):
            ops.copy(target, start, CHUNK, shape.stage_values + at, at)

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
        shape, found = self.shape, []
        size, each = min(CHUNK, 4 * shape.key_words), shape.key.unit_words
        for half in range(2):
            words: list[Any] = []
            for part in range(0, 4 * shape.key_words, size):
                words += self._key_words(slot, product, half, part, size // 4)
            units = [words[unit * each :][:each] for unit in range(shape.units)]
            if shape.key.bits == 3:
                units = self._with_highest_bits(slot, product, half, units)
            found.append(units)
        return found

    def _key_words(self, slot: Any, product: int, half: int, at: int, count: int) -> list[Any]:
        place, at = self.places.source(product, half, at)
        return self.ops.shared_words(self.ops.shared_offset(slot, place), count, at)

    def _with_highest_bits(self, slot: Any, product: int, half: int, units: list[list[Any]]) -> list[list[Any]]:
        """Two lanes share a word of them where each has but half of one."""
        ops, shape, column = self.ops, self.shape, self.lane.column
        words = column if shape.units == 2 else ops.divide(column, 2)
        place = ops.add(ops.times(self.token, shape.key_row), ops.times(words, 4))
        at = (4 * product + half) * shape.key_row + shape.key_dim // 4
        high = ops.shared_words(ops.shared_offset(slot, place), 1, at)[0]
        upper = ops.right(high, 16)
        if shape.units == 2:
            return [[*units[0], high], [*units[1], upper]]
        odd = ops.less(ops.integer(0), ops.modulo(column, 2))
        return [[*units[0], ops.select(odd, upper, high)]]

    def value_units(self, slot: Any, block: int) -> list[list[Any]]:
        """For both halves of 16 channels, the registers of this lane's 16 tokens."""
        ops, shape, lane = self.ops, self.shape, self.lane
        start = ops.times(lane.row, shape.value_row)
        where = ops.shared_offset(slot, ops.add(start, ops.times(lane.column, 4 * shape.value.unit_words)))
        found = []
        for row in (2 * block, 2 * block + 1):
            at = shape.stage_values + 8 * row * shape.value_row
            unit = ops.shared_words(where, shape.value.unit_words, at)
            if shape.value.bits == 3:
                high = ops.shared_offset(slot, ops.add(start, ops.times(lane.column, 2)))
                unit.append(ops.shared_short(high, at + TILE // 4))
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
