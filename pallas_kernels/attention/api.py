"""One function for attention over packed codes, whatever computes it."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, overload

import jax

from kakeya_jax.cache import ChunkWindow
from kakeya_jax.pallas_kernels.attention.dense_copy import attention_dense_copy
from kakeya_jax.pallas_kernels.attention.mosaic_gpu import attention_mosaic_gpu
from kakeya_jax.pallas_kernels.attention.reference import attention_reference
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended
from kakeya_jax.pallas_kernels.attention.triton import attention_triton
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

_IMPLEMENTATIONS: dict[str, Callable[..., Attended]] = {
    "mosaic_gpu": attention_mosaic_gpu,
    "triton": attention_triton,
    "reference": attention_reference,
}
"""Backends from the fastest to the one that always works."""

_BASELINES: dict[str, Callable[..., Attended]] = {"dense_copy": attention_dense_copy}
"""What others are compared with; by name only."""


@overload
def compressed_attention(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
    implementation: str | None = None,
    return_lse: Literal[False] = False,
) -> Float[Array, "B T H D"]: ...


@overload
def compressed_attention(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
    implementation: str | None = None,
    return_lse: Literal[True],
) -> Attended: ...


def compressed_attention(
    query: Float[Array, "B T H D"],
    key_stream: Stream,
    value_stream: Stream,
    *,
    positions: Int[Array, "B T"],
    rope: Rope,
    scale: float,
    chunk: ChunkWindow | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> Float[Array, "B T H D"] | Attended:
    """Attention of rotated queries over exact sinks, coded pages and the exact window, by position.

    The query at position ``p`` sees token ``j <= p`` as the cache served it once ``p + 1`` tokens were held: coded if
    its page was closed by then, exact otherwise.

    Args:
        query: queries after their rotary embedding.
        key_stream: keys, the queries' own tokens already appended.
        value_stream: values, likewise, with the same geometry.
        positions: absolute position of each query.
        rope: the rotary embedding, applied to keys that are stored before it.
        scale: factor of the logits.
        chunk: the exact window of a chunk with more than one query (what ``LayerCache.append`` returned); ``None``
            takes the streams' own tails.
        implementation: ``"mosaic_gpu"``, ``"triton"`` or ``"reference"``; ``None`` for the fastest that supports the
            arguments. A decode step on a GPU that only the reference supports says so once, in the log.
            ``"dense_copy"`` decodes everything and attends densely: storage saved, nothing else, for comparisons.
        return_lse: return ``Attended(out, lse)``, with the logarithm of the softmax's denominator, float32
            ``[B, T, H]``, by which attention over other tokens can be merged.

    Raises:
        ValueError: unknown implementation.
        NotImplementedError: the implementation asked for does not support these arguments; the message says why.
    """
    known = _IMPLEMENTATIONS | _BASELINES
    if implementation is not None and implementation not in known:
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(known)}")
    options: dict[str, Any] = {"positions": positions, "rope": rope, "scale": scale, "chunk": chunk}
    attend = _fastest if implementation is None else known[implementation]
    found = attend(query, key_stream, value_stream, **options)
    return found if return_lse else found.out


def _fastest(query: Array, *streams: Stream, **options: Any) -> Attended:
    """By the first implementation that supports the arguments."""
    *kernels, last = _IMPLEMENTATIONS.values()
    reasons = []
    for kernel in kernels:
        try:
            return kernel(query, *streams, **options)
        except NotImplementedError as error:
            reasons.append(str(error))
    if query.shape[1] == 1 and jax.default_backend() == "gpu":
        _say_once("; ".join(reasons))
    return last(query, *streams, **options)


@functools.cache
def _say_once(reasons: str) -> None:
    logging.getLogger(__name__).warning("decoding without a kernel, in XLA: %s", reasons)
