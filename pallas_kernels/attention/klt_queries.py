"""What a step of attention over transform-coded pages knows before it reads a code: queries of every page, and logits.

The key of token ``d`` of a page that starts at position ``p`` is ``R_(p + d) mean + R_p (page mean + s gain c) B``
(``codecs.klt``). So with the query turned back by ``p``, ``q_p``, its logit is ``s (gain c) . (B q_p)``, which
codes are read for, and ``page mean . (B q_p) + q_p . R_d mean``, which is computed here for all pages at once: a Triton
kernel, products of bfloat16 in three parts, so that they are as exact as float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.codecs.klt import Klt, KltCode
from kakeya_jax.klt_layout import Layout, decoder_gain, quantizer_bytes
from kakeya_jax.pallas_kernels.attention.byte_queries import LN2
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS, LARGEST
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, GROUP, GROUPS, KltShape
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, MAGIC_BITS
from kakeya_jax.typing import Array, Float, Int

_ROWS = 64
"""Queries of pages that a program handles at once,"""

_WARPS = 4
"""and warps of it."""

_BIAS_ZERO = 32768
_BIAS_LARGEST = 32767


class PageQueries(NamedTuple):
    """Of ``N`` heads, ``rows`` queries each.

    Attributes:
        numbers: int8 ``[N, pages, blocks, 8, 8, 16]``: bytes of queries in the coordinates of a page's codes: for each
            block and group of channels the columns of products one after the other, which is the order of lanes.
        extras: int32 ``[N, pages, 8 blocks + 32]``: what sums start from; bits of the queries' factors; bits of those
            of the page mean of values, one for each group of channels; bits of the factors of ``bias``, and of what is
            added to it.
        bias: uint16 ``[N, pages, rows, page]``: numbers of the logits to the base 2 beside those of codes: a number
            plus ``2 ** 23``, times its factor, plus what is added.
    """

    numbers: Int[Array, "N pages blocks groups columns channels"]
    extras: Int[Array, "N pages words"]
    bias: Int[Array, "N pages rows page"]


def page_queries(
    query: Float[Array, "B K G D"],
    key: Klt,
    key_code: KltCode,
    value: Klt,
    value_code: KltCode,
    shape: KltShape,
    *,
    first_position: int,
    scale: float,
    interpret: bool = False,
) -> PageQueries:
    """The queries and logits of every page.

    Args:
        query: after their rotary embedding.
        key: the codec of keys, fast form, and
        key_code: all their pages, leaves ``[B, pages, ...]``.
        value: of values, and
        value_code: likewise.
        shape: of the program that reads them.
        first_position: of the first coded token.
        scale: factor of natural logits.
        interpret: run without a GPU, slowly.
    """
    batch, num_kv_heads, group, dim = query.shape
    heads, rows = batch * num_kv_heads, shape.rows
    assert key.rope_frequencies is not None
    arguments = (
        jnp.pad(query, ((0, 0), (0, 0), (0, rows - group), (0, 0))).reshape(heads, rows, dim),
        _turns(key.rope_frequencies, first_position + shape.page * jnp.arange(shape.pages)),
        _two_parts(jnp.swapaxes(key.synthesis, 1, 2)),
        key.mean,
        _two_parts(_turns(key.rope_frequencies, jnp.arange(shape.page)).reshape(shape.page, dim).T[None]),
        np.repeat(channel_units(key.layout, 0.0), GROUP, axis=1),
        *_page_mean(key_code),
        _page_mean(value_code)[1],
        1.0 / channel_units(value.layout, 1.0),
    )
    lead, columns = (heads, shape.pages), COLUMNS * shape.blocks
    together = _ROWS // rows
    whole = pl.BlockSpec(memory_space=pl.ANY)
    return PageQueries(
        *pl.pallas_call(
            functools.partial(
                _kernel,
                num_kv_heads=num_kv_heads,
                together=together,
                scale=scale / LN2,
            ),
            grid=(heads, pl.cdiv(shape.pages, together)),
            in_specs=[whole] * len(arguments),
            out_specs=[whole] * 3,
            out_shape=[
                jax.ShapeDtypeStruct((*lead, shape.blocks, GROUPS, COLUMNS, GROUP), jnp.int8),
                jax.ShapeDtypeStruct((*lead, columns + 3 * COLUMNS + GROUPS), jnp.int32),
                jax.ShapeDtypeStruct((*lead, rows, shape.page), jnp.uint16),
            ],
            compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
            interpret=interpret,
            name="page_queries",
        )(*arguments)
    )


def channel_units(layout: Layout, unused: float) -> np.ndarray:
    """What a code's byte and a half is multiplied by, ``[K, groups]``; ``unused`` where no code is."""
    return np.array(
        [
            [decoder_gain(width) * quantizer_bytes(width)[1] if width else unused for width in head]
            for head in layout.widths
        ],
        np.float32,
    )


