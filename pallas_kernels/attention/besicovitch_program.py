"""One warp's decode attention over keys of integer products and values whose codes are of pairs of channels.

Keys, logits and what is a tile are those of ``coded_program``. A value's code has a direction and a signed magnitude of
a pair of channels. Their product is not computed: a code is a place in a table in shared memory, and what is there, two
coordinates as float16, is a register of a product's left operand as it is. So products of values (``m16n8k16``) have
pairs of channels as rows and, as depth, the coordinates of eight tokens; their columns are queries, for first or for
second coordinates (``besicovitch_shares``). Three instructions decode both channels of a token.

The mean of a page is added once a tile, with the tile's weights.
"""

import functools
from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.besicovitch_shape import COPIES, BesicovitchShape
from kakeya_jax.pallas_kernels.attention.besicovitch_shares import PairShares, pair_shares, weight_picks
from kakeya_jax.pallas_kernels.attention.besicovitch_tiles import BesicovitchTiles
from kakeya_jax.pallas_kernels.attention.coded_shape import TILE
from kakeya_jax.pallas_kernels.attention.coded_tiles import StreamRefs
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.tile_logits import tile_logits
from kakeya_jax.pallas_kernels.attention.tile_loop import Step, over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import empty_state
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane
from kakeya_jax.pallas_kernels.attention.warp_states import write_state


def besicovitch_program(
    ops: Any,
    shape: BesicovitchShape,
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
    table_ref: Any,
    mean_ref: Any,
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    shared_ref: Any,
) -> None:
    """Attends to the coded tokens of one head's share, and writes its softmax state.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        head: see ``coded_program``, as
        split: is, and
        tokens_of: is this,
        constant_ref: are these
        query_ref: and
        rotation_ref: those of queries,
        key_ref: and
        key_scale_ref: of
        key_minimum_ref: keys.
        value_ref: uint8 ``[N, T / 64, bytes]`` (``direction_words``).
        value_scale_ref: float16 ``[N, T]``.
        table_ref: int32 ``[2**bits]`` (``pair_table``).
        mean_ref: float16 ``[N, T / page, D]``, or anything if there are no means.
        top_ref: float32 ``[N, states, rows]``, to the base 2.
        total_ref: likewise.
        weighted_ref: float32 ``[N, states, rows, D]``: values summed with their weights, channels in the order of
            ``channel_order``.
        shared_ref: shared memory, ``shape.shared_floats`` floats.
    """
    lane = Lane(ops)
    queries = HeadQueries(ops, shape, shape.queries, lane, head, query_ref, rotation_ref, shared_ref)
    share = share_of(ops, shape, lane, split, ops.divide(tokens_of(head), TILE))
    held = HeldWords(shape.codes).load(ops, lane, ops.address(constant_ref))
    keys, values = (
        StreamRefs(key_ref, key_scale_ref, key_minimum_ref),
        StreamRefs(value_ref, value_scale_ref, value_scale_ref),
    )
    tiles = BesicovitchTiles(ops, shape, lane, head, (keys, values), shared_ref, mean_ref)
    picks = weight_picks(ops, shape, lane)
    table, copy = ops.shared_address(shared_ref), ops.times(ops.modulo(lane.lane, COPIES), 4)

    def step(logits_of_tile: Any, tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        del tile
        logits = logits_of_tile(slot)
        scales = [each[0] for each in tiles.scale_words(slot, 1)]
        shares = pair_shares(ops, shape, picks, state, logits, scales, means=shape.means)
        weighted = []
        for block in range(shape.pair_blocks):
            mine = shares.weighted[block * 4 * len(picks) : (block + 1) * 4 * len(picks)]
            weighted += _add_pairs(ops, shape, tiles, slot, block, shares, mine, (table, copy))
        return [*shares.top, *shares.total, *weighted]

    def begin() -> tuple[Step, list[Any]]:
        tiles.fill_table(table_ref, table)
        # With the queries all warps wait for each other, and so for the table.
        logits_of_tile = tile_logits(ops, shape, lane, held, tiles, queries.share())
        return functools.partial(step, logits_of_tile), empty_state(ops, shape)

    queries.prepare()
    state = over_tiles(ops, shape, lane, shared_ref, share, tiles.start, begin)
    ops.barrier()  # stages become states
    place = ops.add(ops.times(head, shape.states), split)
    sums = 2 * shape.blocks
    state = [*state[:sums], *_by_channel(shape, state[sums:])]
    write_state(ops, shape, lane, place, state, None, top_ref, total_ref, weighted_ref, shared_ref)


def channel_order(dim: int) -> list[int]:
    """Which channel is where among the sums of a state.

    Eight neighbours there are one coordinate of eight pairs: first coordinates, second ones, and the next eight pairs.
    """
    return [
        2 * (8 * eight + pair) + coordinate for eight in range(dim // 16) for coordinate in (0, 1) for pair in range(8)
    ]


def _add_pairs(
    ops: Any,
    shape: BesicovitchShape,
    tiles: BesicovitchTiles,
    slot: Any,
    block: int,
    shares: PairShares,
    weighted: list[Any],
    table: tuple[Any, Any],
) -> list[Any]:
    """``weighted`` of 16 pairs, with a tile's codes of pairs ``g`` and ``g + 8`` times its shares, and the mean."""
    words = tiles.pair_words(slot, block)
    sums = [[ops.real(0.0)] * 4 for _ in shares.columns]
    for product in range(TILE // 8):
        first = [tiles.looked_up(*table, words, 4 * product + index) for index in range(4)]
        sums = [
            ops.multiply_halves(total, first, right[product]) for total, right in zip(sums, shares.columns, strict=True)
        ]
    found = [
        ops.fused(each, shares.units[index % shape.blocks], old)
        for index, (each, old) in enumerate(zip([x for total in sums for x in total], weighted, strict=True))
    ]
    if not shape.means:
        return found
    near, far = tiles.means_of(slot, block)
    if shape.blocks == 1:  # both coordinates are side by side
        means = [*near, *far]
    else:  # in a product each, whose columns are queries
        means = [pair[n] for n in range(2) for pair in (near, far) for _ in range(2)]
    return [
        ops.fused(mean, shares.tile_weight[index % shape.blocks], each)
        for index, (mean, each) in enumerate(zip(means, found, strict=True))
    ]


def _by_channel(shape: BesicovitchShape, weighted: list[Any]) -> list[Any]:
    """Sums as ``write_state`` takes them, a lane's queries for each row of eight channels of ``channel_order``."""
    if shape.blocks == 1:
        return weighted
    found = []
    for first in range(0, len(weighted), 8):  # of 16 pairs: for each coordinate, eight pairs and the next
        x, y = weighted[first : first + 4], weighted[first + 4 : first + 8]
        found += [*x[:2], *y[:2], *x[2:], *y[2:]]
    return found
