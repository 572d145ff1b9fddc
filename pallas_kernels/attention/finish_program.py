"""Adds up the softmax states of a head: of codes, turned back from their coordinates, and of exact tokens."""

import functools
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_values import store_exact
from kakeya_jax.pallas_kernels.attention.finish_maps import HadamardBack, MapRows, NothingBack
from kakeya_jax.pallas_kernels.attention.finish_shape import LOADS, THREADS, WARPS, FinishShape
from kakeya_jax.pallas_kernels.attention.finish_states import HeadStates

_SMALLEST = 1e-37


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
        map_ref: float32 ``[maps, D, D]``: values are its transpose times what is coded, if ``shape.back`` is a map,
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

    rows = MapRows(ops, shape, thread, where) if shape.back == "map" else None
    ways = {"hadamard": HadamardBack, "nothing": NothingBack}
    back = ways[shape.back](ops, shape, thread, where) if shape.back in ways else None
    states = HeadStates(ops, shape, thread, values)
    _weigh(ops, shape, thread, tops, totals, shared)
    ops.barrier()
    _add_states(ops, shape, states, of_channels[0], back, shared)
    if rows is not None:
        rows.load(LOADS)
        ops.barrier()
        _turn_back(ops, shape, rows, shared)
    ops.barrier()
    _write(ops, shape, thread, of_channels[1], out, shared)


def _weigh(ops: Any, shape: FinishShape, thread: Any, tops: Any, totals: Any, shared: Any) -> None:
    """States' weights into shared memory, and of each warp the largest logit of each query and both sums of weights.

    A thread's states are all of one query.
    """
    rows, states = shape.rows, shape.states
    row, last = ops.modulo(thread, rows), (states - 1) * rows
    firsts = range(0, states * rows, THREADS)
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


def _add_states(
    ops: Any,
    shape: FinishShape,
    states: HeadStates,
    units: Any,
    back: HadamardBack | NothingBack | None,
    shared: Any,
) -> None:
    """States' values times their weights, into shared memory: of codes, in units of coordinates, and of exact tokens.
    If ``back`` turns codes back, the sum of both."""
    row_quads, size = shape.dim // 4, 4 * len(states.quads)
    rows = [ops.shared_offset(shared, ops.times(ops.divide(quad, row_quads), 4)) for quad in states.quads]

    def add(state: Any, values: list[Any], carried: list[Any]) -> list[Any]:
        """Sums of coded states, then of exact ones."""
        at = ops.times(ops.smaller(state, ops.integer(shape.states - 1)), 4 * shape.rows)
        inside = ops.less(state, ops.integer(shape.states))
        is_coded = ops.less(state, ops.integer(shape.coded))
        for index, row in enumerate(rows):
            weight = ops.shared_load(ops.shared_offset(row, at), 1, shape.weights_at)[0]
            weight = ops.select(inside, weight, ops.real(0.0))
            weights = ops.select(is_coded, weight, ops.real(0.0)), ops.select(is_coded, ops.real(0.0), weight)
            for n in range(4 * index, 4 * index + 4):
                for sums, each in zip((0, size), weights, strict=True):
                    carried[sums + n] = ops.fused(each, values[n], carried[sums + n])
        return carried

    found = states.add_up(add, [ops.real(0.0)] * (2 * size))
    for index, quad in enumerate(states.quads):
        unit = [ops.real(shape.unit or 0.0)] * 4
        if shape.unit is None:
            unit = ops.load_reals(ops.offset(units, ops.times(ops.modulo(quad, row_quads), 16)), 4)
        where = ops.shared_offset(shared, ops.times(quad, 16))
        coded, exact = (found[sums + 4 * index :][:4] for sums in (0, size))
        coded = list(map(ops.scaled, coded, unit))
        if back is None:
            ops.shared_store(where, coded, shape.coded_at)
            ops.shared_store(where, exact, shape.exact_at)
            continue
        both = list(map(ops.plus, back.turned(coded), exact))
        ops.only_if(states.there[index], lambda where=where, both=both: ops.shared_store(where, both, shape.exact_at))


def _turn_back(ops: Any, shape: FinishShape, rows: MapRows, shared: Any) -> None:
    """A part of the map's rows times values of codes, into shared memory; a thread has a quad of its columns."""
    source = ops.shared_offset(shared, ops.times(rows.part, 4 * rows.count))
    turned = [[ops.real(0.0)] * 4 for _ in range(shape.group)]
    for at in range(0, rows.count, 4):
        if at == len(rows.found):
            rows.load(LOADS)
        for n in range(shape.group):
            values = ops.shared_load(source, 4, shape.coded_at + 4 * (n * shape.dim + at))
            for row, value in zip(rows.found[at : at + 4], values, strict=True):
                turned[n] = [ops.fused(each, value, old) for each, old in zip(row, turned[n], strict=True)]
    target = ops.shared_offset(shared, ops.add(ops.times(rows.part, 16 * shape.quads), rows.column))
    for n, four in enumerate(turned):
        ops.shared_store(target, four, shape.turned_at + 4 * n * shape.dim)


def _write(ops: Any, shape: FinishShape, thread: Any, means: Any, out: Any, shared: Any) -> None:
    """All parts added up, over the weights."""
    size = shape.dtype.itemsize
    for first in range(0, shape.group * shape.dim, THREADS):
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
