"""Tiles of values whose codes are of pairs of channels (``direction_words``), and the table of what pairs decode to."""

from typing import Any

import numpy as np

from kakeya_jax.direction_words import parts_of
from kakeya_jax.pallas_kernels.attention.besicovitch_shape import COPIES, BesicovitchShape
from kakeya_jax.pallas_kernels.attention.coded_shape import TILE
from kakeya_jax.pallas_kernels.attention.coded_tiles import StreamRefs, Tiles
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane, halves_of

_ENTRY = 6
"""Bits of a byte's place in an entry of the table: sixteen copies of four bytes."""


def pair_table(levels: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Both coordinates of every code, rounded to float16, as words: int32 ``[levels * directions]``.

    Args:
        levels: of signed magnitudes, and
        directions: ``[M, 2]``; a code is ``direction + M magnitude``.
    """
    points = (levels[:, None, None].astype(np.float64) * directions).astype("<f2")
    return np.ascontiguousarray(points).view("<i4").reshape(-1)


class BesicovitchTiles(Tiles):
    """Tiles of one head; keys as in ``Tiles``."""

    shape: BesicovitchShape

    def __init__(
        self,
        ops: Any,
        shape: BesicovitchShape,
        lane: Lane,
        head: Any,
        refs: tuple[StreamRefs, StreamRefs],
        shared_ref: Any,
        mean_ref: Any,
    ) -> None:
        super().__init__(ops, shape, lane, head, refs, shared_ref)
        self.value = ops.offset(ops.address(refs[1].codes), head, shape.capacity // TILE * shape.value_tile)
        self.mean = ops.offset(ops.address(mean_ref), head, shape.capacity // shape.page * 2 * shape.dim)

    def fill_table(self, table_ref: Any, shared: Any) -> None:
        """Copies the table to shared memory; a barrier must follow."""
        ops, shape, lane = self.ops, self.shape, self.lane
        threads = 32 * shape.warps
        for first in range(0, 1 << shape.width, threads):
            entry = ops.add(lane.thread, ops.integer(first))

            def fill(entry: Any = entry) -> None:
                where = ops.offset(ops.address(table_ref), ops.times(entry, 4))
                words = ops.load_reals(where, 1) * 4
                target = ops.shared_offset(shared, ops.times(entry, 4 * COPIES))
                for at in range(0, 4 * COPIES, 16):
                    ops.shared_store(target, words, shape.table_at + at)

            ops.only_if(ops.less(entry, ops.integer(1 << shape.width)), fill)

    def start_values(self, tile: Any, slot: Any) -> None:
        """Starts those of values, and of their page's mean."""
        ops, shape = self.ops, self.shape
        self._copy(slot, ops.offset(self.value, tile, shape.value_tile), shape.stage_values, shape.value_tile)
        if shape.means:
            page = ops.divide(tile, shape.page // TILE)
            self._copy(slot, ops.offset(self.mean, page, 2 * shape.dim), shape.stage_means, 2 * shape.dim)

    def _copy(self, slot: Any, source: Any, to: int, nbytes: int) -> None:
        """A multiple of 16 bytes, 16 for each lane at once."""
        ops = self.ops
        mine = ops.times(self.lane.lane, 16)
        source, target = ops.offset(source, mine), ops.shared_offset(slot, mine)
        for first in range(0, nbytes, 512):
            if first + 512 <= nbytes:
                ops.copy(target, source, 16, to + first, first)
                continue
            inside = ops.less(mine, ops.integer(nbytes - first))
            ops.only_if(inside, lambda first=first: ops.copy(target, source, 16, to + first, first))

    def pair_words(self, slot: Any, block: int) -> list[Any]:
        """This lane's words of 16 pairs of channels."""
        ops, shape, words = self.ops, self.shape, []
        for first, count in parts_of(shape.width):
            where = ops.shared_offset(slot, ops.times(self.lane.lane, 4 * count))
            words += ops.shared_words(where, count, shape.stage_values + 128 * (block * shape.width + first))
        return words

    def looked_up(self, table: Any, copy: Any, words: list[Any], field: int) -> Any:
        """Both coordinates of a code, packed float16: code ``field`` of a lane's words.

        ``table`` is where the program's shared memory begins, ``copy`` the bytes of the copies before this lane's.
        """
        ops, shape = self.ops, self.shape
        word, bit = divmod(field * shape.width, 32)
        shift = bit - _ENTRY
        if shift < 0:
            place = ops.left(words[word], -shift)
        elif bit + shape.width > 32:
            place = ops.right_of_two(words[word], words[word + 1], shift)
        else:
            place = ops.right(words[word], shift) if shift else words[word]
        mask = ((1 << shape.width) - 1) << _ENTRY
        entry = ops.shared_offset(table, ops.masked(place, ops.integer(mask), copy))
        return ops.shared_words(entry, 1, shape.table_at)[0]

    def means_of(self, slot: Any, block: int) -> list[list[Any]]:
        """Both coordinates of pairs ``row`` and ``row + 8`` of 16, floats."""
        ops = self.ops
        where = ops.shared_offset(slot, ops.times(self.lane.row, 4))
        at = self.shape.stage_means + 64 * block
        return [halves_of(ops, ops.shared_words(where, 1, at + 32 * far)[0]) for far in range(2)]
