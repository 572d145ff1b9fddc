"""What a codec's errors would cost a model's predictions, from calibrated moments alone.

A codec is run on vectors drawn from the Gaussian of a stream's calibrated mean and covariance, and its errors ``e`` are
weighed by the Fisher matrix: half of ``e^T F e``, in nats for each token. What that leaves out: tails heavier than a
Gaussian's, tokens that resemble their neighbours (page means and groups along tokens save less than they would), and
errors so large that the loss is no longer quadratic. It ranks codecs and layers; a measurement on text decides.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.calibration.klt_fit import COHERENCE
from kakeya_jax.pytree import pytree_dataclass
from kakeya_jax.rope import rotate_by
from kakeya_jax.stream import Stream, decode_blocks, encode_blocks
from kakeya_jax.typing import Array, Float, Int, StreamName

PAGES = 8
"""Pages of tokens that are drawn for every head."""

_PAGE_DISTANCE = 509
"""Positions between the starts of two of them: prime, so that no rotation repeats."""


@pytree_dataclass
class Coordinates:
    """Where a stream's vectors are uncorrelated and plain squared error is the expected loss.

    Attributes:
        mean: ``[K, D]``; of keys, as everything here, before their rotary embedding.
        analysis: ``[K, D, D]``: ``(x - mean) @ analysis`` has unit variances.
        synthesis: ``[K, D, D]``, its inverse.
        variances: ``[K, D]`` twice the expected loss of a unit of squared error in each coordinate.
        rope_frequencies: ``[D / 2]`` radians per position.
        rope_factor: what the rotary embedding multiplies by.
    """

    mean: Array
    analysis: Array
    synthesis: Array
    variances: Array
    rope_frequencies: Array
    rope_factor: Array

    @classmethod
    def of(cls, tables: Mapping[str, Any], rope_frequencies: Any, rope_factor: float) -> "Coordinates":
        """From the tables of ``klt`` in its quality form."""
        return cls(
            **{name: jnp.asarray(tables[name]) for name in ("mean", "analysis", "synthesis", "variances")},
            rope_frequencies=jnp.asarray(rope_frequencies, jnp.float32),
            rope_factor=jnp.float32(rope_factor),
        )


def predicted_loss(stream: Stream, name: StreamName, coordinates: Coordinates, *, seed: int = 0) -> float:
    """Nats for each token that coding a stream is expected to cost.

    Errors that follow the vector itself (of a codec that shrinks, or drops a direction) and constant ones are the same
    for all tokens that a query attends to, and add up: they count for more, by the factors of ``klt_fit``.

    Args:
        stream: of an empty cache: its codec, frame and rotary class are what is asked about.
        name: ``"key"`` or ``"value"``.
        coordinates: of the same layer and stream.
        seed: of the vectors; give all codecs that are compared the same.
    """
    heads, dim = coordinates.mean.shape
    noise = np.random.default_rng(seed).standard_normal((heads, PAGES * stream.block_size, dim), np.float32)
    coherence = COHERENCE[name, getattr(stream.codec.config, "page_mean", False)]
    twice = _weighted_error(
        stream.codec,
        stream.frame,
        coordinates,
        jnp.asarray(noise),
        jnp.float32(coherence),
        rotated=stream.rope == "post",
    )
    return 0.5 * float(twice)


@functools.partial(jax.jit, static_argnames="rotated")
def _weighted_error(
    codec: Any,
    frame: Any,
    coordinates: Coordinates,
    noise: Float[Array, "K n D"],
    coherence: Float[Array, ""],
    *,
    rotated: bool,
) -> Float[Array, ""]:
    block = codec.config.block_size
    start = jnp.arange(PAGES, dtype=jnp.int32)[:, None] * _PAGE_DISTANCE
    positions = (start + jnp.arange(block, dtype=jnp.int32)).reshape(-1)
    x = coordinates.mean[:, None] + _map(noise, coordinates.synthesis)
    decoded = _round_trip(codec, frame, _rotate(x, positions, coordinates, 1) if rotated else x, positions)
    error = (_rotate(decoded, positions, coordinates, -1) if rotated else decoded) - x
    error = _map(error, coordinates.analysis)
    bias = jnp.mean(error, axis=1)
    follows = jnp.mean(noise * error, axis=1)  # the share of each coordinate, of unit variance, that is taken away
    coherent = jnp.square(bias) + jnp.square(follows)
    each = jnp.mean(jnp.square(error), axis=1) + (coherence - 1.0) * coherent
    return jnp.sum(coordinates.variances * each)


def _round_trip(codec: Any, frame: Any, x: Float[Array, "K n D"], positions: Int[Array, " n"]) -> Float[Array, "K n D"]:
    seen = x[None] if frame is None else frame.enter(x[None], positions[None])
    blocks = seen.reshape(1, len(x), PAGES, -1, x.shape[-1])
    decoded = decode_blocks(codec, encode_blocks(codec, blocks), len(x)).reshape(seen.shape)
    return (decoded if frame is None else frame.leave(decoded, positions[None]))[0]


def _rotate(x: Array, positions: Array, coordinates: Coordinates, sign: int) -> Array:
    """The rotary embedding with its factor, or both undone."""
    angle = positions[:, None].astype(jnp.float32) * coordinates.rope_frequencies
    return rotate_by(x, sign * angle) * coordinates.rope_factor**sign


def _map(x: Float[Array, "K n D"], matrix: Float[Array, "K D E"]) -> Float[Array, "K n E"]:
    return jnp.einsum("knd,kde->kne", x, matrix, precision="highest")
