"""Sizes of ``kakeya_program``, and where in its shared memory everything is."""

import dataclasses

from kakeya_jax.pallas_kernels.attention.coded_shape import PRODUCTS, TILE, CodedShape

DIM = 128
"""Of a head."""

CENTERS = 16
"""Of a block, if it has any: the depth of a product."""

STEPS = DIM // 16
"""In which a tile's keys are made: eight channels and their partners in the rotary embedding at a time."""

CENTER_FACTOR = 32.0
"""Of centres in shared memory, lest their coefficients become too large for float16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KakeyaShape(CodedShape):
    """What ``kakeya_program`` is made for; ``dim`` is 128.

    Attributes:
        length: codes of a key, which is its rank: 64 or 128.
        block: tokens that share a skeleton, a multiple of 64.
        centers: whether blocks have centres.
        level_unit: of the keys' levels.
        mixed: heads whose keys are in a block, token after token; 1 if each has blocks of its own.
    """

    length: int
    block: int
    centers: bool
    level_unit: float
    mixed: int

    @property
    def key_dim(self) -> int:
        """Codes of a key."""
        return self.length

    @property
    def key_steps(self) -> int:
        """Products of depth 16 that codes take: a lane has a quad for each."""
        return self.length // 16

    @property
    def together(self) -> int:
        """Products of 16 tokens whose codes are in registers at a time."""
        return PRODUCTS * 64 // self.length

    @property
    def unrolled(self) -> int:
        """Steps in one turn of a loop, so that products of one go on while the results of another are turned."""
        return PRODUCTS // self.together

    @property
    def tiles(self) -> int:
        """Of a block."""
        return self.block // TILE

    @property
    def step_nbytes(self) -> int:
        """Of the basis, for eight channels."""
        return 2 * DIM * self.key_steps

    @property
    def centers_at(self) -> int:
        """Where centres are, behind the basis."""
        return 2 * STEPS * self.step_nbytes

    @property
    def mean_at(self) -> int:
        """Where the mean is: for each step and column of lanes four channels."""
        return self.centers_at + 2 * STEPS * 256

    @property
    def angles_at(self) -> int:
        """Where cosines and sines of a tile's tokens are (``kakeya_turns.token_angles``)."""
        return self.mean_at + 2 * DIM

    @property
    def queries_at(self) -> int:
        """Where warps have their queries, turned to where a tile begins: 2 KB each."""
        return self.angles_at + 4 * TILE * DIM // 2

    @property
    def tiles_at(self) -> int:
        """Where warps have their tiles."""
        return self.queries_at + self.warps * STEPS * 256

    @property
    def scales_apart(self) -> bool:
        """Never: a tile's room holds all of it."""
        return False

    @property
    def stage_norm(self) -> int:
        """Where in a tile's room norms are."""
        return super().stage_nbytes

    @property
    def stage_projection(self) -> int:
        """Where coefficients of centres are."""
        return self.stage_norm + (4 * TILE if self.mixed > 1 else 2 * TILE)

    @property
    def stage_segment(self) -> int:
        """Where the numbers of centres are."""
        return self.stage_projection + (4 * TILE if self.mixed > 1 else 2 * TILE)

    @property
    def stage_turn(self) -> int:
        """Where the cosines and sines of the tile's first position are."""
        return self.stage_segment + (4 * TILE if self.mixed > 1 else TILE // 2)

    @property
    def stage_nbytes(self) -> int:
        """Of the one tile that a warp has room for."""
        return self.stage_turn + 4 * DIM

    @property
    def stages(self) -> int:
        """The next tile's keys and values take the place of those that are in registers."""
        return 1

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program; later its warps' states."""
        return max((self.tiles_at + self.warps * self.stage_nbytes) // 4, self.warps * self.rows * (self.dim + 2))
