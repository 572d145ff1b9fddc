"""How many bits each channel group of a transform-coded stream takes, and where its codes lie.

A stream's heads differ in what they deserve, so a layout says for every head and group of channels how many bits each
of its channels takes. Codes of equal width lie together, group after group and head after head within a width, so
unpacking is one operation for each width, whatever the heads do.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Literal

import numpy as np
import scipy.optimize
import scipy.stats

from kakeya_jax.byte_levels import byte_levels
from kakeya_jax.lloyd_max import gaussian_levels, midpoints
from kakeya_jax.trellis_levels import trellis_error

FAST_WIDTHS = (2, 4, 6, 8)
"""Widths that a decode kernel unpacks in whole words."""

QUALITY_WIDTHS = (1, 2, 3, 4, 5, 6, 8)
"""Widths of the form that is reconstructed before attention."""

Quantizer = Literal["scalar", "trellis"]
"""What channels are rounded by, those of 8 bits apart: they are uniform either way."""

_UNIFORM_RANGE = 4.4
"""Eight-bit channels are uniform over plus and minus so many deviations."""

_SIX_BIT_BYTES = (
    *(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
    *(32, 34, 37, 40, 43, 46, 49, 52, 55, 59, 63, 68, 74, 81, 90, 104),
)
"""Bytes of the levels above 0: no other byte in the place of one has a smaller error for a Gaussian.

