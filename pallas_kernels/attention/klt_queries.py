"""What a step of attention over transform-coded pages knows before it reads a code: queries of every page, and logits.

The key of token ``d`` of a page that starts at position ``p`` is ``R_(p + d) mean + R_p (page mean + s gain c) B``
(``codecs.klt``). So with the query turned back by ``p``, ``q_p``, its logit is ``s (gain c) . (B q_p)``, which
codes are read for, and ``page mean . (B q_p) + q_p . R_d mean``, which is computed here for all pages at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.codecs.klt import Klt, KltCode
from kakeya_jax.klt_layout import Layout, decoder_gain, quantizer_bytes
from kakeya_jax.pallas_kernels.attention.byte_queries import LN2, byte_queries
from kakeya_jax.pallas_kernels.attention.coded_shape import COLUMNS
from kakeya_jax.pallas_kernels.attention.klt_shape import GROUP, GROUPS, KltShape
from kakeya_jax.rope import rotate_by
from kakeya_jax.typing import Array, Float, Int


class PageQueries(NamedTuple):
    """Of ``N`` heads, ``rows`` queries each.

    Attributes:
        records: int32 ``[N, pages, words]``: queries in the coordinates of a page's codes as bytes, in the order in
            which lanes take them, then what sums start from, factors, and those of the page mean of values.
        bias: float32 ``[N, pages, page, rows]``: logits to the base 2 beside those of codes.
    """

    records: Int[Array, "N pages words"]
    bias: Float[Array, "N pages page rows"]


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
    """
    batch, heads, group, dim = query.shape
    assert key.rope_frequencies is not None
    starts = first_position + shape.page * jnp.arange(shape.pages, dtype=jnp.int32)
    angles = starts[:, None, None].astype(jnp.float32) * key.rope_frequencies
    turned = rotate_by(query.astype(jnp.float32)[:, :, None] * (scale / LN2), -angles)  # [B, K, pages, G, D]
    inner = jnp.einsum("bkpgd,ked->bkpge", turned, key.synthesis, precision="highest")

    inside = jnp.arange(shape.page, dtype=jnp.float32)[:, None] * key.rope_frequencies
    means = rotate_by(key.mean[:, None], inside)  # [K, page, D]
    bias = jnp.einsum("bkpgd,knd->bkpng", turned, means, precision="highest")
    page_mean = _page_mean(key_code)
    if page_mean is not None:
        bias = bias + jnp.einsum("bkpge,bpke->bkpg", inner, page_mean, precision="highest")[:, :, :, None]
    bias = jnp.pad(bias, ((0, 0),) * 4 + ((0, shape.rows - group),))

    count = batch * heads * shape.pages
    units = jnp.repeat(jnp.asarray(channel_units(key.layout, 0.0)), GROUP, axis=1)
    numbers, start, factor = byte_queries((inner * units[:, None, None]).reshape(count, group, dim), LN2)
    by_lane = numbers.reshape(count, shape.blocks, COLUMNS, GROUPS, 4, 4).transpose(0, 1, 2, 4, 3, 5)
    words = jax.lax.bitcast_convert_type(by_lane, jnp.int32).reshape(count, -1)
    records = [words, start, jax.lax.bitcast_convert_type(factor, jnp.int32), _mean_factors(value, value_code)]
    return PageQueries(
        records=jnp.concatenate(records, axis=1).reshape(batch * heads, shape.pages, -1),
        bias=bias.reshape(batch * heads, shape.pages, shape.page, shape.rows),
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


def _page_mean(code: KltCode) -> Float[Array, "B pages K D"] | None:
    if code.page_mean is None or code.page_mean_scale is None:
        return None
    return code.page_mean.astype(jnp.float32) * code.page_mean_scale.astype(jnp.float32)[..., None]


def _mean_factors(value: Klt, code: KltCode) -> Int[Array, "count groups"]:
    """Of a page's mean of values, in units of their channels; its bits."""
    batch, pages, heads, _ = code.scale.shape
    factors = jnp.zeros((batch, pages, heads, GROUPS), jnp.float32)
    if code.page_mean_scale is not None:
        factors = code.page_mean_scale.astype(jnp.float32)[..., None] / channel_units(value.layout, 1.0)
    by_head = factors.transpose(0, 2, 1, 3).reshape(batch * heads * pages, GROUPS)
    return jax.lax.bitcast_convert_type(by_head, jnp.int32)
