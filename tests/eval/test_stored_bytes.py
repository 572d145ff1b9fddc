"""The bytes in results are those of the arrays that a cache holds when it is full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.eval.explain import explain, report_dict
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.recipe import Recipe

LENGTH = 128
RECIPES = (
    "both=int8(block_size=16),sinks=2,recent=8",
    "key=int4(block_size=16),value=kivi(block_size=32),sinks=2,recent=8",
)


@pytest.fixture(scope="module")
def held(tiny_model, tiny_tokens) -> dict[str, int]:
    """Bytes of all arrays of a full cache of one sequence, tables and lengths aside."""
    model, params = tiny_model
    return {recipe: held_by_full_cache(model, params, tiny_tokens[None, :LENGTH], recipe) for recipe in RECIPES}


def held_by_full_cache(model, params, tokens: np.ndarray, recipe: str) -> int:
    parsed = Recipe.parse(recipe)
    cache = CompressedCache.init(model.config, parsed, batch_size=1, max_length=LENGTH, dtype=jnp.bfloat16)
    cache = jax.jit(model.apply)({"params": params}, tokens, cache=cache).cache
    assert cache.length.tolist() == [LENGTH]
    streams = [stream for layer in cache.layers for stream in (layer.key, layer.value)]
    arrays = [jax.tree.leaves((stream.blocks, stream.sinks, stream.tail)) for stream in streams]
    return sum(np.asarray(array).nbytes for of_stream in arrays for array in of_stream)


def dense(model) -> int:
    """Bytes of the same keys and values as bfloat16."""
    config = model.config
    return 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * LENGTH


def test_eval_rows_count_the_bytes_of_a_full_cache(tiny_model, tiny_tokens, held: dict[str, int]) -> None:
    model, params = tiny_model
    result = evaluate(
        model, params, tiny_tokens, RECIPES, context=LENGTH, passages=1, warmup=32, chunk=32, encode_time=False
    )
    for row in result.rows:
        assert row.bytes_per_token == held[row.recipe] / LENGTH
        assert row.compression_ratio == dense(model) / held[row.recipe]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_explain_counts_the_bytes_of_a_full_cache(tiny_model, held: dict[str, int], batch_size: int) -> None:
    model, _ = tiny_model
    for text in RECIPES:
        recipe = Recipe.parse(text)
        row = report_dict(explain(model.config, recipe, context=LENGTH, batch_size=batch_size), recipe, "tiny")
        assert row["bytes"] == batch_size * held[text]
        assert row["bytes_per_token"] == held[text] / LENGTH
        assert row["dense_bytes"] == batch_size * dense(model)
        assert row["compression_ratio"] == dense(model) / held[text]
