"""Logits of a tile of keys, whatever their codes and scales."""

from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.channel_logits import channel_logits, channel_starts, load_half_queries
from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, PRODUCTS, CodedShape, TileShape
from kakeya_jax.pallas_kernels.attention.coded_tiles import Tiles
from kakeya_jax.pallas_kernels.attention.group_logits import group_logits, query_sums
from kakeya_jax.pallas_kernels.attention.held_words import Held
from kakeya_jax.pallas_kernels.attention.tile_shares import number_of
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC_BITS, Lane, halves_of


def tile_logits(
    ops: Any, shape: CodedShape, lane: Lane, held: Held, tiles: Tiles, refs: tuple[Any, Any, Any], head: Any
) -> Callable[[Any], list[list[Any]]]:
    """A function of the stage that a tile is in: logits to the base 2 of each product, see ``logits_of``.

    ``refs`` are those of ``coded_program``: of queries, starts and factors.
    """
    if shape.key.tokens:
        pairs, factors = (
            load_half_queries(ops, shape, lane, refs[0], head),
            load_factors(ops, shape, lane, refs[2], head),
        )

        def by_channel(slot: Any) -> list[list[Any]]:
            scales = tiles.channel_words(slot)
            starts = channel_starts(ops, shape, scales, tiles.channel_words(slot, minima=True), pairs)
            return [
                channel_logits(ops, shape, tiles.key_units(slot, product), scales, starts, pairs, factors)
                for product in range(PRODUCTS)
            ]

        return by_channel
    query, starts, factors = load_queries(ops, shape, lane, refs, head)
    sums_of_query = query_sums(ops, shape, query) if shape.key.step else []

    def by_token(slot: Any) -> list[list[Any]]:
        words, found = tiles.scale_words(slot, 0), []
        minima = tiles.scale_words(slot, 0, minima=True) if shape.key.step else [[]] * PRODUCTS
        for product in range(PRODUCTS):
            units = tiles.key_units(slot, product)
            if shape.key.scales > 1:
                scales = words[product], minima[product]
                found.append(group_logits(ops, shape, lane, held, units, *scales, query, sums_of_query, factors))
            else:
                sums = key_product(ops, shape, held, units, query, starts)
                found.append(logits_of(ops, shape, lane, sums, words[product][0], factors))
        return found

    return by_token


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
    return query, starts, load_factors(ops, shape, lane, factor_ref, head)


def load_factors(ops: Any, shape: TileShape, lane: Lane, ref: Any, head: Any) -> list[Any]:
    """Of this lane's two queries."""
    column = ops.modulo(lane.column, 2) if shape.paired else lane.column
    where = ops.offset(ops.address(ref), ops.add(ops.times(head, 4 * COLUMNS), ops.times(column, 8)))
    return ops.load_reals(where, 2)


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
    by_row = halves_of(ops, scales)
    found = []
    for index in range(4):
        number = number_of(ops, shape, lane, sums, index)
        found.append(ops.scaled(number, ops.scaled(by_row[index // 2], factors[index % 2])))
    return found
