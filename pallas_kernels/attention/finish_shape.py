"""Sizes of ``finish_program``."""

import dataclasses
from typing import Any, Literal

Back = Literal["map", "hadamard", "nothing"]
"""What turns values of codes back to channels: a map, a transform; or nothing, if they are of channels."""

WARPS = 4
"""Of the program,"""

THREADS = 32 * WARPS
"""and its threads."""

LOADS = 16
"""Of four numbers, that a thread has under way at once for states, or for rows of the map."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishShape:
    """What a program is made for.

    Attributes:
        dim: of a head, 64 or 128.
        group: queries of a key/value head.
        rows: queries that a state has room for.
        coded: states of coded tokens.
        exact: states of exact tokens, which follow.
        dtype: of the result.
        unit: of the coordinates that the map takes; None if each has its own, and there is a mean.
        maps: that heads have, one after the other; 1 if one is of all.
        back: what turns values back. Of a rotation of kind ``hadamard`` only the map's first row and column are read;
            of that and of nothing, which reads no map, there is a unit.
    """

    dim: int
    group: int
    rows: int
    coded: int
    exact: int
    dtype: Any
    unit: float | None = None
    maps: int = 1
    back: Back = "map"

    @property
    def states(self) -> int:
        """Of a head."""
        return self.coded + self.exact

    @property
    def quads(self) -> int:
        """Of neighbouring channels, of all queries."""
        return self.group * self.dim // 4

    @property
    def parts(self) -> int:
        """Of the map's rows: each part takes so many threads as there are quads of its columns. None of others."""
        return THREADS // (self.dim // 4) if self.back == "map" else 0

    @property
    def weights_at(self) -> int:
        """Where in shared memory weights of states are; what warps tell each other comes first, and"""
        return 4 * 3 * WARPS * self.rows

    @property
    def coded_at(self) -> int:
        """values in the coordinates of their codes,"""
        return self.weights_at + 4 * self.states * self.rows

    @property
    def exact_at(self) -> int:
        """of exact tokens, with those of codes if they need no map,"""
        return self.coded_at + 16 * self.quads

    @property
    def turned_at(self) -> int:
        """and of codes, turned back, for each part of the map."""
        return self.exact_at + 16 * self.quads

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program."""
        return (self.turned_at + 16 * self.parts * self.quads) // 4
