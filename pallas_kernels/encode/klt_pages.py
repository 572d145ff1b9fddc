"""Pages of the fast form of ``klt`` encoded by one Triton kernel: a program for each page and head.

Everything about a page stays in registers between the reading of its tokens and the writing of its words; what the
kernel reads besides, one set for all layers of equal shapes, is made here: maps in three parts, and tables of what each
channel's codes are and where their words lie.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kakeya_jax.codecs.klt import Klt, KltCode, farthest
from kakeya_jax.klt_layout import Layout
from kakeya_jax.klt_words import GROUP, TILE
from kakeya_jax.page_encoders import PageEncoder
from kakeya_jax.pallas_kernels.encode.klt_page_program import encode_page
from kakeya_jax.pallas_kernels.encode.level_tables import half_units, level_tables, table_starts
from kakeya_jax.typing import Array, Float

_DIM = 128
_PAGES = (64, 128)
_WARPS = 8


def supports(codec: Klt, tokens: int, head_dim: int) -> bool:
    """Whether the kernel takes pages of so many tokens: head_dim 128, heads alone, widths that words have an order for."""
    config = codec.config
    return (
        config.form == "fast"
        and config.heads_together == 1
        and head_dim == _DIM
        and tokens in _PAGES
        and bool(codec.layout.used_widths)
    )


def encode_klt_pages(codec: Klt, blocks: Float[Array, "B K pages n D"], *, interpret: bool = False) -> KltCode:
    """The codes of pages, leaves ``[B, 1, pages, ...]``.

    Args:
        codec: one that is supported, and
        blocks: its pages, before anything is taken out.
        interpret: run without a GPU, slowly.
    """
    layout, n = codec.layout, blocks.shape[3]
    words = codec.page_words(n)
    tables = {
        "map": _three_parts(codec.analysis),
        "mean": codec.mean,
        "farthest": farthest(codec),
        "channels": _channels(layout, codec.variances),
        "places": jnp.asarray(_places(layout, codec.stream, n)),
        "levels": jnp.asarray(level_tables().levels),
        "fields": jnp.asarray(level_tables().fields),
    }
    if codec.rope_frequencies is not None:
        angles = jnp.arange(n, dtype=jnp.float32)[:, None] * codec.rope_frequencies
        tables["turns"] = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    config = codec.config
    found = _encode(
        blocks.astype(jnp.float32),
        tables,
        nbytes=words.nbytes,
        stream=codec.stream,
        rounds=config.scale_rounds,
        page_mean=config.page_mean,
        interpret=interpret,
    )
    packed = jax.lax.bitcast_convert_type(found["words"], jnp.uint8).reshape(*found["words"].shape[:-1], -1)
    code = KltCode(
        words=packed,
        scale=found["scale"],
        page_mean=found.get("page_mean"),
        page_mean_scale=found.get("page_mean_scale"),
    )
    return jax.tree.map(lambda leaf: leaf[:, None], code)


KLT_PAGES = PageEncoder(supports=supports, encode=encode_klt_pages)
"""The encoder of ``Klt``."""


@functools.partial(jax.jit, static_argnames=("nbytes", "stream", "rounds", "page_mean", "interpret"))
def _encode(
    blocks: Float[Array, "B K pages n D"],
    tables: dict[str, Array],
    *,
    nbytes: int,
    stream: str,
    rounds: int,
    page_mean: bool,
    interpret: bool,
) -> dict[str, Array]:
    """Leaves ``[B, pages, ...]``; a function of arrays alone, so that layers share what is compiled."""
    batch, heads, pages, n, dim = blocks.shape
    lead = (batch, pages)
    shapes = {
        "words": jax.ShapeDtypeStruct((*lead, nbytes // 4), jnp.int32),
        "scale": jax.ShapeDtypeStruct((*lead, heads, n), jnp.uint8),
    }
    if page_mean:
        shapes["page_mean"] = jax.ShapeDtypeStruct((*lead, heads, dim), jnp.int8)
        shapes["page_mean_scale"] = jax.ShapeDtypeStruct((*lead, heads), jnp.float16)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    names = (*tables, *shapes)

    def klt_pages(block_ref: Any, *refs: Any) -> None:
        encode_page(block_ref, dict(zip(names, refs, strict=True)), stream=stream, rounds=rounds)

    found = pl.pallas_call(
        klt_pages,
        grid=(batch * pages, heads),
        in_specs=[whole] * (1 + len(tables)),
        out_specs=[whole] * len(shapes),
        out_shape=list(shapes.values()),
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="klt_pages",
    )(blocks, *tables.values())
    return dict(zip(shapes, found, strict=True))


def _three_parts(x: Float[Array, "K D E"]) -> Array:
    """Three numbers of bfloat16 whose sum is ``x``: ``[K, 3, D, E]``. Rounded by ``reduce_precision``, for XLA takes a
    conversion back."""
    parts = []
    for _ in range(3):
        parts.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))
        x = x - parts[-1]
    return jnp.stack(parts, axis=1).astype(jnp.bfloat16)


def _channels(layout: Layout, variances: Float[Array, "K D"]) -> Float[Array, "K 4 D"]:
    """Of each channel: one over half the unit of its levels, and half that unit squared times what error costs; whether
    it is stored, as a share of its head's stored channels. Zeros where nothing is stored."""
    widths = np.repeat(np.asarray(layout.widths), GROUP, axis=1)
    half = half_units(widths)
    stored = widths > 0
    inverse = np.where(stored, 1 / np.where(stored, half, 1.0), 0.0)
    share = stored / np.maximum(stored.sum(axis=1, keepdims=True), 1)
    costs = variances * jnp.asarray(np.square(half), jnp.float32)
    fixed = jnp.asarray(np.stack([inverse, share], axis=1), jnp.float32)
    return jnp.concatenate([fixed, costs[:, None]], axis=1)


def _places(layout: Layout, stream: str, n: int) -> np.ndarray:
    """Of each channel, int32 ``[K, 4, D]``: its width; where its table starts; the word at which the first unit of its
    group lies in a page; words from a tile of its head to the next."""
    widths = np.asarray(layout.widths)
    tile_words = widths * (TILE * GROUP // 32)
    groups = np.cumsum(tile_words, axis=1) - tile_words
    heads = tile_words.sum(axis=1) * (n // TILE)
    first = groups + (np.cumsum(heads) - heads)[:, None]
    stride = np.broadcast_to(tile_words.sum(axis=1)[:, None], widths.shape)
    stacked = np.stack([widths, table_starts(widths), first, stride], axis=1)
    return np.repeat(stacked, GROUP, axis=2).astype(np.int32)
