"""Random packed streams for kernels, and what attention over them is in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import code_words
from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.codecs.turboquant import coordinate_levels
from kakeya_jax.pallas_kernels.attention import softmax_state
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.pallas_kernels.attention.softmax_state import SoftmaxState
from kakeya_jax.token_tiles import TILE

UNIFORM_UNIT = 0.03
"""Of codes of 8 bits, which kernels take too."""


class Streams(NamedTuple):
    """The arguments of a kernel: ``[N, G, D]`` queries, then codes and scales of keys and of values, and lengths."""

    query: jax.Array
    key_codes: jax.Array
    key_scales: jax.Array
    value_codes: jax.Array
    value_scales: jax.Array
    lengths: jax.Array


class Indices(NamedTuple):
    """What is packed in ``Streams``: ``[N, T, D]``."""

    key: np.ndarray
    value: np.ndarray


def levels_of(bits: int) -> np.ndarray:
    """As a decoder has them, float64."""
    if bits == 8:
        return (np.arange(256) - 127.5) * UNIFORM_UNIT
    return np.asarray(coordinate_levels(bits), np.float64)


def formats(bits: tuple[int, int]) -> dict[str, object]:
    """The named arguments of a kernel that say how codes are packed."""
    found: dict[str, object] = {}
    for name, width in zip(("key", "value"), bits, strict=True):
        table, unit = ((), UNIFORM_UNIT) if width == 8 else byte_levels(tuple(map(float, coordinate_levels(width))))
        found |= {name: Codes(bits=width, table=table), f"{name}_unit": unit}
    return found


def random_indices(dim: int, bits: tuple[int, int], heads: int, tokens: int) -> Indices:
    rng = np.random.default_rng(dim + bits[0])
    return Indices(*(rng.integers(0, 1 << width, (heads, tokens, dim)) for width in bits))


def random_streams(
    dim: int,
    group: int,
    bits: tuple[int, int],
    lengths: list[int],
    tokens: int,
    *,
    spread: float = 1.0,
    indices: Indices | None = None,
) -> Streams:
    """Scales span ``spread`` orders of magnitude; those of tokens beyond a head's length are NaN."""
    heads = len(lengths)
    indices = indices or random_indices(dim, bits, heads, tokens)
    keys = jax.random.split(jax.random.key(dim + group), 3)
    valid = jnp.arange(tokens) < jnp.array(lengths)[:, None]

    def scales(key: jax.Array, high: float) -> jax.Array:
        drawn = 10.0 ** jax.random.uniform(key, (heads, tokens), minval=high - spread, maxval=high)
        return jnp.where(valid, drawn, jnp.nan).astype(jnp.float16)

    by_channel = indices.value.reshape(heads, tokens // TILE, TILE, dim).transpose(0, 1, 3, 2)
    return Streams(
        query=jax.random.normal(keys[0], (heads, group, dim)),
        key_codes=code_words.pack(jnp.asarray(indices.key), bits[0]),
        key_scales=scales(keys[1], -0.3),
        value_codes=code_words.pack(jnp.asarray(by_channel), bits[1]),
        value_scales=scales(keys[2], 1.0),
        lengths=jnp.array(lengths, jnp.int32),
    )


def attend_exactly(streams: Streams, bits: tuple[int, int], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Output ``[N, G, D]`` and log-sum-exp ``[N, G]``, minus infinity for a head without tokens."""
    query = np.asarray(streams.query, np.float64)
    key, value = keys_of(streams, bits), values_of(streams, bits)
    out, log_sum = np.zeros(query.shape), np.full(query.shape[:2], -np.inf)
    for head, length in enumerate(np.asarray(streams.lengths)):
        if length:
            logits = query[head] @ key[head, :length].T * scale
            top = logits.max(-1, keepdims=True)
            weights = np.exp(logits - top)
            out[head] = weights @ value[head, :length] / weights.sum(-1, keepdims=True)
            log_sum[head] = top[:, 0] + np.log(weights.sum(-1))
    return out, log_sum


def assert_attends(
    states: SoftmaxState, streams: Streams, bits: tuple[int, int], scale: float, tolerance: float
) -> None:
    """Each head's output is within ``tolerance`` of its length, and the log-sum-exp within 1e-3, or within 3e-4 of the
    largest logit that vectors of these lengths can have: queries of 16 bits round what it is a sum of."""
    state = softmax_state.reduce(states, axis=0)
    out, log_sum = attend_exactly(streams, bits, scale)
    found = np.asarray(softmax_state.output(state), np.float64)
    query, key = np.asarray(streams.query, np.float64), keys_of(streams, bits)
    for head, length in enumerate(np.asarray(streams.lengths)):
        assert np.linalg.norm(found[head] - out[head]) <= tolerance * np.linalg.norm(out[head])
        if length:
            longest = np.linalg.norm(key[head, :length], axis=-1).max()
            bound = np.maximum(1e-3, 3e-4 * scale * longest * np.linalg.norm(query[head], axis=-1))
            found_log_sum = np.asarray(state.top, np.float64)[head] + np.log(np.asarray(state.total, np.float64)[head])
            assert (np.abs(found_log_sum - log_sum[head]) <= bound).all()


def keys_of(streams: Streams, bits: tuple[int, int]) -> np.ndarray:
    indices = code_words.unpack(streams.key_codes, bits[0], streams.query.shape[-1])
    return levels_of(bits[0])[np.asarray(indices)] * np.asarray(streams.key_scales, np.float64)[..., None]


def values_of(streams: Streams, bits: tuple[int, int]) -> np.ndarray:
    heads, tokens = streams.value_scales.shape
    indices = np.asarray(code_words.unpack(streams.value_codes, bits[1], TILE))
    levels = levels_of(bits[1])[indices.transpose(0, 1, 3, 2).reshape(heads, tokens, -1)]
    return levels * np.asarray(streams.value_scales, np.float64)[..., None]
