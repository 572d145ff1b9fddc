"""Attention to the tokens that a cache keeps exact: sinks and the recent window."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention import softmax_state
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended, SoftmaxState
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import ExactWindow, Stream
from kakeya_jax.typing import Array, Bool, Float, Int


def attend_exact(
    queries: Float[Array, "B K T G D"],
    key_stream: Stream,
    value_stream: Stream,
    chunk: ChunkWindow | None,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
) -> SoftmaxState:
    """The softmax over sinks and window tokens; the arguments are those of ``compressed_attention``."""
    batch, num_kv_heads, length, group, dim = queries.shape
    geometry = key_stream.geometry
    closed = geometry.closed_pages(positions + 1)

    key_window, value_window = _windows(key_stream, value_stream, chunk)
    visible = _visible_exact(key_window.positions, positions, geometry.sinks + closed * geometry.page)
    key, value, key_positions = key_window.values, value_window.values, key_window.positions
    num_sinks = key_stream.sinks.shape[2]
    if num_sinks:  # in front of the window: one softmax over both
        sink_positions = jnp.broadcast_to(jnp.arange(num_sinks, dtype=jnp.int32), (batch, num_sinks))
        visible = jnp.concatenate([sink_positions[:, None, :] <= positions[:, :, None], visible], axis=2)
        key = jnp.concatenate([key_stream.sinks, key], axis=2)
        value = jnp.concatenate([value_stream.sinks, value], axis=2)
        key_positions = jnp.concatenate([sink_positions, key_positions], axis=1)
    key = rotate_if_stored_before(key, key_stream, key_positions, rope)
    nothing = softmax_state.empty((batch, num_kv_heads, length, group), dim)
    return softmax_state.attend(nothing, queries, key, value, visible, scale)


def rotate_if_stored_before(
    key: Float[Array, "B K S D"], stream: Stream, positions: Int[Array, "B S"], rope: Rope
) -> Float[Array, "B K S D"]:
    """Keys as queries meet them."""
    if stream.rope != "pre":
        return key
    return apply_rope(key.astype(jnp.float32), positions[:, None, :], rope)


def group_heads(query: Float[Array, "B T H D"], num_kv_heads: int) -> Float[Array, "B K T G D"]:
    """Queries by the key/value head that they read."""
    batch, length, num_heads, dim = query.shape
    grouped = query.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, dim)
    return grouped.transpose(0, 2, 1, 3, 4)


def ungroup_heads(out: Float[Array, "B K T G D"]) -> Float[Array, "B T H D"]:
    """The inverse of ``group_heads``."""
    batch, num_kv_heads, length, group, dim = out.shape
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, num_kv_heads * group, dim)


def attended(state: SoftmaxState, dtype: DTypeLike) -> Attended:
    """What a state of queries ``[B, K, T, G]`` comes to, by head; ``out`` of a type."""
    lse = ungroup_heads(softmax_state.log_sum(state)[..., None])[..., 0]
    return Attended(ungroup_heads(softmax_state.output(state)).astype(dtype), lse)


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
