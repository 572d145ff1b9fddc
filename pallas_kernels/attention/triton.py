"""Decode attention through Triton kernels: the portable tier (Ampere, Ada, Hopper)."""

import functools

import jax

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention.rotated_codes import (
    attend_rotated_codes,
    capacity,
    num_heads,
    unsupported,
)
from kakeya_jax.pallas_kernels.attention.triton_rotated import Tiling, attend_rotated
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

_LARGEST_TILE = 64
_SMALLEST_TILE = 16
_PROGRAMS = 8 * 132
"""Programs that a GPU is filled with: several for each multiprocessor of the largest."""

_HEAD_DIMS = (32, 64, 128, 256)
_LARGEST_GROUP = 64


def attention_triton(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """See ``compressed_attention``; one query for each row, keys and values of ``turboquant`` with 2 or 4 bits.

    Args:
        query: see ``compressed_attention``, and
        key_stream: likewise.
        value_stream: likewise.
        positions: likewise.
        rope: likewise.
        scale: likewise.
        chunk: likewise.
        tiling: how the work is cut; None for a choice by shape.
        interpret: run the kernel without a GPU.

    Raises:
        NotImplementedError: other codecs, shapes or devices; the message says which.
    """
    group, page = query.shape[2] // key_stream.tail.shape[1], key_stream.geometry.page
    found = [] if interpret or jax.default_backend() == "gpu" else ["no NVIDIA GPU"]
    found += unsupported(query, key_stream, value_stream)
    found += [f"head_dim {query.shape[3]}"] if query.shape[3] not in _HEAD_DIMS else []
    found += [f"{group} queries for a key/value head"] if group > _LARGEST_GROUP else []
    found += [f"pages of {page} tokens"] if (page & -page) < _SMALLEST_TILE else []
    if found:
        raise NotImplementedError(f"no Triton kernel for this: {', '.join(found)}")
    tiling = tiling or choose_tiling(num_heads(key_stream), capacity(key_stream), page)
    return attend_rotated_codes(
        query,
        key_stream,
        value_stream,
        positions=positions,
        rope=rope,
        scale=scale,
        chunk=chunk,
        kernel=functools.partial(attend_rotated, tiling=tiling, interpret=interpret),
    )


def choose_tiling(heads: int, tokens: int, page: int) -> Tiling:
    """A tiling for ``heads`` heads of at most ``tokens`` tokens in pages of ``page``."""
    tile = min(_LARGEST_TILE, page & -page)
    splits = max(1, min(_PROGRAMS // heads, tokens // (4 * tile)))
    return Tiling(tile=tile, splits=1 << (splits.bit_length() - 1))
