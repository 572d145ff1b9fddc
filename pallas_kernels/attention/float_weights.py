"""What the tokens of a tile weigh, as sums of two float16 or bfloat16: right operands beside values of that type.

Up to four queries have their high parts in columns 0 to 3 and their low parts in 4 to 7, as bytes have elsewhere; more
take a product for each part.
"""

import functools
from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.exact_values import pack_pair, unpacked
from kakeya_jax.pallas_kernels.attention.float_shape import FloatShape
from kakeya_jax.pallas_kernels.attention.tile_shares import tile_tops
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, over_rows

_SMALLEST = 1e-30
_LARGEST = 2.0**15
"""The largest weight of a tile, or less: low parts then are normal float16 for weights down to a 2^18th of it."""


class FloatWeights(NamedTuple):
    """What the tokens of a tile weigh.

    Attributes:
        top: largest logits so far of this lane's two queries.
        total: sums of weights, beside those of other lanes.
        weighted: values so far, relative to ``top``.
        columns: for each product the right operands that it is multiplied with, to be added up.
        units: what products are multiplied by, for two queries.
    """

    top: list[Any]
    total: list[Any]
    weighted: list[Any]
    columns: list[list[list[Any]]]
    units: list[Any]


def float_weights(
    ops: Any, shape: FloatShape, lane: Lane, state: list[Any], logits: list[list[Any]], scales: list[list[Any]]
) -> FloatWeights:
    """The weights of a tile's tokens times the scales of their values, relative to the largest of both in the tile.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        lane: who this thread is.
        state: see ``empty_state``.
        logits: to the base 2, for each product of rows ``g`` and ``g + 8`` and columns ``2 t`` and ``2 t + 1``.
        scales: for each product those of its two rows; empty if there are none.
    """
    tile_top, top, (total, _, weighted) = tile_tops(ops, shape, state, logits)
    unit, unscale = ops.real(_LARGEST), ops.real(1 / _LARGEST)
    if scales:
        mine = functools.reduce(ops.maximum, (each for pair in scales for each in pair))
        largest = ops.maximum(over_rows(ops, mine), ops.real(_SMALLEST))
        unit, unscale = ops.scaled(ops.reciprocal(largest), unit), ops.scaled(largest, unscale)
    # High parts are taken off, by lanes that have low ones.
    sign = ops.real(-1.0)
    if shape.paired:
        sign = ops.select(ops.less(lane.column, ops.integer(2)), ops.real(0.0), sign)
    tile_total, columns = [ops.real(0.0)] * 2, []
    for product, four in enumerate(logits):
        rights: list[list[Any]] = [[] for _ in range(shape.blocks)]
        for half in range(2):
            factor = ops.scaled(scales[product][half], unit) if scales else unit
            numbers = []
            for n, logit in enumerate(four[2 * half : 2 * half + 2]):
                share = ops.power_of_two(ops.minus(logit, tile_top[n]))
                tile_total[n] = ops.plus(tile_total[n], share)
                numbers.append(ops.scaled(share, factor))
            high = pack_pair(ops, numbers, shape.value.multiplied)
            parts = unpacked(ops, high, shape.value.multiplied)
            rest = [ops.fused(part, sign, number) for part, number in zip(parts, numbers, strict=True)]
            low = pack_pair(ops, rest, shape.value.multiplied)
            for right, word in zip(rights, (low,) if shape.paired else (high, low), strict=True):
                right.append(ops.transpose(word))
        columns.append(rights)
    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(tile_top, top, strict=True)]
    return FloatWeights(
        top=top,
        total=[ops.fused(new, each, old) for new, each, old in zip(tile_total, decay, total, strict=True)],
        weighted=weighted,
        columns=columns,
        units=[ops.scaled(each, unscale) for each in decay],
    )
