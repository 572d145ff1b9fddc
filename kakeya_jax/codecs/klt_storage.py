"""The transform code for storage: all heads of a layer, keys and values together, ready for an entropy coder.

Keys before their rotary embedding and values of all heads of a layer are one vector of ``C = 2 K D`` channels.
Calibration gives its mean ``mu`` and a map ``A`` to uncorrelated coordinates whose plain error is the expected loss of
the model's predictions (see ``calibration.storage_fit``), and for every channel a step of a uniform quantiser or the
verdict that it is not worth one::

    z = (x - mu) A - page mean,    c = round(z / step),    x^ = mu + (page mean + gain step c) B

In memory a code is a byte for each kept channel (two for very fine ones), which is not the point of it:
``session_file`` writes codes with static entropy coding, a fraction of a bit to a few bits for each value.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.codec import CodecConfig
from kakeya_jax.entropy.frequencies import integer_frequencies
from kakeya_jax.fitted_tables import fitted_table
from kakeya_jax.numeric import finite
from kakeya_jax.pytree import fitted_field, payload_field, pytree_dataclass, side_field, static_field
from kakeya_jax.typing import Array, Float, Int, RopeClass, StreamName
from kakeya_jax.uniform_quantizer import gaussian_statistics, step_of_rate, symbol_probabilities

LARGEST_SYMBOL = 127
"""The quantiser's own range: symbols up to this one, in either direction."""

MOST_LOW_BITS = 4
"""Channels of very fine steps have symbols in two parts; the low one, nearly uniform, has up to so many bits."""

_COARSEST_SPLIT = 1 / 16
"""Steps below this many standard deviations are split until the high part's step is not: it then spans 8 deviations."""

PAGE_MEAN_STEP = 1 / 4
"""Step of page means, in standard deviations of a channel. What it leaves behind is coded with the tokens."""

_ROBUST_RANGE = 8.0
"""Values beyond so many standard deviations count as that many in a page mean, so that one broken token does not move
the mean of its page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KltStorageConfig(CodecConfig):
    """A target rate; what it becomes for each channel comes from calibration.

    Attributes:
        block_size: tokens of a page, which is decoded on its own and, with ``page_mean``, shares a mean.
        bits: bits per value that calibration aims at, page means included: the mean over all layers.
        page_mean: take out each page's own mean, coded once for each channel.
    """

    name: ClassVar[str] = "klt-storage"
    source: ClassVar[str] = "this library, docs/klt.md; rANS: arXiv:1311.2540"
    rope: ClassVar[RopeClass] = "pre"
    joint_heads: ClassVar[bool] = True
    joint_streams: ClassVar[bool] = True

    bits: float = 1.0
    page_mean: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.05 <= self.bits <= 6:
            raise ValueError(f"klt-storage: bits={self.bits} must be between 0.05 and 6")

    def needs_tables(self) -> tuple[str, ...]:
        """Names of the calibrated tables."""
        return TABLES if self.page_mean else TABLES[:-1]

    def neutral_tables(self, head_dim: int, *, num_kv_heads: int = 1) -> dict[str, Array]:
        """Identity maps and equal steps; see ``CodecConfig.neutral_tables``."""
        channels = 2 * num_kv_heads * head_dim
        steps = np.full(channels, step_of_rate(self.bits))
        tables = {
            "mean": np.zeros(channels),
            "analysis": np.eye(channels),
            "synthesis": np.eye(channels),
            "steps": steps,
            "gains": gaussian_statistics(steps[:1]).gain.repeat(channels),
            "low_bits": low_bits_of(steps),
            "frequencies": model_frequencies(steps),
            "page_mean_frequencies": page_mean_model_frequencies(channels),
        }
        return {name: jnp.asarray(tables[name], _DTYPES[name]) for name in self.needs_tables()}

    def build(
        self,
        head_dim: int,
        *,
        layer: int = 0,
        stream: StreamName = "key",
        tables: Mapping[str, Array] | None = None,
    ) -> "KltStorage":
        """The codec of one layer; ``calibration.storage_fit`` makes its tables. ``stream`` does not matter.

        Raises:
            ValueError: a table is missing or was made for another size.
        """
        del stream
        where = f"klt-storage, layer {layer}"
        given = {name: fitted_table(tables, name, None, of=where) for name in self.needs_tables()}
        channels, kept, fine = (given[name].shape[0] for name in ("mean", "steps", "low_bits"))
        if channels % (2 * head_dim):
            raise ValueError(
                f"klt-storage: layer {layer}'s tables are for {channels} channels, not for heads of {head_dim}; "
                "calibrate this model"
            )
        symbols = given["frequencies"].shape[-1]
        shapes = {
            "mean": (channels,),
            "analysis": (channels, channels),
            "synthesis": (channels, channels),
            "steps": (kept,),
            "gains": (kept,),
            "low_bits": (min(fine, kept),),
            "frequencies": (kept, symbols),
            "page_mean_frequencies": (channels, given.get("page_mean_frequencies", given["mean"]).shape[-1]),
        }
        arrays = {name: jnp.asarray(fitted_table(given, name, shapes[name], of=where), _DTYPES[name]) for name in given}
        page_mean_frequencies = arrays.pop("page_mean_frequencies", None)
        return KltStorage(config=self, head_dim=head_dim, **arrays, page_mean_frequencies=page_mean_frequencies)


TABLES = ("mean", "analysis", "synthesis", "steps", "gains", "low_bits", "frequencies", "page_mean_frequencies")
"""Names of the calibrated tables; the last for page means only."""

_DTYPES = dict.fromkeys(TABLES, jnp.float32) | {
    "low_bits": jnp.int8,
    "frequencies": jnp.uint16,
    "page_mean_frequencies": jnp.uint16,
}

_MODEL_RANGE = 5.5
"""Standard deviations of a channel within which symbols have a place in the alphabet; what is beyond is escaped."""

_PAGE_MEAN_DEVIATION = 0.35
"""Standard deviation of page means, in those of a channel, before anything is counted."""

_LARGEST_PAGE_MEAN = 20
"""Largest multiple of ``PAGE_MEAN_STEP`` with a place in the alphabet: five standard deviations of a channel."""


def low_bits_of(steps: Float[np.ndarray, " kept"]) -> np.ndarray:
    """Bits of the low part of each channel's symbols, int8; ``steps`` ascend, and only channels that have one count."""
    bits = np.ceil(np.log2(_COARSEST_SPLIT / np.asarray(steps, np.float64)) - 1e-6)
    return np.minimum(bits[bits > 0], MOST_LOW_BITS).astype(np.int8)


