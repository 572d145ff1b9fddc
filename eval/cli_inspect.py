"""Commands that look before anything is measured: ``kakeya explain`` and ``kakeya doctor``."""

from pathlib import Path
from typing import Annotated

import typer

from kakeya_jax.eval.cli_options import JsonFlag, OfflineFlag, configure, show


def add_commands(app: typer.Typer) -> None:
    """Adds them to the command line."""
    app.command()(explain)
    app.command()(doctor)


def explain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name, text form, or JSON file.")],
    model: Annotated[
        str | None, typer.Option(help="Folder, hub id (only config.json is fetched), or 'demo'.", metavar="MODEL")
    ] = None,
    config_json: Annotated[
        Path | None, typer.Option(help="config.json of any Hugging Face model, instead of a model.", metavar="FILE")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens held [4096]; repeat it.", metavar="TOKENS")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences held.")] = 1,
    calibration: Annotated[Path | None, typer.Option(help="Calibrated tables.", metavar="FILE")] = None,
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
) -> None:
    """Show the bytes of a cache, without running the model or reading its weights.

    Of one context every layer's, of several a line for each.
    """
    configure(offline=offline)
    from kakeya_jax.eval import run_explain as work

    request = work.Request(
        recipe=recipe,
        model=model,
        config_json=config_json,
        contexts=tuple(context or (4096,)),
        batch_size=batch,
        calibration=calibration,
        offline=offline,
    )
    explanation = work.run_explain(request)
    show(work.to_dict(explanation) if as_json else work.to_table(explanation), as_json)


def doctor(as_json: JsonFlag = False) -> None:
    """Check versions and devices, and run a numeric self-test; exit code 1 if something fails."""
    configure(offline=True)
    from kakeya_jax.eval import doctor as work

    checks = work.diagnose()
    show(work.report_dict(checks) if as_json else work.checks_table(checks), as_json)
    if not work.is_healthy(checks):
        raise typer.Exit(1)
