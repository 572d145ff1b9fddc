"""What encoding a prompt takes beside running it: the share of a prefill that a packed cache adds."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CompressedCache, LayerCache, Tables
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefillSpeed:
    """One recipe.

    Attributes:
        recipe: of the cache.
        prefill_milliseconds: of the dense forward pass over the prompt, the median.
        encode_milliseconds: of coding all layers' keys and values into an empty cache, the median.
        share: the second beside the first.
    """

    recipe: str
    prefill_milliseconds: float
    encode_milliseconds: float
    share: float


def bench_prefill(
    model: Any,
    params: Any,
    recipes: Sequence[str],
    *,
    context: int,
    batch_size: int = 1,
    repeats: int = 7,
    dtype: Any = jnp.bfloat16,
    on_row: Callable[[PrefillSpeed], None] = lambda row: None,
) -> list[PrefillSpeed]:
    """Times a prompt's forward pass and the encoding of its keys and values, in turn.

    Layers are encoded one after the other, as a prefill has them; calibrated tables are stand-ins of the right shapes.

    Args:
        model: the decoder.
        params: its parameters.
        recipes: what is measured.
        context: tokens of the prompt.
        batch_size: rows.
        repeats: measurements of each.
        dtype: of keys and values. Of 16 bits on a GPU, cuDNN attends.
        on_row: told about each row when it is measured.
    """
    fast = jax.default_backend() == "gpu" and jnp.dtype(dtype).itemsize == 2
    decoder = model.clone(implementation="cudnn" if fast else None)
    tokens = jnp.zeros((batch_size, context), jnp.int32)
    forward = jax.jit(lambda params, tokens: decoder.apply({"params": params}, tokens, last_only=True).logits)
    prefill = functools.partial(_seconds, forward, params, tokens)
    prefill()
    rows = []
    for name in recipes:
        encode = _encoder(model.config, Recipe.parse(name), context, batch_size, dtype)
        encode()
        pairs = [(prefill(), encode()) for _ in range(repeats)]
        dense, coded = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
        rows.append(
            PrefillSpeed(
                recipe=name,
                prefill_milliseconds=dense,
                encode_milliseconds=coded,
                share=statistics.median(mine / its for its, mine in pairs),
            )
        )
        on_row(rows[-1])
    return rows


def _encoder(config: Any, recipe: Recipe, context: int, batch_size: int, dtype: Any) -> Callable[[], float]:
    """What takes the seconds of coding every layer of a prompt once. Layers that are alike share a program."""
    tables: Tables = neutral_tables(config, recipe)
    cache = CompressedCache.init(config, recipe, batch_size=batch_size, max_length=context, dtype=dtype, tables=tables)
    shape = (batch_size, context, config.num_kv_heads, config.head_dim)
    key, value = (jax.random.normal(jax.random.key(seed), shape, dtype) for seed in range(2))

    @jax.jit
    def encode(layer: LayerCache, key: Array, value: Array) -> LayerCache:
        return layer.append(key, value, rope=config.rope).layer

    def all_layers() -> list[LayerCache]:
        return [encode(layer, key, value) for layer in cache.layers]

    return functools.partial(_seconds, all_layers)


def _seconds(run: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start
