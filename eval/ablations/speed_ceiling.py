"""How much faster could decoding become if attention read less?"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.eval.ablations.ablation import Ablation, Column, Row, Setup, Size
from kakeya_jax.eval.ablations.recipe_cells import number
from kakeya_jax.eval.ablations.selection import CHUNK
from kakeya_jax.eval.selectors import top_chunks
from kakeya_jax.eval.speed_ceiling import speedup
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.typing import Array

_REPEATS = 31
_KEPT = (0.5, 0.25, 0.125, 0.0)
_NOTHING_HELD = 8
"""Tokens of the cache that stands for a step without attention."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeilingCell:
    """Decode steps of one sequence over a dense cache of ``context`` tokens."""

    label: str
    context: int

    @property
    def recipe(self) -> None:
        """No recipe: the cache is dense."""
        return

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"decode_context": self.context, "repeats": _REPEATS}

    def measure(self, setup: Setup) -> Row:
        """Times a step over the cache, over a cache of next to nothing, and the choice of chunks; in turn."""
        choose, means, query = _choice(setup.model.config, self.context)
        with_attention, without, choosing = _medians(
            _stepper(setup, self.context), _stepper(setup, _NOTHING_HELD), lambda: choose(query, means)
        )
        p = max(0.0, 1 - without / with_attention)
        h = choosing / with_attention
        return {
            "tokens_scored": _REPEATS,
            "step_seconds": with_attention,
            "step_seconds_without_attention": without,
            "choice_seconds": choosing,
            "p": p,
            "h": h,
            "speedup": {f"{f:g}": {"free": speedup(p, f), "with_choice": speedup(p, f, h)} for f in _KEPT},
        }


def _stepper(setup: Setup, length: int) -> Callable[[], Array]:
    """One decode step over a dense cache of ``length`` tokens, again and again; the cache is donated to each step.

    Its tokens are of whatever value: their number is what takes time.
    """
    config, params = setup.model.config, setup.params
    token = jnp.asarray(setup.tokens[:1][None])

    @functools.partial(jax.jit, donate_argnums=0)
    def step(cache: CompressedCache, params: Any) -> tuple[CompressedCache, Array]:
        logits, after = setup.model.apply({"params": params}, token, cache=cache)
        return _one_short(after), logits

    cache = CompressedCache.init(config, dense_recipe(length), batch_size=1, max_length=length, dtype=jnp.float32)
    held = [_one_short(cache)]

    def again() -> Array:
        held[0], logits = step(held[0], params)
        return logits

    return again


def _one_short(cache: CompressedCache) -> CompressedCache:
    """The cache with room for one token."""

    def stream(held: Any) -> Any:
        return dataclasses.replace(held, length=jnp.full_like(held.length, held.geometry.max_length - 1))

    return cache.replace_layers(
        tuple(dataclasses.replace(layer, key=stream(layer.key), value=stream(layer.value)) for layer in cache.layers)
    )


def _choice(config: ModelConfig, context: int) -> tuple[Callable[[Array, Array], Array], Array, Array]:
    """The choice of an eighth of the chunks by their mean keys, in all layers; means kept beside the cache."""
    chunks = max(2, context // CHUNK)
    keep = max(1, chunks // 8)
    heads, dim = config.num_kv_heads, config.head_dim
    means = jax.random.normal(jax.random.key(0), (config.num_layers, heads, chunks, dim))
    query = jax.random.normal(jax.random.key(1), (config.num_layers, heads, config.num_heads // heads, dim))

    @jax.jit
    def choose(query: Array, means: Array) -> Array:
        return top_chunks(jnp.einsum("lkgd,lkcd->lkgc", query, means).max(axis=2), keep)

    return choose, means, query


def _medians(*functions: Callable[[], Array]) -> list[float]:
    """Median seconds of each, called in turn so that what else runs on the machine meets all of them."""
    for function in functions:
        jax.block_until_ready(function())
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(_REPEATS):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def _cells(config: ModelConfig, context: int) -> tuple[CeilingCell, ...]:
    del config
    contexts = (context, 4 * context, 16 * context)
    return tuple(CeilingCell(label=f"{length:,} tokens", context=length) for length in contexts)


def _ceiling(f: float) -> Column:
    def text(row: Row) -> str:
        both = row["speedup"][f"{f:g}"]
        return f"{number(both['free'], '.2f')} / {number(both['with_choice'], '.2f')}"

    title = f"speed-up if {100 * f:g} % is read" if f else "ceiling (nothing is read)"
    return Column(title=f"{title}: free / with choice", text=text)


ABLATION = Ablation(
    name="speed-ceiling",
    question="How much faster could a decode step of this model on this device become if attention read less?",
    claims=(
        "A. Verma's posts: Qwen2.5-7B at 8k spends 0.334 of a step in attention, so no selection makes it more than "
        "1.5 times as fast, and theirs 1.20 to 1.21 times",
    ),
    cells=_cells,
    columns=(
        Column(title="step, ms", text=lambda row: number(1e3 * row["step_seconds"], ".2f")),
        Column(
            title="without attention, ms", text=lambda row: number(1e3 * row["step_seconds_without_attention"], ".2f")
        ),
        Column(title="p", text=lambda row: number(row["p"])),
        Column(title="h of chunk means", text=lambda row: number(row["h"])),
        *map(_ceiling, _KEPT),
    ),
    notes=(
        "1 / ((1 - p) + p f + h): p is one minus the time of a step over a cache of 8 tokens by that over the whole "
        "dense one; h the time to choose an eighth of the chunks of 32 tokens by their mean keys in all layers, by "
        f"that of a step. One sequence, float32, medians of {_REPEATS} steps, called in turn. p of 0 means that "
        "attention was lost in the noise.",
    ),
    demo=Size(context=1024, passages=1),
    usual=Size(context=4096, passages=1),
    seconds=10.0,
)
