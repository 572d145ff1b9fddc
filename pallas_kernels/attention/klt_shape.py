"""Sizes of ``klt_program``: what it reads of a page, and what a stage of its shared memory holds."""

import dataclasses

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, SHARED_NBYTES, TILE

DIM = 128
"""Of a head."""

GROUP = 16
"""Channels that share a width,"""

GROUPS = DIM // GROUP
"""and groups of a head."""

HEAD_WORDS = 8
"""Of a head in the table of layouts: for keys and for values where a page's codes of this head begin, bytes of a tile
of them and the widths of all groups, four bits each; and two words that say nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KltShape:
    """What a program is made for.

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
        group: query heads of a key/value head, at most 8.
        splits: programs that share a head.
        states: of a head; those of other tokens follow.
        warps: of a program.
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
    group: int
    splits: int
    states: int
    warps: int

    dim = DIM

    @property
    def paired(self) -> bool:
        """Whether high and low bytes of queries share the columns of one product."""
        return self.group <= COLUMNS // 2

    @property
    def rows(self) -> int:
        """Queries that a state has room for."""
        return COLUMNS // 2 if self.paired else COLUMNS

    @property
    def blocks(self) -> int:
        """Blocks of eight columns that a head's queries take as bytes."""
        return 1 if self.paired else 2

    @property
    def record_starts(self) -> int:
        """Where in a page's record the halves of sums are, bytes; queries come first, 32 bytes a lane and block."""
        return 1024 * self.blocks

    @property
    def record_factors(self) -> int:
        """Where the queries' factors are,"""
        return self.record_starts + 4 * COLUMNS * self.blocks

    @property
    def record_means(self) -> int:
        """and those of the values' page mean, one for each group."""
        return self.record_factors + 4 * COLUMNS

    @property
    def record_nbytes(self) -> int:
        """Of a page and head."""
        return self.record_means + 4 * GROUPS

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
    def stage_bias(self) -> int:
        """Where the logits are that do not come from codes, token after token."""
        return self.stage_means + DIM

    @property
    def stage_record(self) -> int:
        """Where the page's record is."""
        return self.stage_bias + 4 * TILE * self.rows

    @property
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""
        return self.stage_record + self.record_nbytes

    @property
    def stages(self) -> int:
        """Tiles that a warp has room for: two at least."""
        return max(2, min(4, SHARED_NBYTES // 12 // self.stage_nbytes))

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: stages, and later its warps' states."""
        return self.warps * max(self.stages * self.stage_nbytes // 4, self.rows * (DIM + 2))
