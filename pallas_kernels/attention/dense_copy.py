"""The baseline that saves storage alone: decode the whole cache, then attend densely. Never chosen by itself."""

import jax
import jax.numpy as jnp

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention.exact_tokens import group_heads, rotate_if_stored_before, ungroup_heads
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream, read
from kakeya_jax.typing import Array, Float, Int


def attention_dense_copy(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
) -> Attended:
    """See ``compressed_attention``; one query for each row. Holds a float32 copy of all keys and values of the layer.

    Raises:
        NotImplementedError: several queries, each of which would need a copy of its own.
    """
    del chunk
    if query.shape[1] != 1:
        raise NotImplementedError(f"dense_copy takes decode steps of one token, not {query.shape[1]}")
    # A layer is decoded once its query is there: XLA decodes all layers first otherwise, and holds all copies at once.
    query, key_stream, value_stream = jax.lax.optimization_barrier((query, key_stream, value_stream))
    queries = group_heads(query, key_stream.tail.shape[1])
    key, value = read(key_stream), read(value_stream)
    token = jnp.arange(key.shape[2], dtype=jnp.int32)
    key = rotate_if_stored_before(key, key_stream, jnp.broadcast_to(token, (len(query), token.size)), rope)
    logits = jnp.einsum("bktgd,bksd->bktgs", queries, key) * scale
    visible = token <= positions[:, None, :, None, None]
    logits = jnp.where(visible, logits, -jnp.inf)
    out = jnp.einsum("bktgs,bksd->bktgd", jax.nn.softmax(logits, axis=-1), value)
    lse = ungroup_heads(jax.nn.logsumexp(logits, axis=-1, keepdims=True))[..., 0]
    return Attended(ungroup_heads(out).astype(query.dtype), lse)
