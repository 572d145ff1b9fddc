"""Probabilities as whole numbers of 4096: what an entropy coder counts with."""

import numpy as np

from kakeya_jax.typing import Float

PRECISION_BITS = 12
"""A table's frequencies sum to ``2 ** PRECISION_BITS``: 4096 slots keep a decode table in the first-level cache."""

TOTAL = 1 << PRECISION_BITS

MOST_SYMBOLS = 256
"""Symbols of a table, the escape included: a symbol is one byte of a decode table's entry."""


def integer_frequencies(probabilities: Float[np.ndarray, "rows symbols"]) -> np.ndarray:
    """Frequencies for each row of an alphabet whose last symbol is the escape.

    A symbol of probability 0 gets frequency 0 and is not in the row's alphabet: it can only be escaped. Every other
    symbol, and always the escape, gets at least 1, so nothing that may occur is impossible.

    Args:
        probabilities: not negative; rows need not sum to one, so counts will do.

    Returns:
        uint16 ``[rows, symbols]``; each row sums to 4096.

    Raises:
        ValueError: more than 256 symbols, values that are negative or not finite, or a row without any symbol.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not 2 <= p.shape[1] <= MOST_SYMBOLS:
        raise ValueError(f"probabilities must be [rows, symbols] of 2 to {MOST_SYMBOLS} symbols, got shape {p.shape}")
    if not np.isfinite(p).all() or (p < 0).any():
        raise ValueError("probabilities must be finite and not negative")
    if not (p[:, :-1] > 0).any(axis=1).all():
        row = int(np.flatnonzero(~(p[:, :-1] > 0).any(axis=1))[0])
        raise ValueError(f"row {row} has no symbol of positive probability besides the escape")
    used = p > 0
    used[:, -1] = True
    p = p / p.sum(axis=1, keepdims=True)
    low, high = np.zeros((len(p), 1)), np.full((len(p), 1), float(TOTAL + MOST_SYMBOLS))
    for _ in range(30):  # the largest factor whose rounded frequencies fit
        middle = 0.5 * (low + high)
        fits = _rounded(p, used, middle).sum(axis=1, keepdims=True) <= TOTAL
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    frequencies = _rounded(p, used, low)
    frequencies[np.arange(len(p)), p.argmax(axis=1)] += TOTAL - frequencies.sum(axis=1)
    return frequencies.astype(np.uint16)


def cross_entropy(counts: np.ndarray, frequencies: np.ndarray) -> float:
    """Bits that coding ``counts`` occurrences takes; symbols outside a row's alphabet are not counted."""
    inside = (counts > 0) & (frequencies > 0)
    return float(np.sum(counts[inside] * (PRECISION_BITS - np.log2(frequencies[inside]))))


def _rounded(p: np.ndarray, used: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.where(used, np.maximum(1, np.floor(p * factor + 0.5)), 0).astype(np.int64)
