"""The Walsh-Hadamard transform of numbers in registers, and signs before and after it.

A rotation ``R`` of kind ``hadamard`` (``rotation.py``) is ``diag(s2) H diag(s1) / sqrt(D)``. Its first row and column
tell all of it: ``R[e, c] = sign(R[e, 0]) H[e, c] sign(R[0, c]) R[0, 0]``. Programs read no more of the matrix than
those, so that codecs need not keep signs beside it: arrays of every cache and of its file.
"""

from typing import Any

_SIGN = 0x80000000


def with_signs(ops: Any, values: list[Any], entries: list[Any]) -> list[Any]:
    """Floats times the signs of others."""
    sign = ops.integer(_SIGN)
    return [
        ops.as_real(ops.differing(ops.as_integer(value), ops.both(ops.as_integer(entry), sign)))
        for value, entry in zip(values, entries, strict=True)
    ]


def butterflies(ops: Any, values: list[Any]) -> list[Any]:
    """The transform along the first axis of nested lists of registers."""
    found, distance = list(values), 1
    while distance < len(found):
        for first in range(len(found)):
            if not first & distance:
                one, other = found[first], found[first + distance]
                found[first], found[first + distance] = _each(ops.plus, one, other), _each(ops.minus, one, other)
        distance *= 2
    return found


def one_output(ops: Any, values: list[Any], index: Any, outputs: int) -> list[Any]:
    """As ``butterflies``, but only the ``index``-th of runs of ``outputs``: half as many registers after each stage."""
    while len(values) > outputs:
        half = len(values) // 2
        sign = _sign_of_bit(ops, index, half // outputs)
        values = [
            _each(lambda near, far, sign=sign: ops.fused(far, sign, near), *pair)
            for pair in zip(values[:half], values[half:], strict=True)
        ]
    return butterflies(ops, values)


def across_lanes(ops: Any, values: list[Any], lane: Any, count: int) -> list[Any]:
    """Of registers, the transform of those of ``count`` neighbouring lanes."""
    distance = 1
    while distance < count:
        sign = _sign_of_bit(ops, lane, distance)
        values = [ops.fused(value, sign, ops.exchange(value, distance)) for value in values]
        distance *= 2
    return values


def _sign_of_bit(ops: Any, number: Any, bit: int) -> Any:
    """-1 if a bit is set in a number, else 1."""
    clear = ops.equal(ops.both(number, ops.integer(bit)), 0)
    return ops.select(clear, ops.real(1.0), ops.real(-1.0))


def _each(combine: Any, one: Any, other: Any) -> Any:
    if isinstance(one, list):
        return [_each(combine, *pair) for pair in zip(one, other, strict=True)]
    return combine(one, other)
