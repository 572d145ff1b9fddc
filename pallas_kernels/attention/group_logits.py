"""Logits over keys with a scale for each group of channels, in integer products.

A product is 32 channels deep, so that one, or a few, are of one group: their sums are multiplied by the token's scale
of it and added up as floats. Sums start at the bits of 1.5 * 2^23 (see ``tile_shares``). That number times the scales
is taken off once for each token instead of from each sum; what floats of that size round away is about as much as what
rounding queries to 16 bits does.
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention.code_bytes import decode_unit
from kakeya_jax.pallas_kernels.attention.coded_shape import CodedShape
from kakeya_jax.pallas_kernels.attention.held_words import Held
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC


def group_logits(
    ops: Any,
    shape: CodedShape,
    held: Held,
    units: Any,
    words: list[Any],
    minima: list[Any],
    query: list[list[list[Any]]],
    sums_of_query: list[list[list[Any]]],
    factors: list[Any],
) -> list[Any]:
    """Logits to the base 2, as ``tile_logits.logits_of``.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        held: constants.
        units: for both tokens the registers of this lane's units, in lane order.
        words: packed float16, all scales of the first token, then of the second, and
        minima: likewise; empty if there are none.
        query: bytes of the queries, for each block of columns, unit and quad, and
        sums_of_query: see ``query_sums``.
        factors: of this lane's queries.
    """
    groups = shape.key.scales
    scales = [[scale_of(ops, words, token * groups + group) for group in range(groups)] for token in range(2)]
    starts = [_start(ops, of_token) for of_token in scales]
    found = [[starts[0], starts[0], starts[1], starts[1]] for _ in range(shape.blocks)]
    table, products = held.tables[shape.key], []
    for unit in range(shape.units):
        low, high = (decode_unit(ops, units[token][unit], shape.key, table) for token in range(2))
        products += [(unit, pair, (low[pair], high[pair], low[pair + 1], high[pair + 1])) for pair in (0, 2)]
    depth = len(products) // groups
    for group in range(groups):
        for block in range(shape.blocks):
            sums = held.magic
            for unit, pair, first in products[depth * group : depth * (group + 1)]:
                sums = ops.multiply_bytes(sums, first, query[block][unit][pair : pair + 2])
            found[block] = [
                ops.fused(ops.as_real(each), scales[index // 2][group], total)
                for index, (each, total) in enumerate(zip(sums, found[block], strict=True))
            ]
    if minima:
        least = [[scale_of(ops, minima, token * groups + group) for group in range(groups)] for token in range(2)]
        steps = [_beside(ops, shape, *each) for each in zip(scales, least, strict=True)]
        for block, sums in enumerate(sums_of_query):
            more = [_product(ops, steps[index // 2], [of_group[index % 2] for of_group in sums]) for index in range(4)]
            found[block] = [ops.plus(*each) for each in zip(found[block], more, strict=True)]
    parts = [four[2 * half : 2 * half + 2] for half in range(2) for four in found]
    numbers = [ops.fused(high, ops.real(256.0), low) for high, low in parts]
    return list(map(ops.scaled, numbers, factors * 2))


def query_sums(ops: Any, shape: CodedShape, query: list[list[list[Any]]]) -> list[list[list[Any]]]:
    """What a step more in every channel of a group adds to this lane's two columns: for each block of columns, group
    and column; as a product with such steps."""
    step = [ops.integer(0x01010101 * shape.key.step)] * 4
    pairs = [(unit, pair) for unit in range(shape.units) for pair in (0, 2)]
    depth, found = len(pairs) // shape.key.scales, []
    for block in query:
        sums = []
        for first in range(0, len(pairs), depth):
            total = [ops.integer(0)] * 4
            for unit, pair in pairs[first : first + depth]:
                total = ops.multiply_bytes(total, step, block[unit][pair : pair + 2])
            sums.append([ops.converted(each) for each in total[:2]])
        found.append(sums)
    return found


def _beside(ops: Any, shape: CodedShape, scales: list[Any], minima: list[Any]) -> list[Any]:
    """What levels of a token's groups are whose bytes are 0."""
    zero = ops.real(float(shape.key.zero))
    return [ops.fused(scale, zero, low) for scale, low in zip(scales, minima, strict=True)]


def _product(ops: Any, first: list[Any], second: list[Any]) -> Any:
    found = ops.scaled(first[0], second[0])
    for pair in zip(first[1:], second[1:], strict=True):
        found = ops.fused(*pair, found)
    return found


def scale_of(ops: Any, words: list[Any], index: int) -> Any:
    """One of packed float16 as a float."""
    return ops.half_of(words[index // 2], upper=bool(index % 2))


def _start(ops: Any, scales: list[Any]) -> Any:
    """What a token's groups have too much."""
    found = ops.scaled(scales[0], ops.real(-MAGIC))
    for scale in scales[1:]:
        found = ops.fused(scale, ops.real(-MAGIC), found)
    return found
