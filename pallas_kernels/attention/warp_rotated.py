"""Decode attention over rotated, scalar-quantised keys and values, in the fragments of ``mma.sync``: Mosaic GPU.

A warp owns tiles of 64 tokens and its own softmax state; warps meet only in what they leave. Tokens are the rows of
the first product and the depth of the second, up to eight queries its columns. Lane ``(g, t)``, ``g = lane / 4``, has
tokens ``8 g .. 8 g + 7`` of a tile as rows of keys: token ``8 g + 2 i`` is row ``g`` and ``8 g + 2 i + 1`` row
``g + 8`` of product ``i``, so that its scales are one load. The order of dimensions along a product's depth is free as
long as both sides agree: a lane takes the words of a token that lie next to each other, and the query is permuted
once, outside.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu

from kakeya_jax.pallas_kernels.attention import warp_ops as ops
from kakeya_jax.pallas_kernels.attention.half_queries import LN2, half_queries
from kakeya_jax.pallas_kernels.attention.packed_format import Format
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST, SoftmaxState
from kakeya_jax.pallas_kernels.attention.warp_unpack import unpack_word
from kakeya_jax.typing import Array, Float, Int, UInt8

TILE = 64
"""Tokens that a warp handles at once."""

QUERIES = 8
"""Columns of a product."""

WARPGROUPS = 3
"""Groups of four warps in a program: one program fills a multiprocessor. The compiler then has 168 registers for a
thread, which is what a tile needs; left to itself it takes more, and fewer warps fit."""

_STEPS = TILE // 16


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Of one head: the dimension and how keys and values are packed."""

    dim: int
    key: Format
    value: Format

    @property
    def key_words(self) -> int:
        """Words of a key that one lane has."""
        return self.dim * self.key.bits // 128

    @property
    def key_bytes(self) -> int:
        """Of a token's indices."""
        return self.dim * self.key.bits // 8

    @property
    def value_bytes(self) -> int:
        """Of a token's indices."""
        return self.dim * self.value.bits // 8

    @property
    def value_words(self) -> int:
        """Words of a value that one lane loads; two lanes share a word if there is but half a word for each."""
        return max(1, self.dim * self.value.bits // 256)

    @property
    def shares_words(self) -> bool:
        """Whether two lanes share a word of a value."""
        return self.dim * self.value.bits < 256

    @property
    def blocks(self) -> int:
        """Products that cover the dimensions of a value."""
        return self.dim // 16


def attend_rotated(
    query: Float[Array, "N G D"],
    key_codes: UInt8[Array, "N T kw"],
    key_scales: Float[Array, "N T"],
    value_codes: UInt8[Array, "N T vw"],
    value_scales: Float[Array, "N T"],
    lengths: Int[Array, " N"],
    *,
    key_format: Format,
    value_format: Format,
    scale: float,
    splits: int,
    warpgroups: int = WARPGROUPS,
) -> SoftmaxState:
    """The softmax over the first ``lengths[n]`` tokens of each of ``N`` heads, values still rotated.

    Args:
        query: rotated as the keys are; at most 8 for a head.
        key_codes: packed indices of each token, and
        key_scales: float16, what their levels are multiplied by.
        value_codes: of the values, and
        value_scales: likewise.
        lengths: int32, multiples of 64.
        key_format: of the keys.
        value_format: of the values.
        scale: factor of the logits.
        splits: programs that share the tokens of one head.
        warpgroups: of a program.

    Returns:
        State of shape ``[4 warpgroups splits, N, G]``.
    """
    heads, group, dim = query.shape
    shape = _Shape(dim, key_format, value_format)
    halves, factor = half_queries(query, QUERIES, scale * key_format.unit)
    lane = np.arange(32)[:, None, None]
    fragments = jax.lax.bitcast_convert_type(halves[:, lane // 4, _query_dims(shape)], jnp.int32)
    warps = 4 * warpgroups
    states = heads * splits * warps
    kernel = plgpu.kernel(
        functools.partial(_body, shape=shape, splits=splits, warps=warps, tokens=key_scales.shape[1]),
        out_type=(
            jax.ShapeDtypeStruct((states, QUERIES), jnp.float32),
            jax.ShapeDtypeStruct((states, QUERIES), jnp.float32),
            jax.ShapeDtypeStruct((states, QUERIES, dim), jnp.float32),
        ),
        grid=(heads * splits,),
        grid_names=("program",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )
    top, total, weighted = kernel(
        fragments, factor, key_codes, key_scales, value_codes, value_scales, lengths.astype(jnp.int32)
    )

    def by_split(states: Array) -> Array:
        states = states.reshape(heads, splits * warps, QUERIES, *states.shape[2:])
        return jnp.swapaxes(states, 0, 1)[:, :, :group]

    return SoftmaxState(by_split(top) * LN2, by_split(total), by_split(weighted) * value_format.unit)


def _query_dims(shape: _Shape) -> np.ndarray:
    """For every lane and register of query fragments the two dimensions it holds: ``[32, D / 8, 2]``."""
    half = 16 // shape.key.bits
    dims = np.zeros((32, shape.dim // 8, 2), np.int32)
    for lane in range(32):
        for word in range(shape.key_words):
            first = ((lane % 4) * shape.key_words + word) * 2 * half
            for plane in range(half):
                dims[lane, word * half + plane] = (first + plane, first + plane + half)
    return dims


def _body(*refs: Any, shape: _Shape, splits: int, warps: int, tokens: int) -> None:
    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),) * len(refs), return_type=None)
    def program(context: Any, *refs: Any) -> None:
        del context
        _program(*refs, shape=shape, splits=splits, warps=warps, tokens=tokens)

    program(*refs)


def _program(
    query_ref: Any,
    factor_ref: Any,
    key_ref: Any,
    key_scale_ref: Any,
    value_ref: Any,
    value_scale_ref: Any,
    length_ref: Any,
    top_ref: Any,
    total_ref: Any,
    weighted_ref: Any,
    *,
    shape: _Shape,
    splits: int,
    warps: int,
    tokens: int,
) -> None:
    thread = arith.index_cast(ops.i32(), gpu.thread_id(gpu.Dimension.x))
    program = arith.index_cast(ops.i32(), gpu.block_id(gpu.Dimension.x))
    warp, lane = _divide(thread, 32), _modulo(thread, 32)
    row, column = _divide(lane, 4), _modulo(lane, 4)
    head, split = arith.divui(program, ops.integer(splits)), arith.remui(program, ops.integer(splits))

    tiles = arith.divui(ops.load_words(ops.address(length_ref, _times(head, 4)), 1)[0], ops.integer(TILE))
    share = arith.divui(arith.addi(tiles, ops.integer(splits - 1)), ops.integer(splits))
    first = arith.addi(arith.minui(arith.muli(split, share), tiles), warp)
    stop = arith.minui(arith.muli(arith.addi(split, ops.integer(1)), share), tiles)
    last = arith.maxsi(arith.subi(stop, ops.integer(1)), ops.integer(0))

    count = shape.dim // 8
    where = ops.address(query_ref, _times(arith.addi(_times(head, 32), lane), 4 * count))
    query = [word for part in range(0, count, 4) for word in ops.load_words(where, 4, 4 * part)]
    factors = ops.load_reals(
        ops.address(factor_ref, _times(arith.addi(_times(head, QUERIES), _times(column, 2)), 4)), 2
    )

    def start_of(ref: Any, bytes_per_token: int, lane_offset: Any) -> Any:
        """Where this lane reads in the head's first tile."""
        return arith.addi(ops.address(ref, lane_offset), _wide_times(head, tokens * bytes_per_token))

    key_start = start_of(
        key_ref, shape.key_bytes, arith.addi(_times(row, 8 * shape.key_bytes), _times(column, 4 * shape.key_words))
    )
    word = _divide(row, 2) if shape.shares_words else row
    value_start = start_of(
        value_ref,
        shape.value_bytes,
        arith.addi(_times(column, 16 * shape.value_bytes), _times(word, 4 * shape.value_words)),
    )
    scale_starts = [start_of(ref, 2, _times(row, 16)) for ref in (key_scale_ref, value_scale_ref)]

    def load_keys(tile: Any) -> list[Any]:
        """Words of this lane's eight tokens, token after token."""
        where = arith.addi(key_start, _wide_times(tile, TILE * shape.key_bytes))
        return [each for token in range(8) for each in ops.load_words(where, shape.key_words, token * shape.key_bytes)]

    def step(tile: Any, carried: list[Any]) -> list[Any]:
        keys, (top, total, norm, weighted) = carried[: 8 * shape.key_words], _split(carried[8 * shape.key_words :])
        where = arith.addi(value_start, _wide_times(tile, TILE * shape.value_bytes))
        values = [
            [ops.load_words(where, shape.value_words, offset * shape.value_bytes) for offset in _value_tokens(part)]
            for part in range(_STEPS)
        ]
        scales = [ops.load_words(arith.addi(each, _wide_times(tile, 2 * TILE)), 4) for each in scale_starts]
        logits = [_logits(shape, keys, query, part) for part in range(_STEPS)]
        following = arith.minui(arith.addi(tile, ops.integer(warps)), last)
        keys = load_keys(following)
        for part, each in enumerate(logits):
            by_row = [ops.half_of(scales[0][part], upper=upper) for upper in (False, True)]
            logits[part] = [
                arith.mulf(arith.mulf(logit, by_row[index // 2]), factors[index % 2])
                for index, logit in enumerate(each)
            ]
        new_top = [_over_rows(_largest([top[n], *(x for each in logits for x in each[n::2])])) for n in range(2)]
        new_norm = ops.maximum(norm, _over_rows(ops.largest_half(scales[1])))
        grows = functools.reduce(
            arith.ori, (_above(new, old) for new, old in zip((*new_top, new_norm), (*top, norm), strict=True))
        )
        state = ops.choose(
            ops.any_lane(grows),
            lambda: _rescaled(top, total, norm, weighted, new_top, new_norm),
            _joined(top, total, norm, weighted),
        )
        top, total, norm, weighted = _split(state)
        inverse = arith.divf(ops.real(1.0), ops.maximum(norm, ops.real(1e-30)))
        for part in range(_STEPS):
            shares = [ops.power_of_two(arith.subf(x, top[n % 2])) for n, x in enumerate(logits[part])]
            total = [arith.addf(total[n], arith.addf(shares[n], shares[n + 2])) for n in range(2)]
            by_row = [arith.mulf(ops.half_of(scales[1][part], upper=upper), inverse) for upper in (False, True)]
            scaled = [arith.mulf(x, by_row[n // 2]) for n, x in enumerate(shares)]
            columns = [ops.transpose(ops.pack_halves(*scaled[n : n + 2])) for n in (0, 2)]
            weighted = _add_values(shape, weighted, values[part], columns, row)
        return [*keys, *_joined(top, total, norm, weighted)]

    empty = _joined([ops.real(LOWEST)] * 2, [ops.real(0.0)] * 2, ops.real(0.0), [[ops.real(0.0)] * 4] * shape.blocks)
    keys = load_keys(arith.minui(first, last))
    final = ops.loop(first, stop, ops.integer(warps), [*keys, *empty], step)
    top, total, norm, weighted = _split(final[8 * shape.key_words :])
    total = [_over_rows(each, arith.addf) for each in total]
    state = arith.addi(_times(program, warps), warp)
    place = arith.addi(_times(state, QUERIES), _times(column, 2))
    # All rows of lanes hold the same; they write the same.
    ops.store_reals(ops.address(top_ref, _times(place, 4)), top)
    ops.store_reals(ops.address(total_ref, _times(place, 4)), total)
    for n in range(2):
        where = ops.address(
            weighted_ref,
            arith.addi(
                _wide_times(arith.addi(place, ops.integer(n)), 4 * shape.dim),
                _wide(_times(row, 4 * shape.dim // 8)),
            ),
        )
        held = [arith.mulf(each[n + half], norm) for each in weighted for half in (0, 2)]
        for part in range(0, len(held), 4):
            ops.store_reals(where, held[part : part + 4], 4 * part)


def _value_tokens(part: int) -> tuple[int, ...]:
    """Which of the lane's 16 tokens of a tile product ``part`` needs: rows ``2 t, 2 t + 1``, then those 8 further."""
    return (2 * part, 8 + 2 * part, 2 * part + 1, 8 + 2 * part + 1)


def _logits(shape: _Shape, keys: list[Any], query: list[Any], part: int) -> list[Any]:
    """Products of 16 tokens with all queries."""
    total = [ops.real(0.0)] * 4
    planes = 16 // shape.key.bits
    words = shape.key_words
    for word in range(words):
        upper, lower = (unpack_word(keys[(2 * part + half) * words + word], shape.key) for half in range(2))
        for plane in range(0, planes, 2):
            left = (upper[plane], lower[plane], upper[plane + 1], lower[plane + 1])
            total = ops.multiply(total, left, query[word * planes + plane : word * planes + plane + 2])
    return total


def _add_values(
    shape: _Shape, weighted: list[list[Any]], words: list[list[Any]], columns: list[Any], row: Any
) -> list[list[Any]]:
    """Adds 16 tokens to the sums of all dimensions."""
    low, high = ops.integer(0x5410), ops.integer(0x7632)
    if shape.shares_words:
        odd = arith.cmpi(arith.CmpIPredicate.ne, _modulo(row, 2), ops.integer(0))
        selectors = [arith.select(odd, high, low)]
    else:
        selectors = [low, high]
    planes: list[tuple[Any, Any]] = []
    for word in range(shape.value_words):
        for selector in selectors:
            near, far = (
                unpack_word(
                    ops.permute_bytes(words[pair][word], words[pair + 1][word], selector),
                    shape.value,
                )
                for pair in (0, 2)
            )
            planes += zip(near, far, strict=True)
    return [
        ops.multiply(total, (planes[2 * n][0], planes[2 * n + 1][0], planes[2 * n][1], planes[2 * n + 1][1]), columns)
        for n, total in enumerate(weighted)
    ]


def _rescaled(
    top: list[Any], total: list[Any], norm: Any, weighted: list[list[Any]], new_top: list[Any], new_norm: Any
) -> list[Any]:
    """The state relative to a new largest logit and a new largest scale of values."""
    decay = [ops.power_of_two(arith.subf(old, new)) for old, new in zip(top, new_top, strict=True)]
    shrink = arith.divf(norm, ops.maximum(new_norm, ops.real(1e-30)))
    factors = [arith.mulf(each, shrink) for each in decay]
    return _joined(
        new_top,
        [arith.mulf(*each) for each in zip(total, decay, strict=True)],
        new_norm,
        [[arith.mulf(x, factors[n % 2]) for n, x in enumerate(each)] for each in weighted],
    )


def _joined(top: list[Any], total: list[Any], norm: Any, weighted: list[list[Any]]) -> list[Any]:
    return [*top, *total, norm, *(x for each in weighted for x in each)]


def _split(state: list[Any]) -> tuple[list[Any], list[Any], Any, list[list[Any]]]:
    sums = state[5:]
    return state[:2], state[2:4], state[4], [sums[n : n + 4] for n in range(0, len(sums), 4)]


def _over_rows(value: Any, combine: Any = ops.maximum) -> Any:
    """Over the eight lanes of the same column."""
    for distance in (4, 8, 16):
        value = combine(value, ops.exchange(value, distance))
    return value


def _largest(values: list[Any]) -> Any:
    return functools.reduce(ops.maximum, values)


def _above(first: Any, second: Any) -> Any:
    return arith.cmpf(arith.CmpFPredicate.OGT, first, second)


def _divide(value: Any, by: int) -> Any:
    return arith.divui(value, ops.integer(by))


def _modulo(value: Any, by: int) -> Any:
    return arith.remui(value, ops.integer(by))


def _times(value: Any, by: int) -> Any:
    return arith.muli(value, ops.integer(by))


def _wide(value: Any) -> Any:
    return arith.extui(ir.IntegerType.get_signless(64), value)


def _wide_times(value: Any, by: int) -> Any:
    i64 = ir.IntegerType.get_signless(64)
    return arith.muli(_wide(value), arith.constant(i64, by))
