"""One decode step of attention over transform-coded pages and exact tokens: ``klt``, fast form."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.codecs.klt import KltCode
from kakeya_jax.klt_layout import Layout
from kakeya_jax.pallas_kernels.attention.coded_shape import TILE
from kakeya_jax.pallas_kernels.attention.exact_values import DTYPES
from kakeya_jax.pallas_kernels.attention.klt_curves import page_curves
from kakeya_jax.pallas_kernels.attention.klt_program import klt_program
from kakeya_jax.pallas_kernels.attention.klt_queries import scratch
from kakeya_jax.pallas_kernels.attention.klt_query_tables import channel_units, query_tables
from kakeya_jax.pallas_kernels.attention.klt_shape import CONSTANTS, DIM, GROUP, HEAD_WORDS, KltShape
from kakeya_jax.pallas_kernels.attention.program_counts import exact_programs
from kakeya_jax.pallas_kernels.attention.softmax_state import LN2, Attended
from kakeya_jax.pallas_kernels.attention.step_parts import attend_parts
from kakeya_jax.pallas_kernels.attention.window_program import WARPS
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream
from kakeya_jax.typing import Array, Float, Int

_TEAMS = 3
"""Programs of a block of threads: the assembler takes 180 registers for a thread of one, and makes do with 168."""

_ROOM = 1024
"""Stages have room for a multiple of so many bytes, so that layers of similar layouts share a program."""


def klt_step(
    query: Float[Array, "N G D"],
    key_stream: Stream,
    value_stream: Stream,
    positions: Int[Array, " B"],
    *,
    rope: Rope,
    scale: float,
    splits: int,
    interpret: bool = False,
) -> Attended:
    """Attention of the newest token's queries, ``N = B K`` key/value heads with ``G <= 8`` queries each.

    Args:
        query: after their rotary embedding.
        key_stream: of ``klt`` in its fast form, the queries' own token in it; see ``unsupported_klt``.
        value_stream: likewise.
        positions: of the queries.
        rope: the rotary embedding.
        scale: factor of the logits.
        splits: programs that share the coded tokens of a head.
        interpret: in numpy, on any machine.
    """
    heads, group, dim = query.shape
    num_kv_heads, geometry = key_stream.tail.shape[1], key_stream.geometry
    key, value = key_stream.codec, value_stream.codec
    key_code, value_code = (_pages(stream) for stream in (key_stream, value_stream))
    page = key_stream.block_size
    coded = KltShape(
        dim=dim,
        page=page,
        pages=geometry.num_pages * key_stream.blocks_per_page,
        num_kv_heads=num_kv_heads,
        key_nbytes=key_code.words.shape[-1],
        value_nbytes=value_code.words.shape[-1],
        key_tile=_room(key.layout),
        value_tile=_room(value.layout),
        key_widths=key.layout.used_widths,
        value_widths=value.layout.used_widths,
        group=group,
        splits=splits,
        states=splits + exact_programs(geometry, heads, splits),
        warps=WARPS,
        dtype=query.dtype,
        scale=scale * rope.attention_factor / LN2,
        curves=page_curves(rope, page).values.shape[1],
    )
    tables = query_tables(key, key_code, value, value_code, coded, rope=rope, first_position=geometry.sinks)
    exact = (key_stream.sinks, key_stream.tail, value_stream.sinks, value_stream.tail)
    units = np.repeat(channel_units(value.layout, 1.0), GROUP, axis=1)
    codes = [key_code.words, key_code.scale, value_code.words, value_code.scale, _mean_codes(value_code)]
    return attend_parts(
        klt_program,
        coded,
        [jnp.asarray(program_table(key.layout, value.layout, page)), query, *tables, *codes],
        query,
        positions,
        [*(each.reshape(heads, -1, dim) for each in exact), jnp.asarray(rope.frequencies)],
        [value.synthesis, value.mean, jnp.asarray(units)],
        jnp.zeros(heads, jnp.int32),
        geometry=geometry,
        scale=scale * rope.attention_factor / LN2,
        interpret=interpret,
        most_teams=_TEAMS,
        scratch=scratch(coded, heads),
    )


def unsupported_klt(query: Array, key_stream: Stream, value_stream: Stream) -> list[str]:
    """What the kernel does not take, in words."""
    _, length, _, dim = query.shape
    found = [f"{length} queries for a row instead of one"] if length != 1 else []
    for stream in (key_stream, value_stream):
        config = stream.codec.config
        found += ["klt's quality form"] if config.form != "fast" else []
        found += [f"klt of {config.heads_together} heads together"] if config.heads_together != 1 else []
        found += [f"pages of {stream.block_size} tokens"] if stream.block_size % TILE else []
        found += ["a static mean or whitening"] if stream.frame is not None else []
    found += [f"klt at head_dim {dim}"] if dim != DIM else []
    if not key_stream.geometry.num_pages:
        found.append("a cache without room for a page")
    if key_stream.block_size != value_stream.block_size:
        found.append("pages of keys and values of different sizes")
    dtypes = {query.dtype, key_stream.tail.dtype, value_stream.tail.dtype}
    found += [f"numbers of type {dtype}" for dtype in dtypes if dtype not in DTYPES]
    return list(dict.fromkeys(found))


def program_table(key: Layout, value: Layout, page: int) -> np.ndarray:
    """int32: ``klt_shape.CONSTANTS``, and then the layout of every head."""
    return np.concatenate([CONSTANTS.words, layout_table(key, value, page).reshape(-1)])


def layout_table(key: Layout, value: Layout, page: int) -> np.ndarray:
    """int32 ``[K, HEAD_WORDS]``: see ``klt_shape``."""
    table = np.zeros((key.num_heads, HEAD_WORDS), np.int64)
    for first, layout in ((0, key), (3, value)):
        row_bytes = np.asarray(layout.widths).sum(axis=1) * GROUP // 8
        table[:, first] = page * (np.cumsum(row_bytes) - row_bytes)
        table[:, first + 1] = TILE * row_bytes
    keys, values = np.asarray(key.widths), np.asarray(value.widths)
    nibbles, quads = 4 * np.arange(keys.shape[1]), 8 * np.arange(4)
    table[:, 2] = sum(np.sum(keys == width, axis=1) << 2 * width for width in (2, 4, 6, 8))
    table[:, 5] = np.sum(values << nibbles, axis=1)
    order = np.argsort(-keys, axis=1, kind="stable")
    before = np.take_along_axis(np.cumsum(keys, axis=1) - keys, order, axis=1)
    for half in range(2):
        places = (4 * before + order)[:, 4 * half : 4 * half + 4]
        table[:, 6 + half] = np.sum(places << quads, axis=1)
    return table.astype(np.uint32).view(np.int32)


def _pages(stream: Stream) -> KltCode:
    """All pages of all rows: leaves ``[B, pages, ...]``."""
    return jax.tree.map(lambda leaf: leaf[:, 0], stream.blocks)


def _mean_codes(code: KltCode) -> Array:
    if code.page_mean is not None:
        return code.page_mean
    batch, pages, heads, _ = code.scale.shape
    return jnp.zeros((batch, pages, heads, DIM), jnp.int8)


def _room(layout: Layout) -> int:
    most = max(sum(head) for head in layout.widths) * TILE * GROUP // 8
    return _ROOM * max(1, math.ceil(most / _ROOM))
