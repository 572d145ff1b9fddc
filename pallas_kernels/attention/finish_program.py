"""Adds up the softmax states of a head: of codes, turned back from their coordinates, and of exact tokens."""

import dataclasses
import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_values import store_exact
from kakeya_jax.pallas_kernels.attention.walsh_hadamard import across_lanes, butterflies, with_signs

WARPS = 4
_SMALLEST = 1e-37
_THREADS = 32 * WARPS
_LOADS = 16
"""Of four numbers, that a thread has under way at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishShape:
    """What a program is made for.

    Attributes:
        dim: of a head, 64 or 128.
        group: queries of a key/value head.
        rows: queries that a state has room for.
        coded: states of coded tokens.
        exact: states of exact tokens, which follow.
        dtype: of the result.
        unit: of the coordinates that the map takes; None if each has its own, and there is a mean.
        maps: that heads have, one after the other; 1 if one is of all.
        hadamard: whether the map is a rotation of kind ``hadamard``: there is a unit, and only the map's first row and
            column are read.
    """

    dim: int
    group: int
    rows: int
    coded: int
    exact: int
    dtype: Any
    unit: float | None = None
    maps: int = 1
    hadamard: bool = False

    @property
    def states(self) -> int:
        """Of a head."""
        return self.coded + self.exact

    @property
    def quads(self) -> int:
        """Of neighbouring channels, of all queries."""
        return self.group * self.dim // 4

    @property
    def parts(self) -> int:
        """Of the map's rows: each part takes so many threads as there are quads of its columns. None of a transform."""
        return 0 if self.hadamard else _THREADS // (self.dim // 4)

    @property
    def weights_at(self) -> int:
        """Where in shared memory weights of states are; what warps tell each other comes first, and"""
        return 4 * 3 * WARPS * self.rows

    @property
    def coded_at(self) -> int:
        """values in the coordinates of their codes,"""
        return self.weights_at + 4 * self.states * self.rows

    @property
    def exact_at(self) -> int:
        """of exact tokens, with those of codes if a transform has turned them back,"""
        return self.coded_at + 16 * self.quads

    @property
    def turned_at(self) -> int:
        """and of codes, turned back, for each part of the map."""
        return self.exact_at + 16 * self.quads

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program."""
        return (self.turned_at + 16 * self.parts * self.quads) // 4


def finish_program(
    ops: Any,
    shape: FinishShape,
    head: Any,
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    map_ref: Any,
    mean_ref: Any,
    unit_ref: Any,
    out_ref: Any,
    shared_ref: Any,
) -> None:
    """Writes the attention of one head's queries. Four warps.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        head: which.
        top_ref: float32 ``[N, states, rows]`` to the base 2, as
        total_ref: is this, and
        weighted_ref: ``[N, states, rows, D]``.
        map_ref: float32 ``[maps, D, D]``: values are its transpose times what is coded,
        mean_ref: float32 ``[maps, D]``: and this besides, without ``shape.unit``,
        unit_ref: float32 ``[maps, D]``: of the coordinates that the map takes, likewise.
        out_ref: ``[N, group, D]``.
        shared_ref: ``shape.shared_floats`` floats.
    """
    thread, shared = ops.thread_index(), ops.shared_address(shared_ref)
    nbytes = 4 * shape.states * shape.rows
    tops, totals = (ops.offset(ops.address(ref), head, nbytes) for ref in (top_ref, total_ref))
    values = ops.offset(ops.address(weighted_ref), head, nbytes * shape.dim)
    of_head = ops.modulo(head, shape.maps)
    of_channels = [ops.offset(ops.address(ref), of_head, 4 * shape.dim) for ref in (unit_ref, mean_ref)]
    where = ops.offset(ops.address(map_ref), of_head, 4 * shape.dim * shape.dim)
    out = ops.offset(ops.address(out_ref), head, shape.group * shape.dim * shape.dtype.itemsize)

    back = _HadamardBack(ops, shape, thread, where) if shape.hadamard else None
    _weigh(ops, shape, thread, tops, totals, shared)
    ops.barrier()
    _add_states(ops, shape, thread, values, of_channels[0], back, shared)
    ops.barrier()
    if back is None:
        _turn_back(ops, shape, thread, where, shared)
        ops.barrier()
    _write(ops, shape, thread, of_channels[1], out, shared)


def _weigh(ops: Any, shape: FinishShape, thread: Any, tops: Any, totals: Any, shared: Any) -> None:
    """States' weights into shared memory, and of each warp the largest logit of each query and both sums of weights.

    A thread's states are all of one query.
    """
    rows, states = shape.rows, shape.states
    row, last = ops.modulo(thread, rows), (states - 1) * rows
    firsts = range(0, states * rows, _THREADS)
    where = [
        ops.times(ops.smaller(ops.add(thread, ops.integer(at)), ops.add(row, ops.integer(last))), 4) for at in firsts
    ]
    mine = ops.shared_offset(shared, ops.times(thread, 4))

    def over_query(value: Any, part: int, combine: Any) -> None:
        """Of the warp, into shared memory."""
        for distance in (4, 8, 16):
            if distance >= rows:
                value = combine(value, ops.exchange(value, distance))
        place = ops.add(ops.times(ops.divide(thread, 32), rows), row)
        place = ops.shared_offset(shared, ops.times(place, 4))
        first = ops.less(ops.modulo(thread, 32), ops.integer(rows))
        ops.only_if(first, lambda: ops.shared_store(place, [value], 4 * part * WARPS * rows))

    found = [ops.load_fresh(ops.offset(tops, at), 1)[0] for at in where]
    sums = [ops.load_fresh(ops.offset(totals, at), 1)[0] for at in where]
    over_query(functools.reduce(ops.maximum, found), 0, ops.maximum)
    ops.barrier()
    top = functools.reduce(ops.maximum, _of_warps(ops, shape, row, 0, shared))
    coded, total = ops.real(0.0), ops.real(0.0)
    for first, logit, each in zip(firsts, found, sums, strict=True):
        index = ops.add(thread, ops.integer(first))
        there = ops.less(index, ops.integer(states * rows))
        weight = ops.select(there, ops.power_of_two(ops.minus(logit, top)), ops.real(0.0))
        ops.only_if(
            there, lambda first=first, weight=weight: ops.shared_store(mine, [weight], shape.weights_at + 4 * first)
        )
        total = ops.fused(weight, each, total)
        weight = ops.select(ops.less(index, ops.integer(shape.coded * rows)), weight, ops.real(0.0))
        coded = ops.fused(weight, each, coded)
    for part, value in ((1, coded), (2, total)):
        over_query(value, part, ops.plus)


def _of_warps(ops: Any, shape: FinishShape, row: Any, part: int, shared: Any) -> list[Any]:
    """What warps told of a query: its largest logit (0), its weights of codes (1), all of them (2)."""
    where = ops.shared_offset(shared, ops.times(row, 4))
    return [ops.shared_load(where, 1, 4 * shape.rows * (WARPS * part + warp))[0] for warp in range(WARPS)]


class _HadamardBack:
    """The transpose of a rotation of kind ``hadamard``, by a transform (``walsh_hadamard``). Making it starts loads; so
    that the compiler leaves them there, they are those of ``load_fresh``.

    A thread has the quad of a query's channels whose number is the thread's own, modulo all of them.
    """

    def __init__(self, ops: Any, shape: FinishShape, thread: Any, where: Any) -> None:
        self.ops, self.thread, self._quads = ops, thread, shape.dim // 4
        quad = ops.times(ops.modulo(thread, self._quads), 16)
        rows = ops.offset(where, quad, shape.dim)
        self._column = [ops.load_fresh(rows, 1, 4 * shape.dim * n)[0] for n in range(4)]
        self._row = ops.load_fresh(ops.offset(where, quad), 4)
        self._unit = ops.load_fresh(where, 1)[0]

    def turned(self, four: list[Any]) -> list[Any]:
        """This thread's quad of a query, of which each of so many neighbouring threads has one."""
        ops = self.ops
        four = butterflies(ops, with_signs(ops, four, self._column))
        four = across_lanes(ops, four, self.thread, self._quads)
        return [ops.scaled(value, self._unit) for value in with_signs(ops, four, self._row)]


