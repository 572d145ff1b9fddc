"""Sizes of ``klt_program``: what it reads of a page, and what a stage of its shared memory holds."""

import dataclasses
import math
from typing import Any

from kakeya_jax.klt_layout import FAST_WIDTHS, quantizer_bytes
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, TILE, Codes, TileShape
from kakeya_jax.pallas_kernels.attention.held_words import HeldWords
from kakeya_jax.pallas_kernels.attention.klt_query_shared import TOGETHER, shared_nbytes

DIM = 128
"""Of a head."""

GROUP = 16
"""Channels that share a width,"""

GROUPS = DIM // GROUP
"""and groups of a head."""

UNIT_WORDS = 4 * GROUPS
"""Of a head in the table of units."""

HEAD_WORDS = 8
"""Of a head in the table of layouts. Of keys: where a page's codes of this head begin, bytes of a tile of them, and how
many groups have a width, four bits each from twice the width on; likewise of values, but the widths of all groups, four
bits each. Then of keys, for each group, widest first: four times the widths before it in a tile, and its number; eight
bits each, in two words."""


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
    def query_rows(self) -> int:
        """Rows of a page in products that make its queries."""
        return 2 if self.group <= 2 else self.rows

    @property
    def curve_blocks(self) -> int:
        """Blocks of eight curves that each of four warps finds coefficients of."""
        return math.ceil(self.curves / (4 * COLUMNS))

    @property
    def columns(self) -> int:
        """Of eight columns of a block, those that a page has: two for each of its rows."""
        return min(COLUMNS, 2 * self.query_rows)

    @property
    def coefficient_nbytes(self) -> int:
        """Of a page's coefficients: two float16 for each curve and query."""
        return 2 * self.columns * self.curves * self.blocks

    @property
    def query_nbytes(self) -> int:
        """Of a page's queries: two bytes for each channel and query."""
        return self.columns * DIM * self.blocks

    @property
    def start_nbytes(self) -> int:
        """Of what sums of products with a page's queries start from: four for every two columns."""
        return 8 * COLUMNS * self.blocks

    @property
    def extra_nbytes(self) -> int:
        """Of what ``klt_queries.PageQueries`` has besides numbers."""
        return self.start_nbytes + 4 * (3 * COLUMNS + GROUPS)

    @property
    def part_nbytes(self) -> int:
        """Of a tile's codes of keys, or of values: what a place for either has room for."""
        return max(self.key_tile, self.value_tile)

    @property
    def stage_means(self) -> int:
        """Where in a stage the page mean of values is; scales come first, of keys and then of values."""
        return 2 * TILE

    @property
    def stage_extras(self) -> int:
        """Where the sums and factors of the page's queries are."""
        return self.stage_means + DIM

    @property
    def stage_nbytes(self) -> int:
        """Of what a tile has besides codes and queries."""
        return self.stage_extras + self.extra_nbytes

    @property
    def page_nbytes(self) -> int:
        """Of the coefficients of a page's curves, and then its queries."""
        return self.coefficient_nbytes + self.query_nbytes

    @property
    def stages(self) -> int:
        """Tiles that are under way in a warp, two at least: as many as there is room for."""
        return next((count for count in (4, 3) if self._nbytes_of(count) <= self.most_nbytes), 2)

    @property
    def parts(self) -> int:
        """Places for codes that a warp has."""
        return 2 * self.stages - 1

    @property
    def warp_pages(self) -> int:
        """Where in a warp's memory pages are, after stages."""
        return self.stages * self.stage_nbytes

    @property
    def warp_parts(self) -> int:
        """Where codes are."""
        return self.warp_pages + (self.stages - 1) * self.page_nbytes

    @property
    def warp_nbytes(self) -> int:
        """Shared memory of a warp."""
        return self._nbytes_of(self.stages)

    def _nbytes_of(self, stages: int) -> int:
        """Of a warp with so many stages: see ``klt_turns``."""
        parts = (2 * stages - 1) * self.part_nbytes
        return stages * self.stage_nbytes + (stages - 1) * self.page_nbytes + parts

    @property
    def shared_floats(self) -> int:
        """Of a program: see ``TileShape``, and ``klt_query_shared``, which is used before."""
        return max(super().shared_floats, shared_nbytes(self.curve_blocks, self.turn_pages * self.page_nbytes) // 4)

    @property
    def turn_pages(self) -> int:
        """Whose queries are found at once."""
        return TOGETHER * 16 // self.query_rows
