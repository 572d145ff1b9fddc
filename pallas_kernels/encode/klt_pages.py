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

from kakeya_jax.codecs.klt import Klt, KltCode, farthest
from kakeya_jax.klt_layout import Layout
from kakeya_jax.klt_words import GROUP, TILE
from kakeya_jax.page_encoders import PageEncoder
from kakeya_jax.pallas_kernels.encode import bfloat16_parts
from kakeya_jax.pallas_kernels.encode.kernel_call import kernel_call
from kakeya_jax.pallas_kernels.encode.klt_page_program import codes_program, coordinates_program, token_order
from kakeya_jax.pallas_kernels.encode.level_tables import half_units, level_tables, table_starts
from kakeya_jax.typing import Array, Float, StreamName

_DIM = 128
_PAGES = (64, 128)
_WARPS = 4
"""Of a program that makes coordinates,"""

_STAGES = 1
"""and steps of its loop whose loads are under way at a time."""

_LANES = 32


def supports(codec: Klt, tokens: int, head_dim: int) -> bool:
    """Whether the kernel takes pages of so many tokens: of head_dim 128, in the fast form, heads alone."""
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
    batch, _, pages, n, _ = blocks.shape
    layout, config = codec.layout, codec.config
    tables = {
        "map": bfloat16_parts.rounded(jnp.swapaxes(codec.analysis, 1, 2)),
        "mean": codec.mean,
        "farthest": farthest(codec),
        "channels": jnp.asarray(_channels(layout)),
    }
    if codec.rope_frequencies is not None:
        angles = jnp.arange(n, dtype=jnp.float32)[:, None] * codec.rope_frequencies
        tables["turns"] = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    made = _coordinates(blocks, tables, page_mean=config.page_mean, interpret=interpret)
    costs = codec.variances * jnp.asarray(np.square(_half_units(layout)), jnp.float32)
    inputs = {
        "coordinates": made["coordinates"],
        "first_scale": made["first_scale"],
        "costs": costs,
        "groups": jnp.asarray(_groups(layout, n)),
        "levels": jnp.asarray(level_tables().levels),
        "fields": jnp.asarray(level_tables().fields),
        "tokens": token_order(n, codec.stream),
    }
    nbytes = codec.page_words(n).nbytes
    coded = _codes(inputs, nbytes=nbytes, stream=codec.stream, rounds=config.scale_rounds, interpret=interpret)
    code = KltCode(
        words=jax.lax.bitcast_convert_type(coded["words"], jnp.uint8).reshape(-1, nbytes),
        scale=coded["scale"],
        page_mean=made.get("page_mean"),
        page_mean_scale=made.get("page_mean_scale"),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(batch, 1, pages, *leaf.shape[1:]), code)


KLT_PAGES = PageEncoder(supports=supports, encode=encode_klt_pages)
"""The encoder of ``Klt``."""


# Functions of arrays alone, so that layers share what is traced and compiled.


@functools.partial(jax.jit, static_argnames=("page_mean", "interpret"))
def _coordinates(
    blocks: Float[Array, "B K pages n D"], tables: dict[str, Array], *, page_mean: bool, interpret: bool
) -> dict[str, Array]:
    """Leaves ``[B pages, K, ...]``."""
    batch, heads, pages, n, dim = blocks.shape
    lead = (batch * pages, heads)
    made = {
        "coordinates": jax.ShapeDtypeStruct((*lead, dim, n), jnp.float32),
        "first_scale": jax.ShapeDtypeStruct((*lead, n), jnp.uint8),
    }
    if page_mean:
        made["page_mean"] = jax.ShapeDtypeStruct((*lead, dim), jnp.int8)
        made["page_mean_scale"] = jax.ShapeDtypeStruct(lead, jnp.float16)

    def klt_coordinates(**refs: Any) -> None:
        coordinates_program(refs)

    inputs = {"blocks": blocks, **tables}
    return kernel_call(klt_coordinates, lead, inputs, made, interpret=interpret, warps=_WARPS, stages=_STAGES)


@functools.partial(jax.jit, static_argnames=("nbytes", "stream", "rounds", "interpret"))
def _codes(
    inputs: dict[str, Array], *, nbytes: int, stream: StreamName, rounds: int, interpret: bool
) -> dict[str, Array]:
    """Words ``[B pages, nbytes / 4]`` and scales ``[B pages, K, n]``."""
    count, heads, _, n = inputs["coordinates"].shape
    coded = {
        "words": jax.ShapeDtypeStruct((count, nbytes // 4), jnp.int32),
        "scale": jax.ShapeDtypeStruct((count, heads, n), jnp.uint8),
    }

    def klt_codes(**refs: Any) -> None:
        codes_program(refs, stream=stream, rounds=rounds)

    return kernel_call(klt_codes, (count, heads), inputs, coded, interpret=interpret, warps=n // _LANES)


def _channels(layout: Layout) -> np.ndarray:
    """Of each channel, float32 ``[K, 2, D]``: one over half the unit of its levels; one over how many channels its head
    stores. Zeros where nothing is stored."""
    half = _half_units(layout)
    stored = half > 0
    inverse = np.where(stored, 1 / np.where(stored, half, 1.0), 0.0)
    share = stored / np.maximum(stored.sum(axis=1, keepdims=True), 1)
    return np.stack([inverse, share], axis=1).astype(np.float32)


def _half_units(layout: Layout) -> np.ndarray:
    return np.repeat(half_units(np.asarray(layout.widths)), GROUP, axis=1)


def _groups(layout: Layout, n: int) -> np.ndarray:
    """Of each group, int32 ``[K, G, 4]``: its width; where its table starts; the word at which it begins in a page;
    words from a tile of its head to the next."""
    widths = np.asarray(layout.widths)
    words = widths * (TILE * GROUP // 32)
    heads = words.sum(axis=1) * (n // TILE)
    first = np.cumsum(words, axis=1) - words + (np.cumsum(heads) - heads)[:, None]
    stride = np.broadcast_to(words.sum(axis=1)[:, None], widths.shape)
    return np.stack([widths, table_starts(widths), first, stride], axis=2).astype(np.int32)
