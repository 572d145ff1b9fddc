"""Decode attention over rotated, scalar-quantised keys and values with a scale for each token: a Triton kernel.

The query group is padded to 16 rows, the tokens of a tile are the other side of both products. A byte of codes is
unpacked plane by plane (``triton_unpack``): a plane of keys is some of the channels, one of values some of the tokens,
and tokens are taken in the order in which planes of values have them. Splits of the valid tokens run side by side;
each leaves a softmax state for the caller to merge.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.pallas_kernels.attention.coded_shape import TILE, Codes
from kakeya_jax.pallas_kernels.attention.half_queries import half_queries
from kakeya_jax.pallas_kernels.attention.softmax_state import LN2, LOWEST, SoftmaxState
from kakeya_jax.pallas_kernels.attention.triton_unpack import place, plane_order, planes, unpack_plane
from kakeya_jax.typing import Array, Float, Int, UInt8

_SMALLEST_DOT = 16
"""Rows and columns that a product in Triton has at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """How the work is cut.

    Attributes:
        tile: tokens handled at once, a power of two: 32 or 64 if values have 4 bits, 64 if they have 2.
        splits: programs that share the tokens of one head.
        num_warps: warps of a program.
        num_stages: tiles in flight.
    """

    tile: int = 64
    splits: int = 16
    num_warps: int = 4
    num_stages: int = 3


def attend_rotated(
    query: Float[Array, "N G D"],
    key_codes: UInt8[Array, "N T kw"],
    key_scales: Float[Array, "N T"],
    value_codes: UInt8[Array, "N tiles D vw"],
    value_scales: Float[Array, "N T"],
    lengths: Int[Array, " N"],
    *,
    key: Codes,
    value: Codes,
    key_unit: float,
    value_unit: float,
    scale: float,
    tiling: Tiling,
    interpret: bool = False,
) -> SoftmaxState:
    """The softmax over the first ``lengths[n]`` tokens of each of ``N`` heads, values still rotated.

    Args:
        query: rotated as the keys are.
        key_codes: packed along channels (``code_words``), and
        key_scales: float16, what their levels are multiplied by.
        value_codes: packed along tokens, 64 of them after another (``token_tiles``), and
        value_scales: likewise.
        lengths: int32, multiples of ``tiling.tile``.
        key: how keys are packed.
        value: how values are.
        key_unit: of the levels of keys, and
        value_unit: of values.
        scale: factor of the logits.
        tiling: how the work is cut.
        interpret: run without a GPU, slowly.

    Returns:
        State of shape ``[splits, N, G]``.
    """
    heads, group, dim = query.shape
    rows = max(_SMALLEST_DOT, pl.next_power_of_2(group))
    halves, factor = half_queries(query, rows, scale * key_unit)
    by_plane = halves[:, :, plane_order(dim, key)].transpose(0, 2, 1, 3)
    kernel = functools.partial(_kernel, key=key, value=value, tiling=tiling, interpret=interpret)
    lead = (tiling.splits, heads)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    top, total, weighted = pl.pallas_call(
        kernel,
        grid=(heads, tiling.splits),
        in_specs=[whole] * 7,
        out_specs=[whole] * 3,
        out_shape=[
            jax.ShapeDtypeStruct((*lead, rows), jnp.float32),
            jax.ShapeDtypeStruct((*lead, rows), jnp.float32),
            jax.ShapeDtypeStruct((*lead, rows, dim), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name="decode_rotated",
    )(by_plane, factor, key_codes, key_scales, value_codes, value_scales, lengths)
    return SoftmaxState(top[..., :group] * LN2, total[..., :group], weighted[:, :, :group] * value_unit)


def _kernel(
    query_ref,
    factor_ref,
    key_ref,
    key_scale_ref,
    value_ref,
    value_scale_ref,
    length_ref,
    top_ref,
    total_ref,
    weighted_ref,
    *,
    key: Codes,
    value: Codes,
    tiling: Tiling,
    interpret: bool,
) -> None:
    head, split = pl.program_id(0), pl.program_id(1)
    rows, tile = query_ref.shape[2], tiling.tile
    dim = weighted_ref.shape[-1]
    width = tile // planes(value)
    queries = [query_ref[head, plane] for plane in range(planes(key))]
    factor = factor_ref[head]
    tiles = length_ref[head] // tile
    share = pl.cdiv(tiles, tiling.splits)
    channels = jnp.arange(dim)

    def levels(words: Array, plane: int, codes: Codes) -> Array:
        return unpack_plane(words, plane, codes, interpret=interpret)

    def logits_of(tokens: Array) -> Array:
        words = key_ref[head, tokens, :]
        logits = jnp.zeros((rows, width), jnp.float32)
        for plane, each in enumerate(queries):
            logits += _dot(each, levels(words, plane, key).T)
        return logits * key_scale_ref[head, tokens].astype(jnp.float32)[None, :] * factor[:, None]

    def step(index: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, weighted = state
        byte = jnp.arange(width)
        tokens = [index * tile + place(byte, plane, value) for plane in range(planes(value))]
        logits = [logits_of(each) for each in tokens]
        scales = [value_scale_ref[head, each].astype(jnp.float32) for each in tokens]
        new_top = functools.reduce(jnp.maximum, (jnp.max(each, axis=1) for each in logits), top)
        largest = functools.reduce(jnp.maximum, (jnp.max(each) for each in scales))
        largest = jnp.maximum(largest, 1e-30)  # so that float16 holds the shares of small values
        decay = jnp.exp2(top - new_top)
        total, added = total * decay, jnp.zeros((rows, dim), jnp.float32)
        start = index * tile % TILE // planes(value)
        words = value_ref[head, index * tile // TILE, channels[:, None], (start + byte)[None, :]]
        for plane, (each, scale) in enumerate(zip(logits, scales, strict=True)):
            shares = jnp.exp2(each - new_top[:, None])
            total += jnp.sum(shares, axis=1)
            scaled = (shares * (scale / largest)[None, :]).astype(jnp.float16)
            added += _dot(scaled, levels(words, plane, value).T)
        return new_top, total, weighted * decay[:, None] + largest * added

    start = (
        jnp.full((rows,), LOWEST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, dim), jnp.float32),
    )
    top, total, weighted = lax.fori_loop(
        jnp.minimum(split * share, tiles), jnp.minimum((split + 1) * share, tiles), step, start
    )
    top_ref[split, head] = top
    total_ref[split, head] = total
    weighted_ref[split, head] = weighted


def _dot(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)
