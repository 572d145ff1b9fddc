"""What of two streams a kernel reads, and what it does not take."""

import dataclasses
import math
from typing import Any

from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.codecs.besicovitch import Besicovitch
from kakeya_jax.codecs.fp8 import Fp8
from kakeya_jax.codecs.identity import Identity
from kakeya_jax.codecs.integer import Integer
from kakeya_jax.codecs.kivi import Kivi
from kakeya_jax.codecs.turboquant import TurboQuant, coordinate_levels
from kakeya_jax.pallas_kernels.attention.besicovitch_streams import besicovitch_stream, unsupported_besicovitch
from kakeya_jax.pallas_kernels.attention.coded_shape import GROUP, Codes
from kakeya_jax.pallas_kernels.attention.decode_step import CodedStream
from kakeya_jax.pallas_kernels.attention.exact_values import DTYPES
from kakeya_jax.pallas_kernels.attention.float_streams import float_stream, unsupported_floats
from kakeya_jax.pallas_kernels.attention.query_form import Coordinates
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, StreamName

_NIBBLE = 16
"""What a step of a code of 4 bits that is its level is as a byte."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kernel takes.

    Attributes:
        head_dims: dimensions of a head.
        group: most queries that share a key/value head.
        tokens: pages are whole multiples of so many.
        bits: of an index of ``turboquant``.
        integers: whether it takes ``int8``, ``int4`` and ``kivi``.
        besicovitch: whether it takes ``besicovitch`` in values.
        floats: whether it takes ``fp8`` and ``identity``, in keys and values.
    """

    head_dims: tuple[int, ...]
    group: int
    tokens: int
    bits: tuple[int, ...]
    integers: bool = False
    besicovitch: bool = False
    floats: bool = False


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
    codecs = key_stream.codec, value_stream.codec
    floats = [isinstance(codec, Fp8 | Identity) for codec in codecs]
    if limits.floats and any(floats):
        found += [] if all(floats) else [" beside ".join(codec.config.name for codec in codecs)]
        found += [
            reason for codec in codecs if isinstance(codec, Fp8 | Identity) for reason in unsupported_floats(codec)
        ]
    else:
        for codec, name in zip(codecs, ("key", "value"), strict=True):
            found += _unsupported_codec(codec, name, dim, limits)
    return list(dict.fromkeys(found))


def _unsupported_codec(codec: Any, name: StreamName, dim: int, limits: Limits) -> list[str]:
    config = codec.config
    if isinstance(codec, Besicovitch) and limits.besicovitch:
        return unsupported_besicovitch(codec)
    if isinstance(codec, TurboQuant):
        if config.qjl or config.bits not in limits.bits or config.mix_heads:
            return [f"turboquant(bits={config.bits}, qjl={config.qjl}, mix_heads={config.mix_heads})"]
        return []
    if not limits.integers or not isinstance(codec, Integer | Kivi):
        return [config.name]
    if config.mix_heads:
        return [f"{config.name}(mix_heads={config.mix_heads})"]
    group_size = config.group_size
    if isinstance(codec, Kivi):
        taken = group_size % GROUP == 0 and codec.axis == ("channel" if name == "key" else "token")
        taken = taken and (name == "key" or group_size < dim)
        return [] if taken else [f"{name}s of kivi(group_size={group_size}, axis={codec.axis})"]
    if codec.bits == 8:
        return [] if group_size is None else [f"int8(group_size={group_size})"]
    taken = group_size % GROUP == 0 and not (codec.affine and group_size == dim)
    return [] if taken else [f"{name}s of int4(group_size={group_size}, affine={codec.affine})"]


def coded_stream(stream: Stream) -> CodedStream:
    """The arrays of a stream that ``unsupported`` says nothing of; the pages of a head lie one behind the other."""
    if isinstance(stream.codec, Besicovitch):
        return besicovitch_stream(stream)
    if isinstance(stream.codec, Fp8 | Identity):
        return float_stream(stream)
    heads, tokens = num_heads(stream), capacity(stream)
    dim = stream.tail.shape[-1]
    codec, blocks = stream.codec, stream.blocks
    codes, unit = _format(codec, dim)
    words = blocks.indices if isinstance(codec, TurboQuant) else blocks.codes
    along_tokens = codec.stream == "value" if isinstance(codec, TurboQuant) else codec.along_tokens
    of_tokens = tokens // (codes.tokens or 1)
    return CodedStream(
        words=words.reshape(heads, -1, dim, words.shape[-1]) if along_tokens else words.reshape(heads, tokens, -1),
        scales=blocks.scale.reshape(heads, of_tokens, -1),
        minima=blocks.minimum.reshape(heads, of_tokens, -1) if codes.step else None,
        sinks=stream.sinks.reshape(heads, -1, dim),
        tail=stream.tail.reshape(heads, -1, dim),
        rotation=codec.rotation if isinstance(codec, TurboQuant) else None,
        coordinates=_coordinates(codec, along_tokens),
        codes=codes,
        unit=unit,
    )


def _coordinates(codec: Any, along_tokens: bool) -> Coordinates:
    """What a stream's codes are of."""
    if isinstance(codec, TurboQuant):
        return "hadamard" if codec.config.rotation == "hadamard" else "rotated"
    return "lanes" if isinstance(codec, Integer) and codec.bits == 4 and not along_tokens else "channels"


def _format(codec: Any, dim: int) -> tuple[Codes, float]:
    """How a stream's codes are packed, and the unit of their levels."""
    if isinstance(codec, TurboQuant):
        bits = codec.config.bits
        table, unit = byte_levels(tuple(float(level) for level in coordinate_levels(bits)))
        return Codes(bits=bits, table=table), unit
    if isinstance(codec, Integer) and codec.bits == 8:
        return Codes(bits=8, table=(), halfway=False), 1.0
    scales = dim // (codec.config.group_size or dim)
    if isinstance(codec, Integer) and not codec.affine:
        return Codes(bits=4, table=(), halfway=False, scales=scales), 1 / _NIBBLE
    if isinstance(codec, Kivi) and codec.axis == "channel":
        bits = codec.config.bits
        return Codes(bits=bits, table=(), halfway=False, tokens=codec.config.group_size, step=1), 2.0**bits
    step, zero = (1, 0) if isinstance(codec, Kivi) and codec.config.bits == 2 else (_NIBBLE, 8)
    bits = 2 if step == 1 else 4
    return Codes(bits=bits, table=(), halfway=False, scales=scales, step=step, zero=zero), 1 / step


def num_heads(stream: Stream) -> int:
    """Rows times key/value heads."""
    return math.prod(stream.tail.shape[:2])


def capacity(stream: Stream) -> int:
    """Coded tokens that a head can hold."""
    return stream.geometry.num_pages * stream.geometry.page
