"""Levels of a symmetric quantiser as an odd polynomial of the index: arithmetic decodes a code without a table.

A lookup for every element is out of a decode kernel's budget; a few fused multiply-adds on packed halves are not.
"""

import functools

import numpy as np

MAX_TERMS = 5
"""Coefficients fitted at most: with as many as half the levels the fit is exact, with five that of 16 levels is to
``5e-4`` of a standard deviation."""

LARGEST_ERROR = 1e-3
"""Of a fitted level, in standard deviations of what is quantised: below the rounding that float16 adds."""


@functools.lru_cache(maxsize=64)
def fit_levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Coefficients ``c`` with ``levels[i] = u (c[0] + c[1] u^2 + c[2] u^4 + ...)`` at ``u = (2 i - (L - 1)) / L``.

    Args:
        levels: ascending and antisymmetric: ``levels[L - 1 - i] = -levels[i]``.

    Raises:
        NotImplementedError: they are not antisymmetric, or no such polynomial comes near them.
    """
    half = len(levels) // 2
    table = np.asarray(levels, np.float64)
    if len(levels) % 2 or not np.allclose(table, -table[::-1], atol=1e-6):
        raise NotImplementedError("levels that are not symmetric about 0")
    points = (2.0 * np.arange(half) + 1.0) / len(levels)
    terms = min(half, MAX_TERMS)
    powers = points[:, None] ** (2 * np.arange(terms) + 1)
    coefficients = np.linalg.lstsq(powers, table[half:], rcond=None)[0]
    error = np.abs(powers @ coefficients - table[half:]).max()
    if error > LARGEST_ERROR:
        raise NotImplementedError(f"levels that a short odd polynomial misses by {error:.1e}")
    return tuple(float(each) for each in coefficients)
