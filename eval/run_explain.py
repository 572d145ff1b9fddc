"""``kakeya explain``: bytes of a recipe on a model or on a bare ``config.json``, at one context or several."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.accounting import CacheReport
from kakeya_jax.cache import CacheShape, Tables
from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.codecs.klt import KltConfig
from kakeya_jax.eval import explain
from kakeya_jax.eval.config_shape import ConfigShape, read_config_shape
from kakeya_jax.eval.listing import memory_note
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya explain``: a model or a config file, and at least one context."""

    recipe: str
    model: str | None = None
    config_json: Path | None = None
    contexts: tuple[int, ...] = (4096,)
    batch_size: int = 1
    calibration: Path | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) == (self.config_json is None):
            raise ValueError("give either --model MODEL or --config-json FILE, the config.json of a Hugging Face model")
        if len(set(self.contexts)) < len(self.contexts):
            raise ValueError(f"--context {_twice(self.contexts)} is given twice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Reports of one recipe on one model, one for each context, and what to know beside them."""

    reports: tuple[CacheReport, ...]
    recipe: Recipe
    model: str
    notes: tuple[str, ...] = ()


def run_explain(request: Request) -> Explanation:
    """Counts every byte from shapes; neither runs a model nor reads weights.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    recipe = Recipe.parse(request.recipe)
    if request.model is not None:
        config = explain.load_config(request.model, offline=request.offline)
        tables = explain.load_tables(request.model, config, recipe, request.calibration)
        notes = _context_notes(request.contexts, config.max_position_embeddings)
        return _explanation(request, recipe, request.model, CacheShape.of(config), tables, notes)
    assert request.config_json is not None
    found = read_config_shape(request.config_json)
    found = dataclasses.replace(found, notes=(*found.notes, *_context_notes(request.contexts, found.max_context)))
    if request.calibration is not None:
        loaded = load_calibration(request.calibration)
        loaded.check_shape(found.shape)
        tables = loaded.tables_for(recipe)
        return _explanation(request, recipe, request.config_json.name, found.shape, tables, found.notes)
    return explain_config(found, recipe, request.contexts, name=request.config_json.name, batch_size=request.batch_size)


def explain_config(
    found: ConfigShape, recipe: Recipe, contexts: tuple[int, ...], *, name: str, batch_size: int = 1
) -> Explanation:
    """Bytes of a recipe on a model of which only the config is known; calibrated tables by their shapes.

    Raises:
        ValueError: the recipe does not fit the model.
    """
    request = Request(recipe=str(recipe), model=name, contexts=contexts, batch_size=batch_size)
    tables = neutral_tables(found.shape, recipe) if recipe.needs_calibration else None
    return _explanation(request, recipe, name, found.shape, tables, (*found.notes, *uncalibrated_notes(recipe)))


def uncalibrated_notes(recipe: Recipe) -> tuple[str, ...]:
    """What stands in for calibration in a report without it; empty for recipes that need none."""
    if not recipe.needs_calibration:
        return ()
    codecs = {rule.codec for rule in recipe.rules} | ({recipe.boundary_codec} if recipe.boundary else set())
    notes = ["not calibrated: tables are stand-ins of the right shapes, and their bytes are exact"]
    budgets = sorted({codec.bits for codec in codecs if isinstance(codec, KltConfig)})
    if budgets:
        notes.append(
            "klt's widths of channel groups are stand-ins too: calibrated ones spend at most "
            f"{' and '.join(f'{bits:g}' for bits in budgets)} payload bits per value over all layers, and the last "
            "step that does not fit is left unspent, as here"
        )
    return (*notes, *filter(None, [memory_note(recipe)]))


def to_dict(explanation: Explanation) -> dict[str, Any]:
    """Plain data for JSON: of one context the report of ``explain.report_dict``, of several a list of them."""
    found = [explain.report_dict(report, explanation.recipe, explanation.model) for report in explanation.reports]
    whole = found[0] if len(found) == 1 else {"reports": found}
    return {**whole, "notes": list(explanation.notes)}


def to_table(explanation: Explanation) -> Group:
    """For a terminal: every layer at one context, or a line for each of several contexts."""
    notes = [Text(f"note: {note}", style="yellow") for note in explanation.notes]
    if len(explanation.reports) == 1:
        return Group(explain.report_table(explanation.reports[0], explanation.recipe, explanation.model), *notes)
    batch = explanation.reports[0].batch_size
    table = Table(
        box=rich.box.SIMPLE_HEAD,
        title=f"{explanation.recipe} on {explanation.model}, {batch} sequence{'s' if batch > 1 else ''}",
        title_justify="left",
        pad_edge=False,
    )
    titles = ("context", "bytes", "GiB", "bytes/\ntoken", "bfloat16\nGiB", "ratio", "bits/value\npayload", "all-in")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for report in explanation.reports:
        table.add_row(
            f"{report.max_length:,}",
            f"{report.nbytes:,}",
            f"{report.nbytes / 2**30:.3f}",
            f"{report.bytes_per_token:,.0f}",
            f"{report.dense_nbytes / 2**30:.3f}",
            f"{report.compression_ratio:.2f}",
            _bits(report.payload_bits_per_value),
            _bits(report.all_in_bits_per_value),
        )
    first = explanation.reports[0]
    low, high = first.exact_tokens
    lines = [Text(f"exact: {first.sinks} sinks and {low} to {high} recent tokens; bits/value without them")]
    if first.table_nbytes:
        lines.append(Text(f"calibrated tables, once for the model: {first.table_nbytes:,} bytes, not counted above"))
    return Group(table, *lines, *notes)


def _context_notes(contexts: tuple[int, ...], longest: int | None) -> tuple[str, ...]:
    over = [context for context in contexts if longest is not None and context > longest]
    if not over:
        return ()
    many = f"{', '.join(f'{context:,}' for context in over)} tokens"
    return (f"{many}: more than the {longest:,} the model is meant for (max_position_embeddings); bytes alone",)


def _explanation(
    request: Request, recipe: Recipe, name: str, shape: CacheShape, tables: Tables | None, notes: tuple[str, ...]
) -> Explanation:
    reports = tuple(
        explain.explain(shape, recipe, context=context, batch_size=request.batch_size, tables=tables)
        for context in request.contexts
    )
    return Explanation(reports=reports, recipe=recipe, model=name, notes=notes)


def _bits(bits: float) -> str:
    return "-" if math.isnan(bits) else f"{bits:.3f}"


def _twice(values: tuple[int, ...]) -> int:
    return next(value for value in values if values.count(value) > 1)