def _kernel(
    query_ref,
    start_ref,
    map_ref,
    mean_ref,
    turn_ref,
    unit_ref,
    page_mean_ref,
    page_mean_scale_ref,
    value_scale_ref,
    inverse_unit_ref,
    number_ref,
    extra_ref,
    bias_ref,
    *,
    num_kv_heads: int,
    together: int,
    scale: float,
) -> None:
    head = pl.program_id(0)
    row, kv_head = head // num_kv_heads, head % num_kv_heads
    count, rows, half = number_ref.shape[1], query_ref.shape[1], DIM // 2
    # Beyond the last page it is done again, with the same result.
    pages = jnp.minimum(pl.program_id(1) * together + jnp.arange(together), count - 1)
    cos, sin = start_ref[pages, 0][:, None], start_ref[pages, 1][:, None]
    parts = [pl.ds(0, half), pl.ds(half, half)]
    first, second = (query_ref[head, :, part].astype(jnp.float32)[None] * scale for part in parts)
    turned = [part.reshape(together * rows, half) for part in (first * cos + second * sin, second * cos - first * sin)]
    inner = _product(turned, map_ref, kv_head)
    page_mean = page_mean_ref[row, pages, kv_head].astype(jnp.float32)
    page_mean = page_mean * page_mean_scale_ref[row, pages, kv_head].astype(jnp.float32)[:, None]
    offset = jnp.sum(inner.reshape(together, rows, DIM) * page_mean[:, None], axis=2)

    scaled = inner * unit_ref[kv_head][None]
    largest = jnp.maximum(jnp.max(jnp.abs(scaled), axis=1), 1e-37)
    numbers = _nearest(scaled * (LARGEST / largest)[:, None])
    half_sum = jnp.sum(numbers, axis=1) >> 1

    def store(part: Array, ref, first: int) -> None:
        ref[head, pages, pl.ds(first, rows)] = part.reshape(together, rows, *part.shape[1:]).astype(ref.dtype)

    row_of, group_of, channel = (jnp.arange(count) for count in (rows, GROUPS, GROUP))
    paired = number_ref.shape[2] == 1
    for place, part in enumerate(_bytes(numbers)):
        where = (
            pages[:, None, None, None],
            0 if paired else place,
            group_of[None, None, :, None],
            (row_of + (place * rows if paired else 0))[None, :, None, None],
            channel[None, None, None, :],
        )
        number_ref[head, *where] = part.reshape(together, rows, GROUPS, GROUP).astype(jnp.int8)
    for place, part in enumerate(_bytes(half_sum)):
        store(part, extra_ref, place * rows)
    columns = extra_ref.shape[2] - 3 * COLUMNS - GROUPS
    store(_bits(largest * (1 / LARGEST)), extra_ref, columns)
    means = value_scale_ref[row, pages, kv_head].astype(jnp.float32)[:, None] * inverse_unit_ref[kv_head][None]
    extra_ref[head, pages, pl.ds(columns + COLUMNS, GROUPS)] = _bits(means)
    # The query times the mean, turned by d: a sum of cosines and sines of d, whose factors alone are the query's.
    mean = [mean_ref[kv_head, part][None] for part in parts]
    factors = [turned[0] * mean[0] + turned[1] * mean[1], turned[1] * mean[0] - turned[0] * mean[1]]
    bias = _product(factors, turn_ref, 0)
    unit = jnp.maximum(jnp.max(jnp.abs(bias), axis=1), 1e-30) * (1 / _BIAS_LARGEST)
    store(_bits(unit), extra_ref, columns + COLUMNS + GROUPS)
    store(_bits(offset.reshape(-1) - unit * (2.0**23 + _BIAS_ZERO)), extra_ref, columns + 2 * COLUMNS + GROUPS)
    store(_nearest(bias / unit[:, None]) + _BIAS_ZERO, bias_ref, 0)


def _product(halves: list[Array], ref: Any, index: Any) -> Array:
    """Both halves of rows side by side times a matrix in two parts; what both second parts have together is below
    rounding."""
    total: Any = 0.0
    for half, left in enumerate(halves):
        high, low = _parts(left)
        coarse, fine = (ref[index, part, pl.ds(half * DIM // 2, DIM // 2), :] for part in range(2))
        total += _dot(low, coarse) + _dot(high, fine) + _dot(high, coarse)
    return total


def _parts(x: Array) -> tuple[Array, Array]:
    """Two numbers of bfloat16 whose sum is ``x`` to 16 bits."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


def _two_parts(x: Float[Array, "K D E"]) -> Array:
    """``_parts`` outside a kernel, where XLA would take a conversion back and find the second part to be zero."""
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return jnp.stack([high, x - high], axis=1).astype(jnp.bfloat16)


def _dot(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


def _nearest(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x + MAGIC, jnp.int32) - MAGIC_BITS


def _bytes(numbers: Array) -> tuple[Array, Array]:
    high = (numbers + 128) >> 8
    return high, numbers - (high << 8)


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _turns(frequencies: Float[Array, " half"], positions: Int[Array, " n"]) -> Float[Array, "n 2 half"]:
    """Cosines and sines of angles; in the kernel they would take longer than everything else."""
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def _page_mean(code: KltCode) -> tuple[Array, Array]:
    """Codes, and their scales; zeros for none."""
    if code.page_mean is None or code.page_mean_scale is None:
        scales = jnp.zeros(code.scale.shape[:3], jnp.float16)
        return jnp.zeros((*scales.shape, DIM), jnp.int8), scales
    return code.page_mean, code.page_mean_scale
