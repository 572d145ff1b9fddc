"""Levels of a symmetric quantiser as bytes: ``level = unit (byte + 1/2)``, so that attention is integer arithmetic.

Half a unit beside the integers is where the negative of a byte's level is the byte with all bits inverted. Rounding
16 Lloyd-Max levels so costs less than a thousandth of their mean squared error, which is why codecs whose codes kernels
read quantise to these levels from the start: what is decoded anywhere is what the kernel computes with.
"""

import functools

import numpy as np

_TRIED = 4096


@functools.lru_cache(maxsize=64)
def byte_levels(levels: tuple[float, ...]) -> tuple[tuple[int, ...], float]:
    """The bytes nearest to levels, and the unit that fits them best: least mean square error over all levels.

    Args:
        levels: ascending, at most 256, antisymmetric: ``levels[L - 1 - i] = -levels[i]``.

    Returns:
        ``bytes[i]`` in -128..127 with ``bytes[L - 1 - i] = -1 - bytes[i]``, and ``unit > 0``.

    Raises:
        ValueError: they are not antisymmetric, or two of them share a byte.
    """
    table = np.asarray(levels, np.float64)
    if len(table) % 2 or not np.allclose(table, -table[::-1], atol=1e-6 * table[-1]):
        raise ValueError("levels that are not symmetric about 0 are no bytes")
    positive = table[len(table) // 2 :]
    best, found = np.inf, None
    for unit in positive[-1] / np.linspace(100.5, 127.5, _TRIED):
        magnitudes = np.clip(np.round(positive / unit - 0.5), 0, 127)
        scale = positive @ (magnitudes + 0.5) / np.sum(np.square(magnitudes + 0.5))
        error = float(np.sum(np.square(scale * (magnitudes + 0.5) - positive)))
        if error < best:
            best, found = error, (magnitudes.astype(int), float(scale))
    assert found is not None
    magnitudes, unit = found
    if len(set(magnitudes.tolist())) < len(magnitudes):
        raise ValueError("levels too close to each other for bytes")
    return (*(-1 - magnitudes[::-1]).tolist(), *magnitudes.tolist()), unit


def rounded(levels: np.ndarray) -> np.ndarray:
    """The levels that ``byte_levels`` stands for: float32, ascending."""
    found, unit = byte_levels(tuple(float(level) for level in levels))
    return (unit * (np.asarray(found, np.float64) + 0.5)).astype(np.float32)
