"""What a recipe costs on a model, layer by layer, without running it or reading its weights."""

import dataclasses
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.accounting import CacheReport, StreamReport, cache_report
from kakeya_jax.cache import ModelShape, Tables
from kakeya_jax.calibration.artifact import load_calibration
from kakeya_jax.eval.demo import bundled_calibration
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import DEMO, ModelError, find_folder
from kakeya_jax.recipe import Recipe

_PARTS = ("payload", "side", "sinks", "tail")


def load_config(model: str, *, offline: bool = False) -> ModelConfig:
    """The config of a folder, of ``"demo"``, or of a hub id, of which only ``config.json`` is fetched.

    Raises:
        ModelError: no such model, or an unsupported architecture.
    """
    if model == DEMO or Path(model).expanduser().exists() or model.count("/") != 1:
        return ModelConfig.from_folder(find_folder(model, offline=offline))
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(model, "config.json", local_files_only=offline)
    except Exception as error:  # the client's errors share no base class
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{model} is no local folder, and its config.json cannot be had: {first_line}") from None
    return ModelConfig.from_folder(Path(path).parent)


def load_tables(model: str, config: ModelConfig, recipe: Recipe, calibration: Path | None) -> Tables | None:
    """The tables of a recipe from the file that was named, or, for the bundled model, from its own.

    Weights are not read, so only the sizes of the model are compared.

    Raises:
        ValueError, OSError: no calibration file, of a model of other sizes, or without what the recipe needs.
    """
    if calibration is None and (model != DEMO or not recipe.needs_calibration):
        return None
    loaded = load_calibration(calibration or bundled_calibration())
    loaded.check_shape(config)
    return loaded.tables_for(recipe)


def explain(
    config: ModelShape, recipe: Recipe, *, context: int, batch_size: int = 1, tables: Tables | None = None
) -> CacheReport:
    """Every byte of a full cache, from shapes alone.

    Raises:
        ValueError: the recipe does not fit the model, or a context below 1.
    """
    return cache_report(config, recipe, max_length=context, batch_size=batch_size, tables=tables)


def report_dict(report: CacheReport, recipe: Recipe, model: str) -> dict[str, Any]:
    """The report as plain data for JSON."""
    coded = report.coded_values > 0
    return {
        "recipe": str(recipe),
        "recipe_text": recipe.to_text(),
        "model": model,
        "context": report.max_length,
        "batch_size": report.batch_size,
        "bits_per_value": {
            "payload": report.payload_bits_per_value if coded else None,
            "all_in": report.all_in_bits_per_value if coded else None,
        },
        "bytes": report.nbytes,
        "table_bytes": report.table_nbytes,
        "dense_bytes": report.dense_nbytes,
        "bytes_per_token": report.bytes_per_token,
        "compression_ratio": report.compression_ratio,
        "exact_window": {
            "sinks": report.sinks,
            "recent_min": report.exact_tokens[0],
            "recent_max": report.exact_tokens[1],
        },
        "streams": [{**dataclasses.asdict(stream), "total": stream.total} for stream in report.streams],
    }


def report_table(report: CacheReport, recipe: Recipe, model: str) -> Group:
    """The report for a terminal: a line for each layer and stream."""
    title = f"{recipe} on {model}, {report.max_length:,} tokens x {report.batch_size}: bytes"
    table = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_footer=True)
    totals = [sum(getattr(stream, part) for stream in report.streams) for part in _PARTS]
    table.add_column("layer", "all", justify="right")
    table.add_column("stream")
    table.add_column("codec")
    table.add_column("RoPE")
    for part, total in zip(_PARTS, totals, strict=True):
        table.add_column(part, f"{total:,}", justify="right", no_wrap=True)
    table.add_column("total", f"{report.nbytes:,}", justify="right", no_wrap=True)
    table.add_column("bits/value\nall-in", _bits_text(report.all_in_bits_per_value), justify="right")
    for stream in report.streams:
        table.add_row(
            str(stream.layer),
            stream.stream,
            stream.codec,
            stream.rope or "",
            *(f"{getattr(stream, part):,}" for part in _PARTS),
            f"{stream.total:,}",
            _bits_text(_stream_bits(stream)),
        )
    low, high = report.exact_tokens
    summary = (
        f"{report.bytes_per_token:,.0f} bytes/token, {report.compression_ratio:.2f} x smaller than bfloat16 "
        f"({report.dense_nbytes:,} bytes); exact: {report.sinks} sinks and {low} to {high} recent tokens; "
        f"bits/value without the exact window: {_bits_text(report.payload_bits_per_value)} payload, "
        f"{_bits_text(report.all_in_bits_per_value)} all-in"
    )
    lines = [Text(summary)]
    if report.table_nbytes:
        lines.append(Text(f"calibrated tables, once for the model: {report.table_nbytes:,} bytes, not counted above"))
    if not report.coded_values:
        lines.append(Text("warning: nothing is coded at this context; all tokens stay exact", style="yellow"))
    return Group(table, *lines)


def _stream_bits(stream: StreamReport) -> float:
    if not stream.coded_values:
        return float("nan")
    return 8 * (stream.payload + stream.side) / stream.coded_values


def _bits_text(bits: float) -> str:
    return f"{bits:.3f}" if bits == bits else "-"
