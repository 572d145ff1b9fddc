"""One warp's decode attention over transform-coded pages: ``coded_program`` for codes whose width changes by group.

Rows, columns, products and shares are those of ``coded_program``. What differs:

* a page has queries of its own (``klt_queries``): turned to where the page starts, in the coordinates of its codes, and
  with the unit and gain of each channel in them. Logits have a part besides, which does not come from codes: a sum of
  curves (``klt_curves``), one more product, of float16;
* codes of 16 channels have a width, equal for all lanes. Products of keys, one group deep, run in a loop for each
  width; for values the decoder is chosen group by group, a branch of the whole warp. Groups without codes take nothing;
* values add up in units of their channels; a page's mean is added after its last tile, times the weights of all.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS, TILE
from kakeya_jax.pallas_kernels.attention.klt_queries import PageQueries, QueryWriter
from kakeya_jax.pallas_kernels.attention.klt_query_tables import QueryTables
from kakeya_jax.pallas_kernels.attention.klt_shape import GROUP, GROUPS, KltShape
from kakeya_jax.pallas_kernels.attention.klt_tiles import KltTiles, Slots
from kakeya_jax.pallas_kernels.attention.klt_turns import over_turns
from kakeya_jax.pallas_kernels.attention.query_columns import byte_numbers, float_numbers
from kakeya_jax.pallas_kernels.attention.tile_loop import share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import add_values, empty_state, shares_of
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, over_rows
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def klt_program(
    ops: Any,
    shape: KltShape,
    head: Any,
    split: Any,
    tokens_of: Callable[[Any], Any],
    table_ref: Any,
    query_ref: Any,
    *refs: Any,
) -> None:
    """Attends to the coded tokens of one head's share, and writes its softmax state.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        head: whose tokens.
        split: which of the programs that share them.
        tokens_of: a head's coded tokens, whole pages, by its number.
        table_ref: int32, constants and layouts (``klt_step.program_table``).
        query_ref: ``[N, group, 128]`` of ``shape.dtype``.
        refs: those of ``QueryTables``; of codes, namely key uint8 ``[B, pages, bytes]`` (``klt_words``), key scale
            uint8 ``[B, pages, K, page]``, both of values, and value mean int8 ``[B, pages, K, 128]``; those of
            ``PageQueries``, which programs write for themselves; of states, namely the largest logit to the base 2,
            float32 ``[N, states, rows]``, the total likewise, and float32 ``[N, states, rows, 128]``, values in units
            of their channels summed with their weights; and ``shape.shared_floats`` floats of shared memory.
    """
    tables, refs = QueryTables(*refs[: len(QueryTables._fields)]), refs[len(QueryTables._fields) :]
    codes, queries = refs[:5], PageQueries(*refs[5 : 5 + len(PageQueries._fields)])
    top_ref, total_ref, weighted_ref, shared_ref = refs[5 + len(PageQueries._fields) :]
    lane = Lane(ops)
    found: list[Any] = []

    def pages_of() -> tuple[Any, Any]:
        found.append(ops.divide(tokens_of(head), TILE))
        return _pages(ops, shape, split, found[0])

    QueryWriter(ops, shape, lane, head, pages_of, query_ref, tables, queries, shared_ref).write()
    ops.mark("queries")
    count = found[0]
    share = share_of(ops, shape, lane, split, count)
    of_pages = (queries.numbers, queries.extras, queries.coefficients, tables.curves)
    tiles = KltTiles(ops, shape, lane, head, table_ref, (*of_pages, *codes))

    def keys(slots: Slots) -> tuple[list[list[Any]], list[list[list[Any]]]]:
        curves = tiles.curve_sums()
        return curves, _key_sums(ops, shape, tiles, slots)

    def values(
        tile: Any, slots: Slots, state: list[Any], found: tuple[list[list[Any]], list[list[list[Any]]]]
    ) -> list[Any]:
        logits = _logits(ops, shape, tiles, slots, *found)
        state = _add_tile(ops, shape, tiles, slots, state, logits)
        last = ops.one_of(tiles.ends_page(tile), ops.equal(ops.subtract(share[1], tile), 1))
        return ops.choose(last, lambda: _with_mean(ops, shape, tiles, slots, state), state)

    state = [*empty_state(ops, shape), *[ops.real(0.0)] * shape.blocks]
    state = over_turns(ops, shape, lane, shared_ref, share, tiles, keys, values, state)[: -shape.blocks]
    ops.mark("tiles")
    ops.barrier()  # stages become states
    halves = []
    for group in range(GROUPS):
        empty_group = ops.equal(_width(ops, tiles.value_widths, group), 0)
        halves += [ops.select(empty_group, ops.real(0.0), ops.real(0.5))] * (2 * shape.blocks)
    place = ops.add(ops.times(head, shape.states), split)
    write_state(ops, shape, lane, place, state, halves, top_ref, total_ref, weighted_ref, shared_ref)


def _pages(ops: Any, shape: KltShape, split: Any, tiles: Any) -> tuple[Any, Any]:
    """The first page of a program's share of tiles, and the one after its last; another program may share both."""
    inside = shape.page // TILE
    first = ops.divide(ops.product(split, tiles), shape.splits)
    stop = ops.divide(ops.product(ops.add(split, ops.integer(1)), tiles), shape.splits)
    return ops.divide(first, inside), ops.divide(ops.add(stop, ops.integer(inside - 1)), inside)


