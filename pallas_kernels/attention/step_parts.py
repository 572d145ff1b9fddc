"""The launch of a decode step: coded tokens, exact ones, and the head's states added up."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.coded_shape import SHARED_NBYTES, TileShape
from kakeya_jax.pallas_kernels.attention.exact_program import exact_program
from kakeya_jax.pallas_kernels.attention.exact_shape import DTYPES, ExactShape
from kakeya_jax.pallas_kernels.attention.finish_program import finish_program
from kakeya_jax.pallas_kernels.attention.finish_shape import Back, FinishShape
from kakeya_jax.pallas_kernels.attention.float_shape import FloatCodes
from kakeya_jax.pallas_kernels.attention.launch import launch
from kakeya_jax.pallas_kernels.attention.query_form import QueryForm
from kakeya_jax.pallas_kernels.attention.seen_tokens import ExactRefs, held_tokens
from kakeya_jax.pallas_kernels.attention.softmax_state import Attended, log_sum_of_powers
from kakeya_jax.pallas_kernels.attention.window_program import WARPS, WindowShape, window_program
from kakeya_jax.stream import Geometry
from kakeya_jax.typing import Array, Float, Int


def attend_parts(
    program: Callable[..., None],
    coded: TileShape,
    codes: Sequence[Array],
    query: Float[Array, "N G D"],
    positions: Int[Array, " B"],
    exact: Sequence[Array],
    maps: Sequence[Array],
    counters: Int[Array, " N"],
    *,
    geometry: Geometry,
    scale: float,
    unit: float | None = None,
    back: Back = "map",
    interpret: bool,
    most_teams: int = 1,
    scratch: Sequence[jax.ShapeDtypeStruct] = (),
) -> Attended:
    """Attention of a step's queries: ``[N, G, D]``, and ``[N, G]``.

    Args:
        program: of coded tokens: takes ``ops``, ``coded``, a head, which of its programs it is, a function that tells a
            head's coded tokens, the ``codes``, its ``scratch``, the arrays of states, and shared memory.
        coded: its sizes.
        codes: what ``program`` reads.
        query: see ``ExactRefs``, as
        positions: are these, and
        exact: sinks and tail of keys and of values, and, if keys are to be rotated, frequencies (``ExactRefs``).
        maps: what values are turned back with: a map, and if there is no ``unit``, a mean and units; then each
            key/value head has its own.
        counters: int32 zeros: programs of each head that are done.
        geometry: of the streams.
        scale: factor of exact tokens' logits, to the base 2.
        unit: see ``FinishShape``, as
        back: is this.
        interpret: in numpy, on any machine.
        most_teams: programs that are one block of threads, if their shared memory allows (``team_ops``).
        scratch: arrays that programs write for themselves.
    """
    heads, group, dim = query.shape
    num_kv_heads = heads // len(positions)
    window = _window(
        coded,
        query,
        [exact[1].dtype, exact[3].dtype],
        num_kv_heads=num_kv_heads,
        geometry=geometry,
        scale=scale,
        turns=len(exact) > 4,
    )
    finish = FinishShape(
        dim=dim,
        group=group,
        rows=coded.rows,
        coded=coded.splits,
        exact=coded.states - coded.splits,
        dtype=query.dtype,
        unit=unit,
        back=back,
        maps=1 if unit is not None else num_kv_heads,
    )

    def present(arrays: Sequence[Array], count: int) -> list[Array]:
        """With another array for what is empty or not there: programs take no empty ones, and do not read it."""
        filled = [array if math.prod(array.shape) else query for array in arrays]
        return filled + [query] * (count - len(filled))

    shared_floats = max(coded.shared_floats, window.shared_floats, finish.shared_floats)
    *_, top, total, _, out = launch(
        functools.partial(
            _run, program=program, coded=coded, window=window, finish=finish, heads=heads, scratch=len(scratch)
        ),
        [
            *scratch,
            *(jax.ShapeDtypeStruct((heads, coded.states, coded.rows, *dims), jnp.float32) for dims in ((), (), (dim,))),
            jax.ShapeDtypeStruct((heads, group, dim), query.dtype),
        ],
        [*codes, query, positions, *present(exact, 5), *present(maps, 3), counters],
        programs=heads * coded.states,
        warps=coded.warps,
        shared_floats=shared_floats,
        interpret=interpret,
        teams=most_teams if 4 * most_teams * shared_floats <= SHARED_NBYTES else 1,
    )
    return Attended(out, log_sum_of_powers(top, total)[:, :group])


def _window(
    coded: TileShape,
    query: Array,
    dtypes: list[Any],
    *,
    num_kv_heads: int,
    geometry: Geometry,
    scale: float,
    turns: bool,
) -> WindowShape | ExactShape:
    """What the program of exact tokens is made for, keys and values of these types."""
    _, group, dim = query.shape
    sizes: dict[str, Any] = {"dim": dim, "group": group, "num_kv_heads": num_kv_heads, "geometry": geometry}
    sizes |= {"states": coded.states, "splits": coded.states - coded.splits, "turns": turns}
    key, value = (jnp.dtype(each) for each in dtypes)
    if key not in DTYPES or value not in DTYPES:
        types = {"query_dtype": query.dtype, "dtype": key, "value_dtype": value}
        return WindowShape(rows=coded.rows, scale=scale, **types, **sizes)
    codes = [FloatCodes(nbytes=2, scaled=False, half=each == jnp.float16) for each in (key, value)]
    sizes["residents"] = coded.residents
    codes[0] = dataclasses.replace(codes[0], half=codes[0].half and not turns)
    return ExactShape(
        key=codes[0],
        value=codes[1],
        capacity=0,
        queries=QueryForm(dtype=query.dtype, scale=scale, parts=codes[0].multiplied),
        warps=WARPS,
        key_dtype=key,
        **sizes,
    )


def _run(
    ops: Any,
    *refs: Any,
    program: Callable[..., None],
    coded: TileShape,
    window: WindowShape | ExactShape,
    finish: FinishShape,
    heads: int,
    scratch: int,
) -> None:
    """The first programs attend to coded tokens, the last ones to exact tokens: those are short, and fill the time
    until the slowest multiprocessor is done. A head's last program adds its states up.

    Which is last depends on chance, what it computes does not: it takes states in their order. It sets the head's
    counter back, for a launch that is given the same one.
    """
    outputs = 5 + scratch  # and shared memory
    *codes, query, positions, sink_key, tail_key, sink_value, tail_value, frequency = refs[: -4 - outputs]
    value_map, value_mean, value_unit, counters = refs[-4 - outputs : -outputs]
    *notes, top, total, weighted, out, shared = refs[-outputs:]
    states = [top, total, weighted]
    number, programs = ops.program_index(), heads * finish.coded
    first = ops.less(number, ops.integer(programs))
    beyond = ops.subtract(number, ops.integer(programs))
    head_of_codes, split = _place(ops, coded, heads, number)
    head = ops.select(first, head_of_codes, ops.divide(beyond, window.splits))

    def tokens_of(head: Any) -> Any:
        return held_tokens(ops, window.geometry, window.num_kv_heads, head, positions)[1]

    def attend_exact() -> None:
        key, value = (sink_key, tail_key), (sink_value, tail_value)
        arrays = ExactRefs(query, positions, key, value, frequency, top, total, weighted, shared)
        run: Any = exact_program if isinstance(window, ExactShape) else window_program
        run(ops, window, head, ops.modulo(beyond, window.splits), arrays)

    def add_up() -> None:
        ops.barrier()  # everyone knows that this is the last program
        arrays: list[Any] = [*states, value_map, value_mean, value_unit, out, shared]
        finish_program(ops, finish, head, *arrays)
        ops.mark("end")
        ops.only_if(ops.less(ops.thread_index(), ops.integer(1)), lambda: ops.store_words(counter, [ops.integer(0)]))

    ops.only_if(first, lambda: program(ops, coded, head, split, tokens_of, *codes, *notes, *states, shared))
    ops.only_if(ops.less(ops.integer(programs - 1), number), attend_exact)
    ops.mark("state")
    counter = ops.offset(ops.address(counters), ops.times(head, 4))
    done = ops.arrive(counter, ops.shared_address(shared))
    ops.mark("counted")
    ops.only_if(ops.less(ops.integer(finish.states - 2), done), add_up)


def _place(ops: Any, shape: TileShape, heads: int, number: Any) -> tuple[Any, Any]:
    """The head of a program of codes, and which of the head's it is: late ones come after all others."""
    early = shape.splits - shape.late
    head, split = ops.divide(number, early), ops.modulo(number, early)
    if shape.late:
        beyond = ops.subtract(number, ops.integer(heads * early))
        is_late = ops.less(ops.integer(heads * early - 1), number)
        head = ops.select(is_late, ops.divide(beyond, shape.late), head)
        split = ops.select(is_late, ops.add(ops.modulo(beyond, shape.late), ops.integer(early)), split)
    return head, split
