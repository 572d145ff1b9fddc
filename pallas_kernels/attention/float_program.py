"""One warp's decode attention over keys and values that are numbers of floating point: e4m3, or bfloat16 as it is.

Warps, tiles, softmax states and their sums are those of ``coded_program``; products are ``m16n8k16`` of float16 (e4m3
becomes float16 exactly, a pair an instruction) or of bfloat16, which goes from shared memory into the left operand as
it is. Queries and weights are sums of two such numbers. So this is what the programs of packed codes are without
packed codes: what they gain beside it they gain by packing.

Vectors lie token after token, channel after channel. Keys are left operands with tokens as rows; a lane loads 16 bytes
of neighbouring channels, which may be any of the product's depth since those of the queries are the same. Values have
channels as rows and tokens as depth: they are transposed as they are loaded, two bytes at a time; of e4m3 two channels.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS
from kakeya_jax.pallas_kernels.attention.float_shape import PART, FloatShape
from kakeya_jax.pallas_kernels.attention.float_tiles import FloatRefs, FloatTiles
from kakeya_jax.pallas_kernels.attention.float_weights import FloatWeights, float_weights
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.query_form import ROWS
from kakeya_jax.pallas_kernels.attention.tile_logits import load_factors
from kakeya_jax.pallas_kernels.attention.tile_loop import Step, over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import empty_state
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def float_program(
    ops: Any,
    shape: FloatShape,
    program: Any,
    tokens_of: Callable[[Any], Any],
    query_ref: Any,
    rotation_ref: Any,
    key_ref: Any,
    key_scale_ref: Any,
    value_ref: Any,
    value_scale_ref: Any,
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
        tokens_of: a head's coded tokens, a multiple of 64, by its number.
        query_ref: ``[N, group, D]``, in the form ``shape.queries``.
        rotation_ref: float32 ``[D, D]``; see ``HeadQueries``.
        key_ref: ``[N, T, D]``, bits of e4m3, or bfloat16.
        key_scale_ref: float16 ``[N, T]``; not read if there are none.
        value_ref: as ``key_ref``.
        value_scale_ref: float16 ``[N, T]``, not negative; not read if there are none.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: float32 ``[N, states, rows, D]``: values summed with their weights, channels in the order of
            ``FloatCodes.channel_order``.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = Lane(ops, shape, program)
    head, split = ops.divide(lane.program, shape.splits), ops.modulo(lane.program, shape.splits)
    queries = HeadQueries(ops, shape, shape.queries, lane, head, query_ref, rotation_ref, shared_ref)
    share = share_of(ops, shape, lane, split, ops.divide(tokens_of(head), shape.tile))
    refs = FloatRefs(key_ref, key_scale_ref), FloatRefs(value_ref, value_scale_ref)
    tiles = FloatTiles(ops, shape, lane, head, refs)

    def step(query: Any, factors: Any, tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        del tile
        scales = tiles.scales(slot, 0)
        logits = [
            _logits(ops, shape, tiles, slot, product, query, factors, scales[product] if scales else [])
            for product in range(shape.products)
        ]
        weights = float_weights(ops, shape, lane, state, logits, tiles.scales(slot, 1))
        return [*weights.top, *weights.total, *_add_values(ops, shape, tiles, slot, weights)]

    def begin() -> tuple[Step, list[Any]]:
        shared = queries.share()
        query, factors = _load_queries(ops, shape, lane, shared), load_factors(ops, shape, lane, shared)
        return functools.partial(step, query, factors), empty_state(ops, shape)

    state = over_tiles(ops, shape, lane, shared_ref, share, tiles.start, begin)
    ops.barrier()  # stages become states
    place = ops.add(ops.times(head, shape.states), split)
    write_state(ops, shape, lane, place, state, None, top_ref, total_ref, weighted_ref, shared_ref)


def _load_queries(ops: Any, shape: FloatShape, lane: Lane, queries: Any) -> list[list[Any]]:
    """A head's queries as right operands: for each block of 8 rows pairs of this lane's channels."""
    row, run = 2 * shape.dim, 32 // shape.key.nbytes  # bytes of a query, and of those of them that a lane has together
    where = ops.shared_offset(queries, ops.add(ops.times(lane.row, row), ops.times(lane.column, run)))
    return [
        [
            word
            for part in range(0, row, 4 * run)
            for first in range(0, run, 16)
            for word in ops.shared_words(where, 4, ROWS + COLUMNS * row * block + part + first)
        ]
        for block in range(shape.blocks)
    ]


def _logits(
    ops: Any,
    shape: FloatShape,
    tiles: FloatTiles,
    slot: Any,
    product: int,
    query: list[list[Any]],
    factors: list[Any],
    scales: list[Any],
) -> list[Any]:
    """To the base 2, of two tokens and two queries: rows ``g`` and ``g + 8``, columns ``2 t`` and ``2 t + 1``."""
    multiply = _multiply(ops, shape.key.nbytes)
    sums, place = [[ops.real(0.0)] * 4 for _ in query], 0
    for part in range(shape.key_row // PART):
        near, far = tiles.key_words(slot, product, part)
        if shape.key.nbytes == 1:
            near, far = ([pair for word in words for pair in ops.halves_of_e4m3(word)] for words in (near, far))
        for index in range(0, len(near), 2):
            left = (near[index], far[index], near[index + 1], far[index + 1])
            sums = [multiply(total, left, right[place : place + 2]) for total, right in zip(sums, query, strict=True)]
            place += 2
    found = []
    for index in range(4):
        high = sums[0][index]
        low = ops.exchange(high, 2) if shape.paired else sums[1][index]
        factor = factors[index % 2]
        found.append(ops.scaled(ops.plus(high, low), ops.scaled(scales[index // 2], factor) if scales else factor))
    return found


def _add_values(ops: Any, shape: FloatShape, tiles: FloatTiles, slot: Any, weights: FloatWeights) -> list[Any]:
    """Values so far, and those of a tile times its weights: four sums for each 16 channels."""
    multiply, found = _multiply(ops, shape.value.nbytes), []
    for pair in range(shape.value_row // 32):
        for rows in _channels(ops, shape, tiles.value_words(slot, pair)):
            sums = [ops.real(0.0)] * 4
            for product, rights in enumerate(weights.columns):
                left = [word for eight in rows[2 * product : 2 * product + 2] for word in eight]
                for right in rights:
                    sums = multiply(sums, left, right)
            for index, each in enumerate(sums):
                found.append(ops.fused(each, weights.units[index % 2], weights.weighted[len(found)]))
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


def _multiply(ops: Any, nbytes: int) -> Callable[..., list[Any]]:
    return ops.multiply_halves if nbytes == 1 else ops.multiply_brain_halves
