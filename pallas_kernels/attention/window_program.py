"""Attention of one head's queries to the tokens that are kept exact: sinks, and a ring of recent ones."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from kakeya_jax.pallas_kernels.attention.exact_turns import turned
from kakeya_jax.pallas_kernels.attention.exact_values import load_exact
from kakeya_jax.pallas_kernels.attention.seen_tokens import ExactRefs, SeenTokens
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST
from kakeya_jax.stream import Geometry

WARPS = 4
_QUERIES = 4
"""That are handled at once."""
_LANES = 8
"""That share a token's channels when logits are computed."""
_TOGETHER = 4
"""Bytes of keys' channels that a lane has under way at once: two tokens of two bytes, or one of four."""
_AHEAD = 8
"""Tokens of values that a thread has under way at once."""
_LINE = 128
"""Bytes that memory gives at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowShape:
    """What a program is made for.

    Attributes:
        dim: of a head.
        group: queries of a key/value head.
        rows: queries that a state has room for, a multiple of 4.
        num_kv_heads: of a row of the batch.
        geometry: of the streams.
        query_dtype: of the queries.
        dtype: of exact keys, and
        value_dtype: of exact values.
        scale: factor of logits, to the base 2.
        states: of a head, those of coded tokens first.
        splits: programs that share a head's exact tokens.
        turns: whether keys are stored before their rotary embedding.
    """

    dim: int
    group: int
    rows: int
    num_kv_heads: int
    geometry: Geometry
    query_dtype: Any
    dtype: Any
    value_dtype: Any
    scale: float
    states: int
    splits: int
    turns: bool = False

    @property
    def together(self) -> int:
        """Tokens of keys that a lane has under way at once."""
        return _TOGETHER // jnp.dtype(self.dtype).itemsize

    @property
    def tokens(self) -> int:
        """Most that one program attends to: whole rounds of 32."""
        held = self.geometry.sink_capacity + self.geometry.tail_capacity
        return 32 * -(-held // (32 * self.splits))

    @property
    def shared_floats(self) -> int:
        """Shared memory of a program: weights token after token, and what threads add up."""
        parts = 32 * WARPS // (self.dim // 2)
        return _QUERIES * (self.tokens + parts * self.dim)


def window_program(
    ops: Any,
    shape: WindowShape,
    head: Any,
    split: Any,
    refs: ExactRefs,
) -> None:
    """Writes the softmax state of a head's queries, which are the newest token's, over the exact tokens. Four warps.

    Args:
        ops: ``warp_ops``, or ``emulated_ops``.
        shape: sizes.
        head: which.
        split: which part of the tokens.
        refs: of the launch.
    """
    seen = _Seen(ops, shape, head, split, refs.position)
    thread = ops.thread_index()
    shared = ops.shared_address(refs.shared)
    _fetch(ops, shape, seen, thread, refs.key, shape.dtype)
    _fetch(ops, shape, seen, thread, refs.value, shape.value_dtype)
    for block in range(0, shape.rows, _QUERIES):
        if block >= shape.group:
            break
        _logits(ops, shape, seen, thread, block, refs.query, refs.key, refs.frequencies, shared)
        ops.barrier()
        _softmax(ops, shape, seen, thread, block, shared, refs.top, refs.total)
        ops.barrier()
        _values(ops, shape, seen, thread, block, refs.value, shared, refs.weighted)
        if block + _QUERIES < shape.group:
            ops.barrier()


class _Seen(SeenTokens):
    """A program's part of the exact tokens that the query sees: ``count`` of them from ``start`` on."""

    def __init__(self, ops: Any, shape: WindowShape, head: Any, split: Any, position_ref: Any) -> None:
        super().__init__(ops, shape.geometry, shape.num_kv_heads, head, position_ref)
        self.shape, self.head = shape, head
        self.start = ops.times(split, shape.tokens)
        left = ops.subtract(self.count, self.start)
        self.count = ops.larger(ops.smaller(left, ops.integer(shape.tokens)), ops.integer(0))
        first = shape.states - shape.splits
        self.state = ops.add(ops.times(head, shape.states), ops.add(split, ops.integer(first)))

    def row(self, index: Any, refs: tuple[Any, Any], dtype: Any) -> Any:
        """Where the vector of the program's ``index``-th token is; of some token, if there is none."""
        index = self.ops.add(self.start, index)
        return self.rows(index, [refs], [self.shape.dim * dtype.itemsize])[0]

    def position(self, index: Any) -> Any:
        """Of the program's ``index``-th token."""
        return super().position(self.ops.add(self.start, index))


