"""Decode attention through Mosaic GPU kernels: the fast path (Hopper)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.codecs.besicovitch import Besicovitch
from kakeya_jax.codecs.integer import Integer
from kakeya_jax.codecs.kakeya import Kakeya
from kakeya_jax.codecs.klt import Klt
from kakeya_jax.codecs.turboquant import TurboQuant
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, TILE
from kakeya_jax.pallas_kernels.attention.coded_streams import Limits, capacity, coded_stream, num_heads, unsupported
from kakeya_jax.pallas_kernels.attention.decode_step import decode_step, most_teams
from kakeya_jax.pallas_kernels.attention.kakeya_step import PROGRAMS as KAKEYA_PROGRAMS
from kakeya_jax.pallas_kernels.attention.kakeya_step import kakeya_step, unsupported_kakeya
from kakeya_jax.pallas_kernels.attention.klt_step import klt_step, unsupported_klt
from kakeya_jax.pallas_kernels.attention.program_counts import BESIDE_EXACT, HeadShares, choose_shares
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

_SINCE = (0, 11)
"""The first version of JAX whose Mosaic GPU has all that the kernels need."""

_LIMITS = Limits(
    head_dims=(64, 128), group=64, tokens=TILE, bits=(2, 3, 4), integers=True, besicovitch=True, floats=True
)


def attention_mosaic_gpu(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
    splits: int | HeadShares | None = None,
    interpret: bool = False,
) -> Attended:
    """See ``compressed_attention``; one query for each row, of ``turboquant`` (2, 3 or 4 bits), ``int8``, ``int4``,
    ``kivi`` or ``klt``; ``besicovitch`` in values; keys of ``kakeya`` beside values of ``turboquant``; or ``fp8`` and
    ``identity``, beside each other.

    More than eight queries for a key/value head are attended to eight at a time, and codes are read as often.

    Args:
        query: see ``compressed_attention``, and
        key_stream: likewise.
        value_stream: likewise.
        positions: likewise.
        rope: likewise.
        scale: likewise.
        chunk: likewise.
        splits: programs that share the coded tokens of a head equally, or how unequally (not of ``klt`` and
            ``kakeya``); None for a choice by shape.
        interpret: run the kernels' programs in numpy, slowly, on any machine.

    Raises:
        NotImplementedError: other codecs, shapes, devices or versions of JAX; the message says which.
        ValueError: unequal ``splits`` of ``klt`` or ``kakeya``.
    """
    del chunk  # a single query's window is in the streams
    found = []
    if not interpret:
        found += [] if jax.default_backend() == "gpu" else ["no NVIDIA GPU"]
        found += [f"jax {jax.__version__} (0.11 and later)"] if jax.__version_info__[:2] < _SINCE else []
    transformed = all(isinstance(stream.codec, Klt) for stream in (key_stream, value_stream))
    in_blocks = isinstance(key_stream.codec, Kakeya)
    if transformed:
        found += unsupported_klt(query, key_stream, value_stream)
    elif in_blocks:
        found += unsupported_kakeya(query, key_stream, value_stream)
    else:
        found += unsupported(query, key_stream, value_stream, _LIMITS)
    if found:
        raise NotImplementedError(f"no Mosaic GPU kernel for this: {', '.join(found)}")
    heads, dim = num_heads(key_stream), query.shape[-1]
    grouped = query.reshape(heads, -1, dim)
    choose = functools.partial(choose_shares, heads, capacity(key_stream))
    streams = {"key_stream": key_stream, "value_stream": value_stream}
    given = HeadShares(splits) if isinstance(splits, int) else splits
    step: Callable[..., Attended]
    if in_blocks:
        chosen = _equal(given or choose(programs=KAKEYA_PROGRAMS))
        step = functools.partial(kakeya_step, rope=rope, splits=chosen, **streams)
    elif transformed:
        step = functools.partial(klt_step, rope=rope, splits=_equal(given or choose()), **streams)
    else:
        key, value = coded_stream(key_stream), coded_stream(value_stream)
        alone = most_teams(key, value, min(grouped.shape[1], COLUMNS), dim) == 1
        shares = given or choose(preferred=_preferred_programs(key_stream, value_stream), late=alone)
        step = functools.partial(decode_step, key=key, value=value, geometry=key_stream.geometry, shares=shares)
    parts = [
        step(
            grouped[:, first : first + COLUMNS],
            positions=positions[:, 0],
            scale=scale,
            interpret=interpret,
        )
        for first in range(0, grouped.shape[1], COLUMNS)
    ]
    out, lse = (jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    return Attended(out.reshape(query.shape), lse.reshape(query.shape[:-1]))


def _equal(shares: HeadShares) -> int:
    """Programs of a head, if that is all that is asked for."""
    if shares != HeadShares(shares.splits):
        raise ValueError("programs of klt and kakeya share a head equally: give their number alone, like 6")
    return shares.splits


def _preferred_programs(*streams: Stream) -> int | None:
    """Programs that leave exact tokens a place, for what this was measured to be faster: docs/kernels-log.md."""
    return BESIDE_EXACT if all(_faster_beside_exact(stream.codec) for stream in streams) else None


def _faster_beside_exact(codec: Any) -> bool:
    if isinstance(codec, Integer):
        return codec.bits == 4 and not codec.affine
    return isinstance(codec, TurboQuant | Besicovitch)
