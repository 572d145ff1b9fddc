"""Adds up the softmax states of a head: of codes, turned back from their coordinates, and of exact tokens."""

import dataclasses
from typing import Any

from kakeya_jax.pallas_kernels.attention.exact_values import store_exact

WARPS = 4
_SMALLEST = 1e-37
_THREADS = 32 * WARPS
_STATES = 6
"""States whose values are under way at once."""
_BATCH = 32
"""Rows of the map that are under way at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishShape:
    """What a program is made for.

    Attributes:
        dim: of a head, 64 or 128: so many threads work.
        group: queries of a key/value head.
        rows: queries that a state has room for.
        coded: states of coded tokens.
        exact: states of exact tokens, which follow.
        dtype: of the result.
        unit: of the coordinates that the map takes; None if each has its own, and there is a mean.
        maps: that heads have, one after the other; 1 if one is of all.
    """

    dim: int
    group: int
    rows: int
    coded: int
    exact: int
    dtype: Any
    unit: float | None = None
    maps: int = 1

    @property
    def states(self) -> int:
        """Of a head."""
        return self.coded + self.exact

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: weights of the states, and values in the coordinates of their codes."""
        return self.states * self.rows + self.rows * self.dim


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
    """Writes the attention of one head's queries; thread ``d`` has channel ``d``. Four warps.

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
    thread = ops.thread_index()
    dim, rows, group, states = shape.dim, shape.rows, shape.group, shape.states
    works = ops.less(thread, ops.integer(dim))
    channel = ops.smaller(thread, ops.integer(dim - 1))
    place = ops.times(channel, 4)
    shared = ops.shared_address(shared_ref)
    values_at = 4 * states * rows
    tops, totals = (ops.offset(ops.address(ref), head, 4 * states * rows) for ref in (top_ref, total_ref))
    values = ops.offset(ops.offset(ops.address(weighted_ref), head, 4 * states * rows * dim), place)

    def weights_of(index: Any) -> list[Any]:
        return _shared_rows(ops, ops.shared_offset(shared, ops.times(index, 4 * rows)), rows)

    for first in range(0, states * rows, _THREADS):
        index = ops.times(ops.smaller(ops.add(thread, ops.integer(first)), ops.integer(states * rows - 1)), 4)
        ops.shared_store(ops.shared_offset(shared, index), ops.load_fresh(ops.offset(tops, index), 1))
    ops.barrier()

    def largest(index: Any, carried: list[Any]) -> list[Any]:
        return [ops.maximum(old, new) for old, new in zip(carried, weights_of(index), strict=True)]

    top = ops.loop(ops.integer(1), ops.integer(states), weights_of(ops.integer(0)), largest)
    ops.barrier()
    for first in range(0, states * rows, _THREADS):  # logits become weights
        index = ops.add(thread, ops.integer(first))
        where = ops.shared_offset(shared, ops.times(index, 4))
        row, mine = ops.modulo(index, rows), top[0]
        for n in range(1, rows):
            mine = ops.select(ops.less(row, ops.integer(n)), mine, top[n])

        def weigh(where: Any = where, mine: Any = mine) -> None:
            logit = ops.shared_load(where, 1)[0]
            ops.shared_store(where, [ops.power_of_two(ops.minus(logit, mine))])

        ops.only_if(ops.less(index, ops.integer(states * rows)), weigh)
    ops.barrier()

    def add_up(start: int, stop: int, total: list[Any]) -> tuple[list[Any], list[Any]]:
        """Several states at once, so that their loads overlap; beyond the last one weights are zero."""

        def add_batch(index: Any, carried: list[Any]) -> list[Any]:
            total, weighted = carried[:rows], carried[rows:]
            batch = []
            for part in range(_STATES):
                state = ops.add(ops.times(index, _STATES), ops.integer(start + part))
                inside = ops.less(state, ops.integer(stop))
                state = ops.smaller(state, ops.integer(stop - 1))
                where = ops.offset(values, state, 4 * rows * dim)
                found = [ops.load_fresh(where, 1, 4 * n * dim)[0] for n in range(group)]
                each = _fresh_rows(ops, ops.offset(totals, ops.times(state, 4 * rows)), rows)
                batch.append((inside, state, found, each))
            for inside, state, found, each in batch:
                weights = [ops.select(inside, weight, ops.real(0.0)) for weight in weights_of(state)]
                total = [ops.fused(weight, new, old) for weight, new, old in zip(weights, each, total, strict=True)]
                weighted = [ops.fused(weights[n], found[n], weighted[n]) for n in range(group)]
            return [*total, *weighted]

        batches = -(-(stop - start) // _STATES)
        zeros = [ops.real(0.0)] * group
        carried = ops.loop(ops.integer(0), ops.integer(batches), [*total, *zeros], add_batch)
        return carried[:rows], carried[rows:]

    coded_total, coded = add_up(0, shape.coded, [ops.real(0.0)] * rows)
    total, exact = add_up(shape.coded, states, coded_total)
    mine = ops.shared_offset(shared, place)
    of_head = ops.modulo(head, shape.maps)

    def mine_of(ref: Any) -> Any:
        return ops.load_reals(ops.offset(ops.offset(ops.address(ref), place), of_head, 4 * dim), 1)[0]

    unit = mine_of(unit_ref) if shape.unit is None else ops.real(shape.unit)
    for n in range(group):
        ops.shared_store(mine, [ops.scaled(coded[n], unit)], values_at + 4 * n * dim)
    ops.barrier()
    column = ops.offset(ops.offset(ops.address(map_ref), place), of_head, 4 * dim * dim)
    mean = mine_of(mean_ref) if shape.unit is None else ops.real(0.0)
    means = [ops.scaled(mean, coded_total[n]) for n in range(group)]

    def turn(index: Any, carried: list[Any]) -> list[Any]:
        """Some rows of the map, so that their loads overlap."""
        turned = list(carried)
        where = ops.offset(column, index, 4 * _BATCH * dim)
        weights = [ops.load_reals(where, 1, 4 * part * dim)[0] for part in range(_BATCH)]
        source = ops.shared_offset(shared, ops.times(index, 4 * _BATCH))
        for part in range(0, _BATCH, 4):
            for n in range(group):
                for offset, value in enumerate(ops.shared_load(source, 4, values_at + 4 * (n * dim + part))):
                    turned[n] = ops.fused(weights[part + offset], value, turned[n])
        return turned

    turned = ops.loop(ops.integer(0), ops.integer(dim // _BATCH), means, turn)
    out = ops.offset(ops.address(out_ref), head, group * dim * shape.dtype.itemsize)
    out = ops.offset(out, ops.times(channel, shape.dtype.itemsize))

    def write() -> None:
        for n in range(group):
            inverse = ops.reciprocal(ops.maximum(total[n], ops.real(_SMALLEST)))
            value = ops.scaled(ops.plus(turned[n], exact[n]), inverse)
            store_exact(ops, out, value, shape.dtype, n * dim * shape.dtype.itemsize)

    ops.only_if(works, write)


def _fresh_rows(ops: Any, where: Any, rows: int) -> list[Any]:
    return [value for first in range(0, rows, 4) for value in ops.load_fresh(where, 4, 4 * first)]


def _shared_rows(ops: Any, where: Any, rows: int) -> list[Any]:
    return [value for first in range(0, rows, 4) for value in ops.shared_load(where, 4, 4 * first)]
