"""One warp's decode attention over packed codes, in integer products: the program, whatever machine runs it.

A warp owns a run of tiles of 64 tokens and its own softmax state; the warps of a program add theirs up at the end.
Codes become signed bytes by table lookups of four at a time (``prmt``) and go straight into ``mma.sync`` fragments: in
both products of attention the codes are the left operand, keys with tokens as rows and channels as depth, values with
channels as rows and tokens as depth. The right operand has eight columns: queries (or their shares of the softmax) as
numbers of 16 bits, two bytes each. Up to four queries are columns 0 to 3 with their high bytes and 4 to 7 with their
low bytes; more take two products. Levels are ``unit (byte + 1/2)``: the half is added once for each query, not once
for each code.

Which token is which row is free, as long as both products agree: row ``r`` of half ``h`` of product ``i`` is token
``16 (r / 2) + 4 i + 2 (r % 2) + h`` of its tile, because then a lane's part of a value's tile is one unit of 16
consecutive tokens (``code_words``), and quad ``i`` of it belongs to product ``i``.

Sums of products are below 2^22 in size, so an accumulator that starts at the bits of 1.5 * 2^23 is, read as a float,
that number plus the sum: no conversion from integers is needed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST

TILE = 64
"""Tokens that a warp handles at once."""

COLUMNS = 8
"""Of the right operands."""

SHARED_NBYTES = 220 * 1024
"""Shared memory that a multiprocessor has for the tiles of one program."""

LARGEST = 127 * 256
"""Of the 16-bit numbers that queries and shares become: its two bytes are signed."""

_MAGIC = 12582912.0
_MAGIC_BITS = 0x4B400000
_PRODUCTS = TILE // 16
_SMALLEST = 1e-30
_LANE_TOKENS = tuple(4 * product + half for product in range(_PRODUCTS) for half in range(2))
"""Tokens of a lane's rows, from its first one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes:
    """How the codes of a stream are packed (``code_words``).

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        table: bytes of the levels, by index (``byte_levels``); empty for 8 bits.
    """

    bits: int
    table: tuple[int, ...]

    @property
    def unit_words(self) -> int:
        """Whole words of a unit of 16 codes; 3 bits have half a word besides."""
        return {2: 1, 3: 1, 4: 2, 8: 4}[self.bits]

    @property
    def registers(self) -> int:
        """That a unit is loaded into."""
        return self.unit_words + (self.bits == 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedShape:
    """What a program is made for.

    Attributes:
        dim: 64 or 128.
        key: codes of keys, packed along channels.
        value: codes of values, packed along tokens within a page.
        page: tokens of a page, a multiple of 64.
        capacity: tokens that a head has room for.
        group: query heads of a key/value head, at most 8.
        splits: programs that share a head.
        states: of a head; those of other tokens follow.
        warps: of a program.
    """

    dim: int
    key: Codes
    value: Codes
    page: int
    capacity: int
    group: int
    splits: int
    states: int
    warps: int

    @property
    def paired(self) -> bool:
        """Whether high and low bytes of queries share the columns of one product."""
        return self.group <= COLUMNS // 2

    @property
    def rows(self) -> int:
        """Queries that a state has room for."""
        return COLUMNS // 2 if self.paired else COLUMNS

    @property
    def query_rows(self) -> int:
        """Rows of bytes of a head's queries."""
        return COLUMNS if self.paired else 2 * COLUMNS

    @property
    def units(self) -> int:
        """Units of a key that one lane has: a quarter of its channels."""
        return self.dim // 64

    @property
    def key_words(self) -> int:
        """Whole words of a key that one lane has."""
        return self.units * self.key.unit_words

    @property
    def stage_keys(self) -> int:
        """Where in a stage the keys are."""
        return 0

    @property
    def stage_key_high(self) -> int:
        """Where their highest bits are, if they have 3."""
        return 32 * len(_LANE_TOKENS) * 4 * self.key_words

    @property
    def stage_values(self) -> int:
        """Where the values are."""
        return self.stage_key_high + (128 * len(_LANE_TOKENS) if self.key.bits == 3 else 0)

    @property
    def stage_value_high(self) -> int:
        """Where their highest bits are, if they have 3."""
        return self.stage_values + self.dim * 16 * self.value.unit_words

    @property
    def stage_scales(self) -> int:
        """Where the scales are."""
        return self.stage_value_high + (8 * self.dim if self.value.bits == 3 else 0)

    @property
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""
        return self.stage_scales + 2 * 2 * TILE

    @property
    def stages(self) -> int:
        """Tiles that a warp has room for: two at least."""
        return max(2, min(4, SHARED_NBYTES * self.warps // 12 // (self.warps * self.stage_nbytes)))

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: stages, and later its warps' states."""
        return max(self.warps * self.stages * self.stage_nbytes // 4, self.warps * self.rows * (self.dim + 2))


def coded_program(
    ops: Any,
    shape: CodedShape,
    program: Any,
    tokens_of: Callable[[Any], Any],
    query_ref: Any,
    start_ref: Any,
    factor_ref: Any,
    key_ref: Any,
    key_scale_ref: Any,
    value_ref: Any,
    value_scale_ref: Any,
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    shared_ref: Any,
) -> None:
    """Attends to the coded tokens of one head's share, and writes its softmax state.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        program: number of the program: split after split, head after head.
        tokens_of: a head's coded tokens, a multiple of 64, by its number.
        query_ref: int8 ``[N, query_rows, D]``, bytes of the queries' numbers.
        start_ref: int32 ``[N, query_rows]``, half the sum of those bytes, to be carried from row to row (see
            ``byte_queries``).
        factor_ref: float32 ``[N, 8]``: logits to the base 2 are numbers times this times the token's scale.
        key_ref: uint8 ``[N, T, D b / 8]``.
        key_scale_ref: float16 ``[N, T]``.
        value_ref: uint8 ``[N, T / page, D, page b / 8]``.
        value_scale_ref: float16 ``[N, T]``, not negative.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: float32 ``[N, states, rows, D]``: values' bytes plus 1/2, times their scales, summed with their
            weights.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = _Lane(ops, shape, program)
    head, split = ops.divide(lane.program, shape.splits), ops.modulo(lane.program, shape.splits)
    tiles = ops.divide(tokens_of(head), TILE)
    parts = shape.splits * shape.warps
    part = ops.add(ops.times(split, shape.warps), lane.warp)
    first = ops.divide(ops.product(part, tiles), parts)
    stop = ops.divide(ops.product(ops.add(part, ops.integer(1)), tiles), parts)

    query = _load_query(ops, shape, lane, query_ref, head)
    rows = ops.times(head, 4 * shape.query_rows)
    starts = [
        [ops.add(word, ops.integer(_MAGIC_BITS)) for word in words]
        for words in (
            ops.load_words(
                ops.offset(ops.address(start_ref), ops.add(rows, ops.times(lane.column, 8))), 2, 32 * block, once=False
            )
            for block in range(shape.query_rows // COLUMNS)
        )
    ]
    column = ops.modulo(lane.column, 2) if shape.paired else lane.column
    factors = ops.load_reals(
        ops.offset(ops.address(factor_ref), ops.add(ops.times(head, 4 * COLUMNS), ops.times(column, 8))), 2
    )

    tiles_in = _Tiles(ops, shape, lane, head, (key_ref, key_scale_ref, value_ref, value_scale_ref))
    nbytes = shape.stages * shape.stage_nbytes
    base = ops.shared_offset(ops.shared_address(shared_ref), ops.times(lane.warp, nbytes))
    ahead = shape.stages - 1

    def start_tile(tile: Any, slot: Any) -> None:
        ops.only_if(ops.less(tile, stop), lambda: tiles_in.start(tile, ops.shared_offset(base, slot)))
        ops.commit_copies()

    for index in range(ahead):
        start_tile(ops.add(first, ops.integer(index)), ops.integer(index * shape.stage_nbytes))

    def step(tile: Any, carried: list[Any]) -> list[Any]:
        place, state = carried[0], carried[1:]
        slot = ops.shared_offset(base, place)
        ops.wait_for_copies(ahead - 1)
        # The stage before this one is free now: every lane is past its tile.
        before = ops.less(place, ops.integer(shape.stage_nbytes))
        free = ops.select(
            before,
            ops.integer(nbytes - shape.stage_nbytes),
            ops.subtract(place, ops.integer(shape.stage_nbytes)),
        )
        start_tile(ops.add(tile, ops.integer(ahead)), free)
        scales = tiles_in.scale_words(slot)
        logits = []
        for product in range(_PRODUCTS):
            sums = _key_product(ops, shape, tiles_in.key_units(slot, product), query, starts)
            logits.append(_logits(ops, shape, lane, sums, scales[0][product], factors))
        state = _add_tile(ops, shape, lane, state, logits, scales[1], lambda block: tiles_in.value_units(slot, block))
        following = ops.add(place, ops.integer(shape.stage_nbytes))
        wraps = ops.less(following, ops.integer(nbytes))
        return [ops.select(wraps, following, ops.integer(0)), *state]

    zero, lowest = ops.real(0.0), ops.real(LOWEST)
    empty = [lowest, lowest, *[zero] * (4 + 4 * (shape.dim // 16))]
    state = ops.loop(first, stop, [ops.integer(0), *empty], step)[1:]
    ops.wait_for_copies(0)
    ops.barrier()  # stages become states
    place = ops.add(ops.times(head, shape.states), split)
    _write_state(ops, shape, lane, place, state, top_ref, total_ref, weighted_ref, shared_ref)


class _Lane:
    """Who this thread is."""

    def __init__(self, ops: Any, shape: CodedShape, program: Any) -> None:
        thread = ops.thread_index()
        self.thread, self.program = thread, program
        self.warp, self.lane = ops.uniform(ops.divide(thread, 32)), ops.modulo(thread, 32)
        self.row, self.column = ops.divide(self.lane, 4), ops.modulo(self.lane, 4)
        if shape.paired:
            high = ops.less(self.column, ops.integer(2))
            self.weight = ops.select(high, ops.real(256.0), ops.real(1.0))
            self.offset = ops.select(high, ops.real(-256.0 * _MAGIC), ops.real(-_MAGIC))
            # Which byte of a share this column has: the higher one, or the lower one with its highest bit inverted.
            self.pick = ops.select(high, ops.integer(0x0051), ops.integer(0x0040))
            self.flip = ops.select(high, ops.integer(0), ops.integer(0x80808080))


def _load_query(ops: Any, shape: CodedShape, lane: _Lane, ref: Any, head: Any) -> list[list[list[Any]]]:
    """Bytes of the queries as right operands: for each block of 8 rows, unit and quad one register."""
    where = ops.offset(ops.address(ref), head, shape.query_rows * shape.dim)
    where = ops.offset(where, ops.add(ops.times(lane.row, shape.dim), ops.times(lane.column, 16 * shape.units)))
    return [
        [ops.load_words(where, 4, block * COLUMNS * shape.dim + 16 * unit, once=False) for unit in range(shape.units)]
        for block in range(shape.query_rows // COLUMNS)
    ]


class _Tiles:
    """Tiles of one head on their way through shared memory: each warp has room for ``stages`` of them.

    A stage holds what lanes will read of keys, one lane's words beside another's; a tile of values, channel after
    channel; and the scales of both.
    """

    def __init__(self, ops: Any, shape: CodedShape, lane: _Lane, head: Any, refs: tuple[Any, Any, Any, Any]) -> None:
        self.ops, self.shape, self.lane = ops, shape, lane
        key_ref, key_scale_ref, value_ref, value_scale_ref = refs
        key, value = shape.key, shape.value
        self.key_row = shape.dim * key.bits // 8
        self.value_row = shape.page * value.bits // 8
        start = ops.offset(ops.address(key_ref), head, shape.capacity * self.key_row)
        token = ops.add(ops.times(ops.divide(lane.row, 2), 16), ops.times(ops.modulo(lane.row, 2), 2))
        start = ops.offset(start, ops.times(token, self.key_row))
        self.key = ops.offset(start, ops.times(lane.column, 4 * shape.key_words))
        # Two lanes share a word of highest bits where each has but half of one.
        self.key_high = ops.offset(start, ops.times(lane.column if shape.units == 2 else ops.divide(lane.column, 2), 4))
        self.value = ops.offset(ops.address(value_ref), head, shape.capacity * shape.dim * value.bits // 8)
        self.scales = [
            ops.offset(ops.offset(ops.address(ref), head, 2 * shape.capacity), ops.times(lane.lane, 4))
            for ref in (key_scale_ref, value_scale_ref)
        ]
        self.token = token

    def start(self, tile: Any, slot: Any) -> None:
        """Starts the copies of a tile into a stage."""
        ops, shape, lane = self.ops, self.shape, self.lane
        key, value = shape.key, shape.value
        where = ops.offset(self.key, tile, TILE * self.key_row)
        size = min(16, 4 * shape.key_words)
        for index, token in enumerate(_LANE_TOKENS):
            for part in range(0, 4 * shape.key_words, size):
                target = ops.shared_offset(slot, ops.times(lane.lane, size))
                to = shape.stage_keys + 32 * (index * 4 * shape.key_words + part)
                ops.copy(target, where, size, to, token * self.key_row + part)
        if key.bits == 3:
            where = ops.offset(self.key_high, tile, TILE * self.key_row)
            target = ops.shared_offset(slot, ops.times(lane.lane, 4))
            for index, token in enumerate(_LANE_TOKENS):
                ops.copy(target, where, 4, shape.stage_key_high + 128 * index, token * self.key_row + shape.dim // 4)
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
        target = ops.shared_offset(slot, ops.times(lane.lane, 4))
        for index, scales in enumerate(self.scales):
            ops.copy(target, ops.offset(scales, tile, 2 * TILE), 4, shape.stage_scales + 2 * TILE * index)

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

    def scale_words(self, slot: Any) -> list[list[Any]]:
        """Of keys and of values, for each product the scales of this lane's two rows in one word."""
        ops = self.ops
        where = ops.shared_offset(slot, ops.times(self.token, 2))
        return [
            [
                ops.shared_words(where, 1, self.shape.stage_scales + 2 * TILE * index + 8 * product)[0]
                for product in range(_PRODUCTS)
            ]
            for index in range(2)
        ]


def decode_unit(ops: Any, unit: list[Any], codes: Codes) -> list[Any]:
    """16 codes as four registers of four signed bytes."""
    if codes.bits == 8:
        return [ops.differing(word, ops.integer(0x80808080)) for word in unit]
    if codes.bits == 4:
        table = [ops.integer(word) for word in table_words(codes.table[7::-1])]
        found = []
        for word in unit:
            magnitude, shifted = ops.both(word, ops.integer(0x77777777)), ops.left(word, 4)
            for half, signs in ((magnitude, 0xD9C8), (ops.right(magnitude, 16), 0xFBEA)):
                level = ops.permute_bytes(*table, half)
                found.append(ops.differing(level, ops.permute_bytes(shifted, word, ops.integer(signs))))
        return found
    mask = ops.integer(0x33333333)
    crumbs = []
    for each in (ops.both(unit[0], mask), ops.both(ops.right(unit[0], 2), mask)):
        crumbs += [each, ops.right(each, 16)]
    if codes.bits == 3:
        high, mask = unit[1], ops.integer(0x4444)
        shifted = (high, ops.right(high, 1), ops.left(high, 2), ops.left(high, 1))
        crumbs = [ops.either(ops.both(bit, mask), crumb) for bit, crumb in zip(shifted, crumbs, strict=True)]
    table = [ops.integer(word) for word in table_words(codes.table)]
    return [ops.permute_bytes(table[0], table[-1], each) for each in crumbs]


def table_words(table: tuple[int, ...]) -> list[int]:
    """Bytes as words, four to each."""
    return [
        int.from_bytes(bytes(value & 0xFF for value in table[first : first + 4]), "little")
        for first in range(0, len(table), 4)
    ]


def _key_product(ops: Any, shape: CodedShape, units: Any, query: Any, starts: Any) -> list[list[Any]]:
    """Sums of 16 tokens for every block of query rows, as bits of floats."""
    sums = [[start[0], start[1]] * 2 for start in starts]
    for unit in range(shape.units):
        low, high = (decode_unit(ops, units[half][unit], shape.key) for half in range(2))
        for pair in (0, 2):
            first = (low[pair], high[pair], low[pair + 1], high[pair + 1])
            sums = [
                ops.multiply_bytes(total, first, block[unit][pair : pair + 2])
                for total, block in zip(sums, query, strict=True)
            ]
    return sums


def _logits(
    ops: Any, shape: CodedShape, lane: _Lane, sums: list[list[Any]], scales: Any, factors: list[Any]
) -> list[Any]:
    """Logits to the base 2 of two tokens and two queries: rows ``g`` and ``g + 8``, columns ``2 t`` and ``2 t + 1``."""
    by_row = [ops.half_of(scales, upper=upper) for upper in (False, True)]
    found = []
    for index in range(4):
        if shape.paired:
            part = ops.fused(ops.as_real(sums[0][index]), lane.weight, lane.offset)
            number = ops.plus(part, ops.exchange(part, 2))
        else:
            high, low = (ops.minus(ops.as_real(each[index]), ops.real(_MAGIC)) for each in sums)
            number = ops.fused(high, ops.real(256.0), low)
        found.append(ops.scaled(number, ops.scaled(by_row[index // 2], factors[index % 2])))
    return found


def _add_tile(
    ops: Any,
    shape: CodedShape,
    lane: _Lane,
    state: list[Any],
    logits: list[list[Any]],
    scales: list[Any],
    load_values: Callable[[int], list[list[Any]]],
) -> list[Any]:
    """The state with the tokens of a tile.

    A tile's shares are relative to its own largest logit and largest scale, so that what 16 bits cannot hold beside a
    dominating token is at most what 63 tokens can lose.
    """
    tile_top = [
        _over_rows(ops, functools.reduce(ops.maximum, (x for each in logits for x in each[n::2]))) for n in (0, 1)
    ]
    top = [ops.maximum(old, new) for old, new in zip(state[:2], tile_top, strict=True)]
    grows = functools.reduce(ops.one_of, (ops.above(new, old) for new, old in zip(top, state[:2], strict=True)))
    total, shift, weighted = _split(ops.choose(ops.any_lane(grows), lambda: _decayed(ops, state, top), state[2:]))

    largest = ops.maximum(_over_rows(ops, ops.largest_half(scales)), ops.real(_SMALLEST))
    unit = ops.scaled(ops.reciprocal(largest), ops.real(float(LARGEST)))
    tile_total, tile_shift = [ops.real(0.0)] * 2, [ops.real(0.0)] * 2
    columns: list[list[Any]] = [[] for _ in range(shape.query_rows // COLUMNS)]
    for product in range(_PRODUCTS):
        by_row = [ops.scaled(ops.half_of(scales[product], upper=upper), unit) for upper in (False, True)]
        numbers = []
        for index, logit in enumerate(logits[product]):
            n = index % 2
            share = ops.power_of_two(ops.minus(logit, tile_top[n]))
            tile_total[n] = ops.plus(tile_total[n], share)
            number = ops.scaled(share, by_row[index // 2])
            tile_shift[n] = ops.plus(tile_shift[n], number)
            numbers.append(ops.as_integer(ops.plus(number, ops.real(_MAGIC + 128.0))))
        for block, register in enumerate(_share_bytes(ops, shape, lane, numbers)):
            columns[block].append(ops.transpose(register))

    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(tile_top, top, strict=True)]
    unscale = ops.scaled(largest, ops.real(1.0 / LARGEST))
    share_unit = [ops.scaled(each, unscale) for each in decay]
    total = [ops.fused(new, each, old) for new, each, old in zip(tile_total, decay, total, strict=True)]
    shift = [ops.fused(new, each, old) for new, each, old in zip(tile_shift, share_unit, shift, strict=True)]
    if shape.paired:
        block_units = [[ops.scaled(each, lane.weight) for each in share_unit]]
    else:
        block_units = [[ops.scaled(each, ops.real(256.0)) for each in share_unit], share_unit]
    start = [ops.integer(_MAGIC_BITS)] * 4
    for block in range(shape.dim // 16):
        near, far = (decode_unit(ops, unit, shape.value) for unit in load_values(block))
        for right, units in zip(columns, block_units, strict=True):
            sums = start
            for pair in (0, 2):
                first = (near[pair], far[pair], near[pair + 1], far[pair + 1])
                sums = ops.multiply_bytes(sums, first, right[pair : pair + 2])
            for index in range(4):
                added = ops.minus(ops.as_real(sums[index]), ops.real(_MAGIC))
                place = 4 * block + index
                weighted[place] = ops.fused(added, units[index % 2], weighted[place])
    return [*top, *total, *shift, *weighted]


def _share_bytes(ops: Any, shape: CodedShape, lane: _Lane, numbers: list[Any]) -> list[Any]:
    """Bytes of shares, tokens ``g`` and ``g + 8`` of each column side by side; a number is its bits plus 128."""
    pairs = [(numbers[n], numbers[n + 2]) for n in (0, 1)]
    if shape.paired:
        low, high = (ops.permute_bytes(*pair, lane.pick) for pair in pairs)
        return [ops.differing(ops.permute_bytes(low, high, ops.integer(0x5410)), lane.flip)]
    both = [ops.permute_bytes(*pair, ops.integer(0x4051)) for pair in pairs]
    joined = [ops.permute_bytes(*both, ops.integer(selector)) for selector in (0x5410, 0x7632)]
    return [joined[0], ops.differing(joined[1], ops.integer(0x80808080))]


def _decayed(ops: Any, state: list[Any], top: list[Any]) -> list[Any]:
    """Everything but the largest logits, relative to new ones."""
    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(state[:2], top, strict=True)]
    return [ops.scaled(each, decay[index % 2]) for index, each in enumerate(state[2:])]


def _split(state: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    return list(state[:2]), list(state[2:4]), list(state[4:])


def _over_rows(ops: Any, value: Any, combine: Any = None) -> Any:
    """The largest over all rows of a column, or another combination."""
    for distance in (4, 8, 16):
        value = (combine or ops.maximum)(value, ops.exchange(value, distance))
    return value


def _write_state(
    ops: Any,
    shape: CodedShape,
    lane: _Lane,
    place: Any,
    state: list[Any],
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    shared: Any,
) -> None:
    """Adds up the states of a program's warps, in shared memory, in a fixed order."""
    top, (total, shift, weighted) = state[:2], _split(state[2:])
    total, shift = ([_over_rows(ops, each, ops.plus) for each in part] for part in (total, shift))
    if shape.paired:  # high and low parts lie two columns of lanes apart
        weighted = [ops.plus(each, ops.exchange(each, 2)) for each in weighted]
    weighted = [ops.fused(shift[index % 2], ops.real(0.5), each) for index, each in enumerate(weighted)]
    start = ops.shared_address(shared)
    rows, warps, dim = shape.rows, shape.warps, shape.dim
    writes = ops.less(lane.column, ops.integer(rows // 2))
    sums_at = 4 * warps * rows  # behind the largest logits
    weighted_at = 2 * sums_at
    mine = ops.add(ops.times(lane.warp, 4 * rows), ops.times(lane.column, 8))

    def put_tops() -> None:
        ops.shared_store(ops.shared_offset(start, mine), top)

    ops.only_if(writes, put_tops)
    ops.barrier()
    column = ops.modulo(lane.column, rows // 2)
    tops = [
        ops.shared_load(ops.shared_offset(start, ops.times(column, 8)), 2, 4 * rows * warp) for warp in range(warps)
    ]
    all_top = [functools.reduce(ops.maximum, (each[n] for each in tops)) for n in (0, 1)]
    decay = [ops.power_of_two(ops.minus(top[n], all_top[n])) for n in (0, 1)]

    def put_sums() -> None:
        ops.shared_store(ops.shared_offset(start, mine), [ops.scaled(total[n], decay[n]) for n in (0, 1)], sums_at)
        for n in (0, 1):
            row = ops.add(ops.times(lane.warp, rows), ops.add(ops.times(lane.column, 2), ops.integer(n)))
            where = ops.shared_offset(start, ops.add(ops.times(row, 4 * dim), ops.times(lane.row, 4)))
            for index in range(n, len(weighted), 2):
                channel = 8 * (index // 2)
                ops.shared_store(where, [ops.scaled(weighted[index], decay[n])], weighted_at + 4 * channel)

    ops.only_if(writes, put_sums)
    ops.barrier()
    threads = 32 * warps
    place = ops.times(place, rows)

    def put_state() -> None:
        """One thread for each query."""
        where = ops.shared_offset(start, ops.times(lane.thread, 4))
        top = [ops.shared_load(where, 1, 4 * rows * warp)[0] for warp in range(warps)]
        sums = [ops.shared_load(where, 1, sums_at + 4 * rows * warp)[0] for warp in range(warps)]
        at = ops.times(ops.add(place, lane.thread), 4)
        ops.store_reals(ops.offset(ops.address(top_ref), at), [functools.reduce(ops.maximum, top)])
        ops.store_reals(ops.offset(ops.address(total_ref), at), [functools.reduce(ops.plus, sums)])

    ops.only_if(ops.less(lane.thread, ops.integer(rows)), put_state)
    out = ops.offset(ops.address(weighted_ref), place, 4 * dim)
    for first in range(0, rows * dim, threads):
        index = ops.add(lane.thread, ops.integer(first))

        def put(index: Any = index) -> None:
            where = ops.shared_offset(start, ops.times(index, 4))
            parts = [ops.shared_load(where, 1, weighted_at + 4 * rows * dim * warp)[0] for warp in range(warps)]
            ops.store_reals(ops.offset(out, ops.times(index, 4)), [functools.reduce(ops.plus, parts)])

        ops.only_if(ops.less(index, ops.integer(rows * dim)), put)
