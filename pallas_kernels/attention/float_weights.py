"""What the tokens of a tile weigh, as sums of two float16 or bfloat16: right operands beside values of that type.

Both parts of up to four queries are neighbouring columns of one product; more take a product for each part
(``query_columns``).
"""

import functools
from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.exact_values import pack_pair, unpacked
from kakeya_jax.pallas_kernels.attention.float_shape import FloatShape
from kakeya_jax.pallas_kernels.attention.tile_shares import tile_tops
from kakeya_jax.pallas_kernels.attention.warp_lane import over_rows

_SMALLEST = 1e-30
_LARGEST = 2.0**15
"""The largest weight of a tile, or less: low parts then are normal float16 for weights down to a 2^18th of it."""


class FloatWeights(NamedTuple):
    """What the tokens of a tile weigh.

    Attributes:
        top: largest logits so far of this lane's queries.
        total: sums of weights, beside those of other lanes.
        weighted: values so far, relative to ``top``.
        columns: for each product the right operands that it is multiplied with, to be added up.
        units: what products are multiplied by, for each query.
    """

    top: list[Any]
    total: list[Any]
    weighted: list[Any]
    columns: list[list[list[Any]]]
    units: list[Any]


def float_weights(
    ops: Any, shape: FloatShape, state: list[Any], logits: list[list[Any]], scales: list[list[Any]]
) -> FloatWeights:
    """The weights of a tile's tokens times the scales of their values, relative to the largest of both in the tile.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        state: see ``empty_state``.
        logits: to the base 2, for each product of rows ``g`` and ``g + 8`` and, faster, queries.
        scales: for each product those of its two rows; empty if there are none.
    """
    tile_top, top, (total, _, weighted) = tile_tops(ops, shape, state, logits)
    unit, unscale = ops.real(_LARGEST), ops.real(1 / _LARGEST)
    if scales:
        mine = functools.reduce(ops.maximum, (each for pair in scales for each in pair))
        largest = ops.maximum(over_rows(ops, mine), ops.real(_SMALLEST))
        unit, unscale = ops.scaled(ops.reciprocal(largest), unit), ops.scaled(largest, unscale)
    tile_total, columns = [ops.real(0.0)] * shape.blocks, []
    for product, four in enumerate(logits):
        rights: list[list[Any]] = [[] for _ in range(shape.blocks)]
        for half in range(2):
            factor = ops.scaled(scales[product][half], unit) if scales else unit
            numbers = []
            for n, logit in enumerate(four[shape.blocks * half :][: shape.blocks]):
                share = ops.power_of_two(ops.minus(logit, tile_top[n]))
                tile_total[n] = ops.plus(tile_total[n], share)
                numbers.append(ops.scaled(share, factor))
            for right, word in zip(rights, _columns(ops, shape, numbers), strict=True):
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


def _columns(ops: Any, shape: FloatShape, numbers: list[Any]) -> list[Any]:
    """Both parts of a query's number as two columns; or high parts of two queries, and low ones."""
    kind = shape.value.multiplied
    high = pack_pair(ops, [numbers[0], numbers[-1]], kind)
    rest = [ops.minus(number, part) for part, number in zip(unpacked(ops, high, kind), numbers, strict=False)]
    if shape.blocks > 1:
        return [high, pack_pair(ops, rest, kind)]
    return [pack_pair(ops, [numbers[0], *rest], kind)]
