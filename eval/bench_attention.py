"""Decode attention over packed codes on this device, beside dense attention in the same run.

One measurement is a jitted loop of whole calls, each on other buffers than the one before, together at least four
times the largest second-level cache: queries rotated, codes read, exact tokens attended to, parts merged, result
rotated back.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache
from kakeya_jax.eval.random_cache import random_stream
from kakeya_jax.eval.torch_attention import torch_baselines
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.pallas_kernels.attention import compressed_attention
from kakeya_jax.pallas_kernels.attention.arg_specs import ArgSpec
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope
from kakeya_jax.typing import Array

ROTATED_NBYTES = 4 * 60 * 10**6
"""Bytes read before a buffer is read again: four times the second-level cache of an H200."""

_COPIES = 8
"""Copies in one call: a single one would be mostly launching."""

_LOOP_SECONDS = 60e-3
"""About what is timed at once on a GPU: starting a program with many buffers takes a millisecond or two."""

_BYTES_PER_SECOND = 2e12
"""A guess at how fast a GPU reads, to choose the length of a loop."""

_CALLS = 8
"""Least calls in one round of a loop: a round itself takes some time on a GPU, as its counter is computed there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpeed:
    """One implementation at one shape.

    Attributes:
        name: of the implementation; of a packed one with its recipe.
        milliseconds: of one call, the median.
        quartiles: of the same.
        nbytes: read for coded tokens by one call.
        temporary_nbytes: that the compiled call allocates; None if it is not XLA's.
        compile_seconds: of the whole loop.
    """

    name: str
    milliseconds: float
    quartiles: tuple[float, float]
    nbytes: int
    temporary_nbytes: int | None
    compile_seconds: float | None


def bench_attention(
    spec: ArgSpec,
    recipes: Sequence[str],
    *,
    implementations: Sequence[str] = ("mosaic_gpu", "triton"),
    repeats: int = 51,
    dense: bool = True,
    done: Collection[str] = (),
    on_row: Callable[[AttentionSpeed], None] = lambda row: None,
    on_skip: Callable[[str, str], None] = lambda name, reason: None,
) -> list[AttentionSpeed]:
    """Times one decode step of one layer.

    Args:
        spec: the shape.
        recipes: what the cache holds.
        implementations: of ``compressed_attention``.
        repeats: loops that are timed.
        dense: also dense attention: cuDNN through JAX, PyTorch's if it is installed, and copying as a floor.
        done: names of rows that are there already and are not measured again.
        on_row: called with each row as soon as it is measured.
        on_skip: called with the name of what does not run here, and why.
    """
    rows: list[AttentionSpeed] = []

    def measure(name: str, run: Callable[[], AttentionSpeed]) -> None:
        if name in done:
            return
        try:
            rows.append(run())
        except NotImplementedError as error:
            on_skip(name, str(error).splitlines()[0])
        else:
            on_row(rows[-1])

    if dense:
        measure("floor copy", lambda: _time_copy(spec, repeats))
        measure("dense jax-cudnn", lambda: _time_cudnn(spec, repeats))
        for name, run in torch_baselines(spec, repeats, copies(spec.dense_nbytes)).items():
            measure(name, lambda name=name, run=run: _of_torch(name, spec, run()))
    for recipe in recipes:
        missing = {f"{recipe} {each}": each for each in implementations if f"{recipe} {each}" not in done}
        layers = random_layers(spec, Recipe.parse(recipe)) if missing else []
        for name, each in missing.items():
            attention = functools.partial(compressed_attention, implementation=each)
            measure(name, lambda name=name, of=attention: time_packed(name, spec, layers, of, repeats))  # noqa: B023
    return rows


def best_dense(rows: Sequence[AttentionSpeed]) -> AttentionSpeed | None:
    """The fastest dense implementation, if one was measured."""
    return min((row for row in rows if row.name.startswith("dense")), key=lambda row: row.milliseconds, default=None)


def time_packed(
    name: str, spec: ArgSpec, layers: Sequence[LayerCache], attention: Callable[..., Array], repeats: int
) -> AttentionSpeed:
    """Times ``attention``, which takes what ``compressed_attention`` takes, over the ``random_layers`` of a recipe."""
    rope, scale = Rope(head_dim=spec.head_dim), spec.head_dim**-0.5
    positions = layers[0].key.length[:, None] - 1

    def call(query: Array, layer: LayerCache) -> Array:
        return attention(query, layer.key, layer.value, positions=positions, rope=rope, scale=scale)

    nbytes = sum(leaf.nbytes for stream in (layers[0].key, layers[0].value) for leaf in jax.tree.leaves(stream.blocks))
    return time_calls(name, call, random_query(spec), layers, nbytes, repeats)


