"""One warp's decode attention over tokens that are kept exact, in numbers of 16 bits: ``float_program`` for sinks and a
ring of recent tokens instead of pages.

Keys that are stored before their rotary embedding are turned in registers, where a lane has channels of the first half
of a head beside the same of the second, and are sums of two bfloat16 afterwards.
"""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_shape import ExactShape
from kakeya_jax.pallas_kernels.attention.exact_tiles import ExactTiles
from kakeya_jax.pallas_kernels.attention.exact_turns import turned
from kakeya_jax.pallas_kernels.attention.exact_values import load_exact, packed_in_two, unpacked
from kakeya_jax.pallas_kernels.attention.float_products import KeyTerms, add_values, key_logits, key_terms, load_queries
from kakeya_jax.pallas_kernels.attention.float_shape import PART
from kakeya_jax.pallas_kernels.attention.float_weights import float_weights
from kakeya_jax.pallas_kernels.attention.head_queries import HeadQueries
from kakeya_jax.pallas_kernels.attention.seen_tokens import ExactRefs, SeenTokens
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST
from kakeya_jax.pallas_kernels.attention.tile_logits import load_factors
from kakeya_jax.pallas_kernels.attention.tile_loop import Step, over_tiles, share_of
from kakeya_jax.pallas_kernels.attention.tile_shares import empty_state
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane
from kakeya_jax.pallas_kernels.attention.warp_states import write_state

_CHANNELS = PART // 2
"""That the four lanes of a row load at once."""


def exact_program(
    ops: Any,
    shape: ExactShape,
    head: Any,
    split: Any,
    refs: ExactRefs,
) -> None:
    """Writes the softmax state of a head's queries over a share of the exact tokens. Four warps.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        head: which.
        split: which part of the tokens.
        refs: of the launch.
    """
    lane = Lane(ops)
    seen = SeenTokens(ops, shape.geometry, shape.num_kv_heads, head, refs.position)
    queries = HeadQueries(ops, shape, shape.queries, lane, head, refs.query, refs.query, refs.shared)
    tiles = ExactTiles(ops, shape, lane, seen, [refs.key, refs.value])
    share = share_of(ops, shape, lane, split, ops.divide(ops.add(seen.count, ops.integer(shape.tile - 1)), shape.tile))
    frequencies = _load_frequencies(ops, shape, lane, refs.frequencies) if shape.turns else []

    def fetch(tile: Any, nothing: list[Any]) -> list[Any]:
        tiles.fetch(tile)
        return nothing

    def step(query: Any, factors: Any, tile: Any, slot: Any, state: list[Any]) -> list[Any]:
        tokens, logits = tiles.tokens(tile), []
        for product in range(shape.products):
            rows = tokens[2 * product : 2 * product + 2]
            if shape.turns:
                terms = _turned_terms(ops, shape, tiles, slot, product, frequencies, list(map(seen.position, rows)))
            else:
                terms = key_terms(ops, shape, tiles, slot, product)
            found = key_logits(ops, shape, terms, query, factors, [])
            there = [ops.less(token, seen.count) for token in rows for _ in range(shape.blocks)]
            logits.append([ops.select(*each, ops.real(LOWEST)) for each in zip(there, found, strict=True)])
        weights = float_weights(ops, shape, state, logits, [])
        return [*weights.top, *weights.total, *add_values(ops, shape, tiles, slot, weights)]

    def begin() -> tuple[Step, list[Any]]:
        ahead = ops.add(share[0], ops.integer(shape.stages - 1))
        ops.loop(ahead, share[1], [ops.integer(0)], fetch)
        shared = queries.share()
        query, factors = load_queries(ops, shape, lane, shared), load_factors(ops, shape, lane, shared)
        return functools.partial(step, query, factors), empty_state(ops, shape)

    state = over_tiles(ops, shape, lane, refs.shared, share, tiles.start, begin)
    ops.barrier()  # stages become states
    first = ops.integer(shape.states - shape.splits)
    place = ops.add(ops.times(head, shape.states), ops.add(split, first))
    write_state(ops, shape, lane, place, state, None, refs.top, refs.total, refs.weighted, refs.shared)


def _load_frequencies(ops: Any, shape: ExactShape, lane: Lane, frequency_ref: Any) -> list[list[Any]]:
    """For each of the parts of a key's first half those of this lane's channels."""
    where = ops.offset(ops.address(frequency_ref), ops.times(lane.column, _CHANNELS))
    firsts = range(0, shape.dim // 2, _CHANNELS)
    return [load_exact(ops, where, _CHANNELS // 4, "float32", 4 * first) for first in firsts]


def _turned_terms(
    ops: Any,
    shape: ExactShape,
    tiles: ExactTiles,
    slot: Any,
    product: int,
    frequencies: list[list[Any]],
    positions: list[Any],
) -> KeyTerms:
    """As ``key_terms``, of keys turned by where they are: a part of either half of a head together."""
    parts = shape.key_row // PART
    for part in range(parts // 2):
        places = (part, part + parts // 2)
        near_and_far = [tiles.key_words(slot, product, place) for place in places]
        found: list[list[tuple[list[Any], list[Any]]]] = [[], []]  # for each place, of each row
        for row, position in enumerate(positions):
            words = [word for rows in near_and_far for word in rows[row]]
            key = [value for word in words for value in unpacked(ops, word, shape.key_dtype)]
            key = turned(ops, key, frequencies[part], position)
            for index, half in enumerate((key[: len(key) // 2], key[len(key) // 2 :])):
                found[index].append(packed_in_two(ops, half, "bfloat16"))
        for place, ((near, near_rest), (far, far_rest)) in zip(places, found, strict=True):
            yield place, near, far
            yield place, near_rest, far_rest
