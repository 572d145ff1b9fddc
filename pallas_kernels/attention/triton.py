"""Decode attention through Triton kernels: the portable tier (Ampere, Ada, Hopper)."""

import functools

import jax

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention.coded_streams import Limits, capacity, num_heads, unsupported
from kakeya_jax.pallas_kernels.attention.program_counts import MULTIPROCESSORS
from kakeya_jax.pallas_kernels.attention.rotated_codes import attend_rotated_codes
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended
from kakeya_jax.pallas_kernels.attention.triton_rotated import Tiling, attend_rotated
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

_TILE = 64
_PROGRAMS = 8 * MULTIPROCESSORS
"""Programs that a GPU is filled with: several for each multiprocessor of the largest."""

_LIMITS = Limits(head_dims=(64, 128, 256), group=64, tokens=64, bits=(2, 4))


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
) -> Attended:
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
    found = [] if interpret or jax.default_backend() == "gpu" else ["no NVIDIA GPU"]
    found += unsupported(query, key_stream, value_stream, _LIMITS)
    if found:
        raise NotImplementedError(f"no Triton kernel for this: {', '.join(found)}")
    tiling = tiling or choose_tiling(num_heads(key_stream), capacity(key_stream))
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


def choose_tiling(heads: int, tokens: int) -> Tiling:
    """A tiling for ``heads`` heads of at most ``tokens`` tokens."""
    splits = max(1, min(_PROGRAMS // heads, tokens // (4 * _TILE)))
    return Tiling(tile=_TILE, splits=1 << (splits.bit_length() - 1))
