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

from kakeya_jax.pallas_kernels.attention.float_products import add_values, key_logits, key_terms, load_queries
from kakeya_jax.pallas_kernels.attention.float_shape import FloatShape
from kakeya_jax.pallas_kernels.attention.float_tiles import FloatRefs, FloatTiles
from kakeya_jax.pallas_kernels.attention.float_weights import float_weights
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.tile_logits import load_factors
from kakeya_jax.pallas_kernels.attention.tile_loop import Step, over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import empty_state
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def float_program(
    ops: Any,
    shape: FloatShape,
    head: Any,
    split: Any,
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
        head: whose tokens.
        split: which of the programs that share them.
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
    lane = Lane(ops)
    queries = HeadQueries(ops, shape, shape.queries, lane, head, query_ref, rotation_ref, shared_ref)
    share = share_of(ops, shape, lane, split, ops.divide(tokens_of(head), shape.tile))
    refs = FloatRefs(key_ref, key_scale_ref), FloatRefs(value_ref, value_scale_ref)
    tiles = FloatTiles(ops, shape, lane, head, refs)

    def step(query: Any, factors: Any, tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        del tile
        scales = tiles.scales(slot, 0)
        logits = [
            key_logits(
                ops,
                shape,
                key_terms(ops, shape, tiles, slot, product),
                query,
                factors,
                scales[product] if scales else [],
            )
            for product in range(shape.products)
        ]
        weights = float_weights(ops, shape, state, logits, tiles.scales(slot, 1))
        return [*weights.top, *weights.total, *add_values(ops, shape, tiles, slot, weights)]

    def begin() -> tuple[Step, list[Any]]:
        shared = queries.share()
        query, factors = load_queries(ops, shape, lane, shared), load_factors(ops, shape, lane, shared)
        return functools.partial(step, query, factors), empty_state(ops, shape)

    queries.prepare()
    state = over_tiles(ops, shape, lane, shared_ref, share, tiles.start, begin)
    ops.barrier()  # stages become states
    place = ops.add(ops.times(head, shape.states), split)
    write_state(ops, shape, lane, place, state, None, top_ref, total_ref, weighted_ref, shared_ref)