That error is 2.9 % above the one of Lloyd-Max levels; those rounded would have 6.2 %.
"""


def channels_per_group(head_dim: int) -> int:
    """Channels that share a width: 16, or 8 of vectors of at most 64.

    Raises:
        ValueError: they do not divide ``head_dim``.
    """
    size = 16 if head_dim > 64 else 8
    if head_dim % size:
        raise ValueError(f"klt: head_dim={head_dim} must be a multiple of {size}")
    return size


@dataclasses.dataclass(frozen=True)
class Layout:
    """Bits of every channel group of every head; hashable.

    Attributes:
        widths: ``[K][G]`` bits of each channel of a group; 0 for groups that are not stored.
    """

    widths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, table: np.ndarray) -> "Layout":
        """The layout that a table ``[K, G]`` of small integers says."""
        return cls(tuple(tuple(int(width) for width in head) for head in np.asarray(table)))

    @property
    def num_heads(self) -> int:
        """Heads of the stream."""
        return len(self.widths)

    @property
    def groups_per_head(self) -> int:
        """Channel groups of each head."""
        return len(self.widths[0])

    @functools.cached_property
    def used_widths(self) -> tuple[int, ...]:
        """The widths that occur, widest first."""
        return tuple(sorted({width for head in self.widths for width in head if width}, reverse=True))

    @functools.cached_property
    def stored(self) -> np.ndarray:
        """Flat indices ``head * G + group`` of all stored groups, in the order in which they are stored: int32."""
        flat = np.asarray(self.widths).reshape(-1)
        return np.concatenate(
            [np.flatnonzero(flat == width) for width in self.used_widths] or [np.zeros(0, np.int64)]
        ).astype(np.int32)

    @functools.cached_property
    def ranges(self) -> tuple[tuple[int, int, int], ...]:
        """``(width, first, end)`` of each used width: which of the ``stored`` groups have it."""
        flat = np.asarray(self.widths).reshape(-1)
        ends = np.cumsum([np.sum(flat == width) for width in self.used_widths], dtype=int).tolist()
        return tuple(zip(self.used_widths, [0, *ends][: len(ends)], ends, strict=True))  # nothing may be stored

    @functools.cached_property
    def position_of(self) -> np.ndarray:
        """Where each flat group is among the stored ones, int32 ``[K G]``; dropped ones point one past the end."""
        position = np.full(self.num_heads * self.groups_per_head, len(self.stored), np.int32)
        position[self.stored] = np.arange(len(self.stored), dtype=np.int32)
        return position

    def bits_per_value(self) -> float:
        """Mean payload bits over all heads and channels."""
        return float(np.mean(self.widths))


@functools.cache
def quantizer_bytes(width: int) -> tuple[tuple[int, ...], float]:
    """The levels of a quantiser for a unit Gaussian as bytes and their unit: ``level = unit (byte + 1/2)``.

    Lloyd-Max up to 6 bits, of the levels that ``byte_levels`` can say; uniform for 8.
    """
    if width == 8:
        return tuple(range(-128, 128)), 2 * _UNIFORM_RANGE / 255
    if width == 6:
        return (*(-1 - byte for byte in reversed(_SIX_BIT_BYTES)), *_SIX_BIT_BYTES), _best_unit(_SIX_BIT_BYTES)
    return byte_levels(tuple(float(level) for level in gaussian_levels(width)))


@functools.cache
def quantizer_levels(width: int) -> np.ndarray:
    """The levels of ``quantizer_bytes``: float32 ``[2**width]``, ascending."""
    found, unit = quantizer_bytes(width)
    return (unit * (np.asarray(found, np.float64) + 0.5)).astype(np.float32)


@functools.cache
def distortion(width: int, quantizer: Quantizer = "scalar") -> float:
    """Mean squared error of a unit Gaussian at ``width`` bits; 1 at none."""
    if width == 0:
        return 1.0
    if quantizer == "trellis" and width < 8:
        return trellis_error(width)
    return gaussian_error(quantizer_levels(width).astype(np.float64))


def gaussian_error(levels: np.ndarray) -> float:
    """Mean squared error of a unit Gaussian rounded to the nearest of ascending levels."""
    edges = np.concatenate([[-np.inf], midpoints(levels), [np.inf]])
    density = scipy.stats.norm.pdf(edges)
    mass = np.diff(scipy.stats.norm.cdf(edges))
    first = -np.diff(density)
    finite = np.where(np.isfinite(edges), edges, 0.0)
    second = mass - np.diff(finite * density)
    return float(np.sum(second - 2 * levels * first + levels**2 * mass))


@functools.cache
def decoder_gain(width: int, quantizer: Quantizer = "scalar") -> float:
    """``(1 - D)^(-1/2)``: gives a decoded channel back the energy that the quantiser took.

    Decoded values are conditional means, so they shrink towards zero; that error is the same for every token and
    does not average out in a weighted sum over tokens. Restoring the energy splits the difference between least
    squares (no gain) and unbiased decoding (gain ``1 / (1 - D)``).
    """
    return (1.0 - distortion(width, quantizer)) ** -0.5


def loss(width: int, coherence: float, quantizer: Quantizer = "scalar") -> float:
    """Cost of one unit of variance at ``width`` bits: independent error plus ``coherence`` times the squared bias."""
    if width == 0:
        return coherence
    kept, gain = 1.0 - distortion(width, quantizer), decoder_gain(width, quantizer)
    return gain**2 * kept - (gain * kept) ** 2 + coherence * (1.0 - gain * kept) ** 2


def allocate(
    variances: Iterable[np.ndarray],
    coherences: Iterable[float],
    bits: float,
    widths: tuple[int, ...],
    quantizer: Quantizer = "scalar",
) -> list[np.ndarray]:
    """Spends one budget over all groups of all streams so that the summed loss is least.

    Greedy on the lower convex hull of each group's loss against its bits, which is optimal up to the last step.

    Args:
        variances: for each stream, ``[K, G]``: the summed weighted variance of every group; all groups have equally
            many channels.
        coherences: for each stream, what a unit of squared bias costs against one of independent error.
        bits: mean bits over all groups of all streams; what the last step does not fit into is left unspent.
        widths: the widths allowed, besides 0.
        quantizer: whose losses count.

    Returns:
        For each stream the widths ``[K, G]``, int8.

    Raises:
        ValueError: the budget is negative or above the widest width.
    """
    if not 0 <= bits <= max(widths):
        raise ValueError(f"bits={bits} must be between 0 and {max(widths)}")
    streams = [np.asarray(each, np.float64) for each in variances]
    steps: list[tuple[float, int, int, int, int]] = []  # (-saving for each bit, stream, group, from, to)
    for stream, (each, coherence) in enumerate(zip(streams, coherences, strict=True)):
        hull = _hull(coherence, widths, quantizer)
        for group, variance in enumerate(each.reshape(-1)):
            steps += [
                (float(variance) * _slope(low, high, coherence, quantizer), stream, group, low, high)
                for low, high in itertools.pairwise(hull)
            ]
    steps.sort()
    left = bits * sum(each.size for each in streams) + 1e-9
    chosen = [np.zeros(each.size, np.int8) for each in streams]
    for _, stream, group, low, high in steps:
        # A group whose earlier step did not fit takes no later one; a cheaper step elsewhere may still fit.
        if chosen[stream][group] == low and high - low <= left:
            chosen[stream][group] = high
            left -= high - low
    return [each.reshape(shape.shape) for each, shape in zip(chosen, streams, strict=True)]


@functools.cache
def _hull(coherence: float, widths: tuple[int, ...], quantizer: Quantizer) -> tuple[int, ...]:
    """The widths on the lower convex hull of (bits, loss), from 0 on."""
    slope = functools.partial(_slope, coherence=coherence, quantizer=quantizer)
    hull: list[int] = [0]
    for width in sorted(widths):
        while len(hull) > 1 and slope(hull[-2], width) <= slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(width)
    return tuple(hull)


def _slope(low: int, high: int, coherence: float, quantizer: Quantizer) -> float:
    """Loss of a unit of variance for each bit from ``low`` to ``high``: negative."""
    return (loss(high, coherence, quantizer) - loss(low, coherence, quantizer)) / (high - low)


def _best_unit(magnitudes: tuple[int, ...]) -> float:
    """Of the symmetric levels ``unit (byte + 1/2)``: the one of the least error for a unit Gaussian."""
    levels = np.asarray(magnitudes, np.float64) + 0.5
    both = np.concatenate([-levels[::-1], levels])
    found = scipy.optimize.minimize_scalar(
        lambda unit: gaussian_error(unit * both),
        bounds=(2.5 / levels[-1], 5.0 / levels[-1]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x)
