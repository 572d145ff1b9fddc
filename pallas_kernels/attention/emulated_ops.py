"""The functions of ``warp_ops`` in numpy: a program of warps runs on any machine, all its threads at once.

A register is an array ``[warps, 32]``, one element for each thread, of all programs side by side. Every instruction
does what the PTX manual says of it, for all lanes together; so programs whose threads wait for each other need no
barrier. This is how kernels are tested without a GPU; it says nothing about speed.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Register = Any
LANES = 32


@dataclasses.dataclass
class _Launch:
    programs: int
    warps: int
    teams: int
    shared_nbytes: int
    active: np.ndarray
    ticks: int = 0


_launch: contextvars.ContextVar[_Launch] = contextvars.ContextVar("launch")


@contextlib.contextmanager
def launch(programs: int, warps: int, teams: int = 1, shared_nbytes: int = 0) -> Iterator[None]:
    """Within it, a program's functions act for ``programs`` programs of ``warps`` warps, of which each ``teams`` are
    one block of threads."""
    state = _Launch(programs, warps, teams, shared_nbytes, np.ones((programs * warps, LANES), bool))
    token = _launch.set(state)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _launch.reset(token)


@dataclasses.dataclass(frozen=True)
class Pointer:
    """A place in an array of bytes, for every thread."""

    memory: np.ndarray
    at: np.ndarray


def _full(value: Any, dtype: Any) -> np.ndarray:
    return np.full(_launch.get().active.shape, value, dtype)


def _u(value: np.ndarray) -> np.ndarray:
    return value.view(np.uint32)


def _f(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


def integer(value: int) -> Register:
    return _full(np.uint32(value & 0xFFFFFFFF), np.uint32)


def real(value: float) -> Register:
    return _full(value, np.float32)


def thread_index() -> Register:
    state = _launch.get()
    inside = np.arange(state.warps * LANES, dtype=np.uint32).reshape(state.warps, LANES)
    return np.tile(inside, (state.programs, 1))


def program_index() -> Register:
    state = _launch.get()
    return np.repeat(np.arange(state.programs, dtype=np.uint32), state.warps)[:, None] + np.zeros(LANES, np.uint32)


def teams() -> int:
    return _launch.get().teams


def team() -> Register:
    return program_index() % np.uint32(teams())


def of_team(where: Pointer, team_number: Register) -> Pointer:
    further = team_number.astype(np.int64) - team().astype(np.int64)
    return Pointer(where.memory, where.at + further * _launch.get().shared_nbytes)


def add(first: Register, second: Register) -> Register:
    return first + second


def subtract(first: Register, second: Register) -> Register:
    return first - second


def times(value: Register, factor: int) -> Register:
    return value * np.uint32(factor)


def divide(value: Register, divisor: int) -> Register:
    return value // np.uint32(divisor)


def modulo(value: Register, divisor: int) -> Register:
    return value % np.uint32(divisor)


def product(first: Register, second: Register) -> Register:
    return first * second


def smaller(first: Register, second: Register) -> Register:
    return _u(np.minimum(first.view(np.int32), second.view(np.int32)))


def larger(first: Register, second: Register) -> Register:
    return _u(np.maximum(first.view(np.int32), second.view(np.int32)))


def both(first: Register, second: Register) -> Register:
    return first & second


def either(first: Register, second: Register) -> Register:
    return first | second


def differing(first: Register, second: Register) -> Register:
    return first ^ second


def masked(value: Register, mask: Register, others: Register) -> Register:
    return value & mask | others


def left(value: Register, bits: int) -> Register:
    return value << np.uint32(bits)


def right(value: Register, bits: int) -> Register:
    return value >> np.uint32(bits)


def shifted_left(value: Register, bits: Register) -> Register:
    return np.where(bits < 32, value << (bits & np.uint32(31)), np.uint32(0))


def shifted_right(value: Register, bits: Register) -> Register:
    return value >> bits


def right_of_two(low: Register, high: Register, bits: int) -> Register:
    both_words = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    return (both_words >> np.uint64(bits)).astype(np.uint32)


def right_signed(value: Register, bits: int) -> Register:
    return (np.ascontiguousarray(value).view(np.int32) >> np.int32(bits)).view(np.uint32)


def permute_bytes(low: Register, high: Register, selector: Register) -> Register:
    pool = _bytes(np.stack(np.broadcast_arrays(low, high), axis=-1))
    nibbles = (np.asarray(selector)[..., None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
    nibbles = np.broadcast_to(nibbles, (*pool.shape[:-1], 4))
    chosen = np.take_along_axis(pool, (nibbles & 7).astype(np.int64), axis=-1)
    sign = np.where(chosen & 0x80, np.uint8(0xFF), np.uint8(0))
    return _words(np.where(nibbles & 8, sign, chosen).astype(np.uint8))[..., 0]


def plus(first: Register, second: Register) -> Register:
    return first + second


def minus(first: Register, second: Register) -> Register:
    return first - second


def scaled(first: Register, second: Register) -> Register:
    return first * second


def nearest(value: Register) -> Register:
    return np.rint(value).astype(np.int64).astype(np.uint32)


def converted(value: Register) -> Register:
    return value.view(np.int32).astype(np.float32)


def magnitude(value: Register) -> Register:
    return np.abs(value)


def fused(first: Register, second: Register, third: Register) -> Register:
    return (first.astype(np.float64) * second + third).astype(np.float32)


def maximum(first: Register, second: Register) -> Register:
    return np.fmax(first, second)


def power_of_two(value: Register) -> Register:
    return np.exp2(value)


def reciprocal(value: Register) -> Register:
    return np.float32(1) / value


def square_root(value: Register) -> Register:
    return np.sqrt(value)


def cosine(angle: Register) -> Register:
    return np.cos(angle)


def sine(angle: Register) -> Register:
    return np.sin(angle)


def as_real(value: Register) -> Register:
    return value.view(np.float32)


def as_integer(value: Register) -> Register:
    return value.view(np.uint32)


def half_of(word: Register, upper: bool) -> Register:
    return _halves(word)[..., int(upper)].astype(np.float32)


def brain_half_of(word: Register, upper: bool) -> Register:
    return as_real(word & np.uint32(0xFFFF0000) if upper else word << np.uint32(16))


def largest_half(words: Sequence[Register]) -> Register:
    return np.fmax.reduce([_halves(word) for word in words]).astype(np.float32).max(-1)


def larger_halves(first: Register, second: Register) -> Register:
    return _packed(np.fmax(_halves(first), _halves(second)))


def scaled_halves(first: Register, second: Register) -> Register:
    return _packed(_halves(first) * _halves(second))


def fused_halves(first: Register, second: Register, third: Register) -> Register:
    exact = [_halves(each).astype(np.float64) for each in (first, second, third)]
    return _packed((exact[0] * exact[1] + exact[2]).astype(np.float16))


def negative_halves(value: Register) -> Register:
    return value ^ np.uint32(0x80008000)


def pack_brain_halves(low: Register, high: Register) -> Register:
    import ml_dtypes

    pair = np.stack([low, high], axis=-1).astype(ml_dtypes.bfloat16)
    return np.ascontiguousarray(pair).view(np.uint32)[..., 0]


def pack_halves(low: Register, high: Register) -> Register:
    return _packed(np.stack([low, high], axis=-1).astype(np.float16))


def halves_of_e4m3(word: Register) -> list[Register]:
    import ml_dtypes

    numbers = _bytes(word[..., None]).view(ml_dtypes.float8_e4m3fn).astype(np.float16)
    return [_packed(numbers[..., :2]), _packed(numbers[..., 2:])]


def uniform(value: Register) -> Register:
    return np.broadcast_to(value[:, :1], value.shape).copy()


def exchange(value: Register, distance: int) -> Register:
    return np.ascontiguousarray(value[:, np.arange(LANES) ^ distance])


def above(first: Register, second: Register) -> Register:
    return first > second


def less(first: Register, second: Register) -> Register:
    return first.view(np.int32) < second.view(np.int32)


def equal(value: Register, number: int) -> Register:
    return value == np.uint32(number)


def one_of(first: Register, second: Register) -> Register:
    return first | second


def select(condition: Register, when_true: Register, when_false: Register) -> Register:
    return np.where(condition, when_true, when_false)


def select_address(condition: Register, when_true: Pointer, when_false: Pointer) -> Pointer:
    memory = np.concatenate([when_true.memory, when_false.memory])
    return Pointer(memory, np.where(condition, when_true.at, when_false.at + when_true.memory.size))


def any_lane(condition: Register) -> Register:
    return np.broadcast_to(condition.any(axis=1, keepdims=True), condition.shape)


def transpose(word: Register) -> Register:
    halves = np.ascontiguousarray(word).view(np.uint16).reshape(-1, 8, 8)
    return np.ascontiguousarray(halves.transpose(0, 2, 1)).reshape(-1, 64).view(np.uint32)


def multiply_bytes(total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]) -> list[Register]:
    a, b = (np.stack([_signed_bytes(each) for each in part], axis=-2) for part in (first, second))
    warps = a.shape[0]
    # Lane (g, t): a[2 h + r] has row g + 8 r, columns 16 h + 4 t ..; b[h] has column g, rows 16 h + 4 t ...
    a = a.reshape(warps, 8, 4, 2, 2, 4).transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, 32)
    b = b.reshape(warps, 8, 4, 2, 4).transpose(0, 3, 2, 4, 1).reshape(warps, 32, 8)
    result = np.einsum("wmk,wkn->wmn", a.astype(np.float64), b.astype(np.float64)).astype(np.int64)
    parts = result.reshape(warps, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(warps, LANES, 4)
    return [
        (each.view(np.int32) + parts[..., index]).astype(np.int64).astype(np.uint32) for index, each in enumerate(total)
    ]


def dot_bytes(first: Register, second: Register, total: Register) -> Register:
    products = _signed_bytes(first).astype(np.int32) * _signed_bytes(second)
    return total + products.sum(axis=-1, dtype=np.int32).view(np.uint32)


def multiply_half_bytes(total: Sequence[Register], first: Sequence[Register], second: Register) -> list[Register]:
    nothing = np.zeros_like(second)
    return multiply_bytes(total, [*first, nothing, nothing], [second, nothing])


def multiply_halves(total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]) -> list[Register]:
    return _multiply(total, first, second, np.float16)


def multiply_brain_halves(
    total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]
) -> list[Register]:
    import ml_dtypes

    return _multiply(total, first, second, ml_dtypes.bfloat16)


def _multiply(total: Sequence[Register], first: Sequence[Register], second: Sequence[Register], dtype: Any) -> Any:
    """Of fragments 16 x 16 and 16 x 8 of numbers of two bytes."""
    a, b = (
        np.stack([np.ascontiguousarray(each)[..., None].view(dtype).astype(np.float64) for each in part], axis=-2)
        for part in (first, second)
    )
    warps = a.shape[0]
    # Lane (g, t): a[2 h + r] has row g + 8 r, columns 8 h + 2 t ..; b[h] has column g, rows 8 h + 2 t ...
    a = a.reshape(warps, 8, 4, 2, 2, 2).transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, 16)
    b = b.reshape(warps, 8, 4, 2, 2).transpose(0, 3, 2, 4, 1).reshape(warps, 16, 8)
    parts = np.einsum("wmk,wkn->wmn", a, b).reshape(warps, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(warps, LANES, 4)
    return [_f(each + parts[..., index]) for index, each in enumerate(total)]


def multiply_eight_halves(
    total: Sequence[Register], first: Sequence[Register], second: Sequence[Register]
) -> list[Register]:
    nothing = np.zeros_like(second[0])
    return multiply_halves(total, [*first, nothing, nothing], [*second, nothing])


def address(ref: Any) -> Pointer:
    return Pointer(ref.reshape(-1).view(np.uint8), _full(0, np.int64))


def offset(where: Pointer, nbytes: Register, count: int = 1) -> Pointer:
    return Pointer(where.memory, where.at + nbytes.view(np.int32).astype(np.int64) * count)


def offset_product(where: Pointer, nbytes: Register, count: Register) -> Pointer:
    return Pointer(where.memory, where.at + nbytes.astype(np.int64) * count)


def load_words(where: Pointer, count: int, at: int = 0, *, once: bool = True, pinned: bool = False) -> list[Register]:
    del once, pinned
    assert not np.any((where.at[_launch.get().active] + at) % (4 * count)), "a load that is not aligned"
    return [_read(where, at + 4 * index, np.uint32) for index in range(count)]


def load_short(where: Pointer, at: int = 0) -> Register:
    return _read(where, at, np.uint16).astype(np.uint32)


def prefetch(where: Pointer, at: int = 0) -> None:
    _read(where, at, np.uint8)


def load_reals(where: Pointer, count: int, at: int = 0, *, once: bool = False, pinned: bool = False) -> list[Register]:
    return [as_real(word) for word in load_words(where, count, at, once=once, pinned=pinned)]


def clock() -> Register:
    """Counts: threads have no clock."""
    state = _launch.get()
    state.ticks += 1
    return integer(state.ticks)


def mark(place: str, here: Callable[[], Register] | None = None) -> None:
    del place, here


def begin_loads() -> None:
    """Loads are done when they start."""


def load_fresh(where: Pointer, count: int, at: int = 0) -> list[Register]:
    return [as_real(word) for word in load_words(where, count, at)]


def arrive(counter: Pointer, slot: Pointer) -> Register:
    del slot
    state, found = _launch.get(), integer(0)
    words = counter.memory.view(np.uint32)
    for program in range(state.programs):
        warps = slice(program * state.warps, (program + 1) * state.warps)
        if state.active[warps].any():
            place = counter.at[program * state.warps, 0] // 4
            found[warps] = words[place]
            words[place] += 1
    return found


def store_words(where: Pointer, values: Sequence[Register], at: int = 0) -> None:
    assert not np.any((where.at[_launch.get().active] + at) % (4 * len(values))), "a store that is not aligned"
    for index, value in enumerate(values):
        _store_bytes(where, value, at + 4 * index, 4)


def store_reals(where: Pointer, values: Sequence[Register], at: int = 0) -> None:
    store_words(where, [as_integer(np.ascontiguousarray(value)) for value in values], at)


def store_short(where: Pointer, value: Register, at: int = 0) -> None:
    _store_bytes(where, value, at, 2)


def store_byte(where: Pointer, value: Register, at: int = 0) -> None:
    _store_bytes(where, value, at, 1)


def shared_address(ref: Any) -> Pointer:
    """``ref`` is a number of floats; every program gets so many of its own."""
    state = _launch.get()
    memory = np.full(state.programs * ref, np.nan, np.float32).view(np.uint8)
    return Pointer(memory, program_index().astype(np.int64) * 4 * ref)


def copy(target: Pointer, source: Pointer, nbytes: int, to: int = 0, at: int = 0) -> None:
    active = _launch.get().active
    for where, by in ((target, to), (source, at)):
        assert not np.any((where.at[active] + by) % nbytes), "a copy that is not aligned"
    for first in range(0, nbytes, 4):
        store_words(target, [_read(source, at + first, np.uint32)], to + first)


def commit_copies() -> None:
    """Copies are done when they start."""


def wait_for_copies(pending: int) -> None:
    """Copies are done when they start."""


def order_copies_out() -> None:
    """Copies are done when they start."""


def copy_out(target: Pointer, source: Pointer, nbytes: Register) -> None:
    for thread in zip(*np.nonzero(_launch.get().active), strict=True):
        count, to, at = int(nbytes[thread]), int(target.at[thread]), int(source.at[thread])
        assert not any(each % 16 for each in (count, to, at)), "a copy that is not aligned"
        target.memory[to : to + count] = source.memory[at : at + count]


def commit_copies_out() -> None:
    """Copies are done when they start."""


def wait_for_copies_out(*, read: bool = False) -> None:
    """Copies are done when they start."""
    del read


def shared_words(where: Pointer, count: int, at: int = 0, *, anew: bool = False) -> list[Register]:
    del anew
    return load_words(where, count, at)


def shared_short(where: Pointer, at: int = 0) -> Register:
    return _read(where, at, np.uint16).astype(np.uint32)


def shared_byte(where: Pointer, at: int = 0) -> Register:
    return _read(where, at, np.int8).astype(np.int32).view(np.uint32)


def shared_transposes(where: Pointer, at: int = 0) -> list[Register]:
    assert not np.any((where.at[_launch.get().active] + at) % 16), "a load that is not aligned"
    rows = np.stack([_read(where, at + 2 * column, np.uint16) for column in range(8)], axis=-1)
    matrices = np.ascontiguousarray(rows.reshape(-1, 4, 8, 8).transpose(1, 0, 3, 2))
    return list(matrices.view(np.uint32).reshape(4, -1, LANES))


def shared_store(where: Pointer, values: Sequence[Register], at: int = 0) -> None:
    store_reals(where, values, at)


def shared_load(where: Pointer, count: int, at: int = 0) -> list[Register]:
    return [as_real(word) for word in load_words(where, count, at)]


def shared_offset(where: Pointer, nbytes: Register) -> Pointer:
    return offset(where, nbytes)


def barrier() -> None:
    """All threads run together here."""


def block_barrier() -> None:
    """All threads run together here."""


def loop(
    start: Register,
    stop: Register,
    carried: Sequence[Register],
    body: Callable[[Register, list[Register]], list[Register]],
    step: int = 1,
) -> list[Register]:
    state = _launch.get()
    outer, index, carried = state.active, start.copy(), list(carried)
    while True:
        state.active = outer & less(index, stop)
        if not state.active.any():
            break
        new = body(index, list(carried))
        carried = [np.where(state.active, after, before) for after, before in zip(new, carried, strict=True)]
        index = index + np.uint32(step)
    state.active = outer
    return carried


def choose(
    condition: Register, when_true: Callable[[], list[Register]], when_false: Sequence[Register]
) -> list[Register]:
    found: list[Register] = []
    only_if(condition, lambda: found.extend(when_true()))
    return (
        [np.where(condition, yes, no) for yes, no in zip(found, when_false, strict=True)] if found else list(when_false)
    )


def choose_by(
    value: Register, cases: Mapping[int, Callable[[], list[Register]]], otherwise: Sequence[Register]
) -> list[Register]:
    found = list(otherwise)
    for number, case in cases.items():
        found = choose(equal(value, number), case, found)
    return found


def only_if(condition: Register, body: Callable[[], None]) -> None:
    state = _launch.get()
    outer = state.active
    state.active = outer & condition
    if state.active.any():
        body()
    state.active = outer


def _read(where: Pointer, at: int, dtype: Any) -> np.ndarray:
    active, size = _launch.get().active, np.dtype(dtype).itemsize
    start = np.where(active, where.at + at, 0)
    if start.min() < 0 or start.max() + size > where.memory.size:
        raise IndexError("a load outside of its array")
    value = np.zeros(start.shape, np.uint32)
    for byte in range(size):
        value |= where.memory[start + byte].astype(np.uint32) << np.uint32(8 * byte)
    return value.astype(dtype)


def _store_bytes(where: Pointer, value: Register, at: int, count: int) -> None:
    active = _launch.get().active
    word = np.ascontiguousarray(np.broadcast_to(value, active.shape)).view(np.uint32)[active]
    start = where.at[active] + at
    if start.size and (start.min() < 0 or start.max() + count > where.memory.size):
        raise IndexError("a store outside of its array")
    for byte in range(count):
        where.memory[start + byte] = ((word >> np.uint32(8 * byte)) & np.uint32(255)).astype(np.uint8)


def _bytes(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.uint8)


def _words(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


def _packed(halves: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


def _halves(word: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(word)[..., None].view(np.float16)


def _signed_bytes(word: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(word)[..., None].view(np.int8)
