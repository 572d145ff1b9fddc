"""What of two streams a kernel reads, and what it does not take."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from kakeya_jax import nibble_words
from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.codecs.integer import Integer
from kakeya_jax.codecs.turboquant import TurboQuant, coordinate_levels
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.pallas_kernels.attention.decode_step import CodedStream
from kakeya_jax.pallas_kernels.attention.exact_values import DTYPES
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array

GROUP = 32
"""Channels that share a scale of ``int4``, or a multiple: the depth of a product."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kernel takes.

    Attributes:
        head_dims: dimensions of a head.
        group: most queries that share a key/value head.
        tokens: pages are whole multiples of so many.
        bits: of an index of ``turboquant``.
        int8: whether it takes ``int8``, and
        int4: ``int4``.
    """

    head_dims: tuple[int, ...]
    group: int
    tokens: int
    bits: tuple[int, ...]
    int8: bool = False
    int4: bool = False


def unsupported(query: Array, key_stream: Stream, value_stream: Stream, limits: Limits) -> list[str]:
    """What a kernel of these limits does not take, in words."""
    _, length, num_heads, dim = query.shape
    group = num_heads // key_stream.tail.shape[1]
    found = [f"{length} queries for a row instead of one"] if length != 1 else []
    found += [f"head_dim {dim}"] if dim not in limits.head_dims else []
    found += [f"{group} queries for a key/value head"] if group > limits.group else []
    pages = {key_stream.geometry.page, value_stream.codec.config.block_size}
    found += [f"pages of {page} tokens" for page in sorted(pages) if page % limits.tokens]
    if not key_stream.geometry.num_pages:
        found.append("a cache without room for a page")
    if key_stream.frame is not None or value_stream.frame is not None:
        found.append("a static mean or whitening")
    if key_stream.rope == "pre":
        found.append("keys stored before their rotary embedding")
    dtypes = {query.dtype, key_stream.tail.dtype, value_stream.tail.dtype}
    found += [f"numbers of type {dtype}" for dtype in dtypes if dtype not in DTYPES]
    if key_stream.tail.dtype != value_stream.tail.dtype:
        found.append("exact keys and values of different types")
    for stream in (key_stream, value_stream):
        found += _unsupported_codec(stream.codec, dim, limits)
    return list(dict.fromkeys(found))


def _unsupported_codec(codec: Any, dim: int, limits: Limits) -> list[str]:
    if isinstance(codec, TurboQuant):
        config = codec.config
        if config.qjl or config.bits not in limits.bits or config.mix_heads:
            return [f"turboquant(bits={config.bits}, qjl={config.qjl}, mix_heads={config.mix_heads})"]
        return []
    if isinstance(codec, Integer) and codec.bits == 4 and limits.int4:
        config = codec.config
        taken = not codec.affine and codec.group_size % GROUP == 0 and not config.mix_heads
        return (
            []
            if taken
            else [f"int4(group_size={codec.group_size}, affine={codec.affine}, mix_heads={config.mix_heads})"]
        )
    if isinstance(codec, Integer) and codec.bits == 8 and limits.int8:
        group_size = codec.config.group_size
        return [] if group_size is None and not codec.config.mix_heads else [f"int8(group_size={group_size})"]
    return [codec.config.name]


def coded_stream(stream: Stream) -> CodedStream:
    """The arrays of a stream that ``unsupported`` says nothing of; the pages of a head lie one behind the other."""
    heads, tokens = num_heads(stream), capacity(stream)
    dim = stream.tail.shape[-1]
    scales = stream.blocks.scale.reshape(heads, tokens, -1)
    if isinstance(stream.codec, Integer):
        bits, words = stream.codec.bits, stream.blocks.codes
        codes = Codes(bits=bits, table=(), halfway=False, scales=scales.shape[-1])
        unit = 1.0 if bits == 8 else 1 / 16
        along_tokens, rotation = stream.codec.along_tokens, jnp.eye(dim, dtype=jnp.float32)
        if bits == 4 and not along_tokens:
            rotation = nibble_words.to_lane_order(rotation).T
    else:
        bits = stream.codec.config.bits
        table, unit = byte_levels(tuple(float(level) for level in coordinate_levels(bits)))
        codes, words, rotation = Codes(bits=bits, table=table), stream.blocks.indices, stream.codec.rotation
        along_tokens = stream.codec.stream == "value"
    return CodedStream(
        words=words.reshape(heads, -1, dim, words.shape[-1]) if along_tokens else words.reshape(heads, tokens, -1),
        scales=scales,
        sinks=stream.sinks.reshape(heads, -1, dim),
        tail=stream.tail.reshape(heads, -1, dim),
        rotation=rotation,
        codes=codes,
        unit=unit,
    )


def num_heads(stream: Stream) -> int:
    """Rows times key/value heads."""
    return math.prod(stream.tail.shape[:2])


def capacity(stream: Stream) -> int:
    """Coded tokens that a head can hold."""
    return stream.geometry.num_pages * stream.geometry.page
