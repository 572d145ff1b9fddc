"""A layer of ``kakeya`` keys and packed values, full of random codes, and what attention over it is in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope
from kakeya_jax.stream import Stream, read
from kakeya_jax.typing import Array

DIM, HEADS = 128, 2
ROPE = Rope(head_dim=DIM, theta=1e4)
SCALE = DIM**-0.5


def kakeya_layer(
    recipe: str, *, group: int, lengths: tuple[int, ...] = (300, 170, 3), dtype: Any = jnp.float32, heads: int = HEADS
) -> tuple[LayerCache, Array, Array]:
    """A layer with rows of these lengths, a query for each, and their positions. Codes are random, skeletons are what
    they may be: orthonormal bases, centres of length 1, means of the size of the spread."""
    shape = CacheShape(num_layers=1, num_kv_heads=heads, head_dim=DIM)
    cache = CompressedCache.init(
        shape, Recipe.parse(recipe), batch_size=len(lengths), max_length=max(lengths) + 20, dtype=dtype
    )
    rng = np.random.default_rng(group)
    layer = dataclasses.replace(
        cache.layers[0], **{name: _random(getattr(cache.layers[0], name), lengths, rng) for name in ("key", "value")}
    )
    query = jnp.asarray(rng.standard_normal((len(lengths), 1, group * heads, DIM)), dtype)
    return layer, query, jnp.asarray(lengths)[:, None] - 1


def _random(stream: Stream, lengths: tuple[int, ...], rng: np.random.Generator) -> Stream:
    """Pages that are not there yet are poisoned."""
    closed = np.asarray(stream.geometry.closed_pages(jnp.asarray(lengths))) * stream.blocks_per_page

    def poisoned(path: Any, array: Array) -> Array:
        unused = (np.arange(array.shape[2]) >= closed[:, None])[:, None].reshape(
            len(lengths), 1, -1, *[1] * (array.ndim - 3)
        )
        return jnp.where(unused, 255 if array.dtype == jnp.uint8 else jnp.nan, leaf(path, array)).astype(array.dtype)

    def leaf(path: Any, array: Array) -> Array:
        name = path[-1].name
        if array.dtype == jnp.uint8:
            return jnp.asarray(rng.integers(0, 256, array.shape), jnp.uint8)
        if name == "basis":
            rows = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
            order = rng.permuted(np.broadcast_to(np.arange(DIM), (*array.shape[:-2], DIM)), axis=-1)
            return jnp.asarray(rows[order[..., : array.shape[-2]]], array.dtype)
        if name in ("norm", "scale"):
            return jnp.asarray(10 ** rng.uniform(-0.5, 1.0, array.shape), array.dtype)
        drawn = rng.standard_normal(array.shape)
        if name == "centers":
            drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
        return jnp.asarray(drawn * (3.0 if name == "projection" else 1.0), array.dtype)

    return dataclasses.replace(
        stream,
        blocks=jax.tree_util.tree_map_with_path(poisoned, stream.blocks),
        sinks=jnp.asarray(rng.standard_normal(stream.sinks.shape), stream.sinks.dtype),
        tail=jnp.asarray(rng.standard_normal(stream.tail.shape), stream.tail.dtype),
        length=jnp.asarray(lengths, jnp.int32),
    )


def attend_exactly(layer: LayerCache, query: Array, positions: Array, *, rope: Rope = ROPE) -> np.ndarray:
    """float64 ``[B, H, D]`` over all tokens as they are decoded."""
    asked = np.asarray(query[:, 0].astype(jnp.float32), np.float64)
    key, value = (_decoded(stream) for stream in (layer.key, layer.value))
    angle = np.arange(key.shape[2])[:, None] * np.asarray(rope.frequencies, np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = np.split(key, 2, axis=-1)
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1) * rope.attention_factor
    rows, heads, _ = asked.shape
    out = np.zeros(asked.shape)
    for row in range(rows):
        seen = int(positions[row, 0]) + 1
        for head in range(heads):
            at = head * key.shape[1] // heads
            logits = turned[row, at, :seen] @ asked[row, head] * SCALE
            weights = np.exp(logits - logits.max())
            out[row, head] = weights @ value[row, at, :seen] / weights.sum()
    return out


def _decoded(stream: Stream) -> np.ndarray:
    return np.asarray(jax.jit(read)(stream), np.float64)


def difference(found: Any, expected: np.ndarray) -> float:
    """Of the row where it is largest, beside the length of the row."""
    found = np.asarray(found, np.float64).reshape(expected.shape)
    return float(np.max(np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)))
