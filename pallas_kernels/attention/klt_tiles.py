"""Tiles of a transform-coded page on their way through shared memory to the registers of a warp (``klt_words``)."""

from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, PRODUCTS, TILE
from kakeya_jax.pallas_kernels.attention.klt_curves import EIGHT
from kakeya_jax.pallas_kernels.attention.klt_shape import CONSTANTS, DIM, GROUP, HEAD_WORDS, KltShape, codes_of
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, Lane

_CHUNK = 512
"""Bytes that a warp copies at once."""


class Slots(NamedTuple):
    """Where parts of a tile are, in a warp's shared memory; addresses.

    Attributes:
        keys: their codes.
        values: theirs.
        stage: what the tile has besides: scales, and, of its page, the mean of values and ``klt_queries``' extras.
        page: coefficients of the page's curves, and its queries.
    """

    keys: Any
    values: Any
    stage: Any
    page: Any


class KltTiles:
    """Tiles of one head.

    Attributes:
        value_widths: of the head's groups of values, four bits each.
    """

    def __init__(self, ops: Any, shape: KltShape, lane: Lane, head: Any, table_ref: Any, refs: tuple[Any, ...]) -> None:
        self.ops, self.shape, self.lane, self.head = ops, shape, lane, head
        self.row, self.kv_head = ops.divide(head, shape.num_kv_heads), ops.modulo(head, shape.num_kv_heads)
        table = ops.address(table_ref)
        self.held = CONSTANTS.load(ops, lane, table)
        first = ops.integer(4 * len(CONSTANTS.words))
        where = ops.offset(table, ops.add(ops.times(self.kv_head, 4 * HEAD_WORDS), first))
        self.key_start, self.key_tile, self._counts, self.value_start = ops.load_words(where, 4, once=False)
        self.value_tile, self.value_widths, *self._places = ops.load_words(where, 4, 16, once=False)
        self._queries, extras, self._coefficients, self._curves, *codes = map(ops.address, refs)
        self._key, key_scale, self._value, value_scale, mean = codes
        self._beside = self._lane_of_stage(key_scale, value_scale, mean, extras)
        half = ops.modulo(lane.row, 2)
        # A byte in the lowest place of MAGIC makes it that float plus the byte: no conversion is needed.
        self.scale_picks = [ops.add(ops.times(half, 2), ops.integer(0x7640 + index)) for index in range(2)]
        self._columns, self._lanes_of_bytes, self._lanes_of_floats = self._of_queries_there()
        self._left_operands: list[list[list[Any]]] = []
        self._right_operands: list[list[Any]] = []

    def _of_queries_there(self) -> tuple[list[Any], list[Any], list[Any]]:
        """For each block of columns what stands for this lane's column of sums, and for this lane in right operands, of
        bytes and of floats: those of the last query where no query is, of which nothing is written."""
        ops, shape, lane = self.ops, self.shape, self.lane
        row, half = ops.divide(lane.row, 2), ops.modulo(lane.row, 2)

        def there(column: Any, block: int) -> Any:
            left = shape.group - FOUR * block
            return column if left >= FOUR else ops.smaller(column, ops.integer(left - 1))

        def lanes(row: Any, half: Any) -> Any:
            return ops.add(ops.times(ops.add(ops.times(row, 2), half), 4), lane.column)

        columns = [there(lane.column, block) for block in range(shape.blocks)]
        of_bytes = [lanes(there(row, block), half) for block in range(shape.blocks)]
        if shape.blocks == 1:
            return columns, of_bytes, of_bytes
        # The two columns of floats are queries of either block.
        of_floats = lanes(ops.select(ops.equal(half, 1), there(row, 1), row), half)
        return columns, of_bytes, [of_floats] * shape.blocks

    def start_keys(self, tile: Any, slots: Slots) -> None:
        """Starts the copies of a tile's keys, and of what it has besides."""
        ops, shape = self.ops, self.shape
        page, inside = self._place_of(tile)
        of_row = ops.add(ops.times(self.row, shape.pages), page)
        key = ops.offset(self._key, of_row, shape.key_nbytes)
        key = ops.offset(key, ops.add(self.key_start, ops.product(inside, self.key_tile)))
        self._copy(slots.keys, key, 0, shape.key_tile, self.key_tile)
        where, of_page, of_tile = self._beside
        where = ops.offset(where, ops.add(ops.product(page, of_page), ops.product(inside, of_tile)))
        lane = self.lane.lane
        target = ops.shared_offset(slots.stage, ops.times(lane, 16))
        ops.only_if(ops.less(lane, ops.integer(shape.stage_nbytes // 16)), lambda: ops.copy(target, where, 16))

    def start_page(self, tile: Any, slots: Slots) -> None:
        """Starts the copies of the queries of a tile's page."""
        ops, shape = self.ops, self.shape
        page = self._by_head(self._place_of(tile)[0])
        coefficients = ops.offset(self._coefficients, page, shape.coefficient_nbytes)
        self._copy(slots.page, coefficients, 0, shape.coefficient_nbytes)
        queries = ops.offset(self._queries, page, shape.query_nbytes)
        self._copy(slots.page, queries, shape.coefficient_nbytes, shape.query_nbytes)

    def start_values(self, tile: Any, slots: Slots) -> None:
        """Starts the copies of a tile's values."""
        ops, shape = self.ops, self.shape
        page, inside = self._place_of(tile)
        of_row = ops.add(ops.times(self.row, shape.pages), page)
        value = ops.offset(self._value, of_row, shape.value_nbytes)
        value = ops.offset(value, ops.add(self.value_start, ops.product(inside, self.value_tile)))
        self._copy(slots.values, value, 0, shape.value_tile, self.value_tile)

    def ends_page(self, tile: Any) -> Any:
        """Whether a tile is the last one of its page."""
        return self.ops.equal(self._place_of(tile)[1], self.shape.page // TILE - 1)

    def _lane_of_stage(self, key_scale: Any, value_scale: Any, mean: Any, extras: Any) -> tuple[Any, Any, Any]:
        """Where this lane's 16 bytes of what a tile has besides are, if it is the first of the first page, and how far
        they are from those of the next page, and of the next tile in it: one copy is all."""
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        scales, means = 2 * TILE // 16, shape.stage_extras // 16  # lanes before those of means, and of extras
        is_scale, is_mean = (ops.less(lane, ops.integer(count)) for count in (scales, means))
        where = ops.select_address(ops.less(lane, ops.integer(TILE // 16)), key_scale, value_scale)
        where = ops.select_address(is_mean, ops.select_address(is_scale, where, mean), extras)

        def by_part(scale: Any, mean: Any, extra: Any) -> Any:
            return ops.select(is_scale, scale, ops.select(is_mean, mean, extra))

        nbytes = by_part(*map(ops.integer, (shape.page, DIM, shape.extra_nbytes)))
        of_head = ops.add(ops.times(self.row, shape.pages * shape.num_kv_heads), self.kv_head)
        first = by_part(of_head, of_head, ops.times(self.head, shape.pages))
        inside = by_part(
            ops.modulo(lane, TILE // 16),
            ops.subtract(lane, ops.integer(scales)),
            ops.subtract(lane, ops.integer(means)),
        )
        where = ops.offset(ops.offset_product(where, first, nbytes), ops.times(inside, 16))
        of_tile = by_part(ops.integer(TILE), ops.integer(0), ops.integer(0))
        heads = ops.integer(shape.num_kv_heads)
        return where, ops.product(nbytes, by_part(heads, heads, ops.integer(1))), of_tile

    def _place_of(self, tile: Any) -> tuple[Any, Any]:
        """The page of a tile, and which of its tiles it is."""
        tiles = self.shape.page // TILE
        return self.ops.divide(tile, tiles), self.ops.modulo(tile, tiles)

    def _by_head(self, page: Any) -> Any:
        return self.ops.add(self.ops.times(self.head, self.shape.pages), page)

    def _copy(self, place: Any, source: Any, to: int, most: int, nbytes: Any = None) -> None:
        """``nbytes`` bytes, a multiple of 16 and at most ``most``; ``most`` if None."""
        ops = self.ops
        mine = ops.times(self.lane.lane, 16)
        source, target = ops.offset(source, mine), ops.shared_offset(place, mine)
        for first in range(0, most, _CHUNK):
            if nbytes is None and first + _CHUNK <= most:
                ops.copy(target, source, 16, to + first, first)
                continue
            stop = ops.integer(most) if nbytes is None else nbytes
            inside = ops.less(ops.add(mine, ops.integer(first)), stop)
            ops.only_if(inside, lambda first=first: ops.copy(target, source, 16, to + first, first))

    def units(self, codes: Any, start: Any, width: int) -> list[list[Any]]:
        """A lane's two units of a group of this width, ``start`` bytes from where codes begin."""
        ops = self.ops
        where = ops.shared_offset(codes, ops.add(start, ops.times(self.lane.lane, 4 * width)))
        size = 2 if width % 4 else 4
        words: list[Any] = []
        for first in range(0, width, size):
            words += ops.shared_words(where, size, 4 * first)
        return [words[: width // 2], words[width // 2 :]]

    def group_at(self, codes: Any, start: Any, width: Any) -> Any:
        """Where a lane's words of a group begin, of any width."""
        ops = self.ops
        return ops.shared_offset(codes, ops.add(start, ops.product(ops.times(self.lane.lane, 4), width)))

    def decoded(self, unit: list[Any], width: int) -> list[Any]:
        """A unit's codes as bytes."""
        return decode_unit(self.ops, unit, codes_of(width), self.held.tables[codes_of(width)])

    def count_of(self, width: int) -> Any:
        """Groups of keys that have a width."""
        ops = self.ops
        return ops.both(ops.right(self._counts, 2 * width), ops.integer(15))

    def place(self, index: Any) -> tuple[Any, Any]:
        """The group of keys that comes so far in the order of widths, and where its codes begin in a tile."""
        ops = self.ops
        both = ops.permute_bytes(*self._places, index)
        return ops.both(both, ops.integer(7)), ops.times(ops.both(both, ops.integer(0xF8)), 2 * GROUP)

    def query(self, slots: Slots, block: int, group: Any) -> Any:
        """Of a group of channels and a block of eight columns."""
        ops, shape = self.ops, self.shape
        where = ops.shared_offset(
            slots.page, ops.add(ops.times(self._lanes_of_bytes[block], 4), ops.times(group, 16 * shape.columns))
        )
        return ops.shared_words(where, 1, shape.coefficient_nbytes + shape.columns * DIM * block)[0]

    def starts(self, slots: Slots, block: int) -> list[Any]:
        """What sums of a product with a block of eight columns start from, of this lane's two rows and two columns.

        Loaded for each product: one load is less than four moves."""
        ops, shape = self.ops, self.shape
        where = ops.shared_offset(slots.stage, ops.times(self._columns[block], 16))
        return ops.shared_words(where, 4, shape.stage_extras + 8 * COLUMNS * block, anew=True)

    def factors(self, slots: Slots) -> list[list[Any]]:
        """Of this lane's queries: of their sums, of curves, and what is added."""
        ops, shape = self.ops, self.shape
        where = [ops.shared_offset(slots.stage, ops.times(column, 4)) for column in self._columns]
        first = shape.stage_extras + shape.start_nbytes
        return [
            [ops.shared_load(where[n], 1, first + 4 * (COLUMNS * part + FOUR * n))[0] for n in range(shape.blocks)]
            for part in (0, 2, 3)
        ]

    def mean_factor(self, slots: Slots, group: int) -> Any:
        """Of the page mean of a group's values."""
        at = self.shape.stage_extras + self.shape.start_nbytes + 4 * COLUMNS
        return self.ops.shared_load(slots.stage, 1, at + 4 * group)[0]

    def mean(self, slots: Slots, group: int, half: int) -> Any:
        """The page mean of channel ``row + 8 half`` of a group, an integer as a float."""
        ops = self.ops
        where = ops.shared_offset(slots.stage, self.lane.row)
        return ops.converted(ops.shared_byte(where, self.shape.stage_means + GROUP * group + 8 * half))

    def load_curves(self, tile: Any, slots: Slots) -> None:
        """Starts the loads of a tile's curves, for each product left operands of every step, and of coefficients."""
        ops, shape, lane = self.ops, self.shape, self.lane.lane
        where = ops.offset(self._curves, ops.modulo(tile, shape.page // TILE), 2 * TILE * shape.curves)
        lanes = {count: ops.offset(where, ops.times(lane, 8 * count)) for count in self._steps}
        self._left_operands = [
            [
                ops.load_words(lanes[count], 2 * count, 32 * shape.curves * product + 512 * step, once=False)
                for step, count in enumerate(self._steps)
            ]
            for product in range(PRODUCTS)
        ]
        self._right_operands = self._coefficients_of(slots)

    def curve_sums(self) -> list[list[Any]]:
        """For each product sums of curves, which are loaded, of this lane's two rows and, faster, two columns, of
        whatever blocks (``query_columns.float_numbers``)."""
        ops, found = self.ops, []
        for steps in self._left_operands:
            sums = [ops.real(0.0)] * 4
            for step, (count, left) in enumerate(zip(self._steps, steps, strict=True)):
                multiply = ops.multiply_halves if count == 2 else ops.multiply_eight_halves
                for right in self._right_operands:
                    sums = multiply(sums, left, right[2 * step : 2 * step + count])
            found.append(sums)
        return found

    @property
    def _steps(self) -> list[int]:
        """Of products with curves, two times eight deep or once."""
        eights = self.shape.curves // EIGHT
        return [min(2, eights - first) for first in range(0, eights, 2)]

    def _coefficients_of(self, slots: Slots) -> list[list[Any]]:
        """Right operands of curves, a word for every eight, of each block of columns."""
        ops, shape = self.ops, self.shape
        where = [ops.shared_offset(slots.page, ops.times(each, 4)) for each in self._lanes_of_floats]
        eights = shape.curves // EIGHT
        return [
            [
                ops.shared_words(where[block], 1, 16 * shape.columns * (eights * block + index))[0]
                for index in range(eights)
            ]
            for block in range(shape.blocks)
        ]

    def scales(self, slots: Slots, stream: int) -> list[list[Any]]:
        """Of keys or values, for each product the scales of this lane's two rows: ``2 ** ((code - 128) / 16)``."""
        ops = self.ops
        where = ops.shared_offset(slots.stage, ops.times(ops.divide(self.lane.row, 2), 16))
        words = ops.shared_words(where, 4, TILE * stream)
        found = []
        for product in range(PRODUCTS):
            codes = [ops.permute_bytes(words[product], self.held.magic[0], pick) for pick in self.scale_picks]
            found.append(
                [
                    ops.power_of_two(ops.fused(ops.as_real(code), ops.real(1 / 16), ops.real(-8.0 - MAGIC / 16)))
                    for code in codes
                ]
            )
        return found