def _time_cudnn(spec: ArgSpec, repeats: int) -> AttentionSpeed:
    if jax.default_backend() != "gpu":
        raise NotImplementedError("no NVIDIA GPU")
    shape = (spec.batch, spec.tokens, spec.num_kv_heads, spec.head_dim)
    buffers = [
        tuple(jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(index)))
        for index in range(copies(spec.dense_nbytes))
    ]

    def call(query: Array, buffer: tuple[Array, Array]) -> Array:
        return jax.nn.dot_product_attention(query, *buffer, implementation="cudnn")

    return time_calls("dense jax-cudnn", call, random_query(spec), buffers, spec.dense_nbytes, repeats)


def _time_copy(spec: ArgSpec, repeats: int) -> AttentionSpeed:
    """How long the dense K and V would take at the speed of a copy, reads and writes counted."""
    count = max(spec.dense_nbytes, ROTATED_NBYTES) // 4
    source = jax.random.normal(jax.random.key(0), (count,), jnp.float32)
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, _COPIES, lambda _, x: x + 1.0, x))
    seconds = _seconds(lambda: copy(source), repeats)
    share = spec.dense_nbytes / (2 * source.nbytes * _COPIES)
    return _row("floor copy", [each * share for each in seconds], spec.dense_nbytes, None, None)


def time_calls(
    name: str, call: Callable[[Array, Any], Array], query: Array, buffers: Sequence[Any], nbytes: int, repeats: int
) -> AttentionSpeed:
    """Times ``call`` with every buffer in turn; a result is the next query, so that no call is left out or overlaps."""
    call = jax.jit(call)  # traced and lowered once, however often the loop has it
    memory = call.lower(query, buffers[0]).compile().memory_analysis()
    turns = rounds = 1
    if jax.default_backend() == "gpu":
        turns = math.ceil(_CALLS / len(buffers))
        guess = max(nbytes / _BYTES_PER_SECOND, 20e-6)
        rounds = max(1, math.ceil(_LOOP_SECONDS / (guess * len(buffers) * turns)))

    def loop(query: Array, buffers: Sequence[Any]) -> Array:
        def one_round(index: Array, query: Array) -> Array:
            del index
            for buffer in [*buffers] * turns:
                query = call(query, buffer).astype(query.dtype)
            return query

        return jax.lax.fori_loop(0, rounds, one_round, query)

    start = time.perf_counter()
    compiled = jax.jit(loop).lower(query, buffers).compile()
    compile_seconds = time.perf_counter() - start
    calls = rounds * turns * len(buffers)
    seconds = [each / calls for each in _seconds(lambda: compiled(query, buffers), repeats)]
    return _row(name, seconds, nbytes, None if memory is None else memory.temp_size_in_bytes, compile_seconds)


def _row(
    name: str, seconds: list[float], nbytes: int, temporary: int | None, compile_seconds: float | None
) -> AttentionSpeed:
    low, middle, high = statistics.quantiles((1e3 * each for each in seconds), n=4)
    return AttentionSpeed(
        name=name,
        milliseconds=middle,
        quartiles=(low, high),
        nbytes=nbytes,
        temporary_nbytes=temporary,
        compile_seconds=compile_seconds,
    )


def _of_torch(name: str, spec: ArgSpec, seconds: list[float]) -> AttentionSpeed:
    return _row(name, seconds, spec.dense_nbytes, None, None)


def _seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return found


def random_query(spec: ArgSpec) -> Array:
    """Queries of one step."""
    shape = (spec.batch, 1, spec.num_kv_heads * spec.group, spec.head_dim)
    return jax.random.normal(jax.random.key(1), shape, jnp.bfloat16)


def copies(nbytes: int) -> int:
    """Buffers of ``nbytes`` that together are read from memory, not from a cache."""
    return max(1, math.ceil(ROTATED_NBYTES / nbytes)) if jax.default_backend() == "gpu" else 1


def random_layers(spec: ArgSpec, recipe: Recipe) -> list[LayerCache]:
    """Layers of random codes, as many as the cache of the device must not hold; calibrated tables are stand-ins."""
    shape = CacheShape(num_layers=1, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim)
    length = spec.tokens + recipe.sinks + recipe.recent
    tables = neutral_tables(shape, recipe) if recipe.needs_calibration else None
    cache = CompressedCache.init(
        shape, recipe, batch_size=spec.batch, max_length=length, dtype=jnp.bfloat16, tables=tables
    )
    layer = cache.layers[0]
    assert isinstance(layer, LayerCache)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves((layer.key.blocks, layer.value.blocks)))
    fill = jax.jit(random_stream, static_argnames="length")
    return [
        LayerCache(key=fill(layer.key, jax.random.key(2 * n), length=length),
                   value=fill(layer.value, jax.random.key(2 * n + 1), length=length))
        for n in range(copies(nbytes))
    ]  # fmt: skip
