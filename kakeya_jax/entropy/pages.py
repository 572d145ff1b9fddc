"""Pages of signed integers as bytes: alphabet and escapes around the coder, and a checksum for each page.

A page's bytes are its final states (uint32), its words (uint16) and its escaped values (int16), little-endian. How many
values are escaped is known once the words are decoded, so no counts are stored.
"""

import concurrent.futures
import dataclasses
import itertools
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kakeya_jax.entropy import rans
from kakeya_jax.entropy.rans import ESCAPED, LANES, CodingTables
from kakeya_jax.typing import Int

_STATES_NBYTES = 4 * LANES

_PAGES_AT_ONCE = 128
"""Pages coded together: enough that calls of numpy cost little, few enough that all cores have some."""

_VALUES_AT_ONCE, _ROWS_AT_ONCE = 1 << 24, 1 << 13
"""Values and rows of tables in one go at most: bound working memory to some 200 + 150 MB on each core."""

_Layout = tuple[np.ndarray, CodingTables]


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

    Values that have no symbol in their row, and those whose frequency is 0, are escaped and stored as they are, in 16
    bits.

    Args:
        values: integers of 16 bits or less.
        rows: the row of the tables for each value of a page.
        tables: the frequencies.
    """
    return encode_groups([values], [(rows, tables)])[0]


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
    return decode_groups([pages], [checksums], [(rows, tables)])[0]


def encode_groups(groups: Sequence[np.ndarray], layouts: Sequence[_Layout]) -> list[CodedPages]:
    """``encode_pages`` of several groups of pages, each with its rows and tables: the same bytes, sooner.

    Small groups are coded together, and what is not coded together is coded on all cores.
    """

    def encode(batch: list[tuple[int, slice]]) -> list[bytes]:
        return _encode([groups[group][part] for group, part in batch], [layouts[group] for group, _ in batch])

    batches = _batches([len(values) for values in groups], layouts)
    pages = iter([page for coded in _on_all_cores(encode, batches) for page in coded])
    return [_coded(list(itertools.islice(pages, len(values)))) for values in groups]


def decode_groups(
    groups: Sequence[Sequence[bytes | memoryview]],
    checksums: Sequence[Sequence[int] | np.ndarray],
    layouts: Sequence[_Layout],
) -> list[np.ndarray]:
    """``decode_pages`` of several groups of pages, as ``encode_groups`` coded them.

    Raises:
        ValueError: a page's bytes are damaged, or were made with other tables.
    """
    for pages, sums in zip(groups, checksums, strict=True):
        _check(pages, sums)
    decoded = [np.zeros((len(pages), len(rows)), np.int16) for pages, (rows, _) in zip(groups, layouts, strict=True)]

    def decode(batch: list[tuple[int, slice]]) -> None:
        parts = _decode([groups[group][part] for group, part in batch], [layouts[group] for group, _ in batch])
        for (group, part), values in zip(batch, parts, strict=True):
            decoded[group][part] = values

    _on_all_cores(decode, _batches([len(pages) for pages in groups], layouts))
    return decoded


def _encode(groups: Sequence[np.ndarray], layouts: Sequence[_Layout]) -> list[bytes]:
    rows, tables = _joined(layouts)
    states, words, counts, which = rans.encode([_narrow(values) for values in groups], rows, tables)
    states, words = states.astype("<u4", copy=False), words.astype("<u2", copy=False)
    ends = np.cumsum(counts)
    escapes = iter(np.split(which, np.cumsum([len(values) for values in groups])[:-1]))
    stored = [
        page[escaped[: len(page)]].astype("<i2", copy=False)
        for values in groups
        for page, escaped in zip(values, next(escapes), strict=True)
    ]
    return [
        state.tobytes() + words[end - count : end].tobytes() + escaped.tobytes()
        for state, end, count, escaped in zip(states, ends, counts, stored, strict=True)
    ]


def _decode(groups: Sequence[Sequence[bytes | memoryview]], layouts: Sequence[_Layout]) -> list[np.ndarray]:
    rows, tables = _joined(layouts)
    pages = [page for group in groups for page in group]
    states = np.stack([np.frombuffer(page, "<u4", LANES) for page in pages])
    bodies = [np.frombuffer(page, "<u2", offset=_STATES_NBYTES) for page in pages]
    sizes = [len(group) for group in groups]
    narrow, used = rans.decode(states, bodies, sizes, rows, tables)
    escapes = narrow == ESCAPED
    stored = [body[count:] for body, count in zip(bodies, used, strict=True)]
    if any(len(each) != count for each, count in zip(stored, np.count_nonzero(escapes, axis=1), strict=True)):
        raise ValueError("entropy-coded pages do not decode: they were made with other tables")
    values = narrow.astype(np.int16)
    values[escapes] = np.concatenate(stored).view("<i2")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part[:, : len(each)] for part, each in zip(parts, rows, strict=True)]


def _batches(sizes: Sequence[int], layouts: Sequence[_Layout]) -> list[list[tuple[int, slice]]]:
    """What is coded together: parts of groups, in order."""
    batches: list[list[tuple[int, slice]]] = []
    room = rows_left = 0
    for group, (size, (rows, tables)) in enumerate(zip(sizes, layouts, strict=True)):
        most = max(1, min(_PAGES_AT_ONCE, _VALUES_AT_ONCE // max(1, len(rows))))
        needed = len(tables.frequencies)
        for start in range(0, size, most):
            count = min(most, size - start)
            if count > min(room, most) or needed > rows_left:
                batches.append([])
                room, rows_left = most, max(_ROWS_AT_ONCE, needed)
            batches[-1].append((group, slice(start, start + count)))
            room, rows_left = min(room, most) - count, rows_left - needed
    return batches


def _joined(layouts: Sequence[_Layout]) -> tuple[list[np.ndarray], CodingTables]:
    """The rows of each group in the tables of all."""
    first = np.cumsum([0, *(len(tables.frequencies) for _, tables in layouts)])
    rows = [each + offset for (each, _), offset in zip(layouts, first[:-1], strict=True)]
    return rows, CodingTables.joined([tables for _, tables in layouts])


def _on_all_cores(work: Callable[[Any], Any], batches: Sequence[Any]) -> list[Any]:
    if len(batches) < 2:
        return [work(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(work, batches))


def _coded(pages: list[bytes]) -> CodedPages:
    return CodedPages(
        data=b"".join(pages),
        nbytes=np.array([len(page) for page in pages], np.uint32),
        checksums=np.array([zlib.crc32(page) for page in pages], np.uint32),
    )


def _check(pages: Sequence[bytes | memoryview], checksums: Sequence[int] | np.ndarray) -> None:
    for index, (page, checksum) in enumerate(zip(pages, checksums, strict=True)):
        if len(page) < _STATES_NBYTES or len(page) % 2 or zlib.crc32(page) != int(checksum):
            raise ValueError(f"page {index} is damaged: its checksum does not match")


def _narrow(values: np.ndarray) -> np.ndarray:
    """As int8; what is beyond becomes what is always escaped."""
    if values.dtype == np.int8:
        return values
    return np.where((values > ESCAPED) & (values < -int(ESCAPED)), values, ESCAPED).astype(np.int8)
