"""Attention over keys coded before their rotary embedding: against float64 in an emulator, and on a GPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kakeya_streams import ROPE, SCALE, attend_exactly, difference, kakeya_layer
from mosaic import lowered, needs_mosaic

from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.pallas_kernels.attention import compressed_attention, mosaic_gpu
from kakeya_jax.pallas_kernels.attention.kakeya_halves import half_unit
from kakeya_jax.rope import Rope, YarnScaling

RECIPE = "key=kakeya(block_size=128),value=turboquant(bits=4,block_size=128),sinks=2,recent=5"
RECIPES = [
    RECIPE,
    "key=kakeya(block_size=256,bits=4,rank=64,kmeans_centers=0,mix_heads=true),"
    "value=turboquant(bits=2,rotation=hadamard,block_size=64),sinks=0,recent=1",
    "key=kakeya(block_size=64,bits=2),value=turboquant(bits=3,block_size=64),sinks=1,recent=1",
    "key=kakeya(block_size=512,bits=3,rank=64),value=turboquant(bits=4,block_size=128),sinks=4,recent=128",
]


def emulated(query: Any, layer: Any, positions: Any, *, splits: int = 2, rope: Rope = ROPE) -> Any:
    def step(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(
            query, key, value, positions=positions, rope=rope, scale=SCALE, interpret=True, splits=splits
        ).out

    return jax.jit(step)(query, layer.key, layer.value, positions)


@pytest.mark.parametrize(
    ("recipe", "group", "splits", "lengths"),
    [(RECIPES[0], 4, 2, (300, 150)), (RECIPES[1], 8, 1, (600,))],
    ids=["3 bits", "4 bits of rank 64, heads together, no centres, values turned by a transform"],
)
def test_emulated_steps_are_attention_to_decoded_tokens(recipe: str, group: int, splits: int, lengths: tuple[int, ...]):
    layer, query, positions = kakeya_layer(recipe, group=group, lengths=lengths)
    found = emulated(query, layer, positions, splits=splits)
    assert difference(found, attend_exactly(layer, query, positions)) < 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_lose_little_as_float16(bits: int):
    levels = np.asarray(gaussian_levels(bits), np.float64)
    unit = half_unit(tuple(levels))
    assert 0.5 <= unit < 1
    kept = (levels / unit).astype(np.float16).astype(np.float64) * unit
    assert np.sqrt(np.mean(np.square(kept - levels)) / np.mean(np.square(levels))) < 5e-5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("outlier_threshold=2.0", "outliers"),
        ("exact_rows=2", "exact rows"),
        ("rank=96", "rank 96"),
        ("kmeans_centers=8", "8 centres"),
        ("skeleton_dtype=float32", "skeleton of float32"),
        ("residual=besicovitch", "residual=besicovitch"),
        ("bits=1", "bits=1"),
    ],
)
def test_what_the_kernel_does_not_take(options: str, reason: str):
    recipe = RECIPE.replace("block_size=128", f"block_size=128,{options}", 1)
    layer, query, positions = _empty(recipe)
    with pytest.raises(NotImplementedError, match=reason):
        emulated(query, layer, positions)


def _empty(recipe: str) -> Any:
    from kakeya_jax.cache import CacheShape, CompressedCache
    from kakeya_jax.recipe import Recipe

    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=128)
    cache = CompressedCache.init(shape, Recipe.parse(recipe), batch_size=1, max_length=300)
    return cache.layers[0], jnp.zeros((1, 1, 4, 128)), jnp.zeros((1, 1), jnp.int32)


@needs_mosaic
def test_steps_lower_for_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer, query, positions = _empty(RECIPE)

    def step(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(query, key, value, positions=positions, rope=ROPE, scale=SCALE)

    program = lowered(step, query, layer.key, layer.value, positions)
    assert program.count("custom_call @mosaic_gpu") == 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("group", [1, 4, 5, 12])
def test_more_emulated_steps(recipe: str, group: int):
    rope = dataclasses.replace(ROPE, scaling=YarnScaling(factor=4.0, original_max_position_embeddings=128))
    layer, query, positions = kakeya_layer(recipe, group=group, lengths=(900, 650, 3))
    found = emulated(query, layer, positions, splits=3, rope=rope)
    assert (
        difference(found, attend_exactly(layer, query, positions, rope=rope)) < 2e-3
    )  # as on a GPU: logits are larger


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("group", "dtype"), [(1, jnp.float32), (4, jnp.float32), (4, jnp.bfloat16), (12, jnp.float32)])
@pytest.mark.parametrize("splits", [1, 2, 7])
def test_gpu_steps_are_attention_to_decoded_tokens(recipe: str, group: int, dtype: Any, splits: int):
    layer, query, positions = kakeya_layer(recipe, group=group, lengths=(2500, 700, 3), dtype=dtype)

    def step(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(
            query, key, value, positions=positions, rope=ROPE, scale=SCALE, splits=splits
        ).out

    run = jax.jit(step)
    found = run(query, layer.key, layer.value, positions).astype(jnp.float32)
    # Results of two bytes are rounded to a part in 256.
    assert difference(found, attend_exactly(layer, query, positions)) < (2e-3 if dtype == jnp.float32 else 4e-3)
    np.testing.assert_array_equal(found, run(query, layer.key, layer.value, positions).astype(jnp.float32))


@pytest.mark.gpu
@needs_mosaic
def test_a_gpu_takes_the_kernel_by_default():
    layer, query, positions = kakeya_layer(RECIPE, group=4)
    step = jax.jit(compressed_attention, static_argnames=("rope", "scale", "implementation"))
    found = step(query, layer.key, layer.value, positions=positions, rope=ROPE, scale=SCALE, implementation=None)
    assert difference(found, attend_exactly(layer, query, positions)) < 2e-3
