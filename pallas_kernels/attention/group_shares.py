"""What tokens weigh, times scales of their values that differ by group of channels: bytes for each group.

A weight is taken once for each token; each group has numbers of its own, weights times its scales, relative to its
largest scale in the tile: so a group of small values is as exact as one of large ones.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import LARGEST, CodedShape
from kakeya_jax.pallas_kernels.attention.group_logits import scale_of
from kakeya_jax.pallas_kernels.attention.tile_shares import Shares, share_bytes, tile_tops
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC

_SMALLEST = 1e-30


def group_shares(
    ops: Any,
    shape: CodedShape,
    state: list[Any],
    logits: list[list[Any]],
    words: list[list[Any]],
    minima: list[list[Any]],
) -> tuple[Shares, Callable[[int], Shares]]:
    """See ``tile_shares.shares_of``; without columns and units, which are those of a group and come from a function.

    So does ``shift``, if levels have minima; else it stays zero, which is right for levels that are their bytes.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        state: see ``empty_state``.
        logits: to the base 2, for each product of rows ``g`` and ``g + 8`` and, faster, queries.
        words: for each product packed float16, all scales of a row's token, then of the other's, and
        minima: likewise; empty if there are none.
    """
    tile_top, top, (total, shift, weighted) = tile_tops(ops, shape, state, logits)
    queries, groups = shape.blocks, shape.value.scales
    pairs = groups // 2
    largest = []
    for pair in range(pairs):
        found = functools.reduce(ops.larger_halves, (word for each in words for word in each[pair::pairs]))
        for distance in (4, 8, 16):
            found = ops.larger_halves(found, ops.as_integer(ops.exchange(ops.as_real(found), distance)))
        largest.append(found)

    shares, tile_total = [], [ops.real(0.0)] * queries
    for of_product in logits:
        shares.append([ops.power_of_two(ops.minus(x, tile_top[index % queries])) for index, x in enumerate(of_product)])
        for index, share in enumerate(shares[-1]):
            tile_total[index % queries] = ops.plus(tile_total[index % queries], share)
    decay = [ops.power_of_two(ops.minus(*pair)) for pair in zip(tile_top, top, strict=True)]
    total = [ops.fused(*each) for each in zip(tile_total, decay, total, strict=True)]
    unit = [ops.scaled(each, ops.real(1 / LARGEST)) for each in decay]
    base = Shares(top, total, [ops.real(0.0)] * queries, weighted, [], [], tile_total, decay)

    def of_group(group: int) -> Shares:
        top_scale = ops.maximum(scale_of(ops, largest, group), ops.real(_SMALLEST))
        inverse = ops.scaled(ops.reciprocal(top_scale), ops.real(float(LARGEST)))
        columns: list[list[Any]] = [[] for _ in range(queries)]
        sums = [ops.real(0.0)] * queries
        for product, row in enumerate(shares):
            scales = [scale_of(ops, words[product], token * groups + group) for token in range(2)]
            by_row = [ops.scaled(scale, inverse) for scale in scales]
            if minima:
                least = [scale_of(ops, minima[product], token * groups + group) for token in range(2)]
                if shape.value.zero:
                    zero = ops.real(float(shape.value.zero))
                    least = [ops.fused(scale, zero, low) for scale, low in zip(scales, least, strict=True)]
                for index, share in enumerate(row):
                    half, n = divmod(index, queries)
                    sums[n] = ops.fused(share, least[half], sums[n])
            numbers = [
                ops.as_integer(ops.fused(share, by_row[index // queries], ops.real(MAGIC + 128.0)))
                for index, share in enumerate(row)
            ]
            for right, register in zip(columns, share_bytes(ops, shape, numbers), strict=True):
                right.append(ops.transpose(register))
        units = [ops.scaled(each, top_scale) for each in unit]
        if minima:
            old = shift[queries * group : queries * (group + 1)]
            mine = [ops.fused(*each) for each in zip(sums, decay, old, strict=True)]
            return base._replace(columns=columns, units=units, shift=mine)
        return base._replace(columns=columns, units=units)

    return base, of_group
