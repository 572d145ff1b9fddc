"""Sizes of ``coded_program``: how codes are packed, and what a program's shared memory holds."""

import abc
import dataclasses
import math

from kakeya_jax.pallas_kernels.attention.query_form import QueryForm
from kakeya_jax.token_tiles import TILE

GROUP = 32
"""Channels that share a scale, or a multiple: the depth of a product; and tokens that do."""

PRODUCTS = TILE // 16
"""Of 16 tokens, that a tile of keys takes for each step of their depth."""

COLUMNS = 8
"""Of the right operands."""

FOUR = COLUMNS // 2
"""Queries whose two parts fill them, side by side: a lane has two neighbouring columns, both parts of one query."""

SHARED_NBYTES = 224 * 1024
"""Shared memory that a multiprocessor has for the tiles of its programs."""

LARGEST = 127 * 256
"""Of the 16-bit numbers that queries and shares become: its two bytes are signed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes:
    """How the codes of a stream are packed (``code_words``).

    Attributes:
        bits: of a code: 2, 3, 4, 6 or 8.
        table: bytes of the levels, by index (``byte_levels``); empty for 8 bits, and for 2 and 4 if codes are their
            levels (``level_words``), of 4 bits sixteen times as large.
        halfway: whether a level is its byte and a half, in units, or just its byte.
        scales: of a token: one, or one for each group of so many channels, which are 32 or a multiple.
        tokens: that share a scale for each channel instead, 32 or a multiple; 0 if scales are of one token. Only keys.
        step: the bytes that a step of a level is, if levels are counted from a minimum that is stored beside each
            scale; 0 if there are none.
        zero: the step whose byte is 0, likewise.
    """

    bits: int
    table: tuple[int, ...]
    halfway: bool = True
    scales: int = 1
    tokens: int = 0
    step: int = 0
    zero: int = 0

    @property
    def unit_words(self) -> int:
        """Whole words of a unit of 16 codes; 3 bits have half a word besides."""
        return {2: 1, 3: 1, 4: 2, 6: 3, 8: 4}[self.bits]

    @property
    def registers(self) -> int:
        """That a unit is loaded into."""
        return self.unit_words + (self.bits == 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileShape(abc.ABC):
    """What programs over tiles of codes are made for, whatever the codes.

    Attributes:
        dim: of a head.
        group: query heads of a key/value head, at most 8.
        splits: programs that share a head.
        states: of a head; those of other tokens follow.
        warps: of a program.
        late: of the programs that share a head, the last ones, which begin where others are done (``program_counts``).
        weights: how the share of a warp of the others is to that of a late one.
        residents: programs that run on a multiprocessor.
    """

    dim: int
    group: int
    splits: int
    states: int
    warps: int
    late: int = 0
    weights: tuple[int, int] = (1, 1)
    residents: int = 3

    @property
    @abc.abstractmethod
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""

    @property
    def blocks(self) -> int:
        """Blocks of eight columns that a head's queries take, two each: so many queries does a lane have."""
        return math.ceil(self.group / FOUR)

    @property
    def rows(self) -> int:
        """Queries that a state has room for."""
        return FOUR * self.blocks

    @property
    def shifts(self) -> int:
        """See ``CodedShape``."""
        return 1

    @property
    def stages(self) -> int:
        """Tiles that a warp has room for: two at least."""
        return max(2, min(4, self.most_nbytes // self.stage_nbytes))

    @property
    def most_nbytes(self) -> int:
        """Shared memory that a warp may have, for as many programs as run ``residents``."""
        return SHARED_NBYTES // (4 * self.residents)

    @property
    def warp_nbytes(self) -> int:
        """Shared memory of a warp."""
        return self.stages * self.stage_nbytes

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: that of its warps, later their states; so much that no more than ``residents``
        find room, among which work is divided."""
        used = self.warps * max(self.warp_nbytes // 4, self.rows * (self.dim + 2))
        return max(used, (SHARED_NBYTES // (self.residents + 1) + 16) // 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedShape(TileShape):
    """What ``coded_program`` is made for; ``dim`` is 64 or 128.

    Attributes:
        key: codes of keys, packed along channels.
        value: codes of values, packed along tokens (``token_tiles``).
        capacity: tokens that a head has room for.
        queries: how queries come.
    """

    key: Codes
    value: Codes
    capacity: int
    queries: QueryForm = dataclasses.field(default_factory=QueryForm)

    @property
    def codes(self) -> tuple[Codes, ...]:
        """Both, once if they are equal."""
        return tuple(dict.fromkeys((self.key, self.value)))

    @property
    def key_dim(self) -> int:
        """Codes of a key."""
        return self.dim

    @property
    def units(self) -> int:
        """Units of a key that one lane has: a quarter of its codes."""
        return self.key_dim // 64

    @property
    def key_words(self) -> int:
        """Whole words of a key that one lane has."""
        return self.units * self.key.unit_words

    @property
    def key_row(self) -> int:
        """Bytes of a key."""
        return self.key_dim * self.key.bits // 8

    @property
    def value_row(self) -> int:
        """Bytes of a channel of a tile of values."""
        return TILE * self.value.bits // 8

    @property
    def stage_values(self) -> int:
        """Where in a stage the values are; keys come first."""
        return TILE * self.key_row

    @property
    def stage_scales(self) -> int:
        """Where the scales of keys are."""
        return self.stage_values + self.dim * self.value_row

    @property
    def stage_value_scales(self) -> int:
        """Where those of values are."""
        return self.stage_scales + self.scale_nbytes(self.key)

    @property
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""
        return self.stage_scales if self.scales_apart else self._tile_nbytes

    @property
    def warp_nbytes(self) -> int:
        """See ``TileShape``."""
        return super().warp_nbytes + (self._tile_nbytes - self.stage_scales if self.scales_apart else 0)

    @property
    def scales_apart(self) -> bool:
        """Whether there is room for the scales of one tile only, behind the stages: so that twelve warps have room."""
        most = self.most_nbytes
        return 2 * self._tile_nbytes > most >= self.stage_scales + self._tile_nbytes

    @property
    def _tile_nbytes(self) -> int:
        return self.stage_value_scales + self.scale_nbytes(self.value)

    def scale_nbytes(self, codes: Codes) -> int:
        """Of the scales of a tile, and of their minima."""
        nbytes = 2 * (TILE // GROUP) * self.dim if codes.tokens else 2 * TILE * codes.scales
        return nbytes * (2 if codes.step else 1)

    @property
    def shifts(self) -> int:
        """Groups of channels that have sums of what values have beside their bytes."""
        return self.value.scales if self.value.step else 1
