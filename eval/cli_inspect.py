"""Commands that look before anything is measured: ``kakeya explain`` and ``kakeya doctor``."""

from pathlib import Path
from typing import Annotated

import typer

from kakeya_jax.eval.cli_options import JsonFlag, OfflineFlag, QuietFlag, configure, show


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


def doctor(
    model: Annotated[
        str | None, typer.Option(help="With --recipe: folder, hub id, or 'demo' [demo].", metavar="MODEL")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Look whether it suits the model, in about a minute.", metavar="RECIPE")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Calibrated tables.", metavar="FILE")] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text [the bundled model's own].", metavar="FILE")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids instead of a text.", metavar="FILE")] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens of each passage.")] = 1024,
    passages: Annotated[int, typer.Option(min=1, help="How many.")] = 2,
    stress: Annotated[
        float | None, typer.Option(help="Of the model with outlier channels this many times larger.", metavar="FACTOR")
    ] = None,
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check the installation; with --recipe, whether a recipe suits a model. Exit code 1 if something fails."""
    if recipe is None:
        if any(each is not None for each in (model, calibration, text, tokens, stress)):
            raise ValueError("no recipe; give --recipe RECIPE with --model, or nothing to check the installation")
        configure(offline=True)
        from kakeya_jax.eval import doctor as work

        checks = work.diagnose()
        show(work.report_dict(checks) if as_json else work.checks_table(checks), as_json)
        if not work.is_healthy(checks):
            raise typer.Exit(1)
        return
    configure(offline=offline)
    from kakeya_jax.eval import preflight
    from kakeya_jax.eval.preflight_table import preflight_table
    from kakeya_jax.eval.progress import show_progress

    request = preflight.preflight_request(
        model or "demo",
        recipe,
        calibration=calibration,
        text=text,
        tokens=tokens,
        context=context,
        passages=passages,
        stress=stress,
        offline=offline,
    )
    with show_progress(quiet=quiet) as progress:
        found = preflight.run_preflight(request, progress)
    show(preflight.to_dict(found) if as_json else preflight_table(found), as_json)
    if found.status == "FAIL":
        raise typer.Exit(1)
