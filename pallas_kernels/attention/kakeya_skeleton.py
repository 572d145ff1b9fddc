"""A block's basis, centres and mean as ``kakeya_program`` multiplies with them, in shared memory.

Codes are coordinates after random signs and a Hadamard matrix ``H``, the basis is stored before them. So a block's
basis ``U`` becomes ``H (s * U)`` here, once for all of its tokens, and no token is turned back. ``H`` is a product of
matrices, one for each bit of an index: four bits (the highest two and the lowest two) are a product on tensor cores,
those between are additions of its results, because then every lane is left with what it will multiply its own codes
with: it keeps a quad of codes for each product of keys.
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention.kakeya_shape import CENTER_FACTOR, DIM, KakeyaShape
from kakeya_jax.pallas_kernels.attention.walsh_hadamard import butterflies
from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

_ONES = 0x3C003C00
"""Twice one."""

_LINE = 128
"""Bytes that are read together."""


class Skeletons:
    """Of one head; each of four warps has 32 channels, of all tokens."""

    def __init__(self, ops: Any, shape: KakeyaShape, lane: Lane, sign_ref: Any, refs: tuple[Any, Any, Any]) -> None:
        self.ops, self.shape, self.lane = ops, shape, lane
        self.basis, self.center, self.mean = map(ops.address, refs)
        self.start = ops.offset(self.basis, ops.times(lane.thread, _LINE))
        quarter, row = shape.length // 4, lane.row
        # Index of a depth's component among four bits: the highest two and the lowest two; those between are its step.
        first = ops.add(ops.times(ops.divide(row, 4), quarter), ops.modulo(row, 4))
        place = ops.add(ops.times(first, 2 * DIM), ops.add(ops.times(lane.warp, 64), ops.times(lane.column, 16)))
        self.basis = ops.offset(self.basis, place)
        pair = ops.add(ops.times(ops.divide(lane.column, 2), quarter), ops.times(ops.modulo(lane.column, 2), 2))
        self.signs = ops.offset(ops.address(sign_ref), ops.times(pair, 2))
        self.center = ops.offset(self.center, ops.times(ops.add(ops.times(row, shape.length), pair), 2))
        self.hadamard = [[self._hadamard(column, depth) for depth in range(2)] for column in range(2)]

    def _hadamard(self, column: int, depth: int) -> Any:
        """A lane's word of the Hadamard matrix of 16: depths ``2 t`` and the next, 8 further for ``depth``; its column,
        by rows of lanes: ``4 (g / 2) + 2 column + g % 2``."""
        ops, lane = self.ops, self.lane
        index = ops.add(ops.times(ops.divide(lane.row, 2), 4), ops.modulo(lane.row, 2))
        index = ops.add(index, ops.integer(2 * column))
        at = ops.add(ops.times(lane.column, 2), ops.integer(8 * depth))

        def odd(value: Any) -> Any:
            """Whether a number below 16 has an odd number of ones, as its bit."""
            return ops.both(ops.shifted_right(ops.integer(0x6996), value), ops.integer(1))

        low = odd(ops.both(index, at))
        high = odd(ops.both(index, ops.add(at, ops.integer(1))))
        signs = ops.either(ops.left(low, 15), ops.left(high, 31))
        return ops.differing(ops.integer(_ONES), signs)

    def prefetch(self, block: Any) -> None:
        """Has a block's basis read into the second-level cache."""
        ops, shape = self.ops, self.shape
        where = ops.offset(self.start, block, 2 * DIM * shape.length)
        for first in range(0, 2 * DIM * shape.length, 32 * _LINE * shape.warps):
            ops.prefetch(where, first)

    def load(self, block: Any, shared: Any) -> None:
        """Puts the ``block``-th of all heads' blocks into shared memory."""
        ops, shape, lane = self.ops, self.shape, self.lane
        steps, quarter = shape.key_steps, shape.length // 4
        basis = ops.offset(self.basis, block, 2 * DIM * shape.length)
        center = ops.offset(self.center, block, 2 * 16 * shape.length)
        self._load_mean(block, shared)
        zero = [ops.real(0.0)] * 4
        sums, center_sums = [], [[zero] * 2 for _ in range(2)]
        for step in range(steps):
            near, far = (ops.load_words(basis, 4, 2 * DIM * (4 * step + 2 * quarter * half)) for half in range(2))
            words = [[ops.transpose(word) for word in four] for four in (near, far)]
            rows = [[*words[0][2 * m : 2 * m + 2], *words[1][2 * m : 2 * m + 2]] for m in range(2)]
            signs = [
                ops.load_words(self.signs, 1, 2 * (4 * step + 2 * quarter * depth), once=False)[0] for depth in range(2)
            ]
            columns = [
                [ops.differing(word, sign) for word, sign in zip(pair, signs, strict=True)] for pair in self.hadamard
            ]
            sums.append([[ops.multiply_halves(zero, row, column) for column in columns] for row in rows])
            if shape.centers:
                for n in range(2):
                    at = 2 * (8 * n * shape.length + 4 * step)
                    right = [ops.load_words(center, 1, at + 4 * quarter * depth)[0] for depth in range(2)]
                    for m, row in enumerate(rows):
                        center_sums[m][n] = ops.multiply_halves(center_sums[m][n], row, right)
        turned = butterflies(ops, sums)
        where = ops.shared_offset(shared, ops.times(lane.lane, 16))
        where = ops.shared_offset(where, ops.times(lane.warp, 4 * shape.step_nbytes))
        for part in range(4):
            m, row = part // 2, 2 * (part % 2)
            for first in range(0, steps, 2):
                words = [
                    ops.as_real(ops.pack_halves(*turned[step][m][column][row : row + 2]))
                    for step in (first, first + 1)
                    for column in range(2)
                ]
                ops.shared_store(where, words, part * shape.step_nbytes + 256 * first)
        if shape.centers:
            self._store_centers(center_sums, shared)

    def _store_centers(self, sums: list[list[list[Any]]], shared: Any) -> None:
        ops, lane = self.ops, self.lane
        where = ops.add(ops.times(lane.lane, 8), ops.times(lane.warp, 4 * 256))
        where = ops.shared_offset(shared, where)
        factor = ops.real(CENTER_FACTOR)
        for part in range(4):
            m, row = part // 2, 2 * (part % 2)
            words = []
            for n in range(2):
                pair = [ops.scaled(each, factor) for each in sums[m][n][row : row + 2]]
                words.append(ops.as_real(ops.pack_halves(*pair)))
            ops.shared_store(where, words, self.shape.centers_at + 256 * part)

    def _load_mean(self, block: Any, shared: Any) -> None:
        """One warp: two words for each step and column."""
        ops, thread = self.ops, self.lane.thread
        step, column = ops.divide(ops.modulo(thread, 32), 4), ops.modulo(thread, 4)
        place = ops.add(ops.times(ops.divide(step, 4), 64), ops.times(ops.modulo(step, 4), 4))
        source = ops.offset(self.mean, block, 2 * DIM)
        source = ops.offset(source, ops.add(place, ops.times(column, 16)))

        def put() -> None:
            words = [ops.as_real(ops.load_words(source, 1, DIM * half)[0]) for half in range(2)]
            ops.shared_store(ops.shared_offset(shared, ops.times(thread, 8)), words, self.shape.mean_at)

        ops.only_if(ops.less(thread, ops.integer(32)), put)
