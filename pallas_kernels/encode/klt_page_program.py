"""The program of one page of one head of ``klt``: from tokens to words, in registers.

Coordinates by products of bfloat16, six for each half of the channels, which leaves an error like that of float32; the
page's mean; each token's scale by least squares, quantising anew in each round; then the codes of the last scale, put
together to words in the order of ``klt_words``. Values are in half units of their channel's levels, where a code is one
look-up (``level_tables``).

Of keys, the rows of a program are not in the order of tokens: two bits of their number are exchanged, so that the codes
of a word are neighbours.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.codecs.klt import SCALE_STEPS, SCALE_ZERO
from kakeya_jax.numeric import F16_MAX
from kakeya_jax.pallas_kernels.encode.level_tables import HIGHEST, LOWEST
from kakeya_jax.typing import Array, Float, Int, StreamName

_MAGIC = 1.5 * 2.0**23
"""A sum with it has the nearest integer in its bits,"""

_MAGIC_BITS = 0x4B400000
"""beside these. (Taken away as a float, a compiler takes both back.)"""

_LARGE = 1e30


def encode_page(block_ref: Any, refs: dict[str, Any], *, stream: StreamName, rounds: int) -> None:
    """Writes what ``refs`` has places for.

    Args:
        block_ref: ``[B, K, pages, n, D]``.
        refs: tables and results, as ``klt_pages`` names them.
        stream: keys or values.
        rounds: of least squares for a token's scale.
    """
    pages = block_ref.shape[2]
    place, head = pl.program_id(0), pl.program_id(1)
    row, page = place // pages, place % pages
    n = block_ref.shape[3]
    tokens = _tokens(n, stream)
    z = _coordinates(block_ref, refs, (row, head, page), tokens)
    if "page_mean" in refs:
        average = jnp.sum(z, axis=0) * (1 / n)
        scale = jnp.minimum(jnp.max(jnp.abs(average)) / 127.0, F16_MAX).astype(jnp.float16)
        stored = scale.astype(jnp.float32)
        codes = jnp.clip(_nearest(average / jnp.maximum(stored, 1e-12)), -127.0, 127.0)
        refs["page_mean_scale"][row, page, head] = scale
        refs["page_mean"][row, page, head, :] = codes.astype(jnp.int32).astype(jnp.int8)
        z = z - (codes * stored)[None]
    inverse, share, cost = (refs["channels"][head, index, :][None] for index in range(3))
    start = refs["places"][head, 1, :][None]
    y = z * inverse

    def table_index(scale: Float[Array, " n"]) -> Int[Array, "n D"]:
        above = jnp.ceil(y * jnp.exp2((SCALE_ZERO - scale) * (1 / SCALE_STEPS))[:, None])
        return start + jnp.clip(above, LOWEST, HIGHEST).astype(jnp.int32)

    def turn(_: Any, scale: Float[Array, " n"]) -> Float[Array, " n"]:
        level = 2.0 * refs["levels"][table_index(scale)].astype(jnp.float32) + 1.0
        weighted = cost * level
        along, length = jnp.sum(weighted * y, axis=1), jnp.sum(weighted * level, axis=1)
        return _scale_code(along / jnp.maximum(length, 1e-30))

    scale = _scale_code(jnp.sqrt(jnp.sum(z * z * share, axis=1)))
    scale = jax.lax.fori_loop(0, rounds, turn, scale)
    refs["scale"][row, page, head, tokens] = scale.astype(jnp.int32).astype(jnp.uint8)
    fields = refs["fields"][table_index(scale)].astype(jnp.int32)
    _store_words(refs["words"], (row, page), fields, refs["places"], head, stream)


def _coordinates(block_ref: Any, refs: dict[str, Any], where: Any, tokens: Int[Array, " n"]) -> Float[Array, "n D"]:
    half = block_ref.shape[-1] // 2
    halves, head = [pl.ds(0, half), pl.ds(half, half)], where[1]
    parts = []
    for some in halves:
        x = block_ref[(*where, tokens, some)]
        x = jnp.clip(jnp.where(x == x, x, 0.0), -_LARGE, _LARGE)
        parts.append(x - refs["mean"][head, some][None])
    if "turns" in refs:
        first, second = parts
        cos, sin = (refs["turns"][index, tokens, :] for index in range(2))
        parts = [first * cos - second * sin, second * cos + first * sin]
    total: Any = 0.0
    for some, part in zip(halves, parts, strict=True):
        most = refs["farthest"][head, some][None]
        left = _three_parts(jnp.clip(part, -most, most))
        right = [refs["map"][head, index, some, :] for index in range(3)]
        for one, other in ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)):
            total += jnp.dot(left[one], right[other], preferred_element_type=jnp.float32)
    return total


def _store_words(word_ref: Any, where: Any, fields: Int[Array, "n D"], places: Any, head: Any, stream: StreamName):
    """Words of all widths, each where its channel's width says."""
    n, dim = fields.shape
    channel, row = jnp.arange(dim)[None], jnp.arange(n)[:, None]
    if stream == "key":
        column = jnp.arange(dim // 4) << 2
        place, neighbours = (row & 3) << 2 | channel & 3, 4
        unit_of_column = (column & 12) >> 1
    else:
        column = jnp.arange(dim)
        place, neighbours = jnp.broadcast_to(row & 15, fields.shape), 16
        unit_of_column = (column & 7) << 3 | column >> 3 & 1
    width, first, stride = (places[head, index, column] for index in (0, 2, 3))
    wide = places[head, 0, :][None]

    def store(shifted: Array, together: int, chosen: Array, first_word: Any) -> None:
        """Sums of ``together`` codes, which do not overlap; each is a word of a unit of 16."""
        rows = together
        if stream == "key":
            shifted, rows = jnp.sum(shifted.reshape(n, dim // 4, 4), axis=2), together // 4
        words = shifted if rows == 1 else jnp.sum(shifted.reshape(n // rows, rows, len(column)), axis=1)
        first_row = jnp.arange(n // rows) * rows
        if stream == "key":
            tile, unit = first_row >> 6, first_row >> 3 & 1 | (first_row >> 2 & 1) << 3 | (first_row >> 4 & 3) << 4
        else:
            tile, unit = first_row >> 6, (first_row >> 4 & 3) << 1
        word = (first_row & (neighbours - 1)) // rows
        address = first + first_word + tile[:, None] * stride + (unit[:, None] + unit_of_column) * (width >> 1) + word[:, None]
        mask = jnp.broadcast_to(chosen, words.shape)
        plgpu.store(word_ref.at[(*where, address)], words, mask=mask)

    crumbs = jnp.where(wide == 6, fields >> 4, fields) & 3
    crumbs = crumbs << ((place >> 2 & 1) << 4 | (place & 3) << 2 | place >> 3 << 1)
    store(crumbs, 16, (width == 2) | (width == 6), jnp.where(width == 6, 2, 0))
    store((fields & 15) << ((place & 7) << 2), 8, (width == 4) | (width == 6), 0)
    store(fields << ((place & 3) << 3), 4, width == 8, 0)


def _tokens(n: int, stream: StreamName) -> Int[Array, " n"]:
    """The token of each row."""
    row = jnp.arange(n)
    if stream == "value":
        return row
    return row & ~6 | (row & 2) << 1 | (row & 4) >> 1


def _scale_code(scale: Float[Array, " n"]) -> Float[Array, " n"]:
    """``codecs.klt.encode_scale``, as float32."""
    steps = _nearest(SCALE_STEPS * jnp.log2(jnp.maximum(scale, 2.0**-20)))
    return jnp.clip(steps + SCALE_ZERO, 0.0, 255.0)


def _three_parts(x: Array) -> list[Array]:
    """Three numbers of bfloat16 whose sum is ``x``. Cut, not rounded: a compiler may take back a conversion, not this."""
    parts = []
    for _ in range(3):
        high = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -65536, jnp.float32)
        parts.append(high.astype(jnp.bfloat16))
        x = x - high
    return parts


def _nearest(x: Array) -> Array:
    """The nearest integer of a number below 2^22, as float32."""
    return (jax.lax.bitcast_convert_type(x + _MAGIC, jnp.int32) - _MAGIC_BITS).astype(jnp.float32)
