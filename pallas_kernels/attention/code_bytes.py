"""Packed codes to signed bytes in registers, four lookups an instruction; ``code_words`` has their order."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import Codes


def decode_unit(ops: Any, unit: list[Any], codes: Codes) -> list[Any]:
    """16 codes as four registers of four signed bytes."""
    if codes.bits == 8 and not codes.halfway:
        return unit
    if codes.bits == 8:
        return [ops.differing(word, ops.integer(0x80808080)) for word in unit]
    if codes.bits == 4:
        table = [ops.integer(word) for word in table_words(codes.table[7::-1])]
        found = []
        for word in unit:
            magnitude, shifted = ops.both(word, ops.integer(0x77777777)), ops.left(word, 4)
            for half, signs in ((magnitude, 0xD9C8), (ops.right(magnitude, 16), 0xFBEA)):
                level = ops.permute_bytes(*table, half)
                found.append(ops.differing(level, ops.permute_bytes(shifted, word, ops.integer(signs))))
        return found
    mask = ops.integer(0x33333333)
    crumbs = []
    for each in (ops.both(unit[0], mask), ops.both(ops.right(unit[0], 2), mask)):
        crumbs += [each, ops.right(each, 16)]
    if codes.bits == 3:
        high, mask = unit[1], ops.integer(0x4444)
        shifted = (high, ops.right(high, 1), ops.left(high, 2), ops.left(high, 1))
        crumbs = [ops.either(ops.both(bit, mask), crumb) for bit, crumb in zip(shifted, crumbs, strict=True)]
    table = [ops.integer(word) for word in table_words(codes.table)]
    return [ops.permute_bytes(table[0], table[-1], each) for each in crumbs]


def table_words(table: tuple[int, ...]) -> list[int]:
    """Bytes as words, four to each."""
    return [
        int.from_bytes(bytes(value & 0xFF for value in table[first : first + 4]), "little")
        for first in range(0, len(table), 4)
    ]
