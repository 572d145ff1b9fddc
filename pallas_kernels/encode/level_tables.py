"""What a code is in tables of all widths (``kakeya_jax.klt_code_tables``): its level, and its bits in words."""

import functools
from typing import NamedTuple

import numpy as np

from kakeya_jax.klt_code_tables import ENTRIES, LOWEST, code_table
from kakeya_jax.klt_layout import FAST_WIDTHS, quantizer_bytes


class LevelTables(NamedTuple):
    """Of all widths, one after the other; ``[4 * 512]``.

    Attributes:
        levels: int8: the byte of the level; the level is ``2 byte + 1`` half units.
        fields: uint8: the code as words have it (``code_words``): 2 and 8 bits as it is, 4 bits as sign and magnitude;
            of 6 bits the nibble, and 16 times the table of eight levels.
    """

    levels: np.ndarray
    fields: np.ndarray


@functools.cache
def level_tables() -> LevelTables:
    """The tables."""
    codes = {width: code_table(width) for width in FAST_WIDTHS}
    levels = [np.asarray(quantizer_bytes(width)[0])[each] for width, each in codes.items()]
    fields = [_fields(each, width) for width, each in codes.items()]
    return LevelTables(np.concatenate(levels).astype(np.int8), np.concatenate(fields).astype(np.uint8))


def table_starts(widths: np.ndarray) -> np.ndarray:
    """Where the entry of 0 is for each width; any where there are no bits."""
    places = np.searchsorted(FAST_WIDTHS, np.maximum(widths, FAST_WIDTHS[0]))
    return places * ENTRIES - LOWEST


def half_units(widths: np.ndarray) -> np.ndarray:
    """Half the unit of the levels; 0 for no bits."""
    return np.vectorize(lambda width: quantizer_bytes(int(width))[1] / 2 if width else 0.0)(widths)


def _fields(codes: np.ndarray, width: int) -> np.ndarray:
    if width in (2, 8):
        return codes
    half = 1 << (width - 1)
    signed = np.where(codes < half, codes ^ (half - 1), codes)
    if width == 4:
        return signed
    return signed >> 2 & 8 | signed & 7 | (signed >> 3 & 3) << 4
