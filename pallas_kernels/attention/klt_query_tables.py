"""What ``klt_queries`` reads: of heads, of pages, and of where pages start."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kakeya_jax.codecs.klt import Klt, KltCode
from kakeya_jax.klt_layout import Layout, decoder_gain, quantizer_bytes
from kakeya_jax.pallas_kernels.attention.klt_curves import curve_coefficients, curve_values
from kakeya_jax.pallas_kernels.attention.klt_shape import DIM, UNIT_WORDS, KltShape
from kakeya_jax.rope import Rope
from kakeya_jax.typing import Array, Float, Int

_UNUSED = 1.0 / 128
"""The unit of channels without codes, close to those of others: only page means are multiplied with them."""


class QueryTables(NamedTuple):
    """Of a layer.

    Attributes:
        maps: float32 ``[K, E, D]``, from coordinates of codes back to keys.
        means: float32 ``[K, D]``, of keys.
        turns: float32 ``[pages, 32, 4]``: for two channels of a half the cosines and then the sines of where a page
            starts.
        coefficients: float32, see ``klt_curves.curve_coefficients``.
        curves: float16, see ``klt_curves.curve_values``.
        page_means: int8 ``[B, pages, K, D]``, and
        page_mean_scales: float16 ``[B, pages, K]``, of keys.
        value_mean_scales: float16 ``[B, pages, K]``, of values.
        units: int32 ``[K, UNIT_WORDS]``: for eight groups of keys bits of the inverse of their unit, then bytes that
            are one where codes are, for eight groups of values bits of the inverse of their unit, and for keys bits of
            their unit.
    """

    maps: Float[Array, "K E D"]
    means: Float[Array, "K D"]
    turns: Float[Array, "pages lanes four"]
    coefficients: Array
    curves: Array
    page_means: Int[Array, "B pages K D"]
    page_mean_scales: Float[Array, "B pages K"]
    value_mean_scales: Float[Array, "B pages K"]
    units: Int[Array, "K words"]


def query_tables(
    key: Klt, key_code: KltCode, value: Klt, value_code: KltCode, shape: KltShape, *, rope: Rope, first_position: int
) -> QueryTables:
    """Of all heads and pages of a layer.

    Args:
        key: the codec of keys, fast form, and
        key_code: all their pages, leaves ``[B, pages, ...]``.
        value: of values, and
        value_code: likewise.
        shape: of the program.
        rope: the rotary embedding, with the frequencies of the codec of keys.
        first_position: of the first coded token.
    """
    return QueryTables(
        maps=key.synthesis.astype(jnp.float32),
        means=key.mean.astype(jnp.float32),
        turns=jnp.asarray(_page_turns(rope, first_position, shape.page, shape.pages)),
        coefficients=jnp.asarray(curve_coefficients(rope, shape.page)),
        curves=jnp.asarray(curve_values(rope, shape.page)),
        page_means=_page_mean(key_code)[0],
        page_mean_scales=_page_mean(key_code)[1],
        value_mean_scales=_page_mean(value_code)[1],
        units=jnp.asarray(_unit_words(key.layout, value.layout)),
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


def _unit_words(key: Layout, value: Layout) -> np.ndarray:
    coded = np.where(np.asarray(key.widths) > 0, 0x01010101, 0).astype(np.int32)
    inverse = [
        (1.0 / channel_units(layout, unused)).view(np.int32) for layout, unused in ((key, _UNUSED), (value, 1.0))
    ]
    units = channel_units(key, _UNUSED).view(np.int32)
    words = np.concatenate([inverse[0], coded, inverse[1], units], axis=1)
    assert words.shape[1] == UNIT_WORDS
    return words


@functools.lru_cache(maxsize=64)
def _page_turns(rope: Rope, first_position: int, page: int, pages: int) -> np.ndarray:
    positions = first_position + page * np.arange(pages)
    angles = positions[:, None] * np.asarray(rope.frequencies, np.float64)
    turns = np.stack([np.cos(angles), np.sin(angles)], axis=1).reshape(pages, 2, DIM // 4, 2)
    return turns.transpose(0, 2, 1, 3).reshape(pages, DIM // 4, 4).astype(np.float32)


def _page_mean(code: KltCode) -> tuple[Array, Array]:
    """Codes, and their scales; zeros for none."""
    if code.page_mean is None or code.page_mean_scale is None:
        scales = jnp.zeros(code.scale.shape[:3], jnp.float16)
        return jnp.zeros((*scales.shape, DIM), jnp.int8), scales
    return code.page_mean, code.page_mean_scale
