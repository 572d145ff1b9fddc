"""Decode attention over rotated, scalar-quantised keys and values with a scale for each token: a Triton kernel.

The query group is padded to 16 rows, the tokens of a tile are the other side of both products. Splits of the valid
tokens run side by side; each leaves a softmax state for the caller to merge.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.pallas_kernels.attention.half_queries import LN2, half_queries
from kakeya_jax.pallas_kernels.attention.packed_format import Format
from kakeya_jax.pallas_kernels.attention.softmax_state import LOWEST, SoftmaxState
from kakeya_jax.pallas_kernels.attention.triton_unpack import unpack_plane
from kakeya_jax.typing import Array, Float, Int, UInt8

_SMALLEST_DOT = 16
"""Rows and columns that a product in Triton has at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """How the work is cut.

    Attributes:
        tile: tokens handled at once, a power of two of at least 16.
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
    value_codes: UInt8[Array, "N T vw"],
    value_scales: Float[Array, "N T"],
    lengths: Int[Array, " N"],
    *,
    key_format: Format,
    value_format: Format,
    scale: float,
    tiling: Tiling,
    interpret: bool = False,
) -> SoftmaxState:
    """The softmax over the first ``lengths[n]`` tokens of each of ``N`` heads, values still rotated.

    Args:
        query: rotated as the keys are.
        key_codes: packed indices of each token, and
        key_scales: float16, what their levels are multiplied by.
        value_codes: of the values, and
        value_scales: likewise.
        lengths: int32, multiples of ``tiling.tile``.
        key_format: of the keys.
        value_format: of the values.
        scale: factor of the logits.
        tiling: how the work is cut.
        interpret: run without a GPU, slowly.

    Returns:
        State of shape ``[splits, N, G]``.
    """
    heads, group, dim = query.shape
    rows = max(_SMALLEST_DOT, pl.next_power_of_2(group))
    halves, factor = half_queries(query, rows, scale * key_format.unit)
    planes = halves.reshape(heads, rows, -1, key_format.planes).transpose(0, 3, 1, 2)
    kernel = functools.partial(
        _kernel, key_format=key_format, value_format=value_format, tiling=tiling, interpret=interpret
    )
    width = dim // value_format.planes
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
            jax.ShapeDtypeStruct((*lead, value_format.planes, rows, width), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name="decode_rotated",
    )(planes, factor, key_codes, key_scales, value_codes, value_scales, lengths)
    weighted = weighted.transpose(0, 1, 3, 4, 2).reshape(*lead, rows, dim)[:, :, :group]
    return SoftmaxState(top[..., :group] * LN2, total[..., :group], weighted * value_format.unit)


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
    key_format: Format,
    value_format: Format,
    tiling: Tiling,
    interpret: bool,
) -> None:
    head, split = pl.program_id(0), pl.program_id(1)
    rows, tile = query_ref.shape[2], tiling.tile
    width = weighted_ref.shape[-1]
    queries = [query_ref[head, plane] for plane in range(key_format.planes)]
    factor = factor_ref[head]
    tiles = length_ref[head] // tile
    share = pl.cdiv(tiles, tiling.splits)

    def levels(words: Array, plane: int, stored: Format) -> Array:
        return unpack_plane(words, plane, stored, interpret=interpret)

    def step(index: Array, state: tuple[Array, Array, tuple[Array, ...]]) -> tuple[Array, Array, tuple[Array, ...]]:
        top, total, weighted = state
        tokens = pl.ds(index * tile, tile)
        words = key_ref[head, tokens, :]
        logits = jnp.zeros((rows, tile), jnp.float32)
        for plane, each in enumerate(queries):
            logits += _dot(each, levels(words, plane, key_format).T)
        logits *= key_scale_ref[head, tokens].astype(jnp.float32)[None, :]
        logits *= factor[:, None]
        new_top = jnp.maximum(top, jnp.max(logits, axis=1))
        decay = jnp.exp2(top - new_top)
        shares = jnp.exp2(logits - new_top[:, None])
        scales = value_scale_ref[head, tokens].astype(jnp.float32)
        largest = jnp.maximum(jnp.max(scales), 1e-30)  # so that float16 holds the shares of small values
        scaled = (shares * (scales / largest)[None, :]).astype(jnp.float16)
        words = value_ref[head, tokens, :]
        weighted = tuple(
            each * decay[:, None] + largest * _dot(scaled, levels(words, plane, value_format))
            for plane, each in enumerate(weighted)
        )
        return new_top, total * decay + jnp.sum(shares, axis=1), weighted

    start = (
        jnp.full((rows,), LOWEST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        tuple(jnp.zeros((rows, width), jnp.float32) for _ in range(value_format.planes)),
    )
    top, total, weighted = lax.fori_loop(
        jnp.minimum(split * share, tiles), jnp.minimum((split + 1) * share, tiles), step, start
    )
    top_ref[split, head] = top
    total_ref[split, head] = total
    for plane, each in enumerate(weighted):
        weighted_ref[split, head, plane] = each


def _dot(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)
