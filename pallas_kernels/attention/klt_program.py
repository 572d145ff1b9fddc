"""One warp's decode attention over transform-coded pages: ``coded_program`` for codes whose width changes by group.

Rows, columns, products and shares are those of ``coded_program``. What differs:

* a page has queries of its own (``klt_queries``): turned to where the page starts, in the coordinates of its codes, and
  with the unit and gain of each channel in them. Logits have a part besides, for each token of a page, which does not
  come from codes;
* codes of 16 channels have a width, equal for all lanes, so choosing the decoder is a branch of the whole warp.
  Products of keys have a depth of one group; groups without codes take nothing;
* values add up in units of their channels; the page's mean is added once a tile, times the tile's weights.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.klt_layout import quantizer_bytes
from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_program import decayed, share_bytes
from kakeya_jax.pallas_kernels.attention.coded_shape import LARGEST, PRODUCTS, TILE, Codes
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, KltShape
from kakeya_jax.pallas_kernels.attention.klt_tiles import KltTiles
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, MAGIC_BITS, Lane, over_rows
from kakeya_jax.pallas_kernels.attention.warp_states import write_state

_SMALLEST = 1e-30


def klt_program(
    ops: Any,
    shape: KltShape,
    program: Any,
    tokens_of: Callable[[Any], Any],
    table_ref: Any,
    record_ref: Any,
    bias_ref: Any,
    key_ref: Any,
    key_scale_ref: Any,
    value_ref: Any,
    value_scale_ref: Any,
    value_mean_ref: Any,
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
        tokens_of: a head's coded tokens, whole pages, by its number.
        table_ref: int32 ``[K, 8]``: layouts (``klt_shape.HEAD_WORDS``).
        record_ref: int32 ``[N, pages, words]``: queries of every page (``klt_queries``).
        bias_ref: float32 ``[N, pages, page, rows]``: logits to the base 2 that do not come from codes.
        key_ref: uint8 ``[B, pages, bytes]`` (``klt_words``).
        key_scale_ref: uint8 ``[B, pages, K, page]``.
        value_ref: uint8 ``[B, pages, bytes]``.
        value_scale_ref: uint8 ``[B, pages, K, page]``.
        value_mean_ref: int8 ``[B, pages, K, 128]``.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: float32 ``[N, states, rows, 128]``: values in units of their channels, summed with their weights.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = Lane(ops, shape, program)
    head, split = ops.divide(lane.program, shape.splits), ops.modulo(lane.program, shape.splits)
    tiles = ops.divide(tokens_of(head), TILE)
    parts = shape.splits * shape.warps
    part = ops.add(ops.times(split, shape.warps), lane.warp)
    first = ops.divide(ops.product(part, tiles), parts)
    stop = ops.divide(ops.product(ops.add(part, ops.integer(1)), tiles), parts)
    refs = (record_ref, bias_ref, key_ref, key_scale_ref, value_ref, value_scale_ref, value_mean_ref)
    tiles_in = KltTiles(ops, shape, lane, head, table_ref, refs)

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
        before = ops.less(place, ops.integer(shape.stage_nbytes))
        free = ops.select(
            before,
            ops.integer(nbytes - shape.stage_nbytes),
            ops.subtract(place, ops.integer(shape.stage_nbytes)),
        )
        start_tile(ops.add(tile, ops.integer(ahead)), free)
        logits = _logits(ops, shape, lane, tiles_in, slot, _key_sums(ops, shape, tiles_in, slot))
        state = _add_tile(ops, shape, lane, tiles_in, slot, state, logits)
        following = ops.add(place, ops.integer(shape.stage_nbytes))
        wraps = ops.less(following, ops.integer(nbytes))
        return [ops.select(wraps, following, ops.integer(0)), *state]

    zero, lowest = ops.real(0.0), ops.real(LOWEST)
    empty = [lowest, lowest, *[zero] * (4 + 4 * GROUPS)]
    state = ops.loop(first, stop, [ops.integer(0), *empty], step)[1:]
    ops.wait_for_copies(0)
    ops.barrier()  # stages become states
    halves = []
    for group in range(GROUPS):
        empty_group = ops.equal(_width(ops, tiles_in.value_widths, group), 0)
        halves += [ops.select(empty_group, ops.real(0.0), ops.real(0.5))] * 4
    place = ops.add(ops.times(head, shape.states), split)
    write_state(ops, shape, lane, place, state, halves, top_ref, total_ref, weighted_ref, shared_ref)


def codes_of(width: int) -> Codes:
    """How codes of a width are packed."""
    table, _ = quantizer_bytes(width)
    return Codes(bits=width, table=() if width == 8 else table)


def _width(ops: Any, widths: Any, group: int) -> Any:
    return ops.both(ops.right(widths, 4 * group), ops.integer(15))


def _key_sums(ops: Any, shape: KltShape, tiles: KltTiles, slot: Any) -> list[list[list[Any]]]:
    """For each product of 16 tokens and each block of query rows, sums over all channels, as bits of floats."""
    queries = tiles.queries(slot)
    starts = [[ops.add(ops.integer(MAGIC_BITS), word) for word in pair] for pair in tiles.starts(slot)]
    sums = [word for _ in range(PRODUCTS) for pair in starts for word in (*pair, *pair)]
    start = ops.integer(0)
    for group in range(GROUPS):
        width = _width(ops, tiles.key_widths, group)

        def multiplied(bits: int, group: int = group, start: Any = start, sums: list[Any] = sums) -> list[Any]:
            units = [decode_unit(ops, unit, codes_of(bits)) for unit in tiles.units(slot, 0, start, bits)]
            found = []
            for product in range(PRODUCTS):
                unit, quad = units[product // 2], 2 * (product % 2)
                for block in range(shape.blocks):
                    at = 4 * (product * shape.blocks + block)
                    found += ops.multiply_half_bytes(sums[at : at + 4], unit[quad : quad + 2], queries[block][group])
            return found

        for bits in shape.key_widths:
            sums = ops.choose(ops.equal(width, bits), functools.partial(multiplied, bits), sums)
        start = ops.add(start, ops.times(width, 8 * GROUP))
    return [
        [sums[4 * (product * shape.blocks + block) :][:4] for block in range(shape.blocks)]
        for product in range(PRODUCTS)
    ]


def _logits(
    ops: Any, shape: KltShape, lane: Lane, tiles: KltTiles, slot: Any, sums: list[list[list[Any]]]
) -> list[list[Any]]:
    """Logits to the base 2, for each product of rows ``g`` and ``g + 8`` and columns ``2 t`` and ``2 t + 1``."""
    scales, factors = tiles.scales(slot, 0), tiles.factors(slot)
    found = []
    for product in range(PRODUCTS):
        bias = [number for half in range(2) for number in tiles.bias(slot, product, half)]
        logits = []
        for index in range(4):
            if shape.paired:
                part = ops.fused(ops.as_real(sums[product][0][index]), lane.weight, lane.offset)
                number = ops.plus(part, ops.exchange(part, 2))
            else:
                high, low = (ops.minus(ops.as_real(each[index]), ops.real(MAGIC)) for each in sums[product])
                number = ops.fused(high, ops.real(256.0), low)
            unit = ops.scaled(scales[product][index // 2], factors[index % 2])
            logits.append(ops.fused(number, unit, bias[index]))
        found.append(logits)
    return found


def _add_tile(
    ops: Any,
    shape: KltShape,
    lane: Lane,
    tiles: KltTiles,
    slot: Any,
    state: list[Any],
    logits: list[list[Any]],
) -> list[Any]:
    """The state with the tokens of a tile; as in ``coded_program``, and with the page's mean."""
    tile_top = [
        over_rows(ops, functools.reduce(ops.maximum, (x for each in logits for x in each[n::2]))) for n in (0, 1)
    ]
    top = [ops.maximum(old, new) for old, new in zip(state[:2], tile_top, strict=True)]
    grows = functools.reduce(ops.one_of, (ops.above(new, old) for new, old in zip(top, state[:2], strict=True)))
    rest = ops.choose(ops.any_lane(grows), lambda: decayed(ops, state, top), state[2:])
    total, shift, weighted = list(rest[:2]), list(rest[2:4]), list(rest[4:])

    scales = tiles.scales(slot, 1)
    largest = functools.reduce(ops.maximum, (scale for pair in scales for scale in pair))
    largest = ops.maximum(over_rows(ops, largest), ops.real(_SMALLEST))
    unit = ops.scaled(ops.reciprocal(largest), ops.real(float(LARGEST)))
    tile_total, tile_shift = [ops.real(0.0)] * 2, [ops.real(0.0)] * 2
    columns: list[list[Any]] = [[] for _ in range(shape.blocks)]
    for product in range(PRODUCTS):
        by_row = [ops.scaled(scale, unit) for scale in scales[product]]
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

    weight = [ops.scaled(over_rows(ops, new, ops.plus), each) for new, each in zip(tile_total, decay, strict=True)]
    if shape.paired:  # columns of low bytes are added to those of high ones
        high = ops.less(lane.column, ops.integer(2))
        weight = [ops.select(high, each, ops.real(0.0)) for each in weight]
    mean_factors = tiles.mean_factors(slot)
    start = ops.integer(0)
    for group in range(GROUPS):
        width = _width(ops, tiles.value_widths, group)
        mine = weighted[4 * group : 4 * group + 4]

        def multiplied(bits: int, start: Any = start, mine: list[Any] = mine) -> list[Any]:
            near, far = (
                decode_unit(ops, unit, codes_of(bits)) for unit in tiles.units(slot, shape.stage_values, start, bits)
            )
            found = list(mine)
            for right, units in zip(columns, block_units, strict=True):
                sums = [ops.integer(MAGIC_BITS)] * 4
                for pair in (0, 2):
                    first = (near[pair], far[pair], near[pair + 1], far[pair + 1])
                    sums = ops.multiply_bytes(sums, first, right[pair : pair + 2])
                for index in range(4):
                    added = ops.minus(ops.as_real(sums[index]), ops.real(MAGIC))
                    found[index] = ops.fused(added, units[index % 2], found[index])
            return found

        for bits in shape.value_widths:
            mine = ops.choose(ops.equal(width, bits), functools.partial(multiplied, bits, mine=mine), mine)
        for half in range(2):
            mean = ops.scaled(tiles.mean(slot, group, half), mean_factors[group])
            for n in range(2):
                mine[2 * half + n] = ops.fused(mean, weight[n], mine[2 * half + n])
        weighted[4 * group : 4 * group + 4] = mine
        start = ops.add(start, ops.times(width, 8 * GROUP))
    return [*top, *total, *shift, *weighted]


assert DIM == GROUP * GROUPS
