"""Pages of signed integers as bytes: alphabet and escapes around the coder, and a checksum for each page.

A page's bytes are its final states (uint32), its words (uint16) and its escaped values (int16), little-endian. How many
values are escaped is known once the words are decoded, so no counts are stored.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from kakeya_jax.entropy import rans
from kakeya_jax.entropy.rans import LANES, CodingTables
from kakeya_jax.typing import Int

_STATES_NBYTES = 4 * LANES

_VALUES_AT_ONCE = 1 << 24
"""Values coded together at most: bounds working memory to some 200 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodedPages:
    """Bytes of many pages.

    Attributes:
        data: all pages, one after the other.
        nbytes: uint32 ``[pages]``.
        checksums: uint32 ``[pages]``: CRC-32 of each page's bytes.
    """

    data: bytes
    nbytes: np.ndarray
    checksums: np.ndarray


def encode_pages(
    values: Int[np.ndarray, "pages count"], rows: Int[np.ndarray, " count"], tables: CodingTables
) -> CodedPages:
    """Codes pages of int16 values; every value comes back exactly.

    With ``2 m + 2`` symbols in the tables, symbol ``v + m`` is the value ``v`` and the last one the escape: values
    beyond ``m``, and those whose frequency is 0, are escaped and stored as they are, in 16 bits.

    Args:
        values: integers of 16 bits or less.
        rows: the row of the tables for each value of a page.
        tables: the frequencies.
    """
    parts = [
        _encode(values[start : start + step], rows, tables)
        for step in (_pages_at_once(len(rows)),)
        for start in range(0, len(values), step)
    ]
    pages = [page for part in parts for page in part]
    return CodedPages(
        data=b"".join(pages),
        nbytes=np.array([len(page) for page in pages], np.uint32),
        checksums=np.array([zlib.crc32(page) for page in pages], np.uint32),
    )


def decode_pages(
    pages: Sequence[bytes | memoryview],
    checksums: Sequence[int] | np.ndarray,
    rows: Int[np.ndarray, " count"],
    tables: CodingTables,
) -> np.ndarray:
    """The values of pages: int16 ``[pages, count]``.

    Args:
        pages: the bytes of each page.
        checksums: of each page, from ``CodedPages``.
        rows: as they were encoded with.
        tables: as they were encoded with.

    Raises:
        ValueError: a page's bytes are damaged, or were made with other tables.
    """
    for index, (page, checksum) in enumerate(zip(pages, checksums, strict=True)):
        if len(page) < _STATES_NBYTES or len(page) % 2 or zlib.crc32(page) != int(checksum):
            raise ValueError(f"page {index} is damaged: its checksum does not match")
    step = _pages_at_once(len(rows))
    parts = [_decode(pages[start : start + step], rows, tables) for start in range(0, len(pages), step)]
    return np.concatenate(parts) if parts else np.zeros((0, len(rows)), np.int16)


def _encode(values: np.ndarray, rows: np.ndarray, tables: CodingTables) -> list[bytes]:
    escape, half = _alphabet(tables)
    wide = values.astype(np.int16)
    index = np.clip(wide, -half, half) + np.int16(half)
    known = (tables.frequencies > 0).reshape(-1)
    coded = known.take(rows[None] * (escape + 1) + index)
    coded &= (wide >= -half) & (wide <= half)
    symbols = np.where(coded, index, escape).astype(np.uint8)
    states, words, counts = rans.encode(symbols, rows, tables)
    states, words = states.astype("<u4", copy=False), words.astype("<u2", copy=False)
    word_ends = np.cumsum(counts)
    escaped = wide[~coded].astype("<i2", copy=False)
    escape_ends = np.cumsum(np.sum(~coded, axis=1))
    pages = []
    for page in range(len(values)):
        first_word, first_escape = (int(ends[page - 1]) if page else 0 for ends in (word_ends, escape_ends))
        pages.append(
            states[page].tobytes()
            + words[first_word : word_ends[page]].tobytes()
            + escaped[first_escape : escape_ends[page]].tobytes()
        )
    return pages


def _decode(pages: Sequence[bytes | memoryview], rows: np.ndarray, tables: CodingTables) -> np.ndarray:
    escape, half = _alphabet(tables)
    states = np.stack([np.frombuffer(page, "<u4", LANES) for page in pages])
    bodies = [np.frombuffer(page, "<u2", offset=_STATES_NBYTES) for page in pages]
    symbols, used = rans.decode(states, bodies, rows, tables)
    values = symbols.astype(np.int16) - np.int16(half)
    escapes = symbols == escape
    stored = [body[count:] for body, count in zip(bodies, used, strict=True)]
    if any(len(each) != count for each, count in zip(stored, escapes.sum(axis=1), strict=True)):
        raise ValueError("entropy-coded pages do not decode: they were made with other tables")
    values[escapes] = np.concatenate(stored).view("<i2")
    return values


def _alphabet(tables: CodingTables) -> tuple[int, int]:
    """Index of the escape, and the largest value that has a symbol."""
    symbols = tables.frequencies.shape[1]
    if symbols % 2:
        raise ValueError(
            f"tables of signed values have an even number of symbols (2 m + 1 and an escape), got {symbols}"
        )
    return symbols - 1, symbols // 2 - 1


def _pages_at_once(count: int) -> int:
    return max(1, _VALUES_AT_ONCE // max(1, count))