def model_frequencies(steps: Float[np.ndarray, " kept"]) -> np.ndarray:
    """Frequencies of the (high parts of) symbols of unit Gaussian channels, before anything is counted.

    Args:
        steps: ascending.

    Returns:
        uint16 ``[kept, S]``.
    """
    low_bits = low_bits_of(steps)
    coarse = np.array(steps, np.float64)
    coarse[: len(low_bits)] *= 2.0**low_bits
    half = int(np.ceil(_MODEL_RANGE / np.min(coarse, initial=_MODEL_RANGE)))
    return integer_frequencies(symbol_probabilities(coarse, min(half, LARGEST_SYMBOL - 1), _MODEL_RANGE))


def page_mean_model_frequencies(channels: int) -> np.ndarray:
    """Likewise of page means, the same for every channel: uint16 ``[channels, S']``."""
    steps = np.full(1, PAGE_MEAN_STEP / _PAGE_MEAN_DEVIATION)
    row = integer_frequencies(symbol_probabilities(steps, _LARGEST_PAGE_MEAN, np.inf))
    return row.repeat(channels, axis=0)


@pytree_dataclass
class KltStorageCode:
    """One page: ``n`` tokens, ``C`` channels of which ``kept`` are coded.

    Attributes:
        symbols: int8 ``[n, kept]`` multiples of each channel's step; of very fine channels the high parts.
        low: int8 ``[n, fine]``, the low parts of the first channels: ``-2^(b-1) .. 2^(b-1) - 1`` of ``b`` bits.
        page_mean: int8 ``[C]`` multiples of ``PAGE_MEAN_STEP``; None without page means.
    """

    symbols: Array = payload_field()
    low: Array = payload_field()
    page_mean: Array | None = side_field()


