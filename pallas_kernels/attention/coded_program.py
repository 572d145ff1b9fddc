"""One warp's decode attention over packed codes, in integer products: the program, whatever machine runs it.

A warp owns a run of tiles of 64 tokens and its own softmax state; the warps of a program add theirs up at the end.
Codes become signed bytes by table lookups of four at a time (``prmt``) and go straight into ``mma.sync`` fragments: in
both products of attention the codes are the left operand, keys with tokens as rows and channels as depth, values with
channels as rows and tokens as depth. The right operand has eight columns: four queries (or their shares of the softmax)
as numbers of 16 bits, two bytes each, which are neighbours (``query_columns``); more queries take two products. Levels
are ``unit (byte + 1/2)``: the half is added once for each query, not once for each code. (Integer codes of 8 bits are
``unit byte``.) Scales are of tokens: they multiply logits and weights. What is different where they are of groups of
channels, or of channels, is in ``group_logits``, ``group_shares`` and ``channel_logits``.

Which token is which row is free, as long as both products agree: row ``r`` of half ``h`` of product ``i`` is token
``16 (r / 2) + 4 i + 2 (r % 2) + h`` of its tile, because then a lane's part of a value's tile is one unit of 16
consecutive tokens (``code_words``), and quad ``i`` of it belongs to product ``i``.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import TILE, CodedShape
from kakeya_jax.pallas_kernels.attention.coded_tiles import StreamRefs, Tiles
from kakeya_jax.pallas_kernels.attention.group_shares import group_shares
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.tile_logits import tile_logits
from kakeya_jax.pallas_kernels.attention.tile_loop import Step, over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import Shares, empty_state
from kakeya_jax.pallas_kernels.attention.tile_values import add_block, token_shares
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def coded_program(
    ops: Any,
    shape: CodedShape,
    head: Any,
    split: Any,
    tokens_of: Callable[[Any], Any],
    constant_ref: Any,
    query_ref: Any,
    rotation_ref: Any,
    key_ref: Any,
    key_scale_ref: Any,
    key_minimum_ref: Any,
    value_ref: Any,
    value_scale_ref: Any,
    value_minimum_ref: Any,
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
        constant_ref: int32, ``HeldWords(shape.codes).words``.
        query_ref: ``[N, group, D]``, in the form ``shape.queries``.
        rotation_ref: float32 ``[D, D]``; see ``HeadQueries``.
        key_ref: uint8 ``[N, T, D b / 8]``.
        key_scale_ref: float16 ``[N, T, scales]``, or ``[N, T / tokens, D]``.
        key_minimum_ref: likewise; not read if there are none.
        value_ref: uint8 ``[N, T / 64, D, 8 b]``.
        value_scale_ref: float16 ``[N, T, scales]``, not negative.
        value_minimum_ref: likewise; not read if there are none.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: float32 ``[N, states, rows, D]``: values' bytes plus 1/2, times their scales, summed with their
            weights.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = Lane(ops)
    queries = HeadQueries(ops, shape, shape.queries, lane, head, query_ref, rotation_ref, shared_ref)
    share = share_of(ops, shape, lane, split, ops.divide(tokens_of(head), TILE))
    held = HeldWords(shape.codes).load(ops, lane, ops.address(constant_ref))
    keys, values = (
        StreamRefs(key_ref, key_scale_ref, key_minimum_ref),
        StreamRefs(value_ref, value_scale_ref, value_minimum_ref),
    )
    tiles = Tiles(ops, shape, lane, head, (keys, values), shared_ref)
    grouped, blocks = shape.value.scales > 1, shape.dim // 16

    def start_scales(tile: Any) -> None:
        """Of a tile, where there is room for those of one only."""
        if shape.scales_apart:
            here = ops.less(tile, share[1])
            ops.only_if(here, lambda: tiles.start_scales(tile, None))

    def weigh(logits_of_tile: Any, tile: Any, slot: Any, state: list[Any]) -> tuple[Shares, Callable[[int], Shares]]:
        """What a tile's tokens weigh, and what they do for a group of channels."""
        scales = [] if grouped else tiles.scale_words(slot, 1)
        logits = logits_of_tile(slot)
        scales = scales or tiles.scale_words(slot, 1)
        minima = tiles.scale_words(slot, 1, minima=True) if shape.value.step else []
        if shape.scales_apart:
            ops.wait_for_copies(1)  # every lane has its scales
            start_scales(ops.add(tile, ops.integer(1)))
            ops.commit_copies()
        if grouped:
            return group_shares(ops, shape, state, logits, scales, minima)
        shares = token_shares(ops, shape, state, logits, [each[0] for each in scales])
        return shares, lambda group: shares

    def step(logits_of_tile: Any, tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        shares, of_group = weigh(logits_of_tile, tile, slot, state)
        weighted, shift, right = [], [], shares
        for block in range(blocks):
            if block * shape.value.scales % blocks == 0:
                right = of_group(block * shape.value.scales // blocks)
                shift += right.shift
            weighted += add_block(ops, shape, held, tiles, slot, block, right)
        return [*shares.top, *shares.total, *shift[: shape.blocks * shape.shifts], *weighted]

    def begin() -> tuple[Step, list[Any]]:
        logits_of_tile = tile_logits(ops, shape, lane, held, tiles, queries.share())
        return functools.partial(step, logits_of_tile), empty_state(ops, shape)

    queries.prepare()
    start_scales(share[0])
    state = over_tiles(ops, shape, lane, shared_ref, share, tiles.start, begin)
    ops.barrier()  # stages become states
    place = ops.add(ops.times(head, shape.states), split)
    beside = 0.5 if shape.value.halfway else float(shape.value.step)
    halves = [ops.real(beside)] * (2 * blocks * shape.blocks) if beside else None
    write_state(ops, shape, lane, place, state, halves, top_ref, total_ref, weighted_ref, shared_ref)
