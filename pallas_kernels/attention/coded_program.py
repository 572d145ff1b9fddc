"""One warp's decode attention over packed codes, in integer products: the program, whatever machine runs it.

A warp owns a run of tiles of 64 tokens and its own softmax state; the warps of a program add theirs up at the end.
Codes become signed bytes by table lookups of four at a time (``prmt``) and go straight into ``mma.sync`` fragments: in
both products of attention the codes are the left operand, keys with tokens as rows and channels as depth, values with
channels as rows and tokens as depth. The right operand has eight columns: queries (or their shares of the softmax) as
numbers of 16 bits, two bytes each. Up to four queries are columns 0 to 3 with their high bytes and 4 to 7 with their
low bytes; more take two products. Levels are ``unit (byte + 1/2)``: the half is added once for each query, not once
for each code. (Integer codes of 8 bits are ``unit byte``.)

Which token is which row is free, as long as both products agree: row ``r`` of half ``h`` of product ``i`` is token
``16 (r / 2) + 4 i + 2 (r % 2) + h`` of its tile, because then a lane's part of a value's tile is one unit of 16
consecutive tokens (``code_words``), and quad ``i`` of it belongs to product ``i``.

Sums of products are below 2^22 in size, so an accumulator that starts at the bits of 1.5 * 2^23 is, read as a float,
that number plus the sum: no conversion from integers is needed.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST, PRODUCTS, TILE, CodedShape
from kakeya_jax.pallas_kernels.attention.coded_tiles import Tiles
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, MAGIC_BITS, Lane, over_rows
from kakeya_jax.pallas_kernels.attention.warp_states import write_state

_SMALLEST = 1e-30


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
    lane = Lane(ops, shape, program)
    head, split = ops.divide(lane.program, shape.splits), ops.modulo(lane.program, shape.splits)
    tiles = ops.divide(tokens_of(head), TILE)
    parts = shape.splits * shape.warps
    part = ops.add(ops.times(split, shape.warps), lane.warp)
    first = ops.divide(ops.product(part, tiles), parts)
    stop = ops.divide(ops.product(ops.add(part, ops.integer(1)), tiles), parts)

    query, starts, factors = load_queries(ops, shape, lane, (query_ref, start_ref, factor_ref), head)
    tiles_in = Tiles(ops, shape, lane, head, (key_ref, key_scale_ref, value_ref, value_scale_ref))
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
        for product in range(PRODUCTS):
            sums = key_product(ops, shape, tiles_in.key_units(slot, product), query, starts)
            logits.append(logits_of(ops, shape, lane, sums, scales[0][product], factors))
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
    halves = [ops.real(0.5)] * (4 * (shape.dim // 16)) if shape.value.halfway else None
    write_state(ops, shape, lane, place, state, halves, top_ref, total_ref, weighted_ref, shared_ref)


def load_queries(
    ops: Any, shape: CodedShape, lane: Lane, refs: tuple[Any, Any, Any], head: Any
) -> tuple[list[list[list[Any]]], list[list[Any]], list[Any]]:
    """Bytes of a head's queries as right operands, what sums of products start from, and factors of logits.

    ``refs`` are those of ``coded_program``: of queries, starts and factors.
    """
    query_ref, start_ref, factor_ref = refs
    query = _load_query(ops, shape, lane, query_ref, head)
    rows = ops.times(head, 4 * shape.query_rows)
    starts = [[ops.integer(MAGIC_BITS)] * 2] * (shape.query_rows // COLUMNS)
    if shape.key.halfway:
        where = ops.offset(ops.address(start_ref), ops.add(rows, ops.times(lane.column, 8)))
        starts = [
            [
                ops.add(word, start)
                for word, start in zip(ops.load_words(where, 2, 32 * block, once=False), pair, strict=True)
            ]
            for block, pair in enumerate(starts)
        ]
    column = ops.modulo(lane.column, 2) if shape.paired else lane.column
    factors = ops.load_reals(
        ops.offset(ops.address(factor_ref), ops.add(ops.times(head, 4 * COLUMNS), ops.times(column, 8))), 2
    )
    return query, starts, factors


def _load_query(ops: Any, shape: CodedShape, lane: Lane, ref: Any, head: Any) -> list[list[list[Any]]]:
    """Bytes of the queries as right operands: for each block of 8 rows, unit and quad one register."""
    where = ops.offset(ops.address(ref), head, shape.query_rows * shape.dim)
    where = ops.offset(where, ops.add(ops.times(lane.row, shape.dim), ops.times(lane.column, 16 * shape.units)))
    return [
        [ops.load_words(where, 4, block * COLUMNS * shape.dim + 16 * unit, once=False) for unit in range(shape.units)]
        for block in range(shape.query_rows // COLUMNS)
    ]


def key_product(ops: Any, shape: CodedShape, units: Any, query: Any, starts: Any) -> list[list[Any]]:
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


def logits_of(
    ops: Any, shape: CodedShape, lane: Lane, sums: list[list[Any]], scales: Any, factors: list[Any]
) -> list[Any]:
    """Logits to the base 2 of two tokens and two queries: rows ``g`` and ``g + 8``, columns ``2 t`` and ``2 t + 1``."""
    by_row = [ops.half_of(scales, upper=upper) for upper in (False, True)]
    found = []
    for index in range(4):
        if shape.paired:
            part = ops.fused(ops.as_real(sums[0][index]), lane.weight, lane.offset)
            number = ops.plus(part, ops.exchange(part, 2))
        else:
            high, low = (ops.minus(ops.as_real(each[index]), ops.real(MAGIC)) for each in sums)
            number = ops.fused(high, ops.real(256.0), low)
        found.append(ops.scaled(number, ops.scaled(by_row[index // 2], factors[index % 2])))
    return found


def _add_tile(
    ops: Any,
    shape: CodedShape,
    lane: Lane,
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
        over_rows(ops, functools.reduce(ops.maximum, (x for each in logits for x in each[n::2]))) for n in (0, 1)
    ]
    top = [ops.maximum(old, new) for old, new in zip(state[:2], tile_top, strict=True)]
    grows = functools.reduce(ops.one_of, (ops.above(new, old) for new, old in zip(top, state[:2], strict=True)))
    total, shift, weighted = _split(ops.choose(ops.any_lane(grows), lambda: decayed(ops, state, top), state[2:]))

    largest = ops.maximum(over_rows(ops, ops.largest_half(scales)), ops.real(_SMALLEST))
    unit = ops.scaled(ops.reciprocal(largest), ops.real(float(LARGEST)))
    tile_total, tile_shift = [ops.real(0.0)] * 2, [ops.real(0.0)] * 2
    columns: list[list[Any]] = [[] for _ in range(shape.query_rows // COLUMNS)]
    for product in range(PRODUCTS):
        by_row = [ops.scaled(ops.half_of(scales[product], upper=upper), unit) for upper in (False, True)]
        numbers = []
        for index, logit in enumerate(logits[product]):
            n = index % 2
            share = ops.power_of_two(ops.minus(logit, tile_top[n]))
            tile_total[n] = ops.plus(tile_total[n], share)
            number = ops.scaled(share, by_row[index // 2])
            tile_shift[n] = ops.plus(tile_shift[n], number)
            numbers.append(ops.as_integer(ops.plus(number, ops.real(MAGIC + 128.0))))
        for block, register in enumerate(share_bytes(ops, shape, lane, numbers)):
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
    start = [ops.integer(MAGIC_BITS)] * 4
    for block in range(shape.dim // 16):
        near, far = (decode_unit(ops, unit, shape.value) for unit in load_values(block))
        for right, units in zip(columns, block_units, strict=True):
            sums = start
            for pair in (0, 2):
                first = (near[pair], far[pair], near[pair + 1], far[pair + 1])
                sums = ops.multiply_bytes(sums, first, right[pair : pair + 2])
            for index in range(4):
                added = ops.minus(ops.as_real(sums[index]), ops.real(MAGIC))
                place = 4 * block + index
                weighted[place] = ops.fused(added, units[index % 2], weighted[place])
    return [*top, *total, *shift, *weighted]


def share_bytes(ops: Any, shape: Any, lane: Lane, numbers: list[Any]) -> list[Any]:
    """Bytes of shares, tokens ``g`` and ``g + 8`` of each column side by side; a number is its bits plus 128."""
    pairs = [(numbers[n], numbers[n + 2]) for n in (0, 1)]
    if shape.paired:
        low, high = (ops.permute_bytes(*pair, lane.pick) for pair in pairs)
        return [ops.differing(ops.permute_bytes(low, high, ops.integer(0x5410)), lane.flip)]
    both = [ops.permute_bytes(*pair, ops.integer(0x4051)) for pair in pairs]
    joined = [ops.permute_bytes(*both, ops.integer(selector)) for selector in (0x5410, 0x7632)]
    return [joined[0], ops.differing(joined[1], ops.integer(0x80808080))]


def decayed(ops: Any, state: list[Any], top: list[Any]) -> list[Any]:
    """Everything but the largest logits, relative to new ones."""
    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(state[:2], top, strict=True)]
    return [ops.scaled(each, decay[index % 2]) for index, each in enumerate(state[2:])]


def _split(state: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    return list(state[:2]), list(state[2:4]), list(state[4:])
