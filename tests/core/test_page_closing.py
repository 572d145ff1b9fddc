"""Pages coded ahead of a step are those that appending would have coded, bit for bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.page_closing import ready_layers
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope

SHAPE = CacheShape(num_layers=3, num_kv_heads=2, head_dim=16)
ROPE = Rope(head_dim=16)
ROWS, STEPS, MAX_LENGTH = 3, 30, 26
RECIPES = {
    "layers alike": "both=turboquant(block_size=8,bits=3),sinks=2,recent=5",
    "one exact token": "both=int4(block_size=8,group_size=16),sinks=0,recent=1",
    "a layer of another codec": (
        "both[0]=int8(block_size=4),key=turboquant(block_size=8),value=kivi(block_size=8,group_size=8),sinks=1,recent=3"
    ),
    "tables": "both=klt(block_size=8),sinks=1,recent=3",
    "a static mean": "key=turboquant(block_size=8,static_mean=true),value=int8(block_size=8),sinks=1,recent=3",
    "keys and values together": "both=klt-storage(block_size=8),sinks=1,recent=3",
    "nothing coded": "both=int8(block_size=32),sinks=0,recent=1",
}


def append(layers: Any, key: jax.Array, value: jax.Array, valid: jax.Array) -> tuple[Any, ...]:
    """One token into every layer, each layer's own."""
    return tuple(
        layer.append(key + index, value - index, rope=ROPE, valid=valid).layer for index, layer in enumerate(layers)
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_steps_that_close_pages_ahead_are_steps(recipe: str):
    """Of ragged rows, the longest of which is full in the end: then its tokens are dropped either way."""
    parsed = Recipe.parse(recipe)
    tables = neutral_tables(SHAPE, parsed)
    cache = CompressedCache.init(SHAPE, parsed, batch_size=ROWS, max_length=MAX_LENGTH, tables=tables)
    plain, ahead = cache, cache
    appended = jax.jit(lambda cache, *token: cache.replace_layers(append(cache.layers, *token)))
    closed_ahead = jax.jit(
        lambda cache, key, value, valid: cache.replace_layers(append(ready_layers(cache, valid), key, value, valid))
    )
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        key, value = (jnp.asarray(rng.standard_normal((ROWS, 1, 2, 16)), jnp.float32) for _ in range(2))
        valid = jnp.array([[True], [step % 3 != 0], [step % 2 == 0]])
        plain, ahead = appended(plain, key, value, valid), closed_ahead(ahead, key, value, valid)
    assert plain.length.tolist() == [MAX_LENGTH, 20, 15]
    assert jax.tree.structure(plain) == jax.tree.structure(ahead)
    for (path, expected), found in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(ahead), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=jax.tree_util.keystr(path))


def test_a_chunk_cannot_close_pages_ahead():
    cache = CompressedCache.init(SHAPE, Recipe.parse("both=int8(block_size=4)"), batch_size=1, max_length=200)
    two = jnp.zeros((1, 2, 2, 16))
    with pytest.raises(ValueError, match="ahead of one token, not of a chunk of 2"):
        ready_layers(cache)[0].append(two, two, rope=ROPE)


def test_layers_alike_are_coded_by_one_program():
    """Ten layers take hardly more code than two."""
    recipe = Recipe.parse("both=turboquant(block_size=8,bits=3),sinks=2,recent=5")

    def lines(layers: int) -> int:
        shape = dataclasses.replace(SHAPE, num_layers=layers)
        cache = jax.eval_shape(lambda: CompressedCache.init(shape, recipe, batch_size=1, max_length=40))
        text = jax.jit(lambda cache: ready_layers(cache)).lower(cache).as_text()
        return text.count("dot_general")

    assert lines(10) == lines(2) > 0
