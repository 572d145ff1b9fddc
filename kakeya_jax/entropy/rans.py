"""Interleaved rANS, vectorised over pages and lanes (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392).

A page's values are dealt to lanes in turn: value ``j`` is step ``j // LANES`` of lane ``j % LANES``. Each lane has a
32-bit state; all lanes of a page share one stream of 16-bit words, which a decoder reads in the order of steps, then of
lanes. The encoder runs backwards and is the decoder's exact inverse: states start and end at the same constant, which
a decoder checks.

Nothing loops over pages or lanes; the loop over steps is the coder's own recurrence.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from kakeya_jax.entropy.frequencies import MOST_SYMBOLS, PRECISION_BITS, TOTAL
from kakeya_jax.typing import Int

LANES = 16
"""States of a page: 64 bytes, against some kilobytes of words; fewer lanes would make decoding a page slower."""

_ESCAPE_BIT = np.uint32(1 << 31)

_START = np.uint32(1 << 16)
"""State of an encoder before its first symbol; states stay in ``[2**16, 2**32)`` between symbols."""

ESCAPED = np.int8(-128)
"""Stands for every value without a code: symbols are those of -127 to 127 at most."""

_OFFSET_SHIFT, _FREQUENCY_SHIFT = 8, 20
"""An entry of a decode table: value (8 bits), offset within its slots (12), frequency - 1 (12)."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodingTables:
    """Static frequencies, one row for each kind of symbol.

    With ``2 m + 2`` symbols, symbol ``v + m`` is the value ``v`` and the last one the escape.

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
        if table.shape[1] % 2:
            raise ValueError(
                f"tables of signed values have an even number of symbols (2 m + 1 and an escape), got {table.shape[1]}"
            )

    @functools.cached_property
    def ranges(self) -> np.ndarray:
        """For encoding: ``start << 16 | frequency`` of every value of 8 bits, uint32 ``[(rows + 1) * 256]``.

        A value is looked up as an unsigned byte. Those without a code have the escape's range, marked in the highest
        bit. One more row codes nothing: a frequency of all slots leaves a state as it is.
        """
        rows, symbols = self.frequencies.shape
        frequencies = self.frequencies.astype(np.uint32)
        packed = (self._starts() << np.uint32(16)) | frequencies
        escape = packed[:, -1:] | _ESCAPE_BIT
        half = symbols // 2 - 1
        ranges = np.full((rows + 1, 256), TOTAL, np.uint32)
        ranges[:rows] = escape
        ranges[:rows, np.arange(-half, half + 1)] = np.where(frequencies[:, :-1] > 0, packed[:, :-1], escape)
        return ranges.reshape(-1)

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """For decoding: what each of a row's 4096 slots means, uint32 ``[(rows + 1) * 4096]``; see ``ranges``."""
        rows, symbols = self.frequencies.shape
        value = np.arange(symbols) - (symbols // 2 - 1)
        value[-1] = ESCAPED
        # What a slot says is constant for its symbol but for the offset slot - start: the constant, less start, is
        # repeated, then the slot is added (modulo 2**32, where the difference comes out right).
        constant = value.astype(np.uint8).astype(np.uint32) - (self._starts() << np.uint32(_OFFSET_SHIFT))
        constant += (self.frequencies.astype(np.uint32) - np.uint32(1)) << np.uint32(_FREQUENCY_SHIFT)
        slots = np.empty((rows + 1, TOTAL), np.uint32)
        slots[:rows] = np.repeat(constant.reshape(-1), self.frequencies.reshape(-1)).reshape(rows, TOTAL)
        slots[rows] = np.uint32((TOTAL - 1) << _FREQUENCY_SHIFT)
        slots += np.arange(TOTAL, dtype=np.uint32) << np.uint32(_OFFSET_SHIFT)
        return slots.reshape(-1)

    def _starts(self) -> np.ndarray:
        return np.cumsum(self.frequencies, axis=1, dtype=np.uint32) - self.frequencies

    @classmethod
    def joined(cls, tables: "Sequence[CodingTables]") -> "CodingTables":
        """The rows of several tables in one: zeros at both ends of the narrower alphabets."""
        if len(tables) == 1:
            return tables[0]
        width = max(each.frequencies.shape[1] for each in tables)
        return cls(frequencies=np.concatenate([_widened(each.frequencies, width) for each in tables]))


def encode(
    groups: Sequence[Int[np.ndarray, "pages count"]], rows: Sequence[Int[np.ndarray, " count"]], tables: CodingTables
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes groups of pages; those of a group have equally many values, of the same kinds.

    Args:
        groups: int8; -128 for all that is beyond.
        rows: of each group, which row of the tables each value of a page is coded with.
        tables: the frequencies.

    Returns:
        For the pages of all groups, one after the other: the final states, uint32 ``[pages, LANES]``; the words,
        uint16; how many words each page has, int64 ``[pages]``; and which values were escaped, bool
        ``[pages, largest count]``.
    """
    sizes, pages = [len(values) for values in groups], sum(map(len, groups))
    steps = -(-max(map(len, rows)) // LANES)
    dealt = np.zeros((pages, steps * LANES), np.uint8)
    for values, end in zip(groups, np.cumsum(sizes), strict=True):
        dealt[end - len(values) : end, : values.shape[1]] = values.view(np.uint8)
    dealt = np.ascontiguousarray(dealt.reshape(pages, steps, LANES).transpose(1, 0, 2))
    first_range = _first_entries(rows, sizes, 256, tables, steps)
    ranges = tables.ranges
    x = np.full((pages, LANES), _START)
    words = np.empty((steps, pages, LANES), np.uint16)
    emitted, escaped = np.empty((2, steps, pages, LANES), bool)
    index, frequency, shift = np.empty((3, pages, LANES), np.uint32)
    quotient, ratio = np.empty((pages, LANES), np.int32), np.empty((pages, LANES), np.float64)
    for step in range(steps - 1, -1, -1):
        np.add(dealt[step], first_range(step), out=index)
        entry = ranges.take(index)
        np.bitwise_and(entry, np.uint32(0xFFFF), out=frequency)
        np.greater_equal(entry, _ESCAPE_BIT, out=escaped[step])
        emit = emitted[step]
        np.right_shift(x, np.uint32(32 - PRECISION_BITS), out=shift)
        np.greater_equal(shift, frequency, out=emit)
        np.copyto(words[step], x, casting="unsafe")  # the low 16 bits
        np.multiply(emit, np.uint32(16), out=shift)
        x >>= shift
        # A quotient of 32-bit integers, below 2**20 here, rounded to float64 does not reach the next integer; this is
        # several times as fast as dividing integers.
        np.divide(x, frequency, out=ratio)
        np.copyto(quotient, ratio, casting="unsafe")
        np.subtract(np.uint32(TOTAL), frequency, out=frequency)
        frequency *= quotient.view(np.uint32)
        x += frequency
        entry >>= np.uint32(16)
        entry &= np.uint32(TOTAL - 1)
        x += entry
    chosen = np.ascontiguousarray(emitted.transpose(1, 0, 2))
    which = np.ascontiguousarray(escaped.transpose(1, 0, 2)).reshape(pages, steps * LANES)
    counts = np.count_nonzero(chosen, axis=(1, 2))
    return x, np.ascontiguousarray(words.transpose(1, 0, 2))[chosen], counts, which


def decode(
    states: np.ndarray,
    words: Sequence[np.ndarray],
    sizes: Sequence[int],
    rows: Sequence[Int[np.ndarray, " count"]],
    tables: CodingTables,
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``encode``.

    Args:
        states: uint32 ``[pages, LANES]``.
        words: of each page, uint16; more may follow those that the page's values take.
        sizes: pages of each group.
        rows: of each group, as they were encoded with.
        tables: as they were encoded with.

    Returns:
        The values, int8 ``[pages, largest count]``, -128 where a value was escaped, 0 where a page has none, and how
        many words each page took, int64 ``[pages]``.

    Raises:
        ValueError: the words are not what ``encode`` made with these tables and rows.
    """
    pages, steps = len(states), -(-max(map(len, rows)) // LANES)
    first_slot = _first_entries(rows, sizes, TOTAL, tables, steps)
    slots = tables.slots
    x = np.array(states, np.uint32, order="C")
    flat = x.reshape(-1)
    dealt = np.empty((steps, pages, LANES), np.uint8)
    held = np.array([len(each) for each in words], np.int64)
    joined = np.concatenate([*words, np.zeros(1, np.uint16)]).astype(np.uint32)
    start = np.cumsum(held) - held
    following = start.copy()  # of each page, the index of the next word
    ordinal = np.arange(pages * LANES)
    index, scratch = np.empty((2, pages, LANES), np.uint32)
    wants = np.empty((pages, LANES), bool)
    halves = wants.view(np.uint64)
    for step in range(steps):
        np.bitwise_and(x, np.uint32(TOTAL - 1), out=index)
        index += first_slot(step)
        entry = slots.take(index)
        np.copyto(dealt[step], entry, casting="unsafe")  # the low 8 bits
        x >>= np.uint32(PRECISION_BITS)
        np.right_shift(entry, np.uint32(_FREQUENCY_SHIFT), out=scratch)
        scratch += np.uint32(1)
        x *= scratch
        entry >>= np.uint32(_OFFSET_SHIFT)
        entry &= np.uint32(TOTAL - 1)
        x += entry
        np.less(x, _START, out=wants)
        which = np.flatnonzero(wants)  # page after page, lane after lane: in the order of the words
        if which.size:
            ones = np.bitwise_count(halves)
            read = np.add(ones[:, 0], ones[:, 1], dtype=np.int64)
            ends = np.cumsum(read)
            shifted = following - ends
            shifted += read
            word = shifted.take(which // LANES)
            word += ordinal[: len(which)]
            renewed = flat.take(which)
            renewed <<= np.uint32(16)
            renewed |= joined.take(word, mode="clip")
            flat[which] = renewed
            following += read
    used = following - start
    if (used > held).any() or (x != _START).any():
        raise ValueError("entropy-coded pages do not decode: they were made with other tables")
    return np.ascontiguousarray(dealt.transpose(1, 0, 2)).reshape(pages, steps * LANES).view(np.int8), used


def _first_entries(
    rows: Sequence[np.ndarray], sizes: Sequence[int], width: int, tables: CodingTables, steps: int
) -> Callable[[int], np.ndarray | np.uint32]:
    """For each step, where in a table of ``width`` entries for each row every lane's row begins.

    Returns:
        From a step to a number if that is the same for all, else uint32 ``[LANES]`` or ``[pages, LANES]``.
    """
    none = len(tables.frequencies)
    dealt = np.full((len(rows), steps * LANES), none * width, np.uint32)
    for first, each in zip(dealt, rows, strict=True):
        first[: len(each)] = each * width
    dealt = np.ascontiguousarray(dealt.reshape(len(rows), steps, LANES).transpose(1, 0, 2))
    if len(rows) > 1:
        group = np.repeat(np.arange(len(rows)), sizes)
        return lambda step: dealt[step].take(group, axis=0)
    same = (dealt == dealt[:, :, :1]).all(axis=(1, 2))
    return [each[0, 0] if one else each[0] for each, one in zip(dealt, same, strict=True)].__getitem__


def _widened(frequencies: np.ndarray, width: int) -> np.ndarray:
    margin = (width - frequencies.shape[1]) // 2
    return np.concatenate([np.pad(frequencies[:, :-1], ((0, 0), (margin, margin))), frequencies[:, -1:]], axis=1)
