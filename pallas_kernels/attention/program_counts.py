"""How many programs share a head: of coded tokens, and of exact ones."""

import re
from typing import NamedTuple

from kakeya_jax.pallas_kernels.attention.coded_shape import TILE
from kakeya_jax.stream import Geometry

MULTIPROCESSORS = 132
"""Of an H100 or H200."""

PROGRAMS = 3 * MULTIPROCESSORS
"""Programs that run at a time: three on each multiprocessor."""

BESIDE_EXACT = 2 * MULTIPROCESSORS
"""Programs of codes that leave each multiprocessor a place for exact tokens, which are attended to meanwhile."""

_WAVES = 3
"""Most times that a GPU is filled: more programs begin and end more often, fewer leave multiprocessors idle."""

_LATE_HEADS = 64
"""From so many heads on there are late programs: with fewer, more of them have more states to be added up,"""

_EARLY = 0.94
"""most of a head's tokens that are of early programs,"""

_LONGEST = 1.2
"""and their longest share, of what each would have if all shared all heads equally."""

_LARGEST_WEIGHT = 64
"""Of shares: those of fewer tiles are whole tiles where a cache is full; products with it stay small numbers."""

_FULL = 0.9
"""Of the places, from which on early programs fill a GPU."""

_WARPS = 4
"""Of a program."""

_SHARES = re.compile(
    r"(?P<splits>\d+)(\+(?P<late>\d+):(?P<weight>\d+):(?P<late_weight>\d+))?(x(?P<residents>\d))?(t(?P<teams>\d))?"
)

_TOKENS = 64
"""Exact tokens that one program attends to, if there is a place for it: a tile or two for each of its warps."""

_MORE_TOKENS = {1: 160, 128: 288}
"""If not, from so many heads on: programs that come last are fewer, and each begins and ends once."""


class HeadShares(NamedTuple):
    """How programs share the coded tokens of a head, and a multiprocessor.

    Attributes:
        splits: programs, all of them.
        late: those of them, the last ones, that begin where others are done.
        weights: how the share of a program is to that of a late one.
        residents: programs that run on a multiprocessor, if their registers allow.
        teams: programs that are one block of threads; 0 for as many as their registers ask for.
    """

    splits: int
    late: int = 0
    weights: tuple[int, int] = (1, 1)
    residents: int = 3
    teams: int = 0

    @property
    def places(self) -> int:
        """Programs that run at a time."""
        return self.residents * MULTIPROCESSORS


def shares_of(text: str) -> HeadShares | None:
    """Shares as scripts take them; None, the kernels' own choice, for 0.

    ``6`` is that many programs of a head; ``6+4:20:2`` is four late ones besides, of which each has 2 where the others
    have 20; ``x4`` after it is four programs on a multiprocessor, ``t4`` four in a block of threads.

    Raises:
        ValueError: it is not written like that.
    """
    if not (found := _SHARES.fullmatch(text)):
        raise ValueError(f"{text} is not like 6, 6+4:20:2 or 6+4:20:2x4t4; 0 is the kernels' own choice")
    given = {name: int(number) for name, number in found.groupdict().items() if number}
    if not given["splits"]:
        return None
    weights, late = (given.get("weight", 1), given.get("late_weight", 1)), given.get("late", 0)
    return HeadShares(given["splits"] + late, late, weights, given.get("residents", 3), given.get("teams", 0))


def choose_splits(heads: int, tokens: int, *, programs: int = PROGRAMS, preferred: int | None = None) -> int:
    """How many programs share the coded tokens of each of ``heads`` heads of at most ``tokens`` tokens, if so many
    ``programs`` run at a time.

    ``preferred`` programs in all, if heads can share just so many. Otherwise, of those that fill the GPU at most
    ``_WAVES`` times, the number that leaves least of it idle at the end, the fewest if several do. And at least two
    tiles for each of a program's four warps.
    """
    most = max(1, min(_WAVES * programs // heads, tokens // (8 * TILE)))
    if preferred is not None and preferred % heads == 0 and preferred // heads <= most:
        return preferred // heads

    def idle(splits: int) -> float:
        waves = heads * splits / programs
        return -(-heads * splits // programs) / waves

    return min(range(1, most + 1), key=lambda splits: (round(idle(splits), 1), splits))


def choose_shares(
    heads: int, tokens: int, *, programs: int = PROGRAMS, preferred: int | None = None, late: bool = False
) -> HeadShares:
    """How programs share the coded tokens of each of ``heads`` heads of at most ``tokens`` tokens.

    As ``choose_splits`` says; or, if there may be ``late`` programs and so many heads that most of the time goes to
    codes: as many programs of a head as run at once for all heads, and for what those leave late ones, with a tenth or
    a sixth of their shares.
    """
    splits = choose_splits(heads, tokens, programs=programs, preferred=preferred)
    tiles, early = tokens // TILE, programs // heads
    if not late or not _LATE_HEADS <= heads <= programs or (preferred and heads * splits == preferred):
        return HeadShares(splits)
    weight = int(min(_EARLY * tiles / (_WARPS * early), _LONGEST * heads * tiles / (_WARPS * programs)))
    late_weight = round(weight / (10 if heads * early > _FULL * programs else 6))
    left = tiles - _WARPS * early * weight
    if late_weight < 1 or left < _WARPS * late_weight:
        return HeadShares(splits)
    count = round(left / (_WARPS * late_weight))
    if weight > _LARGEST_WEIGHT:
        weight, late_weight = _LARGEST_WEIGHT, max(1, round(_LARGEST_WEIGHT * late_weight / weight))
    return HeadShares(early + count, count, (weight, late_weight))


def exact_programs(geometry: Geometry, heads: int, splits: int, *, programs: int = PROGRAMS) -> int:
    """How many programs share the exact tokens of each head, beside ``splits`` of coded ones: as many as find a place
    at once, if each head finds one; otherwise few."""
    held, places = geometry.sink_capacity + geometry.tail_capacity, (programs - heads * splits) // heads
    if places > 0:
        return min(-(-held // _TOKENS), places)
    return -(-held // next(tokens for least, tokens in reversed(_MORE_TOKENS.items()) if heads >= least))
