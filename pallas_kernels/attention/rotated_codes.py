"""Decode attention over ``turboquant`` streams, whatever kernel reads the codes: folding, exact tokens, merging."""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.codecs.turboquant import TurboQuant, TurboQuantCode, coordinate_levels
from kakeya_jax.pallas_kernels.attention import softmax_state
from kakeya_jax.pallas_kernels.attention.exact_tokens import attend_exact, group_heads, ungroup_heads
from kakeya_jax.pallas_kernels.attention.level_polynomial import fit_levels
from kakeya_jax.pallas_kernels.attention.packed_format import Format
from kakeya_jax.pallas_kernels.attention.softmax_state import SoftmaxState
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
) -> Float[Array, "B 1 H D"]:
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
            coded tokens of each of the ``N`` heads; ``key_format``, ``value_format`` and ``scale`` by name. It returns
            states ``[splits, N, G]``.
    """
    queries = group_heads(query, key_stream.tail.shape[1])
    exact = attend_exact(queries, key_stream, value_stream, chunk, positions=positions, rope=rope, scale=scale)
    geometry = key_stream.geometry
    if not geometry.num_pages:
        return ungroup_heads(softmax_state.output(exact)).astype(query.dtype)
    batch, num_kv_heads, _, group, dim = queries.shape
    heads = batch * num_kv_heads
    closed = geometry.closed_pages(positions[:, 0] + 1) * geometry.page
    states = kernel(
        rotate(queries.astype(jnp.float32), key_stream.codec.rotation).reshape(heads, group, dim),
        *_rows(key_stream.blocks, heads),
        *_rows(value_stream.blocks, heads),
        jnp.repeat(closed, num_kv_heads),
        key_format=_format(key_stream),
        value_format=_format(value_stream),
        scale=scale,
    )
    coded = softmax_state.reduce(states, axis=0)
    lead = (batch, num_kv_heads, 1, group)
    coded = SoftmaxState(
        coded.top.reshape(lead),
        coded.total.reshape(lead),
        unrotate(coded.weighted, value_stream.codec.rotation).reshape(*lead, dim),
    )
    return ungroup_heads(softmax_state.output(softmax_state.combine(exact, coded))).astype(query.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kernel takes.

    Attributes:
        head_dims: dimensions of a head.
        group: most queries that share a key/value head.
        tokens: pages are whole multiples of so many.
    """

    head_dims: tuple[int, ...]
    group: int
    tokens: int


def unsupported(query: Array, key_stream: Stream, value_stream: Stream, limits: Limits) -> list[str]:
    """What a kernel for rotated codes of these limits does not take, in words."""
    _, length, num_heads, dim = query.shape
    group, page = num_heads // key_stream.tail.shape[1], key_stream.geometry.page
    found = [f"{length} queries for a row instead of one"] if length != 1 else []
    found += [f"head_dim {dim}"] if dim not in limits.head_dims else []
    found += [f"{group} queries for a key/value head"] if group > limits.group else []
    found += [f"pages of {page} tokens"] if page % limits.tokens else []
    if key_stream.frame is not None or value_stream.frame is not None:
        found.append("a static mean or whitening")
    if key_stream.rope == "pre":
        found.append("keys stored before their rotary embedding")
    for stream in (key_stream, value_stream):
        config = stream.codec.config
        if not isinstance(stream.codec, TurboQuant):
            found.append(config.name)
        elif config.qjl or config.bits not in (2, 4):
            found.append(f"turboquant(bits={config.bits}, qjl={config.qjl})")
    return list(dict.fromkeys(found))


def num_heads(stream: Stream) -> int:
    """Rows times key/value heads."""
    return math.prod(stream.tail.shape[:2])


def capacity(stream: Stream) -> int:
    """Coded tokens that a head can hold."""
    return stream.geometry.num_pages * stream.geometry.page


def _format(stream: Stream) -> Format:
    bits = stream.codec.config.bits
    return Format(bits=bits, coefficients=fit_levels(tuple(map(float, coordinate_levels(bits)))))


def _rows(code: TurboQuantCode, heads: int) -> tuple[Array, Array]:
    """Packed indices ``[N, T, w]`` and scales ``[N, T]``: the pages of a head lie one behind the other."""
    tokens = math.prod(code.scale.shape[2:])
    return code.indices.reshape(heads, tokens, -1), code.scale.reshape(heads, tokens)
