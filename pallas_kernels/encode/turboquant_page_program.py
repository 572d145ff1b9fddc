"""The program that encodes some tokens of one head of ``turboquant``: norms, rotation, levels, words.

Products are of bfloat16, as many as the type of the tokens asks for: their parts are multiplied as they come, and only
what is rotated is brought to the norm of the quantiser, so that a bfloat16 token is one part and takes three products
instead of six. Keys are rotated with tokens as rows, values with channels as rows: either way the codes of a word are
neighbours within a row, where products leave them in a thread and its neighbours.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kakeya_jax.code_words import UNIT
from kakeya_jax.numeric import EPS, F16_MAX, LIMIT
from kakeya_jax.pallas_kernels.encode import bfloat16_parts
from kakeya_jax.pallas_kernels.encode.word_shifts import crumb_shift, high_shift, nibble_shift
from kakeya_jax.typing import Array, Float, Int, StreamName

_TOGETHER = 32
"""Channels that products are made of at a time."""

_INDEX_BITS = 3
"""Below the square of a level, the bits of its magnitude's index."""

_PARTS = {"bfloat16": 1, "float16": 2}
"""Numbers of bfloat16 that hold one of a type; all others need three."""


class Form(NamedTuple):
    """What is the same for all layers of a stream.

    Attributes:
        bits: 2, 3 or 4.
        stream: keys or values.
        norm_correction: whether scales are relative to the length of a token's levels.
        bounds: between the magnitudes of neighbouring levels, ascending, ``2^(bits-1) - 1`` of them.
        sizes: of those magnitudes in half units, odd and below 256, one more.
        half_unit: of levels.
        tokens: of one program.
    """

    bits: int
    stream: StreamName
    norm_correction: bool
    bounds: tuple[float, ...]
    sizes: tuple[int, ...]
    half_unit: float
    tokens: int


def turboquant_program(refs: dict[str, Any], form: Form) -> None:
    """Writes scales and words.

    Args:
        refs: ``blocks`` ``[pages, n, D]``; ``map``, the rotation in three parts ``[3, D, D]``; results ``words``
            ``[pages, rows, words]`` int32 and ``scale`` ``[pages, n]`` float16.
        form: of the codec.
    """
    page, first = pl.program_id(0), pl.program_id(1) * form.tokens
    dim = refs["blocks"].shape[-1]
    rotated, power = _rotated(refs, page, first, form)
    channels = 1 if form.stream == "key" else 0
    norm = jnp.sqrt(power)
    to_unit = jnp.where(norm > EPS, math.sqrt(dim) / jnp.maximum(norm, EPS), 0.0)
    y = rotated * jnp.expand_dims(to_unit, channels)
    level = _levels(jnp.abs(y), form)
    length = jnp.full_like(power, dim)
    if form.norm_correction:
        # Of whole numbers below 2^16, at most 128 of them: exact in any order.
        length = jnp.sum(level >> _INDEX_BITS, axis=channels).astype(jnp.float32) * form.half_unit**2
    scale = jnp.where(norm > EPS, jnp.sqrt(power / length), 0.0)
    refs["scale"][page, pl.ds(first, form.tokens)] = jnp.minimum(scale, F16_MAX).astype(jnp.float16)
    _store_words(refs["words"], (page, first), level & ((1 << _INDEX_BITS) - 1), y > 0.0, form)


def _rotated(
    refs: dict[str, Any], page: Any, first: Any, form: Form
) -> tuple[Float[Array, "rows columns"], Float[Array, " tokens"]]:
    """Tokens as they come, rotated, and the squares of their norms."""
    blocks, tokens = refs["blocks"], pl.ds(first, form.tokens)
    dim, parts = blocks.shape[-1], _PARTS.get(blocks.dtype.name, bfloat16_parts.PARTS)
    shape = (form.tokens, dim) if form.stream == "key" else (dim, form.tokens)

    def add(step: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        some = pl.ds(step * _TOGETHER, _TOGETHER)
        x = blocks[page, tokens, some].astype(jnp.float32)
        x = jnp.clip(jnp.where(x == x, x, 0.0), -LIMIT, LIMIT)
        maps, pieces = (
            [refs["map"][part, :, some] for part in range(bfloat16_parts.PARTS)],
            bfloat16_parts.cut(x, parts),
        )
        left, right = (pieces, maps) if form.stream == "key" else (maps, pieces)
        return bfloat16_parts.add_products(sums[0], left, right), sums[1] + jnp.sum(x * x, axis=1)

    zeros = jnp.zeros(shape, jnp.float32), jnp.zeros(form.tokens, jnp.float32)
    return jax.lax.fori_loop(0, dim // _TOGETHER, add, zeros)


def _levels(size: Float[Array, "rows columns"], form: Form) -> Int[Array, "rows columns"]:
    """Of each magnitude the nearest of a level: its square in half units, and in the lowest bits its index.

    Both come from one comparison and one selection for each bound, which are fewer instructions than a look-up.
    """
    found, *others = (square**2 << _INDEX_BITS | index for index, square in enumerate(form.sizes))
    level = jnp.full(size.shape, found, jnp.int32)
    for bound, other in zip(form.bounds, others, strict=True):
        level = jnp.where(size > bound, other, level)
    return level


def _store_words(
    word_ref: Any,
    where: tuple[Any, Any],
    index: Int[Array, "rows columns"],
    above: Int[Array, "rows columns"],
    form: Form,
) -> None:
    """Codes of magnitudes' indices and of whether they are above zero, along rows."""
    (page, first), (rows, columns) = where, index.shape
    along_tokens = form.stream == "value"
    count = word_ref.shape[2] * 32 // form.bits
    code = jax.lax.broadcasted_iota(jnp.int32, (1, columns), 1)

    def store(fields: Array, shift: Array, together: int, start: int) -> None:
        """Each sum of ``together`` fields, which do not overlap, is a word."""
        words = jnp.sum((fields << shift).reshape(rows, columns // together, together), axis=2)
        row, column = (0, start + first // together) if along_tokens else (first, start)
        word_ref[page, pl.ds(row, rows), pl.ds(column, columns // together)] = words

    if form.bits == 4:
        store(index | above.astype(jnp.int32) << 3, nibble_shift(code), 32 // 4, 0)
        return
    inverted = index ^ ((1 << (form.bits - 1)) - 1)
    if form.bits == 2:
        store(jnp.where(above, index | 2, inverted), crumb_shift(code), UNIT, 0)
        return
    store(jnp.where(above, index, inverted), crumb_shift(code), UNIT, 0)
    store(above.astype(jnp.int32), high_shift(code), 2 * UNIT, count // UNIT)
