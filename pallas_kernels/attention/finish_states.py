"""States of a head on their way to the program that adds them up."""

from collections.abc import Callable
from typing import Any

from kakeya_jax.pallas_kernels.attention.finish_shape import LOADS, THREADS, FinishShape


class HeadStates:
    """Values of a head's states, some states at once. Making it starts loads of the first ones.

    A thread has one or two quads of neighbouring channels.
    """

    def __init__(self, ops: Any, shape: FinishShape, thread: Any, values: Any) -> None:
        self.ops, self.shape, self._values = ops, shape, values
        quads = [ops.add(thread, ops.integer(first)) for first in range(0, shape.quads, THREADS)]
        self.there = [ops.less(quad, ops.integer(shape.quads)) for quad in quads]
        self.quads = [ops.smaller(quad, ops.integer(shape.quads - 1)) for quad in quads]
        self.together = min(LOADS // len(self.quads), shape.states)
        self._places = [ops.times(quad, 16) for quad in self.quads]
        self._first = self._load(ops.integer(0))

    def add_up(self, add: Callable[[Any, list[Any], list[Any]], list[Any]], carried: list[Any]) -> list[Any]:
        """``carried = add(state, values, carried)`` for every state; some numbers are beyond the last, and have its
        values."""
        ops = self.ops

        def add_batch(start: Any, batch: list[list[Any]], carried: list[Any]) -> list[Any]:
            for part, found in enumerate(batch):
                carried = add(ops.add(start, ops.integer(part)), found, carried)
            return carried

        carried = add_batch(ops.integer(0), self._first, carried)
        stop = ops.integer(self.shape.states)
        return ops.loop(
            ops.integer(self.together),
            stop,
            carried,
            lambda start, carried: add_batch(start, self._load(start), carried),
            self.together,
        )

    def _load(self, start: Any) -> list[list[Any]]:
        ops, found = self.ops, []
        for part in range(self.together):
            state = ops.smaller(ops.add(start, ops.integer(part)), ops.integer(self.shape.states - 1))
            where = ops.offset(self._values, state, 4 * self.shape.rows * self.shape.dim)
            found.append([value for place in self._places for value in ops.load_fresh(ops.offset(where, place), 4)])
        return found
