"""What of two streams a kernel reads, and what it does not take."""

import dataclasses
import math

from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.codecs.turboquant import TurboQuant, coordinate_levels
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.pallas_kernels.attention.decode_step import CodedStream
from kakeya_jax.pallas_kernels.attention.exact_values import DTYPES
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kernel takes.

    Attributes:
        head_dims: dimensions of a head.
        group: most queries that share a key/value head.
        tokens: pages are whole multiples of so many.
        bits: of an index.
    """

    head_dims: tuple[int, ...]
    group: int
    tokens: int
    bits: tuple[int, ...]


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
        config = stream.codec.config
        if not isinstance(stream.codec, TurboQuant):
            found.append(config.name)
        elif config.qjl or config.bits not in limits.bits or config.mix_heads:
            found.append(f"turboquant(bits={config.bits}, qjl={config.qjl}, mix_heads={config.mix_heads})")
    return list(dict.fromkeys(found))


def coded_stream(stream: Stream) -> CodedStream:
    """The arrays of a stream that ``unsupported`` says nothing of; the pages of a head lie one behind the other."""
    heads, tokens = num_heads(stream), capacity(stream)
    dim = stream.tail.shape[-1]
    bits = stream.codec.config.bits
    table, unit = byte_levels(tuple(float(level) for level in coordinate_levels(bits)))
    words = stream.blocks.indices
    return CodedStream(
        words=words.reshape(heads, tokens, -1)
        if stream.codec.stream == "key"
        else words.reshape(heads, -1, dim, words.shape[-1]),
        scales=stream.blocks.scale.reshape(heads, tokens),
        sinks=stream.sinks.reshape(heads, -1, dim),
        tail=stream.tail.reshape(heads, -1, dim),
        rotation=stream.codec.rotation,
        codes=Codes(bits=bits, table=table),
        unit=unit,
    )


def num_heads(stream: Stream) -> int:
    """Rows times key/value heads."""
    return math.prod(stream.tail.shape[:2])


def capacity(stream: Stream) -> int:
    """Coded tokens that a head can hold."""
    return stream.geometry.num_pages * stream.geometry.page
