"""Which exact tokens a decode step's query sees, and where they are: sinks, and a ring of recent ones."""

from typing import Any, NamedTuple

from kakeya_jax.stream import Geometry


class ExactRefs(NamedTuple):
    """What a program of exact tokens reads, and the state that it writes.

    Attributes:
        query: ``[N, group, D]``.
        position: int32 ``[B]``, of the query.
        key: sinks ``[N, sinks, D]`` and ring ``[N, tail, D]`` of keys: see ``Stream``.
        value: likewise of values.
        frequencies: float32 ``[D / 2]``, radians a token, by which keys are rotated, if they are.
        top: float32 ``[N, states, rows]``, to the base 2.
        total: likewise.
        weighted: float32 ``[N, states, rows, D]``.
        shared: shared memory, ``shape.shared_floats`` floats.
    """

    query: Any
    position: Any
    key: tuple[Any, Any]
    value: tuple[Any, Any]
    frequencies: Any
    top: Any
    total: Any
    weighted: Any
    shared: Any


def held_tokens(ops: Any, geometry: Geometry, num_kv_heads: int, head: Any, position_ref: Any) -> tuple[Any, Any]:
    """How many tokens a head holds, and how many of them are coded: as ``Geometry.closed_pages``."""
    where = ops.offset(ops.address(position_ref), ops.times(ops.divide(head, num_kv_heads), 4))
    length = ops.add(ops.load_words(where, 1, once=False)[0], ops.integer(1))
    behind = ops.larger(ops.subtract(length, ops.integer(geometry.sinks + geometry.recent)), ops.integer(0))
    closed = ops.smaller(ops.divide(behind, geometry.page), ops.integer(geometry.num_pages))
    return length, ops.times(closed, geometry.page)


class SeenTokens:
    """Those of one head, sinks first.

    Attributes:
        sinks: that are seen.
        coded: tokens between sinks and the others.
        count: of exact tokens.
    """

    def __init__(self, ops: Any, geometry: Geometry, num_kv_heads: int, head: Any, position_ref: Any) -> None:
        """``position_ref``: int32 ``[B]``, of the query."""
        self.ops, self.geometry, self._head = ops, geometry, head
        length, self.coded = held_tokens(ops, geometry, num_kv_heads, head, position_ref)
        self.sinks = ops.smaller(length, ops.integer(geometry.sink_capacity))
        held = ops.larger(ops.subtract(length, ops.integer(geometry.sinks)), ops.integer(0))
        self._first = ops.modulo(self.coded, geometry.tail_capacity)
        self.count = ops.add(self.sinks, ops.subtract(held, self.coded))

    def rows(self, index: Any, refs: list[tuple[Any, Any]], nbytes: list[int]) -> list[Any]:
        """Where the vectors of the ``index``-th token are, one of each stream; of some token, if there is none.

        Args:
            index: of a token.
            refs: sinks ``[N, sinks, D]`` and ring ``[N, tail, D]`` of each stream.
            nbytes: of a vector of each.
        """
        ops, geometry = self.ops, self.geometry
        slot = ops.add(self._first, ops.subtract(index, self.sinks))
        slot = ops.modulo(slot, geometry.tail_capacity)  # of an index among the sinks: any
        among_sinks = ops.less(index, self.sinks)
        found = []
        for (sink_ref, tail_ref), size in zip(refs, nbytes, strict=True):
            where = ops.offset(ops.address(tail_ref), self._head, geometry.tail_capacity * size)
            if not geometry.sink_capacity:
                found.append(ops.offset(where, ops.times(slot, size)))
                continue
            in_sinks = ops.offset(ops.address(sink_ref), self._head, geometry.sink_capacity * size)
            where = ops.select_address(among_sinks, in_sinks, where)
            found.append(ops.offset(where, ops.times(ops.select(among_sinks, index, slot), size)))
        return found

    def position(self, index: Any) -> Any:
        """Of the ``index``-th token."""
        ops = self.ops
        return ops.select(ops.less(index, self.sinks), index, ops.add(index, self.coded))
