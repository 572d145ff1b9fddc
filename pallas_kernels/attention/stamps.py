"""When the warps of a launch get where: stamps of the GPU's clock, for measurements.

Programs say where they are (``ops.mark``). That does nothing but within ``stamped``: then each launch that is traced
has an output more, and the first thread of each warp writes nanoseconds to it. What is measured is slower by a little,
and may take more registers: fewer programs may run at a time.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.typing import Array

PLACES = ("start", "queries", "first tile", "tiles", "state", "counted", "end")
"""Where warps are, one after the other: their program begins; their queries are there; the first tile is, and the last
one is done; the program's state is written, and that is counted; and a head's last program is done with its end."""

_found: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar("stamps", default=None)


@contextlib.contextmanager
def stamped() -> Iterator[list[Array]]:
    """The list gets an array for each launch that is traced within: int32 ``[programs, warps, PLACES]``, lower 32 bits
    of nanoseconds; 0 where a warp has not been."""
    found: list[Array] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def with_stamps(
    run: Callable[..., tuple[Array, ...]],
    program: Callable[..., None],
    outputs: tuple[Any, ...],
    programs: int,
    warps: int,
) -> tuple[Array, ...]:
    """``run(program, outputs)``; within ``stamped``, of a program that writes stamps as well."""
    found = _found.get()
    if found is None:
        return run(program, outputs)

    def stamping(ops: Any, *refs: Any) -> None:
        *others, stamps, shared = refs
        ops = _Stamping(ops, warps, ops.address(stamps))
        ops.mark("start")
        program(ops, *others, shared)

    *results, stamps = run(stamping, (*outputs, jax.ShapeDtypeStruct((programs, warps, len(PLACES)), jnp.int32)))
    found.append(stamps)
    return tuple(results)


class _Stamping:
    """Functions of ``warp_ops``, or ``emulated_ops``, that stamp where they are told that a warp is."""

    def __init__(self, ops: Any, warps: int, where: Any) -> None:
        self._ops = ops
        self._of_thread = ops.modulo(ops.thread_index(), 32)
        warp = ops.add(ops.times(ops.program_index(), warps), ops.divide(ops.thread_index(), 32))
        self._where = ops.offset(where, warp, 4 * len(PLACES))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def mark(self, place: str, here: Callable[[], Any] | None = None) -> None:
        """Stamps a warp's arrival at a place, if it is ``here``."""
        ops, index = self._ops, PLACES.index(place)

        def stamp() -> None:
            ops.store_words(self._where, [ops.clock()], 4 * index)
            for later in range(1, len(PLACES) if index == 0 else 0):
                ops.store_words(self._where, [ops.integer(0)], 4 * later)

        def in_first_lane() -> None:
            ops.only_if(ops.less(self._of_thread, ops.integer(1)), stamp)

        in_first_lane() if here is None else ops.only_if(here(), in_first_lane)
