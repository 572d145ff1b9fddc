"""Who a thread of ``coded_program`` is, what the rows of a column have together, and bytes and halves of words."""

from typing import Any

MAGIC = 12582912.0
"""1.5 * 2^23: to it, integers below 2^22 in size are added exactly, as floats and as bits."""

MAGIC_BITS = 0x4B400000
"""The bits of ``MAGIC``."""


class Lane:
    """Who this thread is."""

    def __init__(self, ops: Any) -> None:
        self.thread = thread = ops.thread_index()
        self.warp, self.lane = ops.uniform(ops.divide(thread, 32)), ops.modulo(thread, 32)
        self.row, self.column = ops.divide(self.lane, 4), ops.modulo(self.lane, 4)


def over_rows(ops: Any, value: Any, combine: Any = None) -> Any:
    """The largest over all rows of a column, or another combination."""
    for distance in (4, 8, 16):
        value = (combine or ops.maximum)(value, ops.exchange(value, distance))
    return value


def signed_bytes(ops: Any, numbers: list[Any]) -> tuple[Any, Any]:
    """High and low bytes of four numbers ``256 high + low``, from floats: those plus ``MAGIC + 128``."""
    bits = list(map(ops.as_integer, numbers))
    pairs = [ops.permute_bytes(*bits[at : at + 2], ops.integer(0x5140)) for at in (0, 2)]
    low = ops.permute_bytes(*pairs, ops.integer(0x5410))
    return ops.permute_bytes(*pairs, ops.integer(0x7632)), ops.differing(low, ops.integer(0x80808080))


def halves_of(ops: Any, word: Any) -> list[Any]:
    """Two packed float16 as floats."""
    return [ops.half_of(word, upper=upper) for upper in (False, True)]
