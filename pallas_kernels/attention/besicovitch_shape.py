"""Sizes of ``besicovitch_program``: values whose codes are of pairs of channels, beside keys of ``coded_program``."""

import dataclasses

from kakeya_jax.direction_words import PAIRS, tile_nbytes
from kakeya_jax.pallas_kernels.attention.coded_shape import TILE, CodedShape, Codes

COPIES = 16
"""Of the table of pairs, one beside the other: two lanes share a copy, and all others read different banks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesicovitchShape(CodedShape):
    """What ``besicovitch_program`` is made for.

    Attributes:
        value: bits of a code of a pair of channels, 3 to 8 (``direction_words``).
        page: tokens of a page, a multiple of 64.
        means: whether each page has a mean.
    """

    page: int
    means: bool

    @property
    def codes(self) -> tuple[Codes, ...]:
        """Those of keys: values have a table of their own."""
        return (self.key,)

    @property
    def width(self) -> int:
        """Bits of a pair of channels."""
        return self.value.bits

    @property
    def pair_blocks(self) -> int:
        """Of 16 pairs of channels."""
        return self.dim // 2 // PAIRS

    @property
    def value_tile(self) -> int:
        """Bytes of a tile of values."""
        return tile_nbytes(self.dim // 2, self.width)

    @property
    def stage_scales(self) -> int:
        """Where the scales of keys are."""
        return self.stage_values + self.value_tile

    @property
    def shifts(self) -> int:
        """None: a table has values as they are."""
        return 0

    @property
    def scales_apart(self) -> bool:
        """Never: a stage holds all of a tile."""
        return False

    @property
    def stage_means(self) -> int:
        """Where the page's mean is, float16."""
        return self.stage_value_scales + 2 * TILE

    @property
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""
        return self.stage_means + (2 * self.dim if self.means else 0)

    @property
    def table_nbytes(self) -> int:
        """Of the table of pairs, all its copies."""
        return 4 * COPIES << self.width

    @property
    def stages(self) -> int:
        """Tiles that a warp has room for, two at least, beside the table."""
        return max(2, min(4, (self.most_nbytes - self.table_nbytes // 4) // self.stage_nbytes))

    @property
    def table_at(self) -> int:
        """Where in a program's shared memory the table is."""
        return 4 * super().shared_floats

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: stages, and later its warps' states; and the table."""
        return super().shared_floats + self.table_nbytes // 4
