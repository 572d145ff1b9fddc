"""Queries into the coordinates of the keys' codes, and into the bytes that ``coded_program`` multiplies with."""

import dataclasses
import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.exact_values import load_exact, pack_pair, store_exact, unpacked

_SMALLEST = 1e-37
_LARGEST = LARGEST * (1 - 2.0**-20)
"""What a query's largest entry becomes, approximately: the reciprocal of it may be a little too large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryShape:
    """What a program is made for.

    Attributes:
        dim: of a head, 64 or 128; twice as many threads work.
        group: queries of a key/value head, at most 8.
        dtype: of the queries.
        scale: factor of numbers that makes them logits to the base 2.
        parts: float16 or bfloat16 if numbers are sums of two of those, relative to the largest; None if they are two
            bytes.
    """

    dim: int
    group: int
    dtype: Any
    scale: float
    parts: Any = None

    @property
    def rows(self) -> int:
        """Queries that a head has room for; see ``CodedShape``."""
        return COLUMNS // 2 if self.group <= COLUMNS // 2 else COLUMNS

    @property
    def warps(self) -> int:
        """Of a program."""
        return self.dim // 16

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: queries, and what its warps found."""
        return self.rows * self.dim + 2 * self.warps * self.rows


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
    """Rotates and rounds the queries of one head; two threads side by side have one channel of all of them.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        query_ref: ``[N, group, D]``.
        rotation_ref: float32 ``[D, D]``, applied to column vectors.
        number_ref: see ``ByteQueries``, as (``shape.parts`` if that is given)
        start_ref: are these (not written then)
        factor_ref: three.
        counter_ref: int32 ``[N]``, set to 0: programs of each head that are done.
        shared_ref: ``shape.shared_floats`` floats.
    """
    head, thread = ops.program_index(), ops.thread_index()
    warp, lane = ops.divide(thread, 32), ops.modulo(thread, 32)
    channel, half = ops.divide(thread, 2), ops.modulo(thread, 2)
    rows, dim, threads = shape.rows, shape.dim, 32 * shape.warps
    itemsize = shape.dtype.itemsize
    shared = ops.shared_address(shared_ref)

    # A thread's part of its channel's row, four numbers here and four there so that neighbours read side by side.
    row = ops.offset(ops.offset(ops.address(rotation_ref), channel, 4 * dim), ops.times(half, 16))
    weights = [ops.load_reals(row, 4, 32 * part) for part in range(dim // 8)]
    source = ops.offset(ops.address(query_ref), head, shape.group * dim * itemsize)
    used, all_pairs = shape.group * dim // 2, rows * dim // 2
    for first in range(0, all_pairs, threads):
        index = ops.add(thread, ops.integer(first))
        where = ops.shared_offset(shared, ops.times(index, 8))
        inside = ops.less(index, ops.integer(used))
        place = ops.smaller(index, ops.integer(used - 1))
        values = load_exact(ops, ops.offset(source, ops.times(place, 2 * itemsize)), 2, shape.dtype)
        values = [ops.select(inside, value, ops.real(0.0)) for value in values]
        fits = ops.less(index, ops.integer(all_pairs))
        ops.only_if(fits, lambda where=where, values=values: ops.shared_store(where, values))
    ops.barrier()
    rotated = [ops.real(0.0)] * rows
    mine = ops.shared_offset(shared, ops.times(half, 16))
    for part, four in enumerate(weights):
        for n in range(rows):
            for weight, value in zip(four, ops.shared_load(mine, 4, 4 * n * dim + 32 * part), strict=True):
                rotated[n] = ops.fused(weight, value, rotated[n])
    rotated = [ops.plus(each, ops.exchange(each, 1)) for each in rotated]

    found = ops.shared_offset(shared, ops.times(warp, 8 * rows))
    at = 4 * rows * dim
    first_lane = ops.less(lane, ops.integer(1))
    largest = [_over_channels(ops, ops.magnitude(each), ops.maximum) for each in rotated]
    ops.only_if(first_lane, lambda: _put(ops, found, largest, at))
    ops.barrier()
    largest = [_of_warps(ops, shape, shared, at + 4 * n, ops.maximum) for n in range(rows)]
    largest = [ops.maximum(each, ops.real(_SMALLEST)) for each in largest]
    fractions = [
        ops.scaled(each, ops.scaled(ops.reciprocal(top), ops.real(_LARGEST if shape.parts is None else 1.0)))
        for each, top in zip(rotated, largest, strict=True)
    ]
    size = 1 if shape.parts is None else 2
    target = ops.offset(ops.address(number_ref), head, 2 * rows * dim * size)
    target = ops.offset(target, ops.times(channel, size))
    # One of a channel's threads writes high parts, the other low ones.
    target = ops.offset(target, ops.times(half, rows * dim * size))
    low = ops.less(ops.integer(0), half)
    if shape.parts is not None:
        for n, value in enumerate(fractions):
            high = unpacked(ops, pack_pair(ops, [value, value], shape.parts), shape.parts)[0]
            store_exact(ops, target, ops.select(low, ops.minus(value, high), high), shape.parts, n * dim * size)
    else:
        numbers = [ops.nearest(each) for each in fractions]
        sums = [_over_channels(ops, ops.converted(each), ops.plus) for each in numbers]  # below 2^24: exact
        ops.only_if(first_lane, lambda: _put(ops, found, sums, at + 4 * rows))
        for n, number in enumerate(numbers):
            high = ops.right_signed(ops.add(number, ops.integer(128)), 8)
            ops.store_byte(target, ops.select(low, number, high), n * dim)
    ops.barrier()

    def write_rest() -> None:
        """Thread ``n`` has query ``n``."""
        mine = ops.shared_offset(shared, ops.times(thread, 4))
        if shape.parts is None:
            total = ops.nearest(_of_warps(ops, shape, mine, at + 4 * rows, ops.plus))
            total = ops.right_signed(total, 1)
            high = ops.right_signed(ops.add(total, ops.integer(128)), 8)
            where = ops.offset(ops.address(start_ref), ops.add(ops.times(head, 8 * rows), ops.times(thread, 4)))
            ops.store_words(where, [high])
            ops.store_words(where, [ops.subtract(total, ops.left(high, 8))], 4 * rows)
        top = ops.maximum(_of_warps(ops, shape, mine, at, ops.maximum), ops.real(_SMALLEST))
        where = ops.offset(ops.address(factor_ref), ops.add(ops.times(head, 4 * COLUMNS), ops.times(thread, 4)))
        ops.store_reals(where, [ops.scaled(top, ops.real(shape.scale / (_LARGEST if shape.parts is None else 1.0)))])

    ops.only_if(ops.less(thread, ops.integer(rows)), write_rest)
    counter = ops.offset(ops.address(counter_ref), ops.times(head, 4))
    ops.only_if(ops.less(thread, ops.integer(1)), lambda: ops.store_words(counter, [ops.integer(0)]))


def _put(ops: Any, where: Any, values: list[Any], at: int) -> None:
    for index, value in enumerate(values):
        ops.shared_store(where, [value], at + 4 * index)


def _over_channels(ops: Any, value: Any, combine: Any) -> Any:
    """Over a warp's channels; the two threads of a channel have the same."""
    for distance in (2, 4, 8, 16):
        value = combine(value, ops.exchange(value, distance))
    return value


def _of_warps(ops: Any, shape: QueryShape, where: Any, at: int, combine: Any) -> Any:
    """What the warps of the program left ``at`` bytes from ``where``, put together."""
    parts = [ops.shared_load(where, 1, at + 8 * shape.rows * warp)[0] for warp in range(shape.warps)]
    return functools.reduce(combine, parts)
