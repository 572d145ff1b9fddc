"""Interleaved rANS, vectorised over pages and lanes (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392).

A page's symbols are dealt to lanes in turn: symbol ``j`` is step ``j // LANES`` of lane ``j % LANES``. Each lane has a
32-bit state; all lanes of a page share one stream of 16-bit words, which a decoder reads in the order of steps, then of
lanes. The encoder runs backwards and is the decoder's exact inverse: states start and end at the same constant, which
a decoder checks.

Nothing loops over pages or lanes; the loop over steps is the coder's own recurrence.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from kakeya_jax.entropy.frequencies import MOST_SYMBOLS, PRECISION_BITS, TOTAL
from kakeya_jax.typing import Int

LANES = 16
"""States of a page: 64 bytes, against some kilobytes of words; fewer lanes would make decoding a page slower."""

_START = np.uint32(1 << 16)
"""State of an encoder before its first symbol; states stay in ``[2**16, 2**32)`` between symbols."""

_OFFSET_SHIFT, _FREQUENCY_SHIFT = 8, 20
"""An entry of a decode table: symbol (8 bits), offset within the symbol's slots (12), frequency - 1 (12)."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodingTables:
    """Static frequencies, one row for each kind of symbol.

    Attributes:
        frequencies: uint16 ``[rows, symbols]`` from ``integer_frequencies``.
    """

    frequencies: np.ndarray

    def __post_init__(self) -> None:
        table = self.frequencies
        if table.ndim != 2 or table.shape[1] > MOST_SYMBOLS or table.dtype != np.uint16:
            raise ValueError(
                f"frequencies must be uint16 [rows, symbols <= {MOST_SYMBOLS}], got {table.dtype}{table.shape}"
            )
        if (table.sum(axis=1, dtype=np.int64) != TOTAL).any() or (table >= TOTAL).any():
            raise ValueError(f"every row of frequencies must sum to {TOTAL} over at least two symbols")

    @functools.cached_property
    def ranges(self) -> np.ndarray:
        """For encoding: ``start << 16 | frequency`` of every symbol, uint32 ``[rows * symbols]``."""
        frequencies = self.frequencies.astype(np.uint32)
        starts = np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies
        return ((starts << np.uint32(16)) | frequencies).reshape(-1)

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """For decoding: what each of a row's 4096 slots means, uint32 ``[rows * 4096]``."""
        rows, symbols = self.frequencies.shape
        frequencies = self.frequencies.reshape(-1)
        starts = self.ranges >> np.uint32(16)
        # What a slot says is constant for its symbol but for the offset slot - start: the constant, less start, is
        # repeated, then the slot is added (modulo 2**32, where the difference comes out right).
        constant = np.tile(np.arange(symbols, dtype=np.uint32), rows) - (starts << np.uint32(_OFFSET_SHIFT))
        constant += (frequencies.astype(np.uint32) - np.uint32(1)) << np.uint32(_FREQUENCY_SHIFT)
        slots = np.repeat(constant, frequencies).reshape(rows, TOTAL)
        slots += np.arange(TOTAL, dtype=np.uint32) << np.uint32(_OFFSET_SHIFT)
        return slots.reshape(-1)


def encode(
    symbols: Int[np.ndarray, "pages count"], rows: Int[np.ndarray, " count"], tables: CodingTables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes pages of equally many symbols.

    Args:
        symbols: uint8, each with a positive frequency in its row (an index that is not would corrupt the stream, so
            callers escape).
        rows: which row of the tables each symbol of a page is coded with.
        tables: the frequencies.

    Returns:
        The final states, uint32 ``[pages, LANES]``; the words of all pages, one after the other, uint16; and how many
        words each page has, int64 ``[pages]``.
    """
    pages, count = symbols.shape
    steps = -(-count // LANES)
    dealt = _deal(symbols, steps)
    first_range = _deal((rows * tables.frequencies.shape[1])[None], steps)
    state = np.full((LANES, pages), _START)
    words = np.empty((steps, LANES, pages), np.uint16)
    emitted = np.zeros((steps, LANES, pages), bool)
    for step in range(steps - 1, -1, -1):
        lanes = min(LANES, count - step * LANES)
        x, emit = state[:lanes], emitted[step, :lanes]
        symbol_range = tables.ranges.take(first_range[step, :lanes] + dealt[step, :lanes])
        frequency = symbol_range & np.uint32(0xFFFF)
        np.greater_equal(x, frequency << np.uint32(32 - PRECISION_BITS), out=emit)
        np.copyto(words[step, :lanes], x, casting="unsafe")  # the low 16 bits
        np.right_shift(x, np.uint32(16), out=x, where=emit)
        quotient = x // frequency
        x -= quotient * frequency
        x += quotient << np.uint32(PRECISION_BITS)
        x += symbol_range >> np.uint32(16)
    chosen = np.ascontiguousarray(emitted.transpose(2, 0, 1))
    return state.T.copy(), words.transpose(2, 0, 1)[chosen], chosen.reshape(pages, -1).sum(axis=1)


def decode(
    states: np.ndarray, words: Sequence[np.ndarray], rows: Int[np.ndarray, " count"], tables: CodingTables
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``encode``.

    Args:
        states: uint32 ``[pages, LANES]``.
        words: of each page, uint16; more may follow those that the page's symbols take.
        rows: as they were encoded with.
        tables: as they were encoded with.

    Returns:
        The symbols, uint8 ``[pages, count]``, and how many words each page took, int64 ``[pages]``.

    Raises:
        ValueError: the words are not what ``encode`` made with these tables and rows.
    """
    pages, count = len(states), len(rows)
    steps = -(-count // LANES)
    state = np.ascontiguousarray(states.T, np.uint32)
    symbols = np.empty((steps, LANES, pages), np.uint8)
    first_slot = _deal((rows * TOTAL)[None], steps)
    held = np.array([len(each) for each in words], np.int64)
    joined = np.concatenate([*words, np.zeros(1, np.uint16)])
    start = np.cumsum(held) - held
    last = start - 1  # of each page, the index of the last word read
    for step in range(steps):
        lanes = min(LANES, count - step * LANES)
        x = state[:lanes]
        entry = tables.slots.take(first_slot[step, :lanes] + (x & np.uint32(TOTAL - 1)))
        np.copyto(symbols[step, :lanes], entry, casting="unsafe")  # the low 8 bits
        x >>= np.uint32(PRECISION_BITS)
        x *= (entry >> np.uint32(_FREQUENCY_SHIFT)) + np.uint32(1)
        x += (entry >> np.uint32(_OFFSET_SHIFT)) & np.uint32(TOTAL - 1)
        wants = x < _START
        read = np.cumsum(wants, axis=0, dtype=np.int64)
        read += last
        last = read[-1]
        which = np.flatnonzero(wants)
        if which.size:
            flat = x.reshape(-1)
            flat[which] = (flat[which] << np.uint32(16)) | joined.take(read.reshape(-1)[which], mode="clip")
    used = last + 1 - start
    if (used > held).any() or (state != _START).any():
        raise ValueError("entropy-coded pages do not decode: they were made with other tables")
    return symbols.reshape(steps * LANES, pages)[:count].T, used


def _deal(values: np.ndarray, steps: int) -> np.ndarray:
    """``[pages, count]`` as ``[steps, LANES, pages]``, zeros after the last."""
    pages, count = values.shape
    dealt = np.zeros((steps * LANES, pages), np.uint8 if values.dtype == np.uint8 else np.int64)
    dealt[:count] = values.T
    return dealt.reshape(steps, LANES, pages)
