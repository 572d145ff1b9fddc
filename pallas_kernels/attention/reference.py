"""The specification, in XLA: decode a tile of pages, attend to it, merge by online softmax. Runs everywhere."""

import math

import jax
import jax.numpy as jnp

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention import softmax_state
from kakeya_jax.pallas_kernels.attention.exact_tokens import (
    attend_exact,
    attended,
    group_heads,
    rotate_if_stored_before,
)
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended, SoftmaxState
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

TILE_TOKENS = 512
"""Coded tokens decoded at a time: bounds the memory of the decoded copy, which never outlives its tile."""


def attention_reference(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
) -> Attended:
    """See ``compressed_attention``; sums and softmax in float32."""
    queries = group_heads(query, key_stream.tail.shape[1])
    state = attend_exact(queries, key_stream, value_stream, chunk, positions=positions, rope=rope, scale=scale)
    geometry = key_stream.geometry
    if geometry.num_pages:
        closed = geometry.closed_pages(positions + 1)
        tile = min(geometry.num_pages, max(1, TILE_TOKENS // geometry.page))

        def body(step: Array, state: SoftmaxState) -> SoftmaxState:
            # The last tile is moved back to end with the last page; pages an earlier tile had are masked.
            start = jnp.minimum(step * tile, geometry.num_pages - tile)
            token = start * geometry.page + jnp.arange(tile * geometry.page, dtype=jnp.int32)
            page = token // geometry.page
            visible = (page >= step * tile) & (page < closed[:, :, None])
            token = jnp.broadcast_to(token + geometry.sinks, (len(query), token.size))
            key, value = (stream.decode_pages(start, tile) for stream in (key_stream, value_stream))
            key = rotate_if_stored_before(key, key_stream, token, rope)
            return softmax_state.attend(state, queries, key, value, visible, scale)

        steps = -(-jnp.max(closed) // tile)
        state = jax.lax.fori_loop(0, jnp.minimum(steps, math.ceil(geometry.num_pages / tile)), body, state)
    return attended(state, query.dtype)
