"""Logits over keys with a scale and a minimum for each channel of 32 tokens: products of float16.

Rows of a product are tokens, and a lane's two are of the same 32: so its part of their scales and minima, a quarter of
the channels, is loaded once a tile. Codes, less one of them, become pairs of float16 under a mask (``pair_words``),
which are multiplied by scales: exactly those of 2 bits, those of 4 with an error of at most 2^-12. What minima and the
code that was taken off come to are products of their own, and what all sums of the tile start from. Queries are the
sums of two float16 (``query_columns``).

Of every four pairs, the first and third are the depth of one product, the second and fourth of the next: so four
words as they are loaded are the left operand of minima, half of whose rows are of use in either.
"""

from typing import Any

import numpy as np

from kakeya_jax.pallas_kernels.attention.coded_shape import CodedShape
from kakeya_jax.pallas_kernels.attention.query_columns import float_blocks, float_numbers
from kakeya_jax.pallas_kernels.attention.query_form import ROWS
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_ONE = 1024.0
"""What a code in the lowest bits of a float16 is added to,"""
_ONE_BITS = 0x64006400
"""and the bits of it, twice."""
_ROOM = 10
"""Bits below them."""

_MIDDLE = {2: 1, 4: 8}
"""What is taken off codes, so that their products with scales are small, or powers of two: exact."""


def load_half_queries(ops: Any, shape: CodedShape, lane: Lane, queries: Any) -> list[list[Any]]:
    """A head's queries as right operands: for each block of columns pairs of a quarter of the channels.

    ``queries`` are where ``HeadQueries`` put them.
    """
    row = 2 * shape.dim
    where = ops.shared_offset(queries, ops.add(ops.times(lane.row, row), ops.times(lane.column, row // 4)))
    return [
        [
            word
            for first in range(0, row // 4, 16)
            for word in ops.shared_words(where, 4, ROWS + 8 * row * block + first)
        ]
        for block in range(float_blocks(shape, shape.queries))
    ]


def channel_starts(
    ops: Any, shape: CodedShape, scales: list[Any], minima: list[Any], query: list[list[Any]]
) -> list[Any]:
    """What sums start from, in units of ``2 ** bits``."""
    bits = shape.key.bits
    least, middle = (_of_channels(ops, words, query) for words in (minima, scales))
    unit, part = ops.real(0.5**bits), ops.real(0.5**bits * _MIDDLE[bits])
    return [ops.fused(step, part, ops.scaled(low, unit)) for step, low in zip(middle, least, strict=True)] * 2


def _of_channels(ops: Any, words: list[Any], query: list[list[Any]]) -> list[Any]:
    """Sums for two columns of what is equal for all tokens of a lane."""
    sums = [[ops.real(0.0)] * 4 for _ in range(2)]
    for first in range(0, len(words), 4):
        for odd in range(2):
            for right in query:
                pair = [right[first + odd], right[first + odd + 2]]
                sums[odd] = ops.multiply_halves(sums[odd], words[first : first + 4], pair)
    return [ops.plus(*each) for each in zip(sums[0][:2], sums[1][2:], strict=True)]


def channel_logits(
    ops: Any,
    shape: CodedShape,
    units: Any,
    scales: list[Any],
    starts: list[Any],
    query: list[list[Any]],
    factors: list[Any],
) -> list[Any]:
    """Logits to the base 2, as ``tile_logits.logits_of``.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        units: for both tokens the registers of this lane's units.
        scales: of its channels, packed float16.
        starts: see ``channel_starts``.
        query: see ``load_half_queries``.
        factors: of this lane's queries, ``2 ** bits`` in them.
    """
    pairs = [
        [pair for unit in of_token for word in unit for pair in _pairs(ops, word, shape.key.bits)] for of_token in units
    ]
    sums = starts
    for first in (index for index in range(len(scales)) if index % 4 < 2):
        depth = (first, first + 2)
        left = [ops.scaled_halves(pairs[token][index], scales[index]) for index in depth for token in range(2)]
        for right in query:
            sums = ops.multiply_halves(sums, left, [right[index] for index in depth])
    return list(map(ops.scaled, float_numbers(ops, shape, sums), factors * 2))


def _pairs(ops: Any, word: Any, bits: int) -> list[Any]:
    """The codes of a word, less the middle one, over ``2 ** bits``, as pairs of float16."""
    found, fit = [], _ROOM // bits
    for field in range(16 // bits):
        if field and field % fit == 0:
            word = ops.right(word, bits * fit)
        place = bits * (field % fit)
        mask = ((1 << bits) - 1) << place
        float_pair = ops.masked(word, ops.integer(mask << 16 | mask), ops.integer(_ONE_BITS))
        unit = 0.5 ** (bits + place)
        start = -_ONE * unit - _MIDDLE[bits] * 0.5**bits
        found.append(ops.fused_halves(float_pair, _twice(ops, unit), _twice(ops, start)))
    return found


def _twice(ops: Any, value: float) -> Any:
    """A float16 that is exact, twice."""
    bits = int(np.float16(value).view(np.uint16))
    return ops.integer(bits << 16 | bits)
