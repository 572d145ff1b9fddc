"""Products of ``float_program``: keys with queries, and values with what their tokens weigh."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS
from kakeya_jax.pallas_kernels.attention.float_shape import PART, FloatCodes, FloatShape
from kakeya_jax.pallas_kernels.attention.float_tiles import FloatStages
from kakeya_jax.pallas_kernels.attention.float_weights import FloatWeights
from kakeya_jax.pallas_kernels.attention.query_columns import float_blocks, float_numbers
from kakeya_jax.pallas_kernels.attention.query_form import ROWS
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane


def load_queries(ops: Any, shape: FloatShape, lane: Lane, queries: Any) -> list[list[Any]]:
    """A head's queries as right operands: for each block of columns pairs of this lane's channels."""
    row, run = 2 * shape.dim, 32 // shape.key.nbytes  # bytes of a query, and of those of them that a lane has together
    where = ops.shared_offset(queries, ops.add(ops.times(lane.row, row), ops.times(lane.column, run)))
    return [
        [
            word
            for part in range(0, row, 4 * run)
            for first in range(0, run, 16)
            for word in ops.shared_words(where, 4, ROWS + COLUMNS * row * block + part + first)
        ]
        for block in range(float_blocks(shape, shape.queries))
    ]


KeyTerms = Iterator[tuple[int, list[Any], list[Any]]]
"""For each four words of a query, by number, those of a product's rows ``g`` and ``g + 8`` that they are multiplied
with."""


def key_terms(ops: Any, shape: FloatShape, tiles: FloatStages, slot: Any, product: int) -> KeyTerms:
    """Of keys as they are."""
    place = 0
    for part in range(shape.key_row // PART):
        near, far = tiles.key_words(slot, product, part)
        if shape.key.nbytes == 1:
            near, far = ([pair for word in words for pair in ops.halves_of_e4m3(word)] for words in (near, far))
        for first in range(0, len(near), 4):
            yield place, near[first : first + 4], far[first : first + 4]
            place += 1


def key_logits(
    ops: Any, shape: FloatShape, terms: KeyTerms, query: list[list[Any]], factors: list[Any], scales: list[Any]
) -> list[Any]:
    """To the base 2, as ``tile_logits.logits_of``."""
    multiply, sums = _multiply(ops, shape.key), [ops.real(0.0)] * 4
    for place, near, far in terms:
        for index in (0, 2):
            left, at = (near[index], far[index], near[index + 1], far[index + 1]), 4 * place + index
            for right in query:
                sums = multiply(sums, left, right[at : at + 2])
    units = [ops.scaled(scale, factor) for scale in scales for factor in factors] if scales else factors * 2
    return list(map(ops.scaled, float_numbers(ops, shape, sums), units))


def add_values(ops: Any, shape: FloatShape, tiles: FloatStages, slot: Any, weights: FloatWeights) -> list[Any]:
    """Values so far, and those of a tile times its weights."""
    multiply, found = _multiply(ops, shape.value), []
    for pair in range(shape.value_row // 32):
        for rows in _channels(ops, shape, tiles.value_words(slot, pair)):
            sums = [ops.real(0.0)] * 4
            for product, rights in enumerate(weights.columns):
                left = [word for eight in rows[2 * product : 2 * product + 2] for word in eight]
                for right in rights:
                    sums = multiply(sums, left, right)
            for index, each in enumerate(float_numbers(ops, shape, sums)):
                found.append(ops.fused(each, weights.units[index % shape.blocks], weights.weighted[len(found)]))
    return found


def _channels(ops: Any, shape: FloatShape, words: list[list[Any]]) -> list[list[list[Any]]]:
    """For each block of 16 channels and each eight tokens, pairs of tokens of the block's channels ``g`` and ``g + 8``.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        words: see ``FloatTiles.value_words``.
    """
    if shape.value.nbytes == 2:
        return [[list(eight) for eight in zip(*words, strict=True)]]
    by_channel = ops.integer(0x3120)  # of two channels of two tokens
    return [[ops.halves_of_e4m3(ops.permute_bytes(word, word, by_channel)) for word in chunk] for chunk in words]


def _multiply(ops: Any, codes: FloatCodes) -> Callable[..., list[Any]]:
    return ops.multiply_brain_halves if codes.multiplied == jnp.bfloat16 else ops.multiply_halves
