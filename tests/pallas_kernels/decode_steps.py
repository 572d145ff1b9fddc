"""Layers with codes, and what attention over them is in float64: for tests of decode steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache
from kakeya_jax.pallas_kernels.attention import Attended, mosaic_gpu
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope
from kakeya_jax.stream import read

SCALE = 0.2


LENGTHS = (280, 150, 3)


def filled(
    recipe: str, dim: int, group: int, spread: float = 0.0, outlier: float = 0.0
) -> tuple[LayerCache, jax.Array, jax.Array]:
    """A layer with rows of different lengths, a query for each, and their positions. Each group of 32 channels of each
    token has a size of its own, within ``spread`` orders of magnitude; ``outlier`` is added to one channel."""
    k, v, q, s = jax.random.split(jax.random.key(group), 4)
    sizes = 10.0 ** -(spread * jax.random.uniform(s, (2, 3, 280, 2, dim // 32)))
    key, value = (
        (jax.random.normal(each, (3, 280, 2, dim)) * jnp.repeat(size, 32, axis=-1)).at[..., 7].add(outlier)
        for each, size in zip((k, v), sizes, strict=True)
    )
    return layer_of(recipe, key, value), jax.random.normal(q, (3, 1, 2 * group, dim)), jnp.array(LENGTHS)[:, None] - 1


def layer_of(recipe: str, key: jax.Array, value: jax.Array) -> LayerCache:
    """A layer that holds ``[3, 280, K, D]``, of each row as many tokens as ``LENGTHS`` says; or all of other rows."""
    rows, tokens, heads, dim = key.shape
    shape = CacheShape(num_layers=1, num_kv_heads=heads, head_dim=dim)
    parsed = Recipe.parse(recipe if "recent" in recipe else recipe + ",sinks=2,recent=5")
    layer = CompressedCache.init(shape, parsed, batch_size=rows, max_length=300, dtype=jnp.float32).layers[0]
    lengths = jnp.array(LENGTHS if rows == len(LENGTHS) else [tokens] * rows)
    append = jax.jit(type(layer).append, static_argnames="rope")
    return append(layer, key, value, rope=Rope(head_dim=dim), valid=jnp.arange(tokens) < lengths[:, None]).layer


def attended(layer: LayerCache, query: jax.Array, positions: jax.Array) -> np.ndarray:
    """In float64, over keys and values as they are decoded."""
    keys, values = (np.asarray(jax.jit(read)(stream), np.float64) for stream in (layer.key, layer.value))
    rows, _, heads, _ = query.shape
    found = np.zeros(query.shape)
    for row in range(rows):
        length = int(positions[row, 0]) + 1
        for head in range(heads):
            kv_head = head // (heads // keys.shape[1])
            logits = keys[row, kv_head, :length] @ np.asarray(query[row, 0, head], np.float64) * SCALE
            weights = np.exp(logits - logits.max())
            found[row, 0, head] = weights @ values[row, kv_head, :length] / weights.sum()
    return found


def assert_attends(found: Any, expected: np.ndarray, tolerance: float) -> None:
    """Each head's output is within ``tolerance`` of its length."""
    error = np.linalg.norm(np.asarray(found, np.float64) - expected, axis=-1)
    assert (error <= tolerance * np.linalg.norm(expected, axis=-1)).all()


def assert_refused(recipe: str, reason: str) -> None:
    """A step over a cache of this recipe has no kernel, and the error says why."""
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    parsed = Recipe.parse(recipe + ",sinks=2,recent=5")
    layer = CompressedCache.init(shape, parsed, batch_size=1, max_length=300, dtype=jnp.float32).layers[0]
    assert isinstance(layer, LayerCache)
    with pytest.raises(NotImplementedError, match=reason):
        step(layer, jnp.zeros((1, 1, 2, 64)), jnp.array([[200]]), interpret=True)


def step(layer: LayerCache, query: jax.Array, positions: jax.Array, **options: Any) -> jax.Array:
    return attend(layer, query, positions, **options).out


def attend(layer: LayerCache, query: jax.Array, positions: jax.Array, **options: Any) -> Attended:
    """The same, with the logarithm of what weights were divided by."""
    rope = Rope(head_dim=query.shape[-1])
    return mosaic_gpu.attention_mosaic_gpu(
        query, layer.key, layer.value, positions=positions, rope=rope, scale=SCALE, **options
    )


def assert_gpu_attends(layer: LayerCache, query: jax.Array, positions: jax.Array) -> None:
    """On a GPU, within 2e-3 and twice bit for bit, for several numbers of programs."""
    run = jax.jit(step, static_argnames="splits")
    for splits in (1, 2, 7):
        first, second = (run(layer, query, positions, splits=splits) for _ in range(2))
        assert_attends(first, attended(layer, query, positions), 2e-3)
        np.testing.assert_array_equal(first, second)
