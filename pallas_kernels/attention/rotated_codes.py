"""Decode attention over ``turboquant`` streams, whatever kernel reads the codes: folding, exact tokens, merging."""

from collections.abc import Callable

import jax.numpy as jnp

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention import softmax_state
from kakeya_jax.pallas_kernels.attention.coded_streams import coded_stream
from kakeya_jax.pallas_kernels.attention.exact_tokens import attend_exact, attended, group_heads
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended, SoftmaxState
from kakeya_jax.rope import Rope
from kakeya_jax.rotation import rotate, unrotate
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int


def attend_rotated_codes(
    query: Float[Array, "B 1 H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B 1"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None,
    kernel: Callable[..., SoftmaxState],
) -> Attended:
    """See ``compressed_attention``.

    The rotations of keys and values are taken to the query and to the result. Sinks and window are attended to in XLA.

    Args:
        query: one for each row.
        key_stream: checked by ``unsupported``, as
        value_stream: is.
        positions: see ``compressed_attention``.
        rope: likewise.
        scale: likewise.
        chunk: likewise.
        kernel: takes rotated queries ``[N, G, D]``, indices and scales of keys, those of values, and the number of
            coded tokens of each of the ``N`` heads; ``key``, ``value``, ``key_unit``, ``value_unit`` and ``scale`` by
            name. It returns states ``[splits, N, G]``.
    """
    queries = group_heads(query, key_stream.tail.shape[1])
    exact = attend_exact(queries, key_stream, value_stream, chunk, positions=positions, rope=rope, scale=scale)
    geometry = key_stream.geometry
    if not geometry.num_pages:
        return attended(exact, query.dtype)
    batch, num_kv_heads, _, group, dim = queries.shape
    heads = batch * num_kv_heads
    closed = geometry.closed_pages(positions[:, 0] + 1) * geometry.page
    key, value = coded_stream(key_stream), coded_stream(value_stream)
    assert key.rotation is not None
    assert value.rotation is not None
    states = kernel(
        rotate(queries.astype(jnp.float32), key.rotation).reshape(heads, group, dim),
        key.words,
        key.scales[..., 0],
        value.words,
        value.scales[..., 0],
        jnp.repeat(closed, num_kv_heads),
        key=key.codes,
        value=value.codes,
        key_unit=key.unit,
        value_unit=value.unit,
        scale=scale,
    )
    coded = softmax_state.reduce(states, axis=0)
    lead = (batch, num_kv_heads, 1, group)
    coded = SoftmaxState(
        coded.top.reshape(lead),
        coded.total.reshape(lead),
        unrotate(coded.weighted, value.rotation).reshape(*lead, dim),
    )
    return attended(softmax_state.combine(exact, coded), query.dtype)
