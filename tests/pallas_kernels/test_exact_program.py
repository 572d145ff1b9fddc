"""Attention to exact tokens of 16 bits on tensor cores: against float64 where nothing is coded; keys turned."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_steps import LENGTHS, assert_attends, assert_gpu_attends, attend, attended, step
from klt_streams import klt_layer
from mosaic import needs_mosaic

from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache
from kakeya_jax.pallas_kernels.attention import compressed_attention, decode_step, mosaic_gpu
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

BRAIN, HALF = jnp.bfloat16, jnp.float16
ALL_EXACT = "both=turboquant(bits=4,block_size=64),sinks=4,recent=276"
WIDTHS = [[8, 6, 4, 4, 2, 2, 0, 0], [6, 4, 4, 4, 2, 0, 0, 0]]


def filled(recipe: str, dim: int, group: int, dtype: Any, size: float = 1.0) -> tuple[LayerCache, jax.Array, jax.Array]:
    """A layer with rows of different lengths, queries of float32, and positions; one row's ring has gone round."""
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=dim)
    layer = CompressedCache.init(shape, Recipe.parse(recipe), batch_size=3, max_length=600, dtype=dtype).layers[0]
    k, v, q = jax.random.split(jax.random.key(dim + group), 3)
    lengths = jnp.array([540, *LENGTHS[1:]])
    key, value = (size * jax.random.normal(each, (3, 540, 2, dim)) for each in (k, v))
    append = jax.jit(LayerCache.append, static_argnames="rope")
    valid = jnp.arange(540) < lengths[:, None]
    layer = append(layer, key.astype(dtype), value.astype(dtype), rope=Rope(head_dim=dim), valid=valid).layer
    return layer, jax.random.normal(q, (3, 1, 2 * group, dim)) / size, lengths[:, None] - 1


@pytest.mark.parametrize(
    ("dim", "group", "dtype"), [(128, 4, BRAIN), (128, 8, HALF), (64, 1, BRAIN), (64, 5, BRAIN), (128, 3, HALF)]
)
def test_exact_tokens_are_attended_to_as_in_float64(dim: int, group: int, dtype: Any):
    """Two of three rows have nothing else; the third also has codes, with the kernel's error for those."""
    layer, query, positions = filled(ALL_EXACT, dim, group, dtype)
    found, expected = attend(layer, query, positions, interpret=True), attended(layer, query, positions)
    assert_attends(found.out[1:], expected[1:], 3e-5)
    assert_attends(found.out, expected, 1e-3)
    assert np.isfinite(found.lse).all()


@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_of_any_size(size: float):
    """Of float16, whose range is small: queries are taken relative to their largest channel."""
    layer, query, positions = filled(ALL_EXACT, 128, 4, HALF, size)
    found, expected = step(layer, query, positions, interpret=True), attended(layer, query, positions)
    assert_attends(found[1:], expected[1:], 3e-5)


def test_one_token_that_dominates():
    layer, query, positions = filled(ALL_EXACT, 128, 4, BRAIN)
    found = step(layer, 40 * query, positions, interpret=True)
    assert_attends(found[1:], attended(layer, 40 * query, positions)[1:], 1e-3)


@pytest.mark.parametrize("recipe", ["both=turboquant(bits=4,block_size=64),sinks=0,recent=1", ALL_EXACT])
def test_shared_by_any_number_of_programs(recipe: str, monkeypatch: pytest.MonkeyPatch):
    """Also by more than there are tiles."""
    layer, query, positions = filled(recipe, 128, 4, BRAIN)
    found = []
    for count in (1, 5, 17):
        monkeypatch.setattr(decode_step, "exact_programs", lambda *arguments, count=count, **options: count)
        found.append(step(layer, query, positions, interpret=True))
    assert_attends(found[0], attended(layer, query, positions), 1e-3)
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=2e-6)


def test_what_is_not_a_token_is_not_read():
    """Places of the ring that hold none are NaN; so are sinks of a row that is shorter than they are many."""
    layer, query, positions = filled(ALL_EXACT, 128, 4, BRAIN)
    expected = step(layer, query, positions, interpret=True)

    def poisoned(array: jax.Array, first: int, held: jax.Array) -> jax.Array:
        empty = jnp.arange(array.shape[2]) + first >= held[:, None]
        return jnp.where(empty[:, None, :, None], jnp.nan, array)

    lengths = positions[:, 0] + 1
    held = jnp.where(lengths < 300, lengths, 10_000)  # of the first row every place is taken
    streams = {}
    for name in ("key", "value"):
        stream = getattr(layer, name)
        sinks, tail = poisoned(stream.sinks, 0, lengths), poisoned(stream.tail, stream.sinks.shape[2], held)
        streams[name] = dataclasses.replace(stream, sinks=sinks, tail=tail)
    found = step(dataclasses.replace(layer, **streams), query, positions, interpret=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("group", "dtype"), [(4, BRAIN), (8, BRAIN), (2, HALF)])
def test_keys_turned_in_registers(group: int, dtype: Any):
    """Stored before their rotary embedding; two of three rows have nothing but exact tokens."""
    recipe = "both=klt(block_size=128),sinks=4,recent=250"
    layer, query, positions = klt_layer(WIDTHS, WIDTHS, group=group, recipe=recipe, length=420, dtype=dtype)
    arguments = {"positions": positions, "rope": Rope(head_dim=128, theta=1e4), "scale": 0.1}
    query = query.astype(jnp.float32)
    expected = compressed_attention(query, layer.key, layer.value, implementation="reference", **arguments)
    found = mosaic_gpu.attention_mosaic_gpu(query, layer.key, layer.value, interpret=True, **arguments).out
    assert_attends(found[1:], np.asarray(expected[1:], np.float64), 1e-4)
    assert_attends(found, np.asarray(expected, np.float64), 1e-3)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "group", "dtype"), [(128, 4, BRAIN), (128, 8, HALF), (64, 5, BRAIN)])
@pytest.mark.parametrize("recent", [1, 276])
def test_gpu_steps_with_exact_tokens_of_half_precision(dim: int, group: int, dtype: Any, recent: int):
    layer, query, positions = filled(
        f"both=turboquant(bits=4,block_size=64),sinks=4,recent={recent}", dim, group, dtype
    )
    assert_gpu_attends(layer, query, positions)


@needs_mosaic
@pytest.mark.gpu
@pytest.mark.parametrize(("group", "dtype"), [(4, BRAIN), (8, HALF)])
def test_gpu_keys_turned_in_registers(group: int, dtype: Any):
    recipe = "both=klt(block_size=128),sinks=4,recent=250"
    layer, query, positions = klt_layer(WIDTHS, WIDTHS, group=group, recipe=recipe, length=420, dtype=dtype)
    arguments = {"positions": positions, "rope": Rope(head_dim=128, theta=1e4), "scale": 0.1}
    query = query.astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        expected = compressed_attention(query, layer.key, layer.value, implementation="reference", **arguments)
    run = jax.jit(lambda query, key, value: mosaic_gpu.attention_mosaic_gpu(query, key, value, **arguments).out)
    first, second = (run(query, layer.key, layer.value) for _ in range(2))
    assert_attends(first, np.asarray(expected, np.float64), 2e-3)
    np.testing.assert_array_equal(first, second)
