"""The softmax of a tile: logits of its tokens from sums of products, their shares as bytes, and values times those.

Sums of products are below 2^22 in size, so an accumulator that starts at the bits of 1.5 * 2^23 is, read as a float,
that number plus the sum: no conversion from integers is needed.

A lane has ``shape.blocks`` queries (``query_columns``): so many entries has whatever is said here to be of queries.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST, PRODUCTS, TileShape
from kakeya_jax.pallas_kernels.attention.query_columns import byte_numbers
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, over_rows

_SMALLEST = 1e-30

_LOW_SIGNS = 0x80800000
"""The highest bits of low bytes, which those 128 have inverted."""


class Shares(NamedTuple):
    """What the tokens of a tile weigh.

    Attributes:
        top: largest logits so far of this lane's queries.
        total: sums of weights, beside those of other lanes, and
        shift: of numbers; for each group of channels whose levels have minima, of weights times those.
        weighted: values so far, relative to ``top``.
        columns: for each query the numbers of all products, as right operands.
        units: what products with them are multiplied by.
        tile_total: sums of the tile's own weights, relative to its largest logit, and
        decay: what makes them relative to ``top``.
    """

    top: list[Any]
    total: list[Any]
    shift: list[Any]
    weighted: list[Any]
    columns: list[list[Any]]
    units: list[Any]
    tile_total: list[Any]
    decay: list[Any]


def empty_state(ops: Any, shape: TileShape) -> list[Any]:
    """Largest logits of queries, sums of their weights and of their numbers, and a lane's values: those of every eight
    channels, a query's beside another's."""
    zeros = 1 + shape.shifts + shape.dim // COLUMNS
    return [*[ops.real(LOWEST)] * shape.blocks, *[ops.real(0.0)] * (zeros * shape.blocks)]


def parts_of(shape: TileShape, rest: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Of a state without its largest logits: sums of weights, of numbers, and values."""
    values = (1 + shape.shifts) * shape.blocks
    return list(rest[: shape.blocks]), list(rest[shape.blocks : values]), list(rest[values:])


def shares_of(
    ops: Any,
    shape: TileShape,
    state: list[Any],
    logits: list[list[Any]],
    largest_scale: Callable[[], Any],
    scales_of: Callable[[int], list[Any]],
) -> Shares:
    """The weights of a tile's tokens times the scales of their values, as numbers of 16 bits in two bytes.

    They are relative to the tile's own largest logit and largest scale, so that what 16 bits cannot hold beside a
    dominating token is at most what 63 tokens can lose.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        state: see ``empty_state``.
        logits: to the base 2, for each product of rows ``g`` and ``g + 8`` and, faster, queries.
        largest_scale: the largest of this lane's tokens' values, and
        scales_of: those of a product's two rows.
    """
    tile_top, top, (total, shift, weighted) = tile_tops(ops, shape, state, logits)
    largest = ops.maximum(over_rows(ops, largest_scale()), ops.real(_SMALLEST))
    unit = ops.scaled(ops.reciprocal(largest), ops.real(float(LARGEST)))
    tile_total, tile_shift = [ops.real(0.0)] * shape.blocks, [ops.real(0.0)] * shape.blocks
    columns: list[list[Any]] = [[] for _ in range(shape.blocks)]
    for product in range(PRODUCTS):
        by_row = [ops.scaled(scale, unit) for scale in scales_of(product)]
        numbers = []
        for index, logit in enumerate(logits[product]):
            half, n = divmod(index, shape.blocks)
            share = ops.power_of_two(ops.minus(logit, tile_top[n]))
            tile_total[n] = ops.plus(tile_total[n], share)
            tile_shift[n] = ops.fused(share, by_row[half], tile_shift[n])
            numbers.append(ops.as_integer(ops.fused(share, by_row[half], ops.real(MAGIC + 128.0))))
        for right, register in zip(columns, share_bytes(ops, shape, numbers), strict=True):
            right.append(ops.transpose(register))

    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(tile_top, top, strict=True)]
    unscale = ops.scaled(largest, ops.real(1.0 / LARGEST))
    share_unit = [ops.scaled(each, unscale) for each in decay]
    total = [ops.fused(new, each, old) for new, each, old in zip(tile_total, decay, total, strict=True)]
    shift = [ops.fused(new, each, old) for new, each, old in zip(tile_shift, share_unit, shift, strict=True)]
    return Shares(top, total, shift, weighted, columns, share_unit, tile_total, decay)


def tile_tops(
    ops: Any, shape: TileShape, state: list[Any], logits: list[list[Any]]
) -> tuple[list[Any], list[Any], tuple[list[Any], list[Any], list[Any]]]:
    """A tile's largest logits, the largest so far, and sums, numbers and values so far, relative to those."""
    queries, before = range(shape.blocks), state[: shape.blocks]
    of_lane = [functools.reduce(ops.maximum, (x for each in logits for x in each[n :: shape.blocks])) for n in queries]
    tile_top = [over_rows(ops, each) for each in of_lane]
    top = list(map(ops.maximum, before, tile_top))
    grows = functools.reduce(ops.one_of, map(ops.above, top, before))
    rest = ops.choose(ops.any_lane(grows), lambda: _decayed(ops, shape, state, top), state[shape.blocks :])
    return tile_top, top, parts_of(shape, rest)


def add_values(
    ops: Any, shares: Shares, near: list[Any], far: list[Any], weighted: list[Any], magic: list[Any]
) -> list[Any]:
    """``weighted`` of 16 channels, with a tile's codes of channels ``g`` (``near``) and ``g + 8`` times its shares.

    ``magic`` is ``MAGIC_BITS`` in four registers.
    """
    products = []
    for right in shares.columns:
        sums = magic
        for pair in (0, 2):
            first = (near[pair], far[pair], near[pair + 1], far[pair + 1])
            sums = ops.multiply_bytes(sums, first, right[pair : pair + 2])
        products.append(sums)
    numbers = byte_numbers(ops, products)
    return [
        ops.fused(number, shares.units[index % len(shares.units)], before)
        for index, (number, before) in enumerate(zip(numbers, weighted, strict=True))
    ]


def share_bytes(ops: Any, shape: TileShape, numbers: list[Any]) -> list[Any]:
    """For each query the bytes of its shares, tokens ``g`` and ``g + 8`` side by side: high ones are a column, low ones
    the next. A number is its bits plus 128."""
    joined = [
        ops.permute_bytes(*numbers[n :: shape.blocks], ops.integer(0x4051))  # high bytes of both, and low ones
        for n in range(shape.blocks)
    ]
    return [ops.differing(each, ops.integer(_LOW_SIGNS)) for each in joined]


def _decayed(ops: Any, shape: TileShape, state: list[Any], top: list[Any]) -> list[Any]:
    """Everything but the largest logits, relative to new ones."""
    before, rest = state[: shape.blocks], state[shape.blocks :]
    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(before, top, strict=True)]
    return [ops.scaled(each, decay[index % shape.blocks]) for index, each in enumerate(rest)]
