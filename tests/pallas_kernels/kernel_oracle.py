"""Random packed streams for kernels, and what attention over them is in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import bitpack
from kakeya_jax.codecs.turboquant import coordinate_levels
from kakeya_jax.pallas_kernels.attention import softmax_state
from kakeya_jax.pallas_kernels.attention.level_polynomial import fit_levels
from kakeya_jax.pallas_kernels.attention.packed_format import Format
from kakeya_jax.pallas_kernels.attention.softmax_state import SoftmaxState


class Streams(NamedTuple):
    """The arguments of a kernel: ``[N, G, D]`` queries, then indices and scales of keys and of values, and lengths."""

    query: jax.Array
    key_codes: jax.Array
    key_scales: jax.Array
    value_codes: jax.Array
    value_scales: jax.Array
    lengths: jax.Array


def packed_format(bits: int) -> Format:
    return Format(bits=bits, coefficients=fit_levels(tuple(map(float, coordinate_levels(bits)))))


def random_streams(
    dim: int, group: int, bits: tuple[int, int], lengths: list[int], tokens: int, *, spread: float = 1.0
) -> Streams:
    """Scales span ``spread`` orders of magnitude; those of tokens beyond a head's length are NaN."""
    keys = jax.random.split(jax.random.key(dim + group), 5)
    heads = len(lengths)
    valid = jnp.arange(tokens) < jnp.array(lengths)[:, None]

    def scales(key: jax.Array, high: float) -> jax.Array:
        drawn = 10.0 ** jax.random.uniform(key, (heads, tokens), minval=high - spread, maxval=high)
        return jnp.where(valid, drawn, jnp.nan).astype(jnp.float16)

    key_codes, value_codes = (
        jax.random.randint(key, (heads, tokens, dim * width // 8), 0, 256, jnp.uint8)
        for key, width in zip(keys[1:3], bits, strict=True)
    )
    return Streams(
        query=jax.random.normal(keys[0], (heads, group, dim)),
        key_codes=key_codes,
        key_scales=scales(keys[3], -0.3),
        value_codes=value_codes,
        value_scales=scales(keys[4], 1.0),
        lengths=jnp.array(lengths, jnp.int32),
    )


def attend_exactly(streams: Streams, bits: tuple[int, int], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Output ``[N, G, D]`` and log-sum-exp ``[N, G]``, minus infinity for a head without tokens."""
    query = np.asarray(streams.query, np.float64)
    key = _vectors(streams.key_codes, streams.key_scales, bits[0], query.shape[-1])
    value = _vectors(streams.value_codes, streams.value_scales, bits[1], query.shape[-1])
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
    largest logit that vectors of these lengths can have: float16 rounds what it is a sum of."""
    state = softmax_state.reduce(states, axis=0)
    out, log_sum = attend_exactly(streams, bits, scale)
    found = np.asarray(softmax_state.output(state), np.float64)
    query = np.asarray(streams.query, np.float64)
    key = _vectors(streams.key_codes, streams.key_scales, bits[0], query.shape[-1])
    for head, length in enumerate(np.asarray(streams.lengths)):
        assert np.linalg.norm(found[head] - out[head]) <= tolerance * np.linalg.norm(out[head])
        if length:
            longest = np.linalg.norm(key[head, :length], axis=-1).max()
            bound = np.maximum(1e-3, 3e-4 * scale * longest * np.linalg.norm(query[head], axis=-1))
            found_log_sum = np.asarray(state.top, np.float64)[head] + np.log(np.asarray(state.total, np.float64)[head])
            assert (np.abs(found_log_sum - log_sum[head]) <= bound).all()


def _vectors(codes: jax.Array, scales: jax.Array, bits: int, dim: int) -> np.ndarray:
    levels = np.asarray(coordinate_levels(bits), np.float64)
    return levels[np.asarray(bitpack.unpack(codes, bits, dim))] * np.asarray(scales, np.float64)[..., None]