def _fetch(ops: Any, shape: WindowShape, seen: _Seen, thread: Any, refs: tuple[Any, Any], dtype: Any) -> None:
    """Brings the tokens' vectors to the second-level cache, all at once."""
    lines = shape.dim * dtype.itemsize // _LINE
    last = ops.larger(ops.subtract(seen.count, ops.integer(1)), ops.integer(0))
    for first in range(0, shape.tokens * lines, 32 * WARPS):
        index = ops.add(thread, ops.integer(first))
        token = ops.smaller(ops.divide(index, lines), last)
        where = seen.row(token, refs, dtype)
        ops.prefetch(ops.offset(where, ops.times(ops.modulo(index, lines), _LINE)))


def _logits(
    ops: Any,
    shape: WindowShape,
    seen: _Seen,
    thread: Any,
    block: int,
    query_ref: Any,
    key_refs: tuple[Any, Any],
    frequency_ref: Any,
    shared: Any,
) -> None:
    """Eight lanes share a token; its logits to four queries go to shared memory side by side. A lane has neighbouring
    channels of both halves, which a rotary embedding mixes."""
    part, width = ops.modulo(thread, _LANES), shape.dim // 2 // _LANES
    group_of = ops.divide(thread, _LANES)
    groups = 32 * WARPS // _LANES
    itemsize = shape.query_dtype.itemsize

    def load(where: Any, dtype: Any, at: int = 0) -> list[Any]:
        size = jnp.dtype(dtype).itemsize
        mine = ops.offset(where, ops.times(part, width * size))
        halves = (load_exact(ops, mine, width, dtype, at + first * size) for first in (0, shape.dim // 2))
        return [each for half in halves for each in half]

    start = ops.offset(ops.address(query_ref), seen.head, shape.group * shape.dim * itemsize)
    count = min(_QUERIES, shape.group - block)
    queries = [load(start, shape.query_dtype, (block + n) * shape.dim * itemsize) for n in range(count)]
    mine = ops.offset(ops.address(frequency_ref), ops.times(part, 4 * width))
    frequencies = load_exact(ops, mine, width, jnp.float32) if shape.turns else []
    last = ops.larger(ops.subtract(seen.count, ops.integer(1)), ops.integer(0))
    rounds = ops.divide(ops.add(seen.count, ops.integer(groups * shape.together - 1)), groups * shape.together)
    scale = ops.real(shape.scale)

    def step(index: Any, carried: list[Any]) -> list[Any]:
        first = ops.add(ops.times(index, groups * shape.together), group_of)
        tokens = [ops.add(first, ops.integer(groups * n)) for n in range(shape.together)]
        keys = []
        for token in tokens:
            index = ops.smaller(token, last)
            key = load(seen.row(index, key_refs, shape.dtype), shape.dtype)
            if shape.turns:
                key = turned(ops, key, frequencies, seen.position(index))
            keys.append(key)
        for token, key in zip(tokens, keys, strict=True):
            found = []
            for query in queries:
                total = ops.real(0.0)
                for left, right in zip(query, key, strict=True):
                    total = ops.fused(left, right, total)
                for distance in (1, 2, 4):
                    total = ops.plus(total, ops.exchange(total, distance))
                found.append(ops.scaled(total, scale))
            found += [ops.real(LOWEST)] * (_QUERIES - count)
            target = ops.shared_offset(shared, ops.times(token, 4 * _QUERIES))
            writes = ops.less(ops.select(ops.less(part, ops.integer(1)), token, seen.count), seen.count)
            ops.only_if(writes, lambda target=target, found=found: ops.shared_store(target, found))
        return carried

    ops.loop(ops.integer(0), rounds, [], step)


def _softmax(
    ops: Any, shape: WindowShape, seen: _Seen, thread: Any, block: int, shared: Any, top_ref: Any, total_ref: Any
) -> None:
    """Each warp turns the logits of one query into weights."""
    query, lane = ops.uniform(ops.divide(thread, 32)), ops.modulo(thread, 32)
    mine = ops.shared_offset(shared, ops.times(query, 4))
    rounds = ops.divide(ops.add(seen.count, ops.integer(31)), 32)

    def place(index: Any) -> tuple[Any, Any]:
        """There is room for whole rounds; what is behind the last token counts for nothing."""
        token = ops.add(ops.times(index, 32), lane)
        return ops.shared_offset(mine, ops.times(token, 4 * _QUERIES)), ops.less(token, seen.count)

    def largest(index: Any, carried: list[Any]) -> list[Any]:
        where, real = place(index)
        return [ops.maximum(carried[0], ops.select(real, ops.shared_load(where, 1)[0], ops.real(LOWEST)))]

    top = ops.loop(ops.integer(0), rounds, [ops.real(LOWEST)], largest)[0]
    for distance in (1, 2, 4, 8, 16):
        top = ops.maximum(top, ops.exchange(top, distance))

    def weigh(index: Any, carried: list[Any]) -> list[Any]:
        where, real = place(index)
        weight = ops.power_of_two(ops.minus(ops.shared_load(where, 1)[0], top))
        ops.only_if(real, lambda: ops.shared_store(where, [weight]))
        return [ops.plus(carried[0], ops.select(real, weight, ops.real(0.0)))]

    total = ops.loop(ops.integer(0), rounds, [ops.real(0.0)], weigh)[0]
    for distance in (1, 2, 4, 8, 16):
        total = ops.plus(total, ops.exchange(total, distance))
    at = ops.times(ops.add(ops.times(seen.state, shape.rows), ops.add(query, ops.integer(block))), 4)

    def write() -> None:
        ops.store_reals(ops.offset(ops.address(top_ref), at), [top])
        ops.store_reals(ops.offset(ops.address(total_ref), at), [total])

    ops.only_if(ops.less(lane, ops.integer(1)), write)


def _values(
    ops: Any,
    shape: WindowShape,
    seen: _Seen,
    thread: Any,
    block: int,
    refs: tuple[Any, Any],
    shared: Any,
    weighted_ref: Any,
) -> None:
    """A thread adds up two channels over its part of the tokens, in steps of several tokens."""
    pairs = shape.dim // 2
    parts = 32 * WARPS // pairs
    pair, part = ops.modulo(thread, pairs), ops.divide(thread, pairs)
    last = ops.larger(ops.subtract(seen.count, ops.integer(1)), ops.integer(0))
    each = _AHEAD * parts
    rounds = ops.divide(ops.add(seen.count, ops.integer(each - 1)), each)

    def step(index: Any, sums: list[Any]) -> list[Any]:
        tokens = [
            ops.add(ops.times(index, each), ops.add(ops.times(part, _AHEAD), ops.integer(n))) for n in range(_AHEAD)
        ]
        rows = [seen.row(ops.smaller(token, last), refs, shape.value_dtype) for token in tokens]
        rows = [ops.offset(row, ops.times(pair, 2 * shape.value_dtype.itemsize)) for row in rows]
        values = [load_exact(ops, row, 2, shape.value_dtype) for row in rows]
        for token, value in zip(tokens, values, strict=True):
            where = ops.shared_offset(shared, ops.times(ops.smaller(token, last), 4 * _QUERIES))
            real = ops.less(token, seen.count)
            for n, weight in enumerate(ops.shared_load(where, _QUERIES)):
                weight = ops.select(real, weight, ops.real(0.0))
                for half in range(2):
                    sums[2 * n + half] = ops.fused(weight, value[half], sums[2 * n + half])
        return sums

    sums = ops.loop(ops.integer(0), rounds, [ops.real(0.0)] * (2 * _QUERIES), step)
    behind = 4 * _QUERIES * shape.tokens
    mine = ops.add(ops.times(part, 4 * _QUERIES * shape.dim), ops.times(pair, 8))
    for n in range(_QUERIES):
        ops.shared_store(ops.shared_offset(shared, mine), sums[2 * n : 2 * n + 2], behind + 4 * n * shape.dim)
    ops.barrier()
    out = ops.offset(ops.address(weighted_ref), seen.state, 4 * shape.rows * shape.dim)
    for first in range(0, _QUERIES * shape.dim, 32 * WARPS):
        index = ops.times(ops.add(thread, ops.integer(first)), 4)
        where = ops.shared_offset(shared, index)
        found = [ops.shared_load(where, 1, behind + 4 * n * _QUERIES * shape.dim)[0] for n in range(parts)]
        ops.store_reals(ops.offset(out, index), [functools.reduce(ops.plus, found)], 4 * block * shape.dim)
