"""Codes of ``klt-storage`` as entropy-coded pages, and back: host code.

A page's values are its page means, channel after channel, then its symbols, for each kept channel token after token,
so that all lanes of the coder look into the same table at the same time, then the low parts of symbols in two parts.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kakeya_jax import entropy
from kakeya_jax.codecs.klt_storage import MOST_LOW_BITS, TABLES, KltStorage, KltStorageCode
from kakeya_jax.entropy import CodedPages, CodingTables
from kakeya_jax.typing import Float, Int

_COMPUTED = ("analysis", "synthesis", "steps", "gains")
"""Tables that are computed anew from a calibration wherever it is loaded."""

SKETCH_TOLERANCE = 1e-4
"""Of ``tables_sketch``: rounding moves it by some 1e-7, another set of tables by about 1 and more."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PageCoder:
    """How the pages of one layer are coded; make it once for each layer.

    Attributes:
        tables: frequencies of the kept channels' symbols, of every channel's page mean, and of low parts of 1, 2, ...
            bits, which are uniform.
        rows: the row of ``tables`` for each value of a page.
        kept: channels that have symbols.
        fine: channels whose symbols have low parts.
        channels: channels that have page means; 0 without them.
        block_size: tokens of a page.
    """

    tables: CodingTables
    rows: np.ndarray
    kept: int
    fine: int
    channels: int
    block_size: int

    @classmethod
    def of(cls, codec: KltStorage) -> "PageCoder":
        """The coder of a layer's codec."""
        page_means = codec.page_mean_frequencies
        frequencies = [np.asarray(codec.frequencies)] + ([] if page_means is None else [np.asarray(page_means)])
        kept, channels = len(frequencies[0]), sum(map(len, frequencies[1:]))
        frequencies += [_uniform(bits) for bits in range(1, MOST_LOW_BITS + 1)]
        of_low = kept + channels + np.asarray(codec.low_bits, np.int64) - 1
        n = codec.config.block_size
        return cls(
            tables=CodingTables.joined([CodingTables(frequencies=each) for each in frequencies]),
            rows=np.concatenate(
                [np.arange(kept, kept + channels), np.repeat(np.arange(kept), n), np.repeat(of_low, n)]
            ),
            kept=kept,
            fine=len(of_low),
            channels=channels,
            block_size=n,
        )

    def encode(self, code: KltStorageCode) -> CodedPages:
        """Pages of the code of many blocks, leaves ``[pages, ...]``."""
        return encode_layers([self], [code])[0]

    def decode(self, pages: Sequence[bytes | memoryview], checksums: Int[np.ndarray, " pages"]) -> KltStorageCode:
        """The code of many blocks, numpy leaves ``[pages, ...]``.

        Raises:
            ValueError: a page is damaged or was coded with other tables.
        """
        return decode_layers([self], [pages], [checksums])[0]

    def values(self, code: KltStorageCode) -> np.ndarray:
        """A code's values in the order of the file, int8 ``[pages, count]``."""
        symbols, low = (np.asarray(part).transpose(0, 2, 1) for part in (code.symbols, code.low))
        count, n = len(symbols), self.block_size
        parts = [symbols.reshape(count, self.kept * n), low.reshape(count, self.fine * n)]
        if code.page_mean is not None:
            parts.insert(0, np.asarray(code.page_mean))
        return np.concatenate(parts, axis=1)

    def code(self, values: Int[np.ndarray, "pages count"]) -> KltStorageCode:
        """The inverse of ``values``."""
        n = self.block_size
        values = values.astype(np.int8)
        page_mean, symbols, low = np.split(values, [self.channels, self.channels + n * self.kept], axis=1)
        leaves: Any = {
            "symbols": symbols.reshape(len(values), self.kept, n).transpose(0, 2, 1),
            "low": low.reshape(len(values), self.fine, n).transpose(0, 2, 1),
            "page_mean": page_mean if self.channels else None,
        }
        return KltStorageCode(**leaves)


def encode_layers(coders: Sequence[PageCoder], codes: Sequence[KltStorageCode]) -> list[CodedPages]:
    """``PageCoder.encode`` of many layers: the same bytes, sooner."""
    values = [coder.values(code) for coder, code in zip(coders, codes, strict=True)]
    return entropy.encode_groups(values, [(coder.rows, coder.tables) for coder in coders])


def decode_layers(
    coders: Sequence[PageCoder],
    pages: Sequence[Sequence[bytes | memoryview]],
    checksums: Sequence[Int[np.ndarray, " pages"]],
) -> list[KltStorageCode]:
    """``PageCoder.decode`` of many layers.

    Raises:
        ValueError: a page is damaged or was coded with other tables.
    """
    values = entropy.decode_groups(pages, checksums, [(coder.rows, coder.tables) for coder in coders])
    return [coder.code(each) for coder, each in zip(coders, values, strict=True)]


def tables_fingerprint(codecs: Sequence[KltStorage]) -> str:
    """A hash of all layers' tables that pages cannot be decoded without, to the last bit: means, frequencies."""
    digest = hashlib.sha256()
    for codec in codecs:
        for name in TABLES:
            table = getattr(codec, name)
            if table is not None and name not in _COMPUTED:
                array = np.asarray(table)
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def tables_sketch(codecs: Sequence[KltStorage]) -> tuple[float, ...]:
    """Projections of the tables that are computed from a calibration: maps, steps and gains, a few numbers a layer.

    Eigenvectors differ in their last digit from one processor to another, and with the number of threads: two sets of
    tables are the same if no number here differs by more than ``SKETCH_TOLERANCE``. Of unit rows, weighted by fixed
    draws from a Gaussian: an axis that is turned, mirrored or scaled by a thousandth shows, however little it weighs.
    """
    found: list[float] = []
    for codec in codecs:
        kept = len(codec.steps)
        rows = [np.asarray(codec.analysis, np.float64).T[:kept], np.asarray(codec.synthesis, np.float64)[:kept]]
        scales = [np.asarray(codec.steps, np.float64)[:, None], np.asarray(codec.gains, np.float64)[:, None]]
        found += [_projection(each) for each in (*rows, *scales)]
    return tuple(round(each, 6) for each in found)


def _projection(rows: Float[np.ndarray, "C E"]) -> float:
    draws = np.random.default_rng(0)
    left, lengths, right = (draws.standard_normal(size) for size in (len(rows), len(rows), rows.shape[1]))
    norms = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float64).tiny)
    return float(left @ (rows / norms[:, None]) @ right + lengths @ np.log(norms))


def _uniform(bits: int) -> np.ndarray:
    """One row for the signed values of ``bits`` bits, equally probable."""
    half = 1 << (bits - 1)
    values = np.arange(-half, half + 1)
    return entropy.integer_frequencies(np.append(values < half, False)[None].astype(float))
