"""What turns values of codes back to channels: rows of a map, a transform, or nothing."""

from typing import Any

from kakeya_jax.pallas_kernels.attention.finish_shape import LOADS, FinishShape
from kakeya_jax.pallas_kernels.attention.walsh_hadamard import across_lanes, butterflies, with_signs


class MapRows:
    """A thread's quads of its part of the map's rows. Making it starts loads of the first ones."""

    def __init__(self, ops: Any, shape: FinishShape, thread: Any, where: Any) -> None:
        self.ops, self._nbytes = ops, 4 * shape.dim
        row_quads, self.count = shape.dim // 4, shape.dim // shape.parts
        self.part, self.column = ops.divide(thread, row_quads), ops.times(ops.modulo(thread, row_quads), 16)
        self._where = ops.offset(ops.offset(where, self.part, self._nbytes * self.count), self.column)
        self.found: list[list[Any]] = []
        self.load(LOADS // 2)

    def load(self, count: int) -> None:
        """Starts some more, if there are any."""
        rows = range(len(self.found), min(len(self.found) + count, self.count))
        self.found += [self.ops.load_reals(self._where, 4, self._nbytes * row, pinned=True) for row in rows]


class NothingBack:
    """Of values that are coded as they are."""

    def __init__(self, *_: Any) -> None:
        pass

    def turned(self, four: list[Any]) -> list[Any]:
        """See ``HadamardBack``."""
        return four


class HadamardBack:
    """The transpose of a rotation of kind ``hadamard``, by a transform (``walsh_hadamard``). Making it starts loads.

    A thread has the quad of a query's channels whose number is the thread's own, modulo all of them.
    """

    def __init__(self, ops: Any, shape: FinishShape, thread: Any, where: Any) -> None:
        self.ops, self.thread, self._quads = ops, thread, shape.dim // 4
        quad = ops.times(ops.modulo(thread, self._quads), 16)
        rows = ops.offset(where, quad, shape.dim)
        self._column = [ops.load_reals(rows, 1, 4 * shape.dim * n, pinned=True)[0] for n in range(4)]
        self._row = ops.load_reals(ops.offset(where, quad), 4, pinned=True)
        self._unit = ops.load_reals(where, 1, pinned=True)[0]

    def turned(self, four: list[Any]) -> list[Any]:
        """This thread's quad of a query, of which each of so many neighbouring threads has one."""
        ops = self.ops
        four = butterflies(ops, with_signs(ops, four, self._column))
        four = across_lanes(ops, four, self.thread, self._quads)
        return [ops.scaled(value, self._unit) for value in with_signs(ops, four, self._row)]
