"""Packed codes to signed bytes in registers, four lookups an instruction; ``code_words`` has their order."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import Codes


def decode_unit(ops: Any, unit: list[Any], codes: Codes, table: list[Any]) -> list[Any]:
    """16 codes as four registers of four signed bytes; ``table`` is ``decoder_words`` in registers."""
    if codes.bits == 8 and not codes.halfway:
        return unit
    if codes.bits == 8:
        return [ops.differing(word, ops.integer(0x80808080)) for word in unit]
    if not codes.table and codes.bits == 2:
        mask = ops.integer(0x03030303)
        return [ops.both(ops.right(unit[0], 2 * quad) if quad else unit[0], mask) for quad in range(4)]
    if not codes.table:
        mask = ops.integer(0xF0F0F0F0)
        return [ops.both(each, mask) for word in unit for each in (ops.left(word, 4), word)]
    if codes.bits == 4:
        return [
            ops.differing(ops.permute_bytes(*table, magnitude), sign) for magnitude, sign in signed_quads(ops, unit)
        ]
    if codes.bits == 6:
        return _of_four_tables(ops, unit, table)
    return [ops.permute_bytes(table[0], table[-1], each) for each in places_of(ops, unit, codes.bits)]


def places_of(ops: Any, unit: list[Any], bits: int) -> list[Any]:
    """16 codes of 2 or 3 bits in the lowest nibbles of four registers."""
    crumbs = crumbs_of(ops, unit[0])
    if bits == 2:
        return crumbs
    high, mask = unit[1], ops.integer(0x4444)
    shifted = (high, ops.right(high, 1), ops.left(high, 2), ops.left(high, 1))
    return [ops.either(ops.both(bit, mask), crumb) for bit, crumb in zip(shifted, crumbs, strict=True)]


def decoder_words(codes: Codes) -> list[int]:
    """What codes are looked up in: levels, or those below 0, nearest first, where codes have signs."""
    if not codes.table:
        return []
    signed = {4: codes.table[7::-1], 6: codes.table[31::-1]}
    return table_words(signed.get(codes.bits, codes.table))


def _of_four_tables(ops: Any, unit: list[Any], words: list[Any]) -> list[Any]:
    """Four tables of eight levels; the one that is meant is chosen byte by byte."""
    tables = [words[first : first + 2] for first in range(0, 8, 2)]
    odd, upper = (ops.integer(mask) for mask in (0xFF00FF00, 0xFFFF0000))

    def chosen(first: Any, second: Any, mask: Any) -> Any:
        return ops.differing(first, ops.both(ops.differing(first, second), mask))

    found = []
    for (place, sign), crumb in zip(signed_quads(ops, unit[:2]), crumbs_of(ops, unit[2]), strict=True):
        levels = [ops.permute_bytes(*table, place) for table in tables]
        is_odd, is_upper = (ops.permute_bytes(mask, mask, crumb) for mask in (odd, upper))
        low, high = chosen(levels[0], levels[1], is_odd), chosen(levels[2], levels[3], is_odd)
        found.append(ops.differing(chosen(low, high, is_upper), sign))
    return found


def signed_quads(ops: Any, words: list[Any]) -> list[tuple[Any, Any]]:
    """Of signs and magnitudes of four bits: magnitudes in the lowest nibbles, and bytes of ones where levels are above
    0; a quad each."""
    found = []
    for word in words:
        magnitude, shifted = ops.both(word, ops.integer(0x77777777)), ops.left(word, 4)
        for half, signs in ((magnitude, 0xD9C8), (ops.right(magnitude, 16), 0xFBEA)):
            found.append((half, ops.permute_bytes(shifted, word, ops.integer(signs))))
    return found


def crumbs_of(ops: Any, word: Any) -> list[Any]:
    """Two bits of each code in the lowest nibbles, a quad each."""
    mask = ops.integer(0x33333333)
    found = []
    for each in (ops.both(word, mask), ops.both(ops.right(word, 2), mask)):
        found += [each, ops.right(each, 16)]
    return found


def table_words(table: tuple[int, ...]) -> list[int]:
    """Bytes as words, four to each."""
    return [
        int.from_bytes(bytes(value & 0xFF for value in table[first : first + 4]), "little")
        for first in range(0, len(table), 4)
    ]
