"""Constants that programs keep in registers.

What the compiler knows to be a constant, or equal for all lanes, it writes into a register anew for every use: a tenth
of all instructions of a tile. So programs read such words from memory, from an address that seems to differ by lane.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from kakeya_jax.pallas_kernels.attention.code_bytes import decoder_words
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC_BITS, Lane


class Held(NamedTuple):
    """Registers.

    Attributes:
        magic: ``MAGIC_BITS`` four times: what the sums of a product start from.
        tables: what codes are looked up in.
    """

    magic: list[Any]
    tables: dict[Codes, list[Any]]


@dataclasses.dataclass(frozen=True)
class HeldWords:
    """The constants of a program.

    Attributes:
        codes: that it decodes.
    """

    codes: tuple[Codes, ...]

    @functools.cached_property
    def words(self) -> np.ndarray:
        """int32, a multiple of four."""
        words = [MAGIC_BITS] * 4
        for codes in self.codes:
            words += decoder_words(codes)
        return np.array(words + [0] * (-len(words) % 4), np.uint32).view(np.int32)

    def load(self, ops: Any, lane: Lane, where: Any) -> Held:
        """From the address of ``words``; what nobody uses, the compiler leaves out."""
        where = ops.offset(where, lane_zero(ops, lane))
        tables, place = {}, 4
        for codes in self.codes:
            count = len(decoder_words(codes))
            tables[codes] = [ops.load_words(where, 1, 4 * (place + index), once=False)[0] for index in range(count)]
            place += count
        return Held(ops.load_words(where, 4, once=False), tables)


def lane_zero(ops: Any, lane: Lane) -> Any:
    """Zero, of which the compiler does not know that it is, nor that lanes have the same."""
    other = ops.as_integer(ops.exchange(ops.as_real(lane.lane), 1))
    return ops.differing(ops.differing(other, lane.lane), ops.integer(1))
