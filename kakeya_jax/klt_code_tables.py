"""Scalar quantisers of ``klt`` as tables: a code is a function of the integer above a value in half units.

Levels are ``unit (byte + 1/2)``, so what lies in the middle of two of them is a whole number of half units: a value is
above it if the next integer is. One look-up then stands for any number of comparisons.
"""

import functools

import numpy as np

from kakeya_jax.klt_layout import quantizer_bytes, quantizer_levels
from kakeya_jax.lloyd_max import midpoints

LOWEST = -255
"""The least integer with an entry of its own: what is below has the same code,"""

HIGHEST = 256
"""and the largest."""

ENTRIES = HIGHEST - LOWEST + 1


@functools.cache
def code_table(width: int) -> np.ndarray:
    """How many midpoints are below each integer from ``LOWEST`` to ``HIGHEST``, int32: its code."""
    return np.searchsorted(_midpoints(width), np.arange(LOWEST, HIGHEST + 1), side="left").astype(np.int32)


@functools.cache
def edge_table(width: int) -> np.ndarray:
    """The midpoint, float32, that is each integer from ``LOWEST`` to ``HIGHEST``; infinity where there is none."""
    table = np.full(ENTRIES, np.inf, np.float32)
    table[_midpoints(width) - LOWEST] = midpoints(quantizer_levels(width))
    return table


def _midpoints(width: int) -> np.ndarray:
    levels = np.asarray(quantizer_bytes(width)[0])
    return levels[:-1] + levels[1:] + 1
