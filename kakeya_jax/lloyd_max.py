"""Scalar quantisers with Lloyd-Max levels: for a unit Gaussian, and fitted to samples (Lloyd 1957; Max 1960).

A quantiser is its ascending array of ``2**bits`` levels. A value maps to its nearest level; a value exactly
at the midpoint of two levels maps to the lower one.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.core import Tracer

from kakeya_jax.numeric import check_finite
from kakeya_jax.typing import Array, Float, Int

_Table = TypeVar("_Table", Array, np.ndarray)

MAX_BITS = 8
"""Largest number of bits of a scalar quantiser."""

_POSITIVE_GAUSSIAN_LEVELS: dict[int, tuple[float, ...]] = {
    1: (0.798156,),
    2: (0.4528, 1.510),
    3: (0.244943, 0.756268, 1.343757, 2.151945),
    4: (0.1281, 0.3885, 0.6566, 0.9422, 1.2563, 1.6177, 2.0690, 2.7322),
}
"""Positive halves of the published tables; kept digit for digit, because stored indices refer to them."""

_SELECTED_LEVELS = 16
"""Up to so many levels a tree of selects beats a gather: it vectorises on CPU, stays in registers on GPU."""


@functools.lru_cache
def gaussian_levels(bits: int) -> np.ndarray:
    """The Lloyd-Max levels of N(0, 1): float32 ``[2**bits]``, ascending, symmetric about 0, read-only.

    One to four bits are the tables of the KakeyaTurbo reference, more bits are computed by Lloyd's iteration.

    Raises:
        ValueError: ``bits`` is not in 1..8.
    """
    _check_bits(bits)
    positive = _POSITIVE_GAUSSIAN_LEVELS.get(bits)
    half = _fit_half_gaussian(2 ** (bits - 1)) if positive is None else np.array(positive)
    levels = np.concatenate([-half[::-1], half]).astype(np.float32)
    levels.setflags(write=False)
    return levels


def midpoints(levels: _Table) -> _Table:
    """The boundaries between neighbouring levels ``[..., L]``: ``[..., L - 1]`` in the same kind of array."""
    return (levels[..., :-1] + levels[..., 1:]) * 0.5


def quantize(values: Float[Array, "*shape"], levels: Float[Array, " levels"]) -> Int[Array, "*shape"]:
    """Index of the nearest level, int32: the number of midpoints strictly below the value (0 for NaN)."""
    boundaries = midpoints(jnp.asarray(levels))
    if levels.shape[0] > _SELECTED_LEVELS:  # one fused reduction: unrolling would only cost compile time
        return jnp.sum(values[..., None] > boundaries, axis=-1, dtype=jnp.int32)
    index = jnp.zeros(values.shape, jnp.int32)
    for i in range(levels.shape[0] - 1):
        index += (values > boundaries[i]).astype(jnp.int32)
    return index


def dequantize(indices: Int[Array, "*shape"], levels: Float[Array, " levels"]) -> Float[Array, "*shape"]:
    """``levels[indices]``; each index must be in ``[0, len(levels))``."""
    count = levels.shape[0]
    if count > _SELECTED_LEVELS or count & (count - 1):
        return jnp.asarray(levels).at[indices].get(mode="promise_in_bounds")
    candidates: list[Array] = [jnp.asarray(levels[i]) for i in range(count)]
    bit = 0
    while len(candidates) > 1:
        odd = (indices & (1 << bit)) != 0
        candidates = [jnp.where(odd, high, low) for low, high in zip(candidates[::2], candidates[1::2], strict=True)]
        bit += 1
    return jnp.broadcast_to(candidates[0], indices.shape)


def fit_levels(
    samples: Float[Array, "*shape"] | np.ndarray, bits: int, iterations: int = 200, tol: float = 1e-6
) -> np.ndarray:
    """Levels that minimise the mean squared error of ``samples``: Lloyd's iteration from the Gaussian levels.

    Stops when no level moves by more than ``tol`` or after ``iterations`` steps. A level without samples
    stays where it is, so the result is strictly ascending. Runs on the host in float64: with sorted samples
    and their running sum a step costs ``2**bits`` binary searches, however many samples there are.

    Args:
        samples: values of about unit root mean square, any shape.
        bits: 1 to 8.
        iterations: at most so many steps.
        tol: in units of the samples.

    Returns:
        float32 ``[2**bits]``.

    Raises:
        ValueError: ``bits`` out of range, no samples, or samples that are not finite.
    """
    _check_bits(bits)
    if np.size(samples) == 0:
        raise ValueError("fit_levels needs samples, got an empty array")
    check_finite(samples, "samples")
    return fit_levels_from(samples, gaussian_levels(bits), iterations, tol)


def fit_levels_from(
    samples: Float[Array, "*shape"] | np.ndarray, start: np.ndarray, iterations: int = 200, tol: float = 1e-6
) -> np.ndarray:
    """``fit_levels`` from other levels than the Gaussian ones: ``start`` is ascending, of any length."""
    ascending = np.sort(np.ravel(np.asarray(samples, np.float64)))
    running = np.concatenate([[0.0], np.cumsum(ascending)])
    levels = start.astype(np.float64)
    for _ in range(iterations):
        inner = np.searchsorted(ascending, midpoints(levels), side="right")
        edges = np.concatenate([[0], inner, [ascending.size]])
        count = np.diff(edges)
        new = np.where(count > 0, np.diff(running[edges]) / np.maximum(count, 1), levels)
        moved = np.max(np.abs(new - levels))
        levels = new
        if moved <= tol:
            break
    return levels.astype(np.float32)


def check_table(codec: str, levels: Array) -> None:
    """Raises a ``ValueError`` unless a codec's table of levels ascends strictly; a traced table is not looked at."""
    if not isinstance(levels, Tracer) and not (np.diff(np.asarray(levels)) > 0).all():
        raise ValueError(f"{codec}: table 'centroids' must ascend strictly; sort it")


