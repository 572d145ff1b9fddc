"""The program that encodes some tokens of one head of ``turboquant``: norms, rotation, levels, words.

Products are of bfloat16, as many as the type of the tokens asks for: tokens are multiplied as they come, and only what
is rotated is brought to the norm of the quantiser, so that a bfloat16 token is one part and takes three products
instead of six. Tokens are rows, also of values, whose words are put together from rows: what a token has once, its norm
and its length, would otherwise be found again in every thread of its column.
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
from kakeya_jax.token_tiles import TILE
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
    rotated, power = _rotated(refs, page, pl.ds(first, form.tokens))
    norm = jnp.sqrt(power)
    y = rotated * jnp.where(norm > EPS, math.sqrt(dim) / jnp.maximum(norm, EPS), 0.0)[:, None]
    level = _levels(jnp.abs(y), form)
    length = jnp.full_like(power, dim)
    if form.norm_correction:
        # Of whole numbers below 2^16, at most 128 of them: exact in any order.
        length = jnp.sum(level >> _INDEX_BITS, axis=1).astype(jnp.float32) * form.half_unit**2
    scale = jnp.where(norm > EPS, jnp.sqrt(power / length), 0.0)
    refs["scale"][page, pl.ds(first, form.tokens)] = jnp.minimum(scale, F16_MAX).astype(jnp.float16)
    _store_words(refs["words"], (page, first), level & ((1 << _INDEX_BITS) - 1), y > 0.0, form)


def _rotated(refs: dict[str, Any], page: Any, tokens: Any) -> tuple[Float[Array, "tokens D"], Float[Array, " tokens"]]:
    """Tokens as they come, rotated, and the squares of their norms."""
    blocks = refs["blocks"]
    dim, count = blocks.shape[-1], _PARTS.get(blocks.dtype.name, bfloat16_parts.PARTS)

    def add(step: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        some = pl.ds(step * _TOGETHER, _TOGETHER)
        x = blocks[page, tokens, some].astype(jnp.float32)
        x = jnp.clip(jnp.where(x == x, x, 0.0), -LIMIT, LIMIT)
        maps = [refs["map"][part, :, some] for part in range(bfloat16_parts.PARTS)]
        rotated = bfloat16_parts.add_products(sums[0], bfloat16_parts.cut(x, count), maps)
        return rotated, sums[1] + jnp.sum(x * x, axis=1)

    zeros = jnp.zeros((tokens.size, dim), jnp.float32), jnp.zeros(tokens.size, jnp.float32)
    return jax.lax.fori_loop(0, dim // _TOGETHER, add, zeros)


def _levels(size: Float[Array, "tokens D"], form: Form) -> Int[Array, "tokens D"]:
    """Of each magnitude the nearest of a level: its square in half units, and in the lowest bits its index.

    Both come from one comparison and one selection for each bound, which are fewer instructions than a look-up.
    """
    found, *others = (square**2 << _INDEX_BITS | index for index, square in enumerate(form.sizes))
    level = jnp.full(size.shape, found, jnp.int32)
    for bound, other in zip(form.bounds, others, strict=True):
        level = jnp.where(size > bound, other, level)
    return level


def _store_words(
    word_ref: Any, where: tuple[Any, Any], index: Int[Array, "tokens D"], above: Array, form: Form
) -> None:
    """Codes of magnitudes' indices and of whether they are above zero: along channels of keys, tokens of values."""
    (page, first), (tokens, dim) = where, index.shape
    along_tokens = form.stream == "value"
    axis = 0 if along_tokens else 1
    code = jnp.expand_dims(jnp.arange(index.shape[axis]), 1 - axis)
    codes_of_row = word_ref.shape[2] * 32 // form.bits

    def store(fields: Array, shift: Array, together: int, start: int) -> None:
        """Each sum of ``together`` fields, which do not overlap, is a word."""
        shape = (-1, together, dim) if along_tokens else (tokens, -1, together)
        words = jnp.sum((fields << shift).reshape(shape), axis=axis + 1)
        if along_tokens:
            word = jnp.arange(tokens // together)[None, :]
            tile, column = first // TILE + word // (TILE // together), start + word % (TILE // together)
            word_ref[page, tile * dim + jnp.arange(dim)[:, None], column] = words.T
        else:
            word_ref[page, pl.ds(first, tokens), pl.ds(start, dim // together)] = words

    half = 1 << (form.bits - 1)
    if form.bits == 4:  # as sign and magnitude
        store(jnp.where(above, index | half, index), nibble_shift(code), 32 // 4, 0)
        return
    codes = jnp.where(above, index | half, index ^ (half - 1))
    store(codes & 3, crumb_shift(code & (UNIT - 1)), UNIT, 0)
    if form.bits == 3:
        store(codes >> 2, high_shift(code), 2 * UNIT, codes_of_row // UNIT)
