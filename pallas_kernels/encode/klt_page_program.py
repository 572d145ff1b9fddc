"""The programs that encode one page of one head of ``klt``: its coordinates; then scales, codes and words.

The first makes coordinates by products of bfloat16, six for each half of the channels, which leaves an error like that
of float32, takes the page's mean out, and writes them channel after channel, in half units of their levels. The second
has a thread for each token. It finds the token's scale by least squares, quantising anew in each round, reads the
coordinates again each time, a group of channels at once, and puts the codes of the last scale together to words in the
order of ``klt_words``. In half units a code is one look-up at any width (``klt_code_tables``).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.codecs.klt import SCALE_STEPS, SCALE_ZERO
from kakeya_jax.klt_code_tables import HIGHEST, LOWEST
from kakeya_jax.klt_words import GROUP
from kakeya_jax.numeric import F16_MAX
from kakeya_jax.pallas_kernels.attention.warp_lane import MAGIC, MAGIC_BITS
from kakeya_jax.pallas_kernels.encode import bfloat16_parts
from kakeya_jax.pallas_kernels.encode.word_shifts import crumb_shift, nibble_shift
from kakeya_jax.typing import Array, Float, Int, StreamName

_LARGE = 1e30

_TOGETHER = 16
"""Channels of each half that products are made of at a time."""


def coordinates_program(refs: dict[str, Any]) -> None:
    """Writes coordinates, each token's first scale, and the page's mean if ``refs`` has a place for it.

    Args:
        refs: pages, tables and results, as ``klt_pages`` names them.
    """
    pages, n = refs["blocks"].shape[2:4]
    place, head = pl.program_id(0), pl.program_id(1)
    z = _coordinates(refs, (place // pages, head, place % pages))
    if "page_mean" in refs:
        average = jnp.sum(z, axis=1) * (1 / n)
        scale = jnp.minimum(jnp.max(jnp.abs(average)) / 127.0, F16_MAX).astype(jnp.float16)
        stored = scale.astype(jnp.float32)
        codes = jnp.clip(_nearest(average / jnp.maximum(stored, 1e-12)), -127.0, 127.0)
        refs["page_mean_scale"][place, head] = scale
        refs["page_mean"][place, head, :] = codes.astype(jnp.int32).astype(jnp.int8)
        z = z - (codes * stored)[:, None]
    inverse, share = (refs["channels"][head, index, :][:, None] for index in range(2))
    first = _scale_code(jnp.sqrt(jnp.sum(z * z * share, axis=0)))
    refs["first_scale"][place, head, :] = first.astype(jnp.int32).astype(jnp.uint8)
    refs["coordinates"][place, head, :, :] = z * inverse


def codes_program(refs: dict[str, Any], *, stream: StreamName, rounds: int) -> None:
    """Writes each token's scale, and words.

    Args:
        refs: tables and results, as ``klt_pages`` names them.
        stream: keys or values.
        rounds: of least squares for a token's scale.
    """
    place, head = pl.program_id(0), pl.program_id(1)
    tokens = refs["tokens"][:]
    groups = refs["groups"].shape[1]

    def channels_of(group: Any) -> Int[Array, "16 1"]:
        return (group * GROUP + jnp.arange(GROUP))[:, None]

    def values(group: Any) -> Float[Array, "16 n"]:
        return refs["coordinates"][place, head, channels_of(group), tokens[None]]

    def table_index(group: Any, y: Float[Array, "16 n"], inverse: Float[Array, " n"]) -> Int[Array, "16 n"]:
        above = jnp.clip(jnp.ceil(y * inverse[None]), LOWEST, HIGHEST)
        return refs["groups"][head, group, 1] + _integer(above)

    def turn(_: Any, scale: Float[Array, " n"]) -> Float[Array, " n"]:
        inverse = _inverse_scale(scale)

        def add(group: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            y = values(group)
            level = 2.0 * refs["levels"][table_index(group, y, inverse)].astype(jnp.float32) + 1.0
            weighted = refs["costs"][head, channels_of(group)] * level
            return sums[0] + jnp.sum(weighted * y, axis=0), sums[1] + jnp.sum(weighted * level, axis=0)

        def add_stored(group: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            return jax.lax.cond(refs["groups"][head, group, 0] > 0, lambda: add(group, sums), lambda: sums)

        along, length = jax.lax.fori_loop(0, groups, add_stored, (jnp.zeros_like(scale), jnp.zeros_like(scale)))
        return _scale_code(along / jnp.maximum(length, 1e-30))

    first = refs["first_scale"][place, head, tokens].astype(jnp.float32)
    scale = jax.lax.fori_loop(0, rounds, turn, first)
    refs["scale"][place, head, tokens] = scale.astype(jnp.int32).astype(jnp.uint8)
    inverse = _inverse_scale(scale)

    def write(group: Any, _: None) -> None:
        @pl.when(refs["groups"][head, group, 0] > 0)
        def _() -> None:
            fields = refs["fields"][table_index(group, values(group), inverse)].astype(jnp.int32)
            _store_words(refs["words"], place, fields, refs["groups"], (head, group), stream)

    jax.lax.fori_loop(0, groups, write, None)


def token_order(n: int, stream: StreamName) -> Int[Array, " n"]:
    """The token of each thread. Of keys two bits are exchanged, so that the codes of a word are neighbours."""
    thread = jnp.arange(n, dtype=jnp.int32)
    if stream == "value":
        return thread
    return thread & ~6 | (thread & 2) << 1 | (thread & 4) >> 1


def _coordinates(refs: dict[str, Any], where: Any) -> Float[Array, "D n"]:
    """Some channels after the other, with those they turn with, so that few are held at a time."""
    (n, dim), head = refs["blocks"].shape[-2:], where[1]

    def add(step: Any, total: Float[Array, "D n"]) -> Float[Array, "D n"]:
        halves, parts = [pl.ds(step * _TOGETHER + first, _TOGETHER) for first in (0, dim // 2)], []
        for some in halves:
            x = refs["blocks"][(*where, slice(None), some)].astype(jnp.float32)
            x = jnp.clip(jnp.where(x == x, x, 0.0), -_LARGE, _LARGE)
            parts.append(x - refs["mean"][head, some][None])
        if "turns" in refs:
            first, second = parts
            cos, sin = (refs["turns"][index, :, halves[0]] for index in range(2))
            parts = [first * cos - second * sin, second * cos + first * sin]
        for some, part in zip(halves, parts, strict=True):
            most = refs["farthest"][head, some][None]
            x = bfloat16_parts.cut(jnp.clip(part, -most, most))
            maps = [refs["map"][head, index, :, some] for index in range(bfloat16_parts.PARTS)]
            total = bfloat16_parts.add_products(total, maps, x)
        return total

    return jax.lax.fori_loop(0, dim // 2 // _TOGETHER, add, jnp.zeros((dim, n), jnp.float32))


def _store_words(
    word_ref: Any, place: Any, fields: Int[Array, "16 n"], group_ref: Any, group: tuple[Any, Any], stream: StreamName
) -> None:
    """The words of a group: in its tiles, units of 16 codes, at each width in another order."""
    size, n = fields.shape
    width, first, stride = (group_ref[(*group, index)] for index in (0, 2, 3))
    channel, thread = jnp.arange(size)[:, None], jnp.arange(n)[None]
    # Which of its unit's 16 codes each one is.
    code = (thread & 3) << 2 | channel & 3 if stream == "key" else jnp.broadcast_to(thread & 15, fields.shape)

    def store(shifted: Array, together: int, first_word: Any) -> None:
        """Each sum of ``together`` codes, which do not overlap, is a word of a unit."""
        rows, threads = size, together
        if stream == "key":
            rows, threads = size // 4, together // 4
            shifted = jnp.sum(shifted.reshape(rows, 4, n), axis=1)
        words = shifted if threads == 1 else jnp.sum(shifted.reshape(rows, n // threads, threads), axis=2)
        row, column = jnp.arange(rows)[:, None], jnp.arange(n // threads)[None] * threads
        if stream == "key":
            unit = row << 1 | (column >> 2 & 1) << 3 | column >> 3 & 1 | (column >> 4 & 3) << 4
            word = (column & 3) // threads
        else:
            unit = (row & 7) << 3 | row >> 3 | (column >> 4 & 3) << 1
            word = (column & 15) // threads
        address = first + first_word + (column >> 6) * stride + unit * (width >> 1) + word
        plgpu.store(word_ref.at[place, address], words)

    @pl.when((width == 2) | (width == 6))
    def _() -> None:
        crumbs = (fields >> (width & 4)) & 3  # of 6 bits the upper two
        store(crumbs << crumb_shift(code), 16, (width & 4) >> 1)

    @pl.when((width == 4) | (width == 6))
    def _() -> None:
        store((fields & 15) << nibble_shift(code), 8, 0)

    @pl.when(width == 8)
    def _() -> None:
        store(fields << ((code & 3) << 3), 4, 0)


def _scale_code(scale: Float[Array, " n"]) -> Float[Array, " n"]:
    """``codecs.klt.encode_scale``, as float32."""
    steps = _nearest(SCALE_STEPS * jnp.log2(jnp.maximum(scale, 2.0**-20)))
    return jnp.clip(steps + SCALE_ZERO, 0.0, 255.0)


def _inverse_scale(code: Float[Array, " n"]) -> Float[Array, " n"]:
    """One over ``codecs.klt.decode_scale``."""
    return jnp.exp2((SCALE_ZERO - code) * (1 / SCALE_STEPS))


def _nearest(x: Array) -> Array:
    """``_integer``, as float32."""
    return _integer(x).astype(jnp.float32)


def _integer(x: Array) -> Array:
    """The nearest integer of a number below 2^22."""
    return jax.lax.bitcast_convert_type(x + MAGIC, jnp.int32) - MAGIC_BITS