def pool_samples(parts: Sequence[np.ndarray], limit: int = 5_000_000, seed: int = 0) -> np.ndarray:
    """The samples of many layers together, for ``fit_levels``: flat, at most about ``limit`` of them.

    If there are more, each part gives in proportion to its size, drawn at random (with replacement: what is drawn
    twice among millions does not matter, and strides would miss columns).
    """
    total = sum(part.size for part in parts)
    flat = [part.reshape(-1) for part in parts]
    if total > limit:
        rng = np.random.default_rng(seed)
        flat = [part[rng.integers(0, part.size, limit * part.size // total)] for part in flat if part.size]
    return np.concatenate(flat)


def write_levels(path: str | pathlib.Path, levels: Float[Array, " levels"] | np.ndarray) -> None:
    """Writes a table as raw little-endian float32, the format of the KakeyaTurbo calibration files.

    Raises:
        ValueError: not ``2**bits`` finite, strictly ascending values.
    """
    table = np.asarray(levels, dtype="<f4")
    bits = table.size.bit_length() - 1
    if table.ndim != 1 or table.size != 2**bits or not 1 <= bits <= MAX_BITS:
        raise ValueError(f"a level table is a vector of 2, 4, ... or {2**MAX_BITS} values, got shape {table.shape}")
    _check_ascending(table, "levels")
    pathlib.Path(path).write_bytes(table.tobytes())


def read_levels(path: str | pathlib.Path, bits: int) -> np.ndarray:
    """Reads a table of ``2**bits`` float32 levels from ``write_levels`` or the KakeyaTurbo calibrator.

    Raises:
        ValueError: the file has another size, or its values are not finite and strictly ascending.
        OSError: the file cannot be read.
    """
    _check_bits(bits)
    raw = pathlib.Path(path).read_bytes()
    if len(raw) != 4 * 2**bits:
        size = 4 * 2**bits
        raise ValueError(f"{path}: {2**bits} float32 levels (bits={bits}) are {size} bytes, not {len(raw)}")
    table = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    _check_ascending(table, str(path))
    return table


def _fit_half_gaussian(count: int, tol: float = 1e-8) -> np.ndarray:
    """The ``count`` positive levels of the symmetric quantiser of N(0, 1), by Lloyd's iteration in float64.

    Starts at the asymptotically optimal point density, which is N(0, 3) (Panter and Dite 1951).
    """
    levels = np.sqrt(3.0) * scipy.special.ndtri(0.5 + (np.arange(count) + 0.5) / (2 * count))
    while True:
        edges = np.concatenate([[0.0], (levels[:-1] + levels[1:]) / 2, [np.inf]])
        density = np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi)
        mass = np.diff(scipy.special.ndtr(edges))
        new = -np.diff(density) / mass
        if np.max(np.abs(new - levels)) < tol:
            return new
        levels = new


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits} must be between 1 and {MAX_BITS}")


def _check_ascending(table: np.ndarray, what: str) -> None:
    if not (np.all(np.isfinite(table)) and np.all(np.diff(table) > 0)):
        raise ValueError(f"{what}: levels must be finite and strictly ascending")
