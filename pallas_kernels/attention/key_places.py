"""Where the bytes of a tile of keys are in a stage: copied in runs, read by lanes, neither at the price of the other.

Copies take whole lines of memory, so a lane copies bytes that others read. What one lane reads of a token, and what
the others read of theirs at the same time, must come from different banks: tokens are a power of two of bytes apart, so
16 bytes change places with others of their line, by bits of the token's number in its tile.

Row ``r`` of half ``h`` of product ``i`` is token ``16 (r / 2) + 4 i + 2 (r % 2) + h`` (``coded_program``).
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention.warp_lane import Lane

CHUNK = 16
"""Bytes that stay together."""

_EXCHANGED = {16: ((4, 0), (5, 2)), 32: ((5, 1),), 64: ((3, 2),), 128: ((4, 0),)}
"""By the bytes of a token: bits of a chunk's number, and those that they invert."""


class KeyPlaces:
    """Places of one lane.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        lane: who this thread is.
        row: bytes of a token.
        part: bytes of it that are a column's.
    """

    def __init__(self, ops: Any, lane: Lane, row: int, part: int) -> None:
        self.ops, self.row, self._pairs = ops, row, _EXCHANGED.get(row, ())
        even = lane.lane
        for source, target in self._pairs:
            if source < 5:
                even = ops.differing(even, ops.left(ops.both(ops.right(lane.lane, source), ops.integer(1)), target))
        flipped = sum(1 << target for source, target in self._pairs if source == 5)
        odd = ops.differing(even, ops.integer(flipped)) if flipped else even
        self._targets = [ops.times(each, CHUNK) for each in (even, odd)]
        token = ops.add(ops.times(ops.divide(lane.row, 2), 16), ops.times(ops.modulo(lane.row, 2), 2))
        self.token = token
        self._start = ops.add(ops.times(token, row), ops.times(lane.column, part))
        # Bits of the row's token that invert: those of chunks' numbers, which are tokens' times a power of two.
        self._inverted = [
            ops.both(ops.right(token, source - _bits(row // CHUNK)), ops.integer(1)) for source, _ in self._pairs
        ]
        self._found: dict[tuple[int, ...], Any] = {}

    def target(self, copy: int) -> tuple[Any, int]:
        """Where the lane's chunk ``32 copy + lane`` goes: a register and a number, together."""
        return self._targets[copy % 2], 32 * CHUNK * copy

    def chunk(self, number: Any) -> Any:
        """Where a chunk of any number goes."""
        ops, found = self.ops, number
        for source, target in self._pairs:
            found = ops.differing(found, ops.left(ops.both(ops.right(number, source), ops.integer(1)), target))
        return ops.times(found, CHUNK)

    def source(self, product: int, half: int, at: int) -> tuple[Any, int]:
        """Where byte ``at`` of this lane's column is, of its token of a product and a half: likewise."""
        ops = self.ops
        token = 4 * product + half
        place = token * self.row + at
        bits = tuple(place // CHUNK >> target & 1 for _, target in self._pairs)
        if bits not in self._found:
            found = self._start
            for bit, inverted, (_, target) in zip(bits, self._inverted, self._pairs, strict=True):
                step = ops.times(inverted, CHUNK << target)
                found = ops.subtract(found, step) if bit else ops.add(found, step)
            self._found[bits] = found
        return self._found[bits], place


def _bits(number: int) -> int:
    return number.bit_length() - 1