@pytree_dataclass
class KltStorage:
    """The codec of ``KltStorageConfig`` for one layer. Kept channels come first, in the order of ``steps``.

    Attributes:
        mean: ``[C]``, heads of keys, then heads of values.
        analysis: ``[C, C]``: ``(x - mean) @ analysis`` has unit variances.
        synthesis: ``[C, C]``, its inverse.
        steps: ``[kept]`` quantiser steps in standard deviations, ascending.
        gains: ``[kept]`` what decoded multiples are stretched by.
        low_bits: int8 ``[fine]`` bits of the low parts of the first channels' symbols.
        frequencies: uint16 ``[kept, S]`` of an entropy coder, for the symbols ``-(S - 2) / 2`` to ``(S - 2) / 2`` and
            the escape; see ``entropy.integer_frequencies``.
        page_mean_frequencies: uint16 ``[C, S']``, likewise of the page means; None without them.
    """

    config: KltStorageConfig = static_field()
    head_dim: int = static_field()
    mean: Array = fitted_field()
    analysis: Array = fitted_field()
    synthesis: Array = fitted_field()
    steps: Array = fitted_field()
    gains: Array = fitted_field()
    low_bits: Array = fitted_field()
    frequencies: Array = fitted_field()
    page_mean_frequencies: Array | None = fitted_field()

    def encode(self, block: Float[Array, "twoK n D"], key: Array | None = None) -> KltStorageCode:
        """The code of one page: the ``K`` heads of keys, then those of values; draws nothing.

        NaN counts as 0 and huge values are clipped (``numeric.finite``); what exceeds a quantiser's range saturates.
        """
        del key
        return _encode(self, block)

    def decode(self, code: KltStorageCode) -> Float[Array, "twoK n D"]:
        """``mean + (page mean + gain step c) B``, by heads."""
        kept, fine = self.steps.shape[0], self.low_bits.shape[0]
        multiples = code.symbols.astype(jnp.int32) << _shifts(self)
        multiples = multiples.at[:, :fine].add(code.low.astype(jnp.int32))
        coordinates = multiples.astype(jnp.float32) * (self.steps * self.gains)
        x = self.mean + jnp.matmul(coordinates, self.synthesis[:kept], precision="highest")
        if code.page_mean is not None:
            page_mean = code.page_mean.astype(jnp.float32) * PAGE_MEAN_STEP
            x = x + jnp.matmul(page_mean, self.synthesis, precision="highest")
        return x.reshape(x.shape[0], -1, self.head_dim).transpose(1, 0, 2)


@jax.jit
def _encode(codec: KltStorage, block: Array) -> KltStorageCode:
    """One compiled program even when called op by op: fused products round differently from separate ones."""
    heads, n, head_dim = block.shape
    if heads * head_dim != codec.mean.shape[0]:
        raise ValueError(
            f"klt-storage: tables for {codec.mean.shape[0]} channels cannot code {heads} heads of {head_dim} "
            "(keys and values); calibrate this model"
        )
    x = finite(block).transpose(1, 0, 2).reshape(n, heads * head_dim)
    z = jnp.matmul(x - codec.mean, codec.analysis, precision="highest")
    page_mean = None
    if codec.config.page_mean:
        average = jnp.mean(jnp.clip(z, -_ROBUST_RANGE, _ROBUST_RANGE), axis=0)
        page_mean = jnp.round(average / PAGE_MEAN_STEP).astype(jnp.int8)  # at most 8 / (1 / 4)
        z = z - page_mean.astype(jnp.float32) * PAGE_MEAN_STEP
    kept, fine = codec.steps.shape[0], codec.low_bits.shape[0]
    shift = _shifts(codec)
    limit = (LARGEST_SYMBOL << shift).astype(jnp.float32)
    multiples = jnp.clip(jnp.round(z[:, :kept] / codec.steps), -limit, limit).astype(jnp.int32)
    high = (multiples + ((1 << shift) >> 1)) >> shift
    low = (multiples - (high << shift))[:, :fine]
    return KltStorageCode(symbols=high.astype(jnp.int8), low=low.astype(jnp.int8), page_mean=page_mean)


def _shifts(codec: KltStorage) -> Int[Array, " kept"]:
    """Bits of the low part of every kept channel's symbols."""
    kept, fine = codec.steps.shape[0], codec.low_bits.shape[0]
    return jnp.pad(codec.low_bits.astype(jnp.int32), (0, kept - fine))
