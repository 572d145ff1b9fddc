"""``kakeya bench decode`` and ``kakeya bench prefill``."""

from pathlib import Path
from typing import Annotated

import typer

from kakeya_jax.eval.cli_options import JsonFlag, OfflineFlag, QuietFlag, configure, show

ModelOption = Annotated[str, typer.Option("--model", help="Folder, hub id, or 'demo'.", metavar="MODEL")]
RecipeOption = Annotated[list[str] | None, typer.Option("--recipe", help="Repeat it.", metavar="RECIPE")]
DtypeOption = Annotated[str, typer.Option(help="Of weights and activations.")]


def add_command(app: typer.Typer) -> None:
    """Adds them to the command line."""
    app.command()(decode)
    app.command()(prefill)


def decode(
    model: ModelOption = "demo",
    recipe: RecipeOption = None,
    config_json: Annotated[
        Path | None,
        typer.Option(help="Instead of a model: random weights of this config.json, random codes.", metavar="FILE"),
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids to decode, for other models.", metavar="FILE")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Of MODEL, for calibrated recipes.", metavar="FILE")] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens of the cache.")] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of the cache.")] = 1,
    repeats: Annotated[int, typer.Option(min=2, help="Loops that are timed.")] = 7,
    dtype: DtypeOption = "float32",
    decoded_first: Annotated[bool, typer.Option(help="Also caches that are decoded before every step.")] = True,
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time decode steps: dense, with a cache decoded first, and over packed codes. Memory is a table of its own."""
    configure(offline=offline)
    from kakeya_jax.eval import decode_table as work

    request = work.Request(
        model=model,
        recipes=tuple(recipe or work.RECIPES),
        tokens=tokens,
        config_json=config_json,
        calibration=calibration,
        context=context,
        batch_size=batch_size,
        repeats=repeats,
        dtype=dtype,
        decoded_first=decoded_first,
        offline=offline,
    )
    rows = work.measure(request, quiet=quiet)
    show(work.to_dict(request, rows) if as_json else work.tables(request, rows), as_json)


def prefill(
    model: ModelOption = "demo",
    recipe: RecipeOption = None,
    config_json: Annotated[
        Path | None, typer.Option(help="Instead of a model: random weights of this config.json.", metavar="FILE")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements; the median counts.")] = 7,
    dtype: DtypeOption = "float32",
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time the encoding of a prompt's keys and values beside its dense forward pass."""
    configure(offline=offline)
    from kakeya_jax.eval import prefill_table as work

    request = work.Request(
        model=model,
        config_json=config_json,
        recipes=tuple(recipe or work.RECIPES),
        context=context,
        batch_size=batch_size,
        repeats=repeats,
        dtype=dtype,
        offline=offline,
    )
    rows = work.measure(request, quiet=quiet)
    show(work.to_dict(request, rows) if as_json else work.table(request, rows), as_json)
