"""Sizes of ``klt_program``: what it reads of a page, and what a stage of its shared memory holds."""

import dataclasses
import math
from typing import Any

from kakeya_jax.klt_layout import FAST_WIDTHS, quantizer_bytes
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, TILE, Codes, TileShape
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.klt_query_shared import shared_nbytes

DIM = 128
"""Of a head."""

GROUP = 16
"""Channels that share a width,"""

GROUPS = DIM // GROUP
"""and groups of a head."""

UNIT_WORDS = 4 * GROUPS
"""Of a head in the table of units."""

HEAD_WORDS = 12
"""Of a head in the table of layouts. Of keys: where a page's codes of this head begin, bytes of a tile of them, and the
groups, widest first, four bits each; likewise of values, but the widths of all groups. Then of keys: for each group the
widths before it, eight bits each, in two words, and how many groups have a width, four bits each. Three say nothing."""


def codes_of(width: int) -> Codes:
    """How codes of a width are packed."""
    table, _ = quantizer_bytes(width)
    return Codes(bits=width, table=() if width == 8 else table)


CONSTANTS = HeldWords(tuple(codes_of(width) for width in FAST_WIDTHS))
"""That the table of layouts begins with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KltShape(TileShape):
    """What ``klt_program`` is made for; ``dim`` is 128.

    Attributes:
        page: tokens of a page, a multiple of 64.
        pages: that a row has room for.
        num_kv_heads: of a row.
        key_nbytes: of a page of keys, all heads, and
        value_nbytes: of values.
        key_tile: most bytes of a tile of one head's keys, and
        value_tile: of values; multiples of 256.
        key_widths: widths that occur among keys, and
        value_widths: among values.
        dtype: of the queries.
        scale: factor of logits to the base 2.
        curves: see ``klt_curves``.
    """

    page: int
    pages: int
    num_kv_heads: int
    key_nbytes: int
    value_nbytes: int
    key_tile: int
    value_tile: int
    key_widths: tuple[int, ...]
    value_widths: tuple[int, ...]
    dtype: Any
    scale: float
    curves: int

    @property
    def curve_blocks(self) -> int:
        """Blocks of eight curves that each of four warps finds coefficients of."""
        return math.ceil(self.curves / (4 * COLUMNS))

    @property
    def coefficient_nbytes(self) -> int:
        """Of a page's coefficients: two float16 for each curve and query."""
        return 2 * COLUMNS * self.curves * self.blocks

    @property
    def query_nbytes(self) -> int:
        """Of a page's queries, four bytes a lane, group and block."""
        return 1024 * self.blocks

    @property
    def extra_nbytes(self) -> int:
        """Of what ``klt_queries.PageQueries`` has besides numbers."""
        return 4 * (COLUMNS * self.blocks + 3 * COLUMNS + GROUPS)

    @property
    def stage_values(self) -> int:
        """Where in a stage values are; keys come first."""
        return self.key_tile

    @property
    def stage_scales(self) -> int:
        """Where scales are, of keys and then of values."""
        return self.stage_values + self.value_tile

    @property
    def stage_means(self) -> int:
        """Where the page mean of values is."""
        return self.stage_scales + 2 * TILE

    @property
    def stage_coefficients(self) -> int:
        """Where the coefficients of the page's curves are."""
        return self.stage_means + DIM

    @property
    def stage_queries(self) -> int:
        """Where the page's queries are."""
        return self.stage_coefficients + self.coefficient_nbytes

    @property
    def stage_extras(self) -> int:
        """Where their sums and factors are."""
        return self.stage_queries + self.query_nbytes

    @property
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""
        return self.stage_extras + self.extra_nbytes

    @property
    def shared_floats(self) -> int:
        """Of a program: see ``TileShape``, and ``klt_query_shared``, which is used before."""
        return max(super().shared_floats, shared_nbytes(self.curve_blocks) // 4)