def _add_states(
    ops: Any, shape: FinishShape, thread: Any, values: Any, units: Any, back: _HadamardBack | None, shared: Any
) -> None:
    """States' values times their weights, into shared memory: of codes, in units of their coordinates, and the others.
    If ``back`` turns codes back, the sum of both.

    A thread has one or two quads of neighbouring channels.
    """
    rows, row_quads = shape.rows, shape.dim // 4
    quads = [ops.add(thread, ops.integer(first)) for first in range(0, shape.quads, _THREADS)]
    mine = [ops.smaller(quad, ops.integer(shape.quads - 1)) for quad in quads]
    places = [ops.times(quad, 16) for quad in mine]
    weights = [ops.shared_offset(shared, ops.times(ops.divide(quad, row_quads), 4)) for quad in mine]
    together = _LOADS // len(mine)

    def add_up(start: int, stop: int) -> list[Any]:
        """Several states at once, so that their loads overlap; beyond the last one weights are zero."""

        def add_batch(index: Any, carried: list[Any]) -> list[Any]:
            batch = []
            for part in range(together):
                state = ops.add(ops.times(index, together), ops.integer(start + part))
                inside = ops.less(state, ops.integer(stop))
                state = ops.smaller(state, ops.integer(stop - 1))
                where = ops.offset(values, state, 4 * rows * shape.dim)
                found = [value for place in places for value in ops.load_fresh(ops.offset(where, place), 4)]
                batch.append((inside, ops.times(state, 4 * rows), found))
            for inside, at, found in batch:
                for index, weight in enumerate(weights):
                    weight = ops.shared_load(ops.shared_offset(weight, at), 1, shape.weights_at)[0]
                    weight = ops.select(inside, weight, ops.real(0.0))
                    for n in range(4 * index, 4 * index + 4):
                        carried[n] = ops.fused(weight, found[n], carried[n])
            return carried

        batches = -(-(stop - start) // together)
        return ops.loop(ops.integer(0), ops.integer(batches), [ops.real(0.0)] * (4 * len(mine)), add_batch)

    coded, exact = add_up(0, shape.coded), add_up(shape.coded, shape.states)
    for index, (quad, place) in enumerate(zip(mine, places, strict=True)):
        unit = [ops.real(shape.unit or 0.0)] * 4
        if shape.unit is None:
            unit = ops.load_reals(ops.offset(units, ops.times(ops.modulo(quad, row_quads), 16)), 4)
        four = slice(4 * index, 4 * index + 4)
        where = ops.shared_offset(shared, place)
        of_codes, others = list(map(ops.scaled, coded[four], unit)), exact[four]
        if back is None:
            ops.shared_store(where, of_codes, shape.coded_at)
            ops.shared_store(where, others, shape.exact_at)
            continue
        both = list(map(ops.plus, back.turned(of_codes), others))
        there = ops.less(quads[index], ops.integer(shape.quads))
        ops.only_if(there, lambda where=where, both=both: ops.shared_store(where, both, shape.exact_at))


def _turn_back(ops: Any, shape: FinishShape, thread: Any, where: Any, shared: Any) -> None:
    """A part of the map's rows times values of codes, into shared memory; a thread has a quad of its columns."""
    row_quads, count = shape.dim // 4, shape.dim // shape.parts
    part, column = ops.divide(thread, row_quads), ops.times(ops.modulo(thread, row_quads), 16)
    where = ops.offset(ops.offset(where, part, 4 * shape.dim * count), column)
    source = ops.shared_offset(shared, ops.times(part, 4 * count))
    turned = [[ops.real(0.0)] * 4 for _ in range(shape.group)]
    for first in range(0, count, _LOADS):
        rows = range(first, min(first + _LOADS, count))
        found = [ops.load_reals(where, 4, 4 * shape.dim * row) for row in rows]
        for at in range(0, len(found), 4):
            for n in range(shape.group):
                values = ops.shared_load(source, 4, shape.coded_at + 4 * (n * shape.dim + first + at))
                for row, value in zip(found[at : at + 4], values, strict=True):
                    turned[n] = [ops.fused(each, value, old) for each, old in zip(row, turned[n], strict=True)]
    target = ops.shared_offset(shared, ops.add(ops.times(part, 16 * shape.quads), column))
    for n, four in enumerate(turned):
        ops.shared_store(target, four, shape.turned_at + 4 * n * shape.dim)


def _write(ops: Any, shape: FinishShape, thread: Any, means: Any, out: Any, shared: Any) -> None:
    """All parts added up, over the weights."""
    size = shape.dtype.itemsize
    for first in range(0, shape.group * shape.dim, _THREADS):
        index = ops.add(thread, ops.integer(first))
        query, channel = ops.divide(index, shape.dim), ops.modulo(index, shape.dim)
        at = ops.shared_offset(shared, ops.times(index, 4))

        def write(index: Any = index, query: Any = query, channel: Any = channel, at: Any = at) -> None:
            value = ops.shared_load(at, 1, shape.exact_at)[0]
            for part in range(shape.parts):
                value = ops.plus(value, ops.shared_load(at, 1, shape.turned_at + 16 * shape.quads * part)[0])
            if shape.unit is None:
                mean = ops.load_reals(ops.offset(means, ops.times(channel, 4)), 1)[0]
                value = ops.fused(mean, functools.reduce(ops.plus, _of_warps(ops, shape, query, 1, shared)), value)
            total = functools.reduce(ops.plus, _of_warps(ops, shape, query, 2, shared))
            value = ops.scaled(value, ops.reciprocal(ops.maximum(total, ops.real(_SMALLEST))))
            store_exact(ops, ops.offset(out, ops.times(index, size)), value, shape.dtype)

        ops.only_if(ops.less(index, ops.integer(shape.group * shape.dim)), write)
