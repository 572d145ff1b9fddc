"""Whole decode steps of a model: dense, through codes that are decoded first, and through codes as they are.

Storage and execution are two scorecards. A cache that is decoded before every step saves bytes between steps and
nothing else; what a step takes at its peak is what XLA's own analysis of the compiled step says. Dense is not our own
cache with everything exact, but two buffers a layer and the fastest dense attention (``models.dense_cache``).
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import accounting
from kakeya_jax.cache import CompressedCache, Tables, dense_recipe
from kakeya_jax.eval.random_cache import random_cache
from kakeya_jax.models.dense_cache import DenseCache
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Array, Int

DENSE = "dense"
HOW = {DENSE: None, "decoded first": "dense_copy", "packed": None}
"""What a row is, and the implementation of its attention."""

STEPS = 16
"""Decode steps that are timed at once."""

AnyCache = CompressedCache | DenseCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSpeed:
    """One way of decoding.

    Attributes:
        recipe: of the cache; ``"dense"`` for keys and values as they are.
        how: a key of ``HOW``.
        milliseconds: of one step, the median.
        quartiles: of the same.
        times_as_fast: as dense steps that were timed in turn with this row's, the median.
        cache_nbytes: that the cache holds; exact tokens counted as they are held.
        bytes_per_token: of the whole cache, exact tokens counted as bfloat16.
        step_nbytes: that steps allocate besides their arguments and results.
        largest_batch: rows of such a cache for which steps fit the device beside the parameters, by XLA's analysis of
            these; None where the device does not say how much memory it has.
        compile_seconds: of the timed loop.
    """

    recipe: str
    how: str
    milliseconds: float
    quartiles: tuple[float, float]
    times_as_fast: float
    cache_nbytes: int
    bytes_per_token: float
    step_nbytes: int | None
    largest_batch: int | None
    compile_seconds: float


def bench_decode(
    model: Any,
    params: Any,
    tokens: Int[np.ndarray, " n"] | None,
    recipes: Sequence[str],
    *,
    context: int,
    batch_size: int = 1,
    repeats: int = 7,
    dtype: Any = jnp.bfloat16,
    decoded_first: bool = True,
    tables: Callable[[Recipe], Tables | None] = lambda recipe: None,
    device_nbytes: int | None = None,
    on_row: Callable[[DecodeSpeed], None] = lambda row: None,
) -> list[DecodeSpeed]:
    """Times decode steps at the end of a context; every row decodes the same tokens.

    Args:
        model: the decoder.
        params: its parameters.
        tokens: a text of at least ``context`` tokens; every row of the batch reads it. None: caches are filled with
            random codes instead, which takes no prefill.
        recipes: each gives two rows, "decoded first" and "packed".
        context: tokens of the cache when the last step is done.
        batch_size: rows of the cache.
        repeats: loops of ``STEPS`` steps that are timed.
        dtype: of exact tokens.
        decoded_first: False leaves out the rows of that name, which need room for a dense copy.
        tables: calibrated tables of a recipe.
        device_nbytes: memory of the device; None for what it says itself.
        on_row: told about each row when it is measured.

    Raises:
        ValueError: the text is shorter than the context, or the context has no room for a prompt.
    """
    if context <= STEPS:
        raise ValueError(f"context={context} must be more than the {STEPS} steps that are timed")
    if tokens is not None and len(tokens) < context:
        raise ValueError(f"text has {len(tokens)} tokens, fewer than context={context}; use a longer text")
    read = np.zeros(context, np.int32) if tokens is None else tokens[:context]
    text = jnp.broadcast_to(jnp.asarray(read), (batch_size, context))
    device_nbytes = device_nbytes or (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    rows: list[DecodeSpeed] = []
    dense: Callable[[], float] | None = None
    for name in (DENSE, *recipes):
        recipe = dense_recipe(context) if name == DENSE else Recipe.parse(name)
        fitted = None if name == DENSE else tables(recipe)
        empty: Any
        if name == DENSE:
            empty = DenseCache.init(model.config, batch_size=batch_size, max_length=context, dtype=dtype)
        else:
            empty = CompressedCache.init(
                model.config, recipe, batch_size=batch_size, max_length=context, dtype=dtype, tables=fitted
            )
        report = accounting.cache_report(model.config, recipe, max_length=context, tables=fitted)
        if tokens is None:
            filled = random_cache(empty, jax.random.key(0), length=context - STEPS)
        else:
            filled = _prefill(model, params, empty, text[:, :-STEPS])
        del empty
        cache_nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(filled)) - report.table_nbytes
        held = _Held(filled)
        del filled  # its arrays are those of whoever steps last
        ways = [way for way in HOW if (way == DENSE) == (name == DENSE) and (decoded_first or way != "decoded first")]
        for how in ways:
            decoder = model.clone(implementation=HOW[how])
            run, memory, compile_seconds = _timed_loop(decoder, params, held, text[:, -STEPS:])
            dense = dense or run
            pairs = [(dense(), run()) for _ in range(repeats)]  # in turn: other work on the machine slows both
            milliseconds = [1e3 * mine / STEPS for _, mine in pairs]
            low, _, high = statistics.quantiles(milliseconds, n=4)
            row = DecodeSpeed(
                recipe=name,
                how=how,
                milliseconds=statistics.median(milliseconds),
                quartiles=(low, high),
                times_as_fast=1.0 if how == DENSE else statistics.median(its / mine for its, mine in pairs),
                cache_nbytes=cache_nbytes,
                bytes_per_token=report.bytes_per_token,
                step_nbytes=memory.besides,
                largest_batch=_largest_batch(params, batch_size, memory.peak, device_nbytes),
                compile_seconds=compile_seconds,
            )
            rows.append(row)
            on_row(row)
    return rows


class _Held:
    """A cache that loops of steps take and give back, so that it is never copied: each goes on at the same length.

    From the second loop on, the exact window holds tokens of the loop before; what a step reads and does is the same.
    """

    def __init__(self, cache: AnyCache) -> None:
        self.cache = cache
        self._lengths = [np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(cache) if _is_length(path)]

    def rewind(self, cache: AnyCache) -> None:
        """Keeps what a loop gave back, with the first lengths."""
        lengths = iter(self._lengths)
        self.cache = jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(next(lengths)) if _is_length(path) else leaf, cache
        )


def _is_length(path: tuple[Any, ...]) -> bool:
    return getattr(path[-1], "name", None) == "length"


def _prefill(model: Any, params: Any, cache: AnyCache, tokens: Int[Array, "B T"]) -> AnyCache:
    def fill(params: Any, cache: AnyCache, tokens: Array) -> AnyCache:
        return model.apply({"params": params}, tokens, cache=cache, last_only=True).cache

    fill = jax.jit(fill, donate_argnums=1)
    for first in range(0, tokens.shape[1], 512):
        cache = fill(params, cache, tokens[:, first : first + 512])
    return jax.block_until_ready(cache)


def _timed_loop(
    model: Any, params: Any, held: _Held, tokens: Int[Array, "B n"]
) -> tuple[Callable[[], float], "_LoopMemory", float]:
    """What takes the seconds of one loop over all ``tokens``, a step each; its memory; how long it took to compile."""

    @functools.partial(jax.jit, donate_argnums=1)
    def loop(params: Any, cache: AnyCache, tokens: Array) -> tuple[AnyCache, Array]:
        def step(cache: AnyCache, token: Array) -> tuple[AnyCache, Array]:
            logits, cache = model.apply({"params": params}, token[:, None], cache=cache)
            return cache, jnp.argmax(logits[:, 0], axis=-1)

        return jax.lax.scan(step, cache, tokens.T)

    start = time.perf_counter()
    compiled = loop.lower(params, held.cache, tokens).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> float:
        start = time.perf_counter()
        cache, likeliest = jax.block_until_ready(compiled(params, held.cache, tokens))
        seconds = time.perf_counter() - start
        del likeliest
        held.rewind(cache)
        return seconds

    run()
    return run, _LoopMemory.of(compiled), compile_seconds


class _LoopMemory(NamedTuple):
    """Bytes of a compiled loop: ``besides`` arguments and results, and ``peak`` of all; None where XLA does not say."""

    besides: int | None
    peak: int | None

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "_LoopMemory":
        """By XLA's analysis."""
        analysis = compiled.memory_analysis()
        if analysis is None:
            return cls(None, None)
        besides = int(analysis.temp_size_in_bytes)
        shared = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return cls(besides, besides + int(shared))


def _largest_batch(params: Any, batch_size: int, peak: int | None, device_nbytes: int | None) -> int | None:
    """Rows that fit, if all that these rows take beside the parameters grows with them: no more may be promised."""
    if device_nbytes is None or peak is None:
        return None
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return max(0, (device_nbytes - parameters) * batch_size // (peak - parameters))
