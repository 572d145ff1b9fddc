"""Decode attention through Mosaic GPU kernels: the fast path (Hopper)."""

import functools

import jax

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention.rotated_codes import (
    Limits,
    attend_rotated_codes,
    capacity,
    num_heads,
    unsupported,
)
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

_SINCE = (0, 11)
"""The first version of JAX whose Mosaic GPU has all that the kernels need."""

_PROGRAMS = 132
"""Programs that a GPU is filled with: one for each multiprocessor of an H200."""

_LIMITS = Limits(head_dims=(64, 128), group=8, tokens=64)


def attention_mosaic_gpu(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
    splits: int | None = None,
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
        splits: programs that share the tokens of a head; None for a choice by shape.

    Raises:
        NotImplementedError: other codecs, shapes, devices or versions of JAX; the message says which.
    """
    found = [] if jax.default_backend() == "gpu" else ["no NVIDIA GPU"]
    found += [f"jax {jax.__version__} (0.11 and later)"] if jax.__version_info__[:2] < _SINCE else []
    found += unsupported(query, key_stream, value_stream, _LIMITS)
    if found:
        raise NotImplementedError(f"no Mosaic GPU kernel for this: {', '.join(found)}")
    from kakeya_jax.pallas_kernels.attention.warp_rotated import attend_rotated  # needs jax 0.11

    return attend_rotated_codes(
        query,
        key_stream,
        value_stream,
        positions=positions,
        rope=rope,
        scale=scale,
        chunk=chunk,
        kernel=functools.partial(
            attend_rotated, splits=splits or choose_splits(num_heads(key_stream), capacity(key_stream))
        ),
    )


def choose_splits(heads: int, tokens: int) -> int:
    """How many programs share the tokens of each of ``heads`` heads of at most ``tokens`` tokens."""
    return max(1, min(_PROGRAMS // heads, tokens // (12 * _LIMITS.tokens)))
