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
"""

from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, PRODUCTS, TILE, CodedShape
from kakeya_jax.pallas_kernels.attention.coded_tiles import Tiles
from kakeya_jax.pallas_kernels.attention.group_logits import group_logits
from kakeya_jax.pallas_kernels.attention.group_shares import group_shares
from kakeya_jax.pallas_kernels.attention.held_words import Held, HeldWords
from kakeya_jax.pallas_kernels.attention.tile_loop import over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import add_values, empty_state, number_of, shares_of
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC_BITS, Lane
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def coded_program(
    ops: Any,
    shape: CodedShape,
    program: Any,
    tokens_of: Callable[[Any], Any],
    constant_ref: Any,
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
        constant_ref: int32, ``HeldWords(shape.codes).words``.
        query_ref: int8 ``[N, query_rows, D]``, bytes of the queries' numbers.
        start_ref: int32 ``[N, query_rows]``, half the sum of those bytes, to be carried from row to row (see
            ``byte_queries``).
        factor_ref: float32 ``[N, 8]``: logits to the base 2 are numbers times this times the token's scale.
        key_ref: uint8 ``[N, T, D b / 8]``.
        key_scale_ref: float16 ``[N, T]``, or ``[N, T, scales]``.
        value_ref: uint8 ``[N, T / page, D, page b / 8]``.
        value_scale_ref: likewise, not negative.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: float32 ``[N, states, rows, D]``: values' bytes plus 1/2, times their scales, summed with their
            weights.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = Lane(ops, shape, program)
    head, split = ops.divide(lane.program, shape.splits), ops.modulo(lane.program, shape.splits)
    share = share_of(ops, shape, lane, split, ops.divide(tokens_of(head), TILE))
    held = HeldWords(shape.codes).load(ops, lane, ops.address(constant_ref))
    query, starts, factors = load_queries(ops, shape, lane, (query_ref, start_ref, factor_ref), head)
    tiles = Tiles(ops, shape, lane, head, (key_ref, key_scale_ref, value_ref, value_scale_ref))

    def logits_and_scales(slot: Any) -> tuple[list[list[Any]], list[Any]]:
        """Logits of all products, and packed scales of values."""
        key_scales = tiles.scale_words(slot, 0)
        if shape.key.scales > 1:
            logits = [
                group_logits(
                    ops, shape, lane, held, tiles.key_units(slot, product), key_scales[product], query, factors
                )
                for product in range(PRODUCTS)
            ]
            return logits, tiles.scale_words(slot, 1)
        value_scales, logits = tiles.scale_words(slot, 1), []
        for product in range(PRODUCTS):
            sums = key_product(ops, shape, held, tiles.key_units(slot, product), query, starts)
            logits.append(logits_of(ops, shape, lane, sums, key_scales[product][0], factors))
        return logits, value_scales

    def step(tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        del tile
        logits, scales = logits_and_scales(slot)
        if shape.value.scales > 1:
            shares, of_group = group_shares(ops, shape, lane, state, logits, scales)
        else:
            words = [each[0] for each in scales]
            shares, of_group = (
                shares_of(
                    ops,
                    shape,
                    lane,
                    state,
                    logits,
                    lambda: ops.largest_half(words),
                    lambda product: _halves(ops, words[product]),
                ),
                None,
            )
        weighted, right, blocks = [], shares, shape.dim // 16
        for block in range(blocks):
            if of_group is not None and block * shape.value.scales % blocks == 0:
                right = of_group(block * shape.value.scales // blocks)
            table, units = held.tables[shape.value], tiles.value_units(slot, block)
            near, far = (decode_unit(ops, unit, shape.value, table) for unit in units)
            mine = shares.weighted[4 * block : 4 * block + 4]
            weighted += add_values(ops, right, near, far, mine, held.magic)
        return [*shares.top, *shares.total, *shares.shift, *weighted]

    state = over_tiles(ops, shape, lane, shared_ref, share, tiles.start, step, lambda: empty_state(ops, shape))
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
    starts = [[ops.integer(MAGIC_BITS)] * 2] * shape.blocks
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
        for block in range(shape.blocks)
    ]


def key_product(ops: Any, shape: CodedShape, held: Held, units: Any, query: Any, starts: Any) -> list[list[Any]]:
    """Sums of 16 tokens for every block of query rows, as bits of floats."""
    sums = [[start[0], start[1]] * 2 for start in starts]
    for unit in range(shape.units):
        low, high = (decode_unit(ops, units[half][unit], shape.key, held.tables[shape.key]) for half in range(2))
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
    by_row = _halves(ops, scales)
    found = []
    for index in range(4):
        number = number_of(ops, shape, lane, sums, index)
        found.append(ops.scaled(number, ops.scaled(by_row[index // 2], factors[index % 2])))
    return found


def _halves(ops: Any, word: Any) -> list[Any]:
    return [ops.half_of(word, upper=upper) for upper in (False, True)]
