"""What the tokens of a tile weigh, as float16, for values whose products are of floats.

A product is 16 deep: two coordinates of eight tokens. Its columns are queries for one of the coordinates, so a weight
stands where its coordinate is and a zero where the other is. Up to four queries have both coordinates in one product,
side by side; more take a product for each.
"""

from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS, TileShape
from kakeya_jax.pallas_kernels.attention.tile_shares import tile_tops
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, over_rows

_SMALLEST = 1e-30
_LARGEST = 2.0**15
"""The largest weight of a tile, or less: float16 has eleven bits of those down to a 2^29th of it."""


class PairShares(NamedTuple):
    """What the tokens of a tile weigh.

    Attributes:
        top: largest logits so far of this lane's queries.
        total: sums of weights, beside those of other lanes.
        weighted: values so far, relative to ``top``.
        columns: for each block of eight columns the right operands of all products of eight tokens.
        units: what products are multiplied by, for each query.
        tile_weight: sums of the tile's own weights, over all lanes, relative to ``top``.
    """

    top: list[Any]
    total: list[Any]
    weighted: list[Any]
    columns: list[list[list[Any]]]
    units: list[Any]
    tile_weight: list[Any]


def pair_shares(
    ops: Any,
    shape: TileShape,
    picks: list[list[Any]],
    state: list[Any],
    logits: list[list[Any]],
    words: list[Any],
    *,
    means: bool,
) -> PairShares:
    """The weights of a tile's tokens times the scales of their values, relative to the largest of both in the tile.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        picks: see ``weight_picks``.
        state: largest logits of queries, sums of their weights, and a lane's values.
        logits: to the base 2, for each product of rows ``g`` and ``g + 8`` and, faster, queries.
        words: for each product packed float16, the scales of its two rows.
        means: whether ``tile_weight`` is wanted.
    """
    tile_top, top, (total, _, weighted) = tile_tops(ops, shape, state, logits)
    largest = ops.maximum(over_rows(ops, ops.largest_half(words)), ops.real(_SMALLEST))
    unit = ops.scaled(ops.reciprocal(largest), ops.real(_LARGEST))
    tile_total = [ops.real(0.0)] * shape.blocks
    columns: list[list[list[Any]]] = [[] for _ in picks]
    zero = ops.integer(0)
    for product in range(PRODUCTS):
        for half in range(2):
            scale = ops.scaled(ops.half_of(words[product], upper=bool(half)), unit)
            numbers = []
            for n, logit in enumerate(logits[product][shape.blocks * half :][: shape.blocks]):
                share = ops.power_of_two(ops.minus(logit, tile_top[n]))
                tile_total[n] = ops.plus(tile_total[n], share)
                numbers.append(ops.scaled(share, scale))
            two = ops.transpose(ops.pack_halves(numbers[0], numbers[-1]))  # of a query and two tokens
            for block, pick in enumerate(picks):
                columns[block].append([ops.permute_bytes(two, zero, each) for each in pick])
    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(tile_top, top, strict=True)]
    unscale = ops.scaled(largest, ops.real(1.0 / _LARGEST))
    weight = []
    if means:
        weight = [
            ops.scaled(over_rows(ops, each, ops.plus), factor) for each, factor in zip(tile_total, decay, strict=True)
        ]
    return PairShares(
        top=top,
        total=[ops.fused(new, each, old) for new, each, old in zip(tile_total, decay, total, strict=True)],
        weighted=weighted,
        columns=columns,
        units=[ops.scaled(each, unscale) for each in decay],
        tile_weight=weight,
    )


def weight_picks(ops: Any, shape: TileShape, lane: Lane) -> list[list[Any]]:
    """For each block of columns, which bytes make right operands of two tokens' weights and a zero.

    Two tokens each; the first coordinate of a token is the lower half.
    """
    first, second = ((0x4410, 0x4432), (0x1044, 0x3244))
    if shape.blocks > 1:
        return [[ops.integer(each) for each in coordinate] for coordinate in (first, second)]
    even = ops.equal(ops.modulo(lane.row, 2), 0)  # a right operand's rows of lanes are its columns
    return [[ops.select(even, ops.integer(x), ops.integer(y)) for x, y in zip(first, second, strict=True)]]
