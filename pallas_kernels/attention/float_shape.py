"""Sizes of ``float_program``: keys and values that are numbers of floating point, of one byte or two."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import TileShape
from kakeya_jax.pallas_kernels.attention.query_form import QueryForm

CHUNK = 16
"""Bytes that are copied at once."""

PART = 4 * CHUNK
"""Bytes of a key that the four lanes of a row load at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatCodes:
    """How the vectors of a stream are stored: one behind the other, channel after channel.

    Attributes:
        nbytes: of a number: 1 for e4m3, 2 for bfloat16 or float16.
        scaled: whether each vector has a float16 scale.
        half: whether numbers of two bytes are float16.
    """

    nbytes: int
    scaled: bool
    half: bool = False

    @property
    def multiplied(self) -> Any:
        """What products take: e4m3 as float16, which is exact."""
        return jnp.dtype(jnp.float16 if self.half or self.nbytes == 1 else jnp.bfloat16)

    def channel_order(self, dim: int) -> list[int]:
        """Which channel is where among the sums of values.

        Two bytes that are moved together are two numbers of one byte: these are eight places apart.
        """
        if self.nbytes == 2:
            return list(range(dim))
        return [16 * block + 2 * row + half for block in range(dim // 16) for half in range(2) for row in range(8)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatShape(TileShape):
    """What ``float_program`` is made for; ``dim`` is 64 or 128.

    Attributes:
        key: how keys are stored.
        value: how values are.
        capacity: tokens that a head has room for.
        queries: how queries come.
    """

    key: FloatCodes
    value: FloatCodes
    capacity: int
    queries: QueryForm = dataclasses.field(default_factory=QueryForm)

    @property
    def shifts(self) -> int:
        """None: numbers are what they are."""
        return 0

    @property
    def tile(self) -> int:
        """Tokens that a warp handles at once: as many as let every warp have two stages, 16 to 64."""
        fits = [tokens for tokens in (32, 64) if 2 * self._nbytes_of(tokens) <= self.most_nbytes]
        return max(fits, default=16)

    @property
    def products(self) -> int:
        """Of 16 tokens, in a tile."""
        return self.tile // 16

    @property
    def key_row(self) -> int:
        """Bytes of a key."""
        return self.dim * self.key.nbytes

    @property
    def value_row(self) -> int:
        """Bytes of a value."""
        return self.dim * self.value.nbytes

    @property
    def stage_values(self) -> int:
        """Where in a stage values are; keys are at its beginning."""
        return self.tile * self.key_row

    @property
    def stage_scales(self) -> tuple[int, int]:
        """Where scales of keys and of values are."""
        first = self.stage_values + self.tile * self.value_row
        return first, first + 2 * self.tile * self.key.scaled

    @property
    def stage_nbytes(self) -> int:
        """Of one tile of one warp."""
        return self._nbytes_of(self.tile)

    def _nbytes_of(self, tokens: int) -> int:
        return tokens * (self.key_row + self.value_row + 2 * (self.key.scaled + self.value.scaled))
