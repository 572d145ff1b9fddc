"""The softmax of a tile: logits of its tokens from sums of products, their shares as bytes, and values times those.

Sums of products are below 2^22 in size, so an accumulator that starts at the bits of 1.5 * 2^23 is, read as a float,
that number plus the sum: no conversion from integers is needed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import LARGEST, PRODUCTS, TileShape
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, Lane, over_rows

_SMALLEST = 1e-30


class Shares(NamedTuple):
    """What the tokens of a tile weigh.

    Attributes:
        top: largest logits so far of this lane's two queries.
        total: sums of weights, beside those of other lanes, and
        shift: of numbers; for each group of channels whose levels have minima, of weights times those.
        weighted: values so far, relative to ``top``.
        columns: for each block of eight columns the numbers of all products, as right operands.
        units: for each block what products with them are multiplied by, for two queries.
        tile_total: sums of the tile's own weights, relative to its largest logit, and
        decay: what makes them relative to ``top``.
    """

    top: list[Any]
    total: list[Any]
    shift: list[Any]
    weighted: list[Any]
    columns: list[list[Any]]
    units: list[list[Any]]
    tile_total: list[Any]
    decay: list[Any]


def empty_state(ops: Any, shape: TileShape) -> list[Any]:
    """Largest logits of two queries, sums of their weights and of their numbers, and a lane's values."""
    zero, lowest = ops.real(0.0), ops.real(LOWEST)
    return [lowest, lowest, *[zero] * (2 + 2 * shape.shifts + 4 * (shape.dim // 16))]


def parts_of(shape: TileShape, rest: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Of a state without its largest logits: sums of weights, of numbers, and values."""
    values = 2 + 2 * shape.shifts
    return list(rest[:2]), list(rest[2:values]), list(rest[values:])


def number_of(ops: Any, shape: TileShape, lane: Lane, sums: list[list[Any]], index: int) -> Any:
    """What the bytes of a query and the codes of a token come to, from the sums of every block of query rows."""
    if shape.paired:
        part = ops.fused(ops.as_real(sums[0][index]), lane.weight, lane.offset)
        return ops.plus(part, ops.exchange(part, 2))
    high, low = (ops.minus(ops.as_real(each[index]), ops.real(MAGIC)) for each in sums)
    return ops.fused(high, ops.real(256.0), low)


def shares_of(
    ops: Any,
    shape: TileShape,
    lane: Lane,
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
        lane: who this thread is.
        state: see ``empty_state``.
        logits: to the base 2, for each product of rows ``g`` and ``g + 8`` and columns ``2 t`` and ``2 t + 1``.
        largest_scale: the largest of this lane's tokens' values, and
        scales_of: those of a product's two rows.
    """
    tile_top, top, (total, shift, weighted) = tile_tops(ops, shape, state, logits)
    largest = ops.maximum(over_rows(ops, largest_scale()), ops.real(_SMALLEST))
    unit = ops.scaled(ops.reciprocal(largest), ops.real(float(LARGEST)))
    tile_total, tile_shift = [ops.real(0.0)] * 2, [ops.real(0.0)] * 2
    columns: list[list[Any]] = [[] for _ in range(shape.blocks)]
    for product in range(PRODUCTS):
        by_row = [ops.scaled(scale, unit) for scale in scales_of(product)]
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
        units = [[ops.scaled(each, lane.weight) for each in share_unit]]
    else:
        units = [[ops.scaled(each, ops.real(256.0)) for each in share_unit], share_unit]
    return Shares(top, total, shift, weighted, columns, units, tile_total, decay)


def tile_tops(
    ops: Any, shape: TileShape, state: list[Any], logits: list[list[Any]]
) -> tuple[list[Any], list[Any], tuple[list[Any], list[Any], list[Any]]]:
    """A tile's largest logits, the largest so far, and sums, numbers and values so far, relative to those."""
    tile_top = [
        over_rows(ops, functools.reduce(ops.maximum, (x for each in logits for x in each[n::2]))) for n in (0, 1)
    ]
    top = [ops.maximum(old, new) for old, new in zip(state[:2], tile_top, strict=True)]
    grows = functools.reduce(ops.one_of, (ops.above(new, old) for new, old in zip(top, state[:2], strict=True)))
    rest = ops.choose(ops.any_lane(grows), lambda: _decayed(ops, state, top), state[2:])
    return tile_top, top, parts_of(shape, rest)


def add_values(
    ops: Any, shares: Shares, near: list[Any], far: list[Any], weighted: list[Any], magic: list[Any]
) -> list[Any]:
    """``weighted`` of 16 channels, with a tile's codes of channels ``g`` (``near``) and ``g + 8`` times its shares.

    ``magic`` is ``MAGIC_BITS`` in four registers.
    """
    found = list(weighted)
    for right, units in zip(shares.columns, shares.units, strict=True):
        sums = magic
        for pair in (0, 2):
            first = (near[pair], far[pair], near[pair + 1], far[pair + 1])
            sums = ops.multiply_bytes(sums, first, right[pair : pair + 2])
        for index in range(4):
            added = ops.minus(ops.as_real(sums[index]), ops.real(MAGIC))
            found[index] = ops.fused(added, units[index % 2], found[index])
    return found


def share_bytes(ops: Any, shape: TileShape, lane: Lane, numbers: list[Any]) -> list[Any]:
    """Bytes of shares, tokens ``g`` and ``g + 8`` of each column side by side; a number is its bits plus 128."""
    pairs = [(numbers[n], numbers[n + 2]) for n in (0, 1)]
    if shape.paired:
        low, high = (ops.permute_bytes(*pair, lane.pick) for pair in pairs)
        return [ops.differing(ops.permute_bytes(low, high, ops.integer(0x5410)), lane.flip)]
    both = [ops.permute_bytes(*pair, ops.integer(0x4051)) for pair in pairs]
    joined = [ops.permute_bytes(*both, ops.integer(selector)) for selector in (0x5410, 0x7632)]
    return [joined[0], ops.differing(joined[1], ops.integer(0x80808080))]


def _decayed(ops: Any, state: list[Any], top: list[Any]) -> list[Any]:
    """Everything but the largest logits, relative to new ones."""
    decay = [ops.power_of_two(ops.minus(old, new)) for old, new in zip(state[:2], top, strict=True)]
    return [ops.scaled(each, decay[index % 2]) for index, each in enumerate(state[2:])]
