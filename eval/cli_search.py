"""``kakeya search``: options here, work in ``run_search``."""

import json
from pathlib import Path
from typing import Annotated

import typer


def search(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id, or 'demo', the bundled model.")],
    calibration: Annotated[Path, typer.Option(help="Of this model: see calibrate.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="The recipe's .json file to write.", metavar="FILE")],
    max_bits: Annotated[float | None, typer.Option(help="Bits per coded value, all-in.")] = None,
    max_bytes_per_token: Annotated[
        float | None, typer.Option(help="Bytes for each of --context tokens, exact window included.")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(help="Expected loss, nats for each token.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Measure on this text, which was not calibrated on.", metavar="FILE")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids instead of a text.", metavar="FILE")] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens of each passage.")] = 4096,
    passages: Annotated[int | None, typer.Option(min=1, help="Default: until 20,000 tokens are scored.")] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            help="Of klt: fast [the default], pairs, quality, quality-pairs, trellis or trellis-pairs; repeat it.",
            metavar="FORM",
        ),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Exact tokens SINKS:RECENT [what the calibration was made for].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the Hugging Face hub.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Find the best recipe for a budget, or the smallest for a loss, from calibration alone; then measure it."""
    from kakeya_jax.eval.environment import configure

    configure(offline=offline)
    from kakeya_jax.eval import run_search as work

    request = work.Request(
        model=model,
        calibration=calibration,
        out=out,
        max_bits=max_bits,
        max_bytes_per_token=max_bytes_per_token,
        max_kl=max_kl,
        text=text,
        tokens=tokens,
        context=context,
        passages=passages,
        forms=tuple(form or ()),
        window=window,
        offline=offline,
    )
    report = work.run_search(request, quiet=quiet)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1, allow_nan=False))
        return
    from kakeya_jax.eval.table import make_console

    make_console().print(work.report_table(report))
