"""The programs of a decode step's second launch: coded tokens, exact ones, and the head's states added up."""

from collections.abc import Callable, Sequence
from typing import Any

from kakeya_jax.pallas_kernels.attention.finish_program import FinishShape, finish_program
from kakeya_jax.pallas_kernels.attention.window_program import WindowShape, window_program


def attend_parts(
    ops: Any,
    attend_coded: Callable[[Any, Callable[[Any], Any]], None],
    exact_refs: Sequence[Any],
    finish_refs: Sequence[Any],
    counters: Any,
    states: Sequence[Any],
    out: Any,
    shared: Any,
    *,
    window: WindowShape,
    finish: FinishShape,
    heads: int,
) -> None:
    """The first programs attend to coded tokens, the last ones to exact tokens: those are short, and fill the time
    until the slowest multiprocessor is done. A head's last program adds its states up.

    Which is last depends on chance, what it computes does not: it takes states in their order. It sets the head's
    counter back, for a launch that is given the same one.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        attend_coded: takes the number of a program and a function that tells a head's coded tokens.
        exact_refs: queries, positions, and the exact tokens; see ``window_program``.
        finish_refs: what values are turned back with; see ``finish_program``.
        counters: int32 ``[N]``, zeros.
        states: see ``window_program``.
        out: ``[N, group, D]``.
        shared: memory.
        window: of exact tokens.
        finish: of the sum.
        heads: ``N``.
    """
    program, programs = ops.program_index(), heads * finish.coded
    first = ops.less(program, ops.integer(programs))
    number = ops.subtract(program, ops.integer(programs))
    head = ops.select(first, ops.divide(program, finish.coded), ops.divide(number, window.splits))
    positions = exact_refs[1]

    def tokens_of(head: Any) -> Any:
        """As ``Geometry.closed_pages``."""
        geometry = window.geometry
        where = ops.offset(ops.address(positions), ops.times(ops.divide(head, window.num_kv_heads), 4))
        length = ops.add(ops.load_words(where, 1, once=False)[0], ops.integer(1))
        behind = ops.larger(ops.subtract(length, ops.integer(geometry.sinks + geometry.recent)), ops.integer(0))
        closed = ops.smaller(ops.divide(behind, geometry.page), ops.integer(geometry.num_pages))
        return ops.times(closed, geometry.page)

    def attend_exact() -> None:
        arrays: list[Any] = [*exact_refs, *states, shared]
        window_program(ops, window, head, ops.modulo(number, window.splits), *arrays)

    def add_up() -> None:
        arrays: list[Any] = [*states, *finish_refs, out, shared]
        finish_program(ops, finish, head, *arrays)
        ops.only_if(ops.less(ops.thread_index(), ops.integer(1)), lambda: ops.store_words(counter, [ops.integer(0)]))

    ops.only_if(first, lambda: attend_coded(program, tokens_of))
    ops.only_if(ops.less(ops.integer(programs - 1), program), attend_exact)
    counter = ops.offset(ops.address(counters), ops.times(head, 4))
    done = ops.arrive(counter, ops.shared_address(shared))
    ops.only_if(ops.less(ops.integer(finish.states - 2), done), add_up)
