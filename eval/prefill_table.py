"""``kakeya bench prefill``: what was asked for, and the times as a table and as JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import rich.box
from rich.table import Table

from kakeya_jax.eval import model_or_config
from kakeya_jax.eval.bench_prefill import PrefillSpeed, bench_prefill
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.models.locate import DEMO

RECIPES = ("int4", "turboquant-4", "turboquant-2", "klt-2", "klt-4")
"""Measured unless others are named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya bench prefill``."""

    model: str = DEMO
    config_json: Path | None = None
    recipes: tuple[str, ...] = RECIPES
    context: int = 2048
    batch_size: int = 1
    repeats: int = 7
    dtype: str = "float32"
    offline: bool = False

    def __post_init__(self) -> None:
        if self.config_json is not None and self.model != DEMO:
            raise ValueError("--config-json stands for a model of random weights; leave out --model")


def measure(request: Request, *, quiet: bool = False) -> list[PrefillSpeed]:
    """The rows of ``bench_prefill``.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    dtype = jnp.dtype(request.dtype)
    model, params = model_or_config.load(request.model, request.config_json, dtype=dtype, offline=request.offline)
    with show_progress(quiet=quiet) as progress:
        done: list[PrefillSpeed] = []

        def on_row(row: PrefillSpeed) -> None:
            done.append(row)
            progress(len(done), len(request.recipes), f"{row.recipe}: {100 * row.share:.1f} %")

        progress(0, len(request.recipes), "prefill")
        return bench_prefill(
            model,
            params,
            request.recipes,
            context=request.context,
            batch_size=request.batch_size,
            repeats=request.repeats,
            dtype=dtype,
            on_row=on_row,
        )


def to_dict(request: Request, rows: Sequence[PrefillSpeed]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "model": model_or_config.shown_name(request.model, request.config_json),
        "context": request.context,
        "batch_size": request.batch_size,
        "repeats": request.repeats,
        "dtype": request.dtype,
        "environment": environment(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def table(request: Request, rows: Sequence[PrefillSpeed]) -> Table:
    """The rows for a terminal."""
    title = f"a prompt of {request.context} tokens, batch {request.batch_size}: encoding beside the dense forward pass"
    shown = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    shown.add_column("recipe")
    for name in ("forward ms", "encode ms", "share %"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row.recipe,
            f"{row.prefill_milliseconds:.2f}",
            f"{row.encode_milliseconds:.2f}",
            f"{100 * row.share:.1f}",
        )
    return shown
