"""Queries into the coordinates of the keys' codes, and into the bytes that ``coded_program`` multiplies with."""

import dataclasses
import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_program import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.exact_values import load_exact

_SMALLEST = 1e-37
_BATCH = 64
"""Channels of a row of the rotation that are under way at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryShape:
    """What a program is made for.

    Attributes:
        dim: of a head, 64 or 128: so many threads work.
        group: queries of a key/value head, at most 8.
        dtype: of the queries.
        scale: factor of numbers that makes them logits to the base 2.
    """

    dim: int
    group: int
    dtype: Any
    scale: float

    @property
    def paired(self) -> bool:
        """See ``CodedShape``."""
        return self.group <= COLUMNS // 2

    @property
    def rows(self) -> int:
        """See ``CodedShape``."""
        return COLUMNS // 2 if self.paired else COLUMNS

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: queries, and what its four warps found."""
        return self.rows * self.dim + 4 * self.rows * 2


def query_program(
    ops: Any,
    shape: QueryShape,
    query_ref: Any,
    rotation_ref: Any,
    number_ref: Any,
    start_ref: Any,
    factor_ref: Any,
    counter_ref: Any,
    shared_ref: Any,
) -> None:
    """Rotates and rounds the queries of one head; thread ``e`` has channel ``e`` of all of them. Four warps.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        query_ref: ``[N, group, D]``.
        rotation_ref: float32 ``[D, D]``, applied to column vectors.
        number_ref: see ``ByteQueries``, as
        start_ref: are these
        factor_ref: three.
        counter_ref: int32 ``[N]``, set to 0: programs of each head that are done.
        shared_ref: ``shape.shared_floats`` floats.
    """
    head, thread = ops.program_index(), ops.thread_index()
    warp, lane = ops.divide(thread, 32), ops.modulo(thread, 32)
    rows, dim = shape.rows, shape.dim
    itemsize = shape.dtype.itemsize
    shared = ops.shared_address(shared_ref)
    source = ops.offset(ops.address(query_ref), head, shape.group * dim * itemsize)
    pairs = shape.group * dim // 2
    for first in range(0, rows * dim // 2, 128):
        index = ops.add(thread, ops.integer(first))
        where = ops.shared_offset(shared, ops.times(index, 8))

        def put(index: Any = index, where: Any = where) -> None:
            values = load_exact(ops, ops.offset(source, ops.times(index, 2 * itemsize)), 2, shape.dtype)
            ops.shared_store(where, values)

        ops.only_if(ops.less(index, ops.integer(pairs)), put)
        if first + 128 > pairs:  # rows beyond the group
            beyond = ops.less(ops.integer(max(pairs, first) - 1), index)
            within = ops.less(index, ops.integer(rows * dim // 2))
            zero = ops.real(0.0)
            ops.only_if(
                beyond, lambda where=where, within=within: ops.only_if(within, lambda: ops.shared_store(where, [zero] * 2))
            )
    ops.barrier()
    works = ops.less(thread, ops.integer(dim))
    channel = ops.smaller(thread, ops.integer(dim - 1))
    row = ops.offset(ops.address(rotation_ref), channel, 4 * dim)
    rotated = [ops.real(0.0)] * rows
    for batch in range(0, dim, _BATCH):
        weights = [ops.load_reals(row, 4, 4 * (batch + part)) for part in range(0, _BATCH, 4)]
        for part, four in enumerate(weights):
            for n in range(rows):
                values = ops.shared_load(shared, 4, 4 * (n * dim + batch + 4 * part))
                for weight, value in zip(four, values, strict=True):
                    rotated[n] = ops.fused(weight, value, rotated[n])
    zero = ops.real(0.0)
    rotated = [ops.select(works, each, zero) for each in rotated]
    found = ops.shared_offset(shared, ops.times(warp, 8 * rows))
    at = 4 * rows * dim
    largest = [_over_lanes(ops, ops.magnitude(each), ops.maximum) for each in rotated]
    first_lane = ops.less(lane, ops.integer(1))
    ops.only_if(first_lane, lambda: _put(ops, found, largest, at))
    ops.barrier()
    largest = [
        functools.reduce(ops.maximum, (ops.shared_load(shared, 1, at + 4 * (w * 2 * rows + n))[0] for w in range(4)))
        for n in range(rows)
    ]
    largest = [ops.maximum(each, ops.real(_SMALLEST)) for each in largest]
    numbers = [
        ops.nearest(ops.scaled(each, ops.scaled(ops.reciprocal(top), ops.real(LARGEST * (1 - 2.0**-20)))))
        for each, top in zip(rotated, largest, strict=True)
    ]
    sums = [_over_lanes(ops, ops.converted(each), ops.plus) for each in numbers]  # below 2^24: exact
    ops.only_if(first_lane, lambda: _put(ops, found, sums, at + 4 * rows))
    ops.barrier()
    target = ops.offset(ops.offset(ops.address(number_ref), head, 2 * rows * dim), channel)

    def write_numbers() -> None:
        for n, number in enumerate(numbers):
            high = ops.right_signed(ops.add(number, ops.integer(128)), 8)
            ops.store_byte(target, high, n * dim)
            ops.store_byte(target, number, (n + rows) * dim)

    ops.only_if(works, write_numbers)

    def write_rest() -> None:
        """Thread ``n`` has query ``n``."""
        mine = ops.shared_offset(shared, ops.times(thread, 4))
        parts = [ops.shared_load(mine, 1, at + 4 * (w * 2 * rows + rows))[0] for w in range(4)]
        half = ops.right_signed(ops.nearest(functools.reduce(ops.plus, parts)), 1)
        high = ops.right_signed(ops.add(half, ops.integer(128)), 8)
        where = ops.offset(ops.address(start_ref), ops.add(ops.times(head, 8 * rows), ops.times(thread, 4)))
        ops.store_words(where, [high])
        ops.store_words(where, [ops.subtract(half, ops.left(high, 8))], 4 * rows)
        tops = [ops.shared_load(mine, 1, at + 4 * w * 2 * rows)[0] for w in range(4)]
        top = ops.maximum(functools.reduce(ops.maximum, tops), ops.real(_SMALLEST))
        factor = ops.scaled(top, ops.real(shape.scale / (LARGEST * (1 - 2.0**-20))))
        where = ops.offset(ops.address(factor_ref), ops.add(ops.times(head, 4 * COLUMNS), ops.times(thread, 4)))
        ops.store_reals(where, [factor])

    ops.only_if(ops.less(thread, ops.integer(rows)), write_rest)
    counter = ops.offset(ops.address(counter_ref), ops.times(head, 4))
    ops.only_if(ops.less(thread, ops.integer(1)), lambda: ops.store_words(counter, [ops.integer(0)]))


def _put(ops: Any, where: Any, values: list[Any], at: int) -> None:
    for index, value in enumerate(values):
        ops.shared_store(where, [value], at + 4 * index)


def _over_lanes(ops: Any, value: Any, combine: Any) -> Any:
    for distance in (1, 2, 4, 8, 16):
        value = combine(value, ops.exchange(value, distance))
    return value
