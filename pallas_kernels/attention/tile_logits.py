"""Logits of a tile of keys, whatever their codes and scales."""

from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.channel_logits import channel_logits, channel_starts, load_half_queries
from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, FOUR, PRODUCTS, CodedShape, TileShape
from kakeya_jax.pallas_kernels.attention.coded_tiles import Tiles
from kakeya_jax.pallas_kernels.attention.group_logits import group_logits, query_sums
from kakeya_jax.pallas_kernels.attention.held_words import Held
from kakeya_jax.pallas_kernels.attention.query_columns import byte_numbers
from kakeya_jax.pallas_kernels.attention.query_form import FACTORS, ROWS
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC_BITS, Lane, halves_of


def tile_logits(
    ops: Any, shape: CodedShape, lane: Lane, held: Held, tiles: Tiles, queries: Any
) -> Callable[[Any], list[list[Any]]]:
    """A function of the stage that a tile is in: logits to the base 2 of each product, see ``logits_of``.

    ``queries`` are where ``HeadQueries`` put them.
    """
    if shape.key.tokens:
        pairs, factors = load_half_queries(ops, shape, lane, queries), load_factors(ops, shape, lane, queries)

        def by_channel(slot: Any) -> list[list[Any]]:
            scales = tiles.channel_words(slot)
            starts = channel_starts(ops, shape, scales, tiles.channel_words(slot, minima=True), pairs)
            return [
                channel_logits(ops, shape, tiles.key_units(slot, product), scales, starts, pairs, factors)
                for product in range(PRODUCTS)
            ]

        return by_channel
    query, starts, factors = load_queries(ops, shape, lane, queries)
    sums_of_query = query_sums(ops, shape, query) if shape.key.step else []

    def by_token(slot: Any) -> list[list[Any]]:
        words, found = tiles.scale_words(slot, 0), []
        minima = tiles.scale_words(slot, 0, minima=True) if shape.key.step else [[]] * PRODUCTS
        for product in range(PRODUCTS):
            units = tiles.key_units(slot, product)
            if shape.key.scales > 1:
                scales = words[product], minima[product]
                found.append(group_logits(ops, shape, held, units, *scales, query, sums_of_query, factors))
            else:
                sums = key_product(ops, shape, held, units, query, starts)
                found.append(logits_of(ops, sums, words[product][0], factors))
        return found

    return by_token


def load_queries(
    ops: Any, shape: CodedShape, lane: Lane, queries: Any
) -> tuple[list[list[list[Any]]], list[list[Any]], list[Any]]:
    """Bytes of a head's queries as right operands, what sums of products start from, and factors of logits.

    ``queries`` are where ``HeadQueries`` put them.
    """
    query = _load_query(ops, shape, lane, queries)
    starts = [[ops.integer(MAGIC_BITS)] * 2] * shape.blocks
    if shape.key.halfway:
        starts = [
            [ops.add(word, start) for word, start in zip(words, pair, strict=True)]
            for words, pair in zip(_halves_of_sums(ops, query), starts, strict=True)
        ]
    return query, starts, load_factors(ops, shape, lane, queries)


def load_factors(ops: Any, shape: TileShape, lane: Lane, queries: Any) -> list[Any]:
    """Of this lane's queries."""
    where = ops.shared_offset(queries, ops.times(lane.column, 4))
    return [ops.shared_load(where, 1, FACTORS + 4 * FOUR * block)[0] for block in range(shape.blocks)]


def _load_query(ops: Any, shape: CodedShape, lane: Lane, queries: Any) -> list[list[list[Any]]]:
    """Bytes of the queries as right operands: for each block of columns, unit and quad one register."""
    place = ops.add(ops.times(lane.row, shape.dim), ops.times(lane.column, 16 * shape.units))
    where = ops.shared_offset(queries, place)
    return [
        [ops.shared_words(where, 4, ROWS + block * COLUMNS * shape.dim + 16 * unit) for unit in range(shape.units)]
        for block in range(shape.blocks)
    ]


def _halves_of_sums(ops: Any, query: list[list[list[Any]]]) -> list[list[Any]]:
    """Half the sum of a query's numbers, ``256 high + low``: what levels ``unit (byte + 1/2)`` have beside their bytes.

    Of bytes as products with ones, for every block two columns. Half of an odd high part is 128 more of the low one.
    """
    ones, found = [ops.integer(0x01010101)] * 4, []
    for block in query:
        total = [ops.integer(0)] * 4
        for unit in block:
            for pair in (0, 2):
                total = ops.multiply_bytes(total, ones, unit[pair : pair + 2])
        high, low = total[:2]
        carried = ops.left(ops.both(high, ops.integer(1)), 8)
        found.append([ops.right_signed(each, 1) for each in (high, ops.add(low, carried))])
    return found


def key_product(ops: Any, shape: CodedShape, held: Held, units: Any, query: Any, starts: Any) -> list[list[Any]]:
    """Sums of 16 tokens for every block of columns, as bits of floats."""
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


def logits_of(ops: Any, sums: list[list[Any]], scales: Any, factors: list[Any]) -> list[Any]:
    """Logits to the base 2 of two tokens, rows ``g`` and ``g + 8``, and, faster, of this lane's queries."""
    units = [ops.scaled(scale, factor) for scale in halves_of(ops, scales) for factor in factors]
    return list(map(ops.scaled, byte_numbers(ops, sums), units))
