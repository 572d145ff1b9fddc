"""Rotary position embedding, and the ways it is stretched to longer contexts.

Half-split pairing: channel ``i`` turns with channel ``i + D/2`` (RoFormer, arXiv:2104.09864). Frequencies
are computed as Hugging Face ``modeling_rope_utils`` does, in float32 and in the same order: a checkpoint was
trained with those, and the ulps in which more exact ones differ are multiplied by the position.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from kakeya_jax.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency is divided by ``factor``."""

    factor: float

    def __post_init__(self) -> None:
        _check_positive("linear", factor=self.factor)

    @property
    def attention_factor(self) -> float:
        """1: cosine and sine keep their length."""
        return 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The stretched frequencies."""
        del theta
        return frequencies / np.float32(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths are divided by ``factor``, short ones kept, those between blended.

    Attributes:
        factor: how much longer the context is than the original one.
        low_freq_factor: wavelengths above ``original_max_position_embeddings / low_freq_factor`` tokens are
            stretched.
        high_freq_factor: wavelengths below ``original_max_position_embeddings / high_freq_factor`` tokens are
            kept.
        original_max_position_embeddings: context in tokens the model was first trained with.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _check_positive("llama3", **dataclasses.asdict(self))
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"llama3 rope: high_freq_factor={self.high_freq_factor} must be above"
                f" low_freq_factor={self.low_freq_factor}"
            )

    @property
    def attention_factor(self) -> float:
        """1: cosine and sine keep their length."""
        return 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The stretched frequencies."""
        del theta
        original = self.original_max_position_embeddings
        wavelength = np.float32(2 * math.pi) / frequencies
        stretched = frequencies / np.float32(self.factor)
        span = np.float32(self.high_freq_factor - self.low_freq_factor)
        smooth = (np.float32(original) / wavelength - np.float32(self.low_freq_factor)) / span
        blended = (1 - smooth) * frequencies / np.float32(self.factor) + smooth * frequencies
        is_long = wavelength > np.float32(original / self.low_freq_factor)
        is_short = wavelength < np.float32(original / self.high_freq_factor)
        return np.where(is_long, stretched, np.where(is_short, frequencies, blended))


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): channels that turn often keep their frequency, slow ones are interpolated.

    Attributes:
        factor: how much longer the context is than the original one.
        original_max_position_embeddings: context in tokens the model was first trained with.
        beta_fast: channels that turn more often than this over the original context are kept (default 32).
        beta_slow: channels that turn less often than this are divided by ``factor`` (default 1).
        truncate: round the ends of the ramp between them outwards to whole channels.
        explicit_attention_factor: the length of cosine and sine if the model states it.
        mscale: with ``mscale_all_dim``, weights of the logarithm in that length (DeepSeek); 0 means unset.
        mscale_all_dim: see ``mscale``.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    explicit_attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(
            "yarn",
            factor=self.factor,
            original_max_position_embeddings=self.original_max_position_embeddings,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )

    @property
    def attention_factor(self) -> float:
        """Length of cosine and sine: ``0.1 ln(factor) + 1`` unless stated otherwise."""
        if self.explicit_attention_factor is not None:
            return self.explicit_attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._length(self.mscale) / self._length(self.mscale_all_dim)
        return self._length(1.0)

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The stretched frequencies."""
        half = frequencies.shape[-1]
        low, high = self._channel(self.beta_fast, theta, half), self._channel(self.beta_slow, theta, half)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        if low == high:
            high += 0.001  # a step instead of a division by zero
        ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = 1 - np.clip(ramp, 0, 1).astype(np.float32)
        periods = _periods(2 * half, theta)
        return (1 / (np.float32(self.factor) * periods)) * (1 - kept) + frequencies * kept

    def _length(self, weight: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

    def _channel(self, turns: float, theta: float, half: int) -> float:
        """The (fractional) channel that makes ``turns`` turns over the original context."""
        return half * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Which frequencies a model rotates with; hashable, so it can be a static argument.

    Attributes:
        head_dim: dimension ``D`` of the rotated vectors; even.
        theta: base of the geometric series of frequencies.
        scaling: how the series is stretched to a longer context; ``None`` for the plain series.
    """

    head_dim: int
    theta: float = 10000.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embeddings")
        if self.theta <= 1:
            raise ValueError(f"rope theta={self.theta} must be above 1")

    @functools.cached_property
    def frequencies(self) -> np.ndarray:
        """Float32 angular frequencies ``[D/2]``, radians per position."""
        plain = (1 / _periods(self.head_dim, self.theta)).astype(np.float32)
        return plain if self.scaling is None else self.scaling.scale(plain, self.theta).astype(np.float32)

    @property
    def attention_factor(self) -> float:
        """What cosine and sine are multiplied by (1 except for ``yarn``)."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor


def apply_rope(x: Float[Array, "*shape D"], positions: Int[Array, "*shape"], rope: Rope) -> Float[Array, "*shape D"]:
    """Rotates ``x`` by its positions; computed in float32, returned in the dtype of ``x``.

    Args:
        x: vectors in the last axis.
        positions: absolute positions; must broadcast against ``x.shape[:-1]``.
        rope: the frequencies.
    """
    angle = positions[..., None].astype(jnp.float32) * rope.frequencies
    rotated = rotate_by(x.astype(jnp.float32), angle)
    if rope.attention_factor != 1.0:
        rotated = rotated * rope.attention_factor
    return rotated.astype(x.dtype)


def rotate_by(x: Float[Array, "*shape D"], angle: Float[Array, "*shape half"]) -> Float[Array, "*shape D"]:
    """Rotates channel ``i`` and its partner ``i + D / 2`` by ``angle[..., i]`` radians (half-split pairing)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _periods(head_dim: int, theta: float) -> np.ndarray:
    """``theta ** (2 i / D)`` rounded to float32 from a float32 exponent, ``[D/2]``."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.power(float(theta), exponent.astype(np.float64)).astype(np.float32)


def _check_positive(kind: str, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{kind} rope: {name}={value!r} must be a number above 0")
