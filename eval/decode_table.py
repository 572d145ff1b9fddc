"""``kakeya bench decode``: two scorecards, memory and speed, as tables and as JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.eval import model_or_config
from kakeya_jax.eval.bench_decode import STEPS, DecodeSpeed, bench_decode
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.recipe_tables import recipe_tables
from kakeya_jax.eval.text import check_vocabulary, encode_text, load_tokens
from kakeya_jax.models.locate import DEMO
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

RECIPES = ("int8", "int4", "kivi-2", "turboquant-4", "turboquant-2", "klt-2")
"""Measured unless others are named."""

NOTE = (
    "dense: models.DenseCache, two buffers a layer that are written in place; on a GPU cuDNN reads them, "
    "if they are of 16 bits"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya bench decode``."""

    model: str = DEMO
    recipes: tuple[str, ...] = RECIPES
    tokens: Path | None = None
    config_json: Path | None = None
    calibration: Path | None = None
    context: int = 4096
    batch_size: int = 1
    repeats: int = 7
    dtype: str = "float32"
    decoded_first: bool = True
    offline: bool = False

    def __post_init__(self) -> None:
        if self.config_json is not None and (self.model != DEMO or self.tokens or self.calibration):
            raise ValueError(
                "--config-json stands for a model of random weights and a random cache; leave out the rest"
            )
        if self.tokens is None and self.model != DEMO:
            raise ValueError("nothing to decode; give --tokens FILE")
        for name in ("batch_size", "repeats"):
            if getattr(self, name) < (2 if name == "repeats" else 1):
                raise ValueError(f"{name}={getattr(self, name)} is too small")


def measure(request: Request, *, quiet: bool = False) -> list[DecodeSpeed]:
    """The rows of ``bench_decode``.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    dtype = jnp.dtype(request.dtype)
    model, params = model_or_config.load(request.model, request.config_json, dtype=dtype, offline=request.offline)
    tokens = None
    if request.config_json is None:
        if request.tokens is not None:
            tokens = load_tokens(request.tokens)
        else:
            tokens = encode_text(bundled_text(), load_tokenizer(DEMO))
        check_vocabulary(tokens, model.config.vocab_size)

    def tables(recipe: Recipe) -> Any:
        if recipe.needs_calibration and request.config_json is not None:
            raise ValueError(f"recipe {str(recipe)!r} needs a calibration, which random weights have none of")
        return recipe_tables(recipe, request.model, request.calibration, model, params)

    total = 1 + (2 if request.decoded_first else 1) * len(request.recipes)
    with show_progress(quiet=quiet) as progress:
        done: list[DecodeSpeed] = []

        def on_row(row: DecodeSpeed) -> None:
            done.append(row)
            progress(len(done), total, f"{row.recipe}, {row.how}: {row.milliseconds:.3f} ms a step")

        progress(0, total, "dense")
        try:
            return bench_decode(
                model,
                params,
                tokens,
                request.recipes,
                context=request.context,
                batch_size=request.batch_size,
                repeats=request.repeats,
                decoded_first=request.decoded_first,
                tables=tables,
                on_row=on_row,
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            after = f"after {done[-1].recipe}, {done[-1].how}" if done else "for the dense cache"
            raise ValueError(
                f"too little device memory for {request.batch_size} rows of {request.context} tokens ({after}); "
                "give a smaller --batch-size or --context"
            ) from None


def to_dict(request: Request, rows: Sequence[DecodeSpeed]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "model": model_or_config.shown_name(request.model, request.config_json),
        "context": request.context,
        "batch_size": request.batch_size,
        "steps": STEPS,
        "repeats": request.repeats,
        "dtype": request.dtype,
        "environment": environment(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def tables(request: Request, rows: Sequence[DecodeSpeed]) -> Group:
    """Memory and speed, apart."""
    memory = _table(f"memory at {request.context} tokens, batch {request.batch_size}")
    memory.add_column("bytes/token", justify="right")
    memory.add_column("cache MiB", justify="right")
    memory.add_column("a step besides, MiB", justify="right")
    memory.add_column("together, of dense", justify="right")
    memory.add_column("largest batch", justify="right")
    dense = _held(rows[0])
    for row in rows:
        besides = "-" if row.step_nbytes is None else f"{row.step_nbytes / 2**20:.2f}"
        shares = f"{row.bytes_per_token:,.0f}", f"{row.cache_nbytes / 2**20:.2f}", besides, f"{_held(row) / dense:.2f}"
        shares = (*shares, "-" if row.largest_batch is None else f"{row.largest_batch:,}")
        memory.add_row(row.recipe, row.how, *shares)
    speed = _table("speed of a decode step, the whole model")
    speed.add_column("ms", justify="right")
    speed.add_column("quartiles", justify="right")
    speed.add_column("times as fast as dense", justify="right")
    for row in rows:
        low, high = row.quartiles
        numbers = f"{row.milliseconds:.3f}", f"{low:.3f}-{high:.3f}", f"{row.times_as_fast:.2f}"
        speed.add_row(row.recipe, row.how, *numbers)
    return Group(memory, speed, Text(NOTE))


def _held(row: DecodeSpeed) -> int:
    return row.cache_nbytes + (row.step_nbytes or 0)


def _table(title: str) -> Table:
    shown = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    shown.add_column("recipe")
    shown.add_column("attention")
    return shown
