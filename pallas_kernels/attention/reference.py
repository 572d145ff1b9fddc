"""The specification, in XLA: decode a tile of pages, attend to it, merge by online softmax. Runs everywhere."""

import math

import jax
import jax.numpy as jnp

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import ExactWindow, Stream
from kakeya_jax.typing import Array, Bool, Float, Int

TILE_TOKENS = 512
"""Coded tokens decoded at a time: bounds the memory of the decoded copy, which never outlives its tile."""

_LOWEST = -1e30
"""Finite stand-in for minus infinity: a query that sees no token gets zeros instead of NaN."""

_State = tuple[Array, Array, Array]
"""Online softmax of each query: running maximum, running sum, and running weighted sum of values."""


def attention_reference(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
) -> Float[Array, "B T H D"]:
    """See ``compressed_attention``; sums and softmax in float32."""
    batch, length, num_heads, dim = query.shape
    num_kv_heads = key_stream.tail.shape[1]
    group = num_heads // num_kv_heads
    queries = query.reshape(batch, length, num_kv_heads, group, dim).transpose(0, 2, 1, 3, 4)
    geometry = key_stream.geometry
    closed = geometry.closed_pages(positions + 1)

    def merge(state: _State, key: Array, value: Array, key_positions: Array, visible: Array) -> _State:
        if key_stream.rope == "pre":
            key = apply_rope(key.astype(jnp.float32), key_positions[:, None, :], rope)
        return _merge(state, queries, key, value, visible, scale)

    key_window, value_window = _windows(key_stream, value_stream, chunk)
    lead = (batch, num_kv_heads, length, group)
    state = (
        jnp.full(lead, _LOWEST, jnp.float32),
        jnp.zeros(lead, jnp.float32),
        jnp.zeros((*lead, dim), jnp.float32),
    )
    visible = _visible_exact(key_window.positions, positions, geometry.sinks + closed * geometry.page)
    state = merge(state, key_window.values, value_window.values, key_window.positions, visible)
    num_sinks = key_stream.sinks.shape[2]
    if num_sinks:
        sink_positions = jnp.broadcast_to(jnp.arange(num_sinks, dtype=jnp.int32), (batch, num_sinks))
        visible = sink_positions[:, None, :] <= positions[:, :, None]
        state = merge(state, key_stream.sinks, value_stream.sinks, sink_positions, visible)
    if geometry.num_pages:
        tile = min(geometry.num_pages, max(1, TILE_TOKENS // geometry.page))

        def body(step: Array, state: _State) -> _State:
            # The last tile is moved back to end with the last page; pages an earlier tile had are masked.
            start = jnp.minimum(step * tile, geometry.num_pages - tile)
            token = start * geometry.page + jnp.arange(tile * geometry.page, dtype=jnp.int32)
            page = token // geometry.page
            visible = (page >= step * tile) & (page < closed[:, :, None])
            token = jnp.broadcast_to(token + geometry.sinks, (batch, token.size))
            key, value = (stream.decode_pages(start, tile) for stream in (key_stream, value_stream))
            return merge(state, key, value, token, visible)

        steps = -(-jnp.max(closed) // tile)
        state = jax.lax.fori_loop(0, jnp.minimum(steps, math.ceil(geometry.num_pages / tile)), body, state)
    _, total, weighted = state
    out = weighted / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, num_heads, dim).astype(query.dtype)


def _windows(key_stream: Stream, value_stream: Stream, chunk: ChunkWindow | None) -> tuple[ExactWindow, ExactWindow]:
    if chunk is None:
        return key_stream.exact_window(), value_stream.exact_window()
    return chunk.key, chunk.value


def _visible_exact(
    token: Int[Array, "B E"], query: Int[Array, "B T"], first_exact: Int[Array, "B T"]
) -> Bool[Array, "B T E"]:
    """Which window tokens each query sees exact: those not coded yet when it came, and not after it."""
    token = token[:, None, :]
    return (token >= first_exact[:, :, None]) & (token <= query[:, :, None])


def _merge(
    state: _State,
    queries: Float[Array, "B K T G D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S D"],
    visible: Bool[Array, "B T S"],
    scale: float,
) -> _State:
    """Adds one tile of keys and values to the running softmax."""
    top, total, weighted = state
    dtype = queries.dtype
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    logits = jnp.einsum(
        "bktgd,bksd->bktgs",
        queries,
        key.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    logits = jnp.where(visible[:, None, :, None, :], logits * scale, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
    weights = jnp.exp(logits - new_top[..., None])
    decay = jnp.exp(top - new_top)
    total = total * decay + jnp.sum(weights, axis=-1)
    added = jnp.einsum(
        "bktgs,bksd->bktgd",
        weights.astype(dtype),
        value.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return new_top, total, weighted * decay[..., None] + added
