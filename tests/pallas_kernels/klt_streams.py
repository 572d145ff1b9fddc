"""A layer of ``klt`` with tables drawn at random, filled with random tokens: maps, means and widths as calibration may
make them, or worse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

DIM, HEADS = 128, 2
ROPE = Rope(head_dim=DIM, theta=1e4)


def random_tables(widths: Any, seed: int, *, keys: bool, rope: Rope = ROPE) -> dict[str, jax.Array]:
    """Orthogonal maps with deviations that fall by a hundred, a mean of the size of the spread."""
    rng = np.random.default_rng(seed)
    axes = np.stack([np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] for _ in range(HEADS)])
    deviations = np.geomspace(3.0, 0.03, DIM)
    tables = {
        "widths": np.asarray(widths, np.int8),
        "mean": rng.standard_normal((HEADS, DIM)).astype(np.float32),
        "variances": np.broadcast_to(deviations**2, (HEADS, DIM)).astype(np.float32),
        "analysis": (axes.transpose(0, 2, 1) / deviations).astype(np.float32),
        "synthesis": (axes * deviations[:, None]).astype(np.float32),
    }
    if keys:
        tables["rope_frequencies"] = rope.frequencies
    return {name: jnp.asarray(table) for name, table in tables.items()}


def klt_layer(
    key_widths: Any,
    value_widths: Any,
    *,
    group: int,
    recipe: str = "both=klt(block_size=128),sinks=2,recent=5",
    length: int = 300,
    dtype: Any = jnp.float32,
    rope: Rope = ROPE,
    mean: Any = None,
) -> tuple[LayerCache, jax.Array, jax.Array]:
    """A filled layer with rows of different lengths, a query for each, and their positions; ``mean`` of keys, ``[D]``
    or ``[K, D]``, instead of one drawn at random."""
    shape = CacheShape(num_layers=1, num_kv_heads=HEADS, head_dim=DIM)
    found = {
        (0, "key"): random_tables(key_widths, 1, keys=True, rope=rope),
        (0, "value"): random_tables(value_widths, 2, keys=False),
    }
    if mean is not None:
        found[0, "key"]["mean"] = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), (HEADS, DIM))
    lengths = jnp.array([length, length // 2 + 20, 3])
    rows = len(lengths)
    cache = CompressedCache.init(
        shape, Recipe.parse(recipe), batch_size=rows, max_length=length + 20, dtype=dtype, tables=found
    )
    keys = jax.random.split(jax.random.key(group), 3)
    spread = [table["synthesis"] for table in found.values()]
    key, value = (
        (
            jnp.einsum("btke,ked->btkd", jax.random.normal(seed, (rows, length, HEADS, DIM)), each) + table["mean"]
        ).astype(dtype)
        for seed, each, table in zip(keys[:2], spread, found.values(), strict=True)
    )
    valid = jnp.arange(length) < lengths[:, None]
    fill = jax.jit(LayerCache.append, static_argnames="rope")
    layer = fill(cache.layers[0], key, value, rope=rope, valid=valid).layer
    query = jax.random.normal(keys[2], (rows, 1, group * HEADS, DIM)).astype(dtype)
    return layer, query, lengths[:, None] - 1