def _width(ops: Any, widths: Any, group: int) -> Any:
    return ops.both(ops.right(widths, 4 * group), ops.integer(15))


def _key_sums(ops: Any, shape: KltShape, tiles: KltTiles, slots: Slots) -> list[list[list[Any]]]:
    """For each product of 16 tokens and each block of columns, sums over all channels, as bits of floats.

    A loop for each width over the groups that have it: their sums stay where they are, where a choice for every group
    would move them about.
    """
    sums = [word for _ in range(PRODUCTS) for block in range(shape.blocks) for word in tiles.starts(slots, block)]
    first = ops.integer(0)
    for width in shape.key_widths:
        after = ops.add(first, tiles.count_of(width))

        def multiplied(index: Any, sums: list[Any], width: int = width) -> list[Any]:
            group, start = tiles.place(index)
            units = [tiles.decoded(unit, width) for unit in tiles.units(slots.keys, start, width)]
            found = []
            queries = [tiles.query(slots, block, group) for block in range(shape.blocks)]
            for product in range(PRODUCTS):
                unit, quad = units[product // 2], 2 * (product % 2)
                for block, query in enumerate(queries):
                    at = 4 * (product * shape.blocks + block)
                    found += ops.multiply_half_bytes(sums[at : at + 4], unit[quad : quad + 2], query)
            return found

        sums = ops.loop(first, after, sums, multiplied)
        first = after
    return [
        [sums[4 * (product * shape.blocks + block) :][:4] for block in range(shape.blocks)]
        for product in range(PRODUCTS)
    ]


def _logits(
    ops: Any,
    shape: KltShape,
    tiles: KltTiles,
    slots: Slots,
    curves: list[list[Any]],
    sums: list[list[list[Any]]],
) -> list[list[Any]]:
    """Logits to the base 2, for each product of rows ``g`` and ``g + 8`` and, faster, queries."""
    scales, (factors, curve_units, added) = tiles.scales(slots, 0), tiles.factors(slots)
    found = []
    for of_rows, of_curves, of_codes in zip(scales, curves, sums, strict=True):
        units = [ops.scaled(scale, factor) for scale in of_rows for factor in factors]
        of_curves = float_numbers(ops, shape, of_curves)
        beside = list(map(ops.fused, of_curves, curve_units * 2, added * 2))
        found.append(list(map(ops.fused, byte_numbers(ops, of_codes), units, beside)))
    return found


def _add_tile(
    ops: Any,
    shape: KltShape,
    tiles: KltTiles,
    slots: Slots,
    state: list[Any],
    logits: list[list[Any]],
) -> list[Any]:
    """The state with the tokens of a tile, as in ``coded_program``. It ends with the weights of the page's tokens so
    far, for each query, whose mean is to be added."""
    scales: list[list[Any]] = []

    def largest_scale() -> Any:
        scales.extend(tiles.scales(slots, 1))
        return functools.reduce(ops.maximum, (scale for pair in scales for scale in pair))

    shares = shares_of(ops, shape, state, logits, largest_scale, lambda product: scales[product])
    queries, size = shape.blocks, 2 * shape.blocks
    before, weights = shares.weighted[:-queries], shares.weighted[-queries:]
    weights = list(map(ops.fused, shares.tile_total, shares.decay, weights))
    start, weighted = ops.integer(0), []
    width = _width(ops, tiles.value_widths, 0)
    place = tiles.group_at(slots.values, start, width)
    ahead = ops.shared_words(place, 2)
    for group in range(GROUPS):
        mine, words, where = before[size * group : size * (group + 1)], ahead, place
        after = ops.add(start, ops.times(width, 8 * GROUP))
        following = _width(ops, tiles.value_widths, min(group + 1, GROUPS - 1))
        if group + 1 < GROUPS:  # a load in a branch is waited for in it
            place = tiles.group_at(slots.values, after, following)
            ahead = ops.shared_words(place, 2)

        def multiplied(bits: int, where: Any = where, mine: list[Any] = mine, words: list[Any] = words) -> list[Any]:
            words = words + [word for first in range(2, bits, 2) for word in ops.shared_words(where, 2, 4 * first)]
            near, far = (tiles.decoded(unit, bits) for unit in (words[: bits // 2], words[bits // 2 :]))
            return add_values(ops, shares, near, far, mine, tiles.held.magic)

        cases = {bits: functools.partial(multiplied, bits) for bits in shape.value_widths}
        mine = ops.choose_by(width, cases, mine)
        weighted += mine
        start, width = after, following
    return [*shares.top, *shares.total, *shares.shift, *weighted, *weights]


def _with_mean(ops: Any, shape: KltShape, tiles: KltTiles, slots: Slots, state: list[Any]) -> list[Any]:
    """The state with the page's mean, times the weights that it ends with."""
    queries = shape.blocks
    first = len(state) - queries * (1 + 2 * GROUPS)
    weights, weighted = [over_rows(ops, each, ops.plus) for each in state[-queries:]], state[first:-queries]
    for group in range(GROUPS):
        factor = tiles.mean_factor(slots, group)
        for half in range(2):
            mean = ops.scaled(tiles.mean(slots, group, half), factor)
            for n, weight in enumerate(weights):
                index = queries * (2 * group + half) + n
                weighted[index] = ops.fused(mean, weight, weighted[index])
    return [*state[:first], *weighted, *[ops.real(0.0)] * queries]
