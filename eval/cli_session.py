"""``kakeya session``: options here, work in ``run_session``."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

session = typer.Typer(help="A text's entropy-coded cache in a file, to be continued later or elsewhere.")

ModelOption = Annotated[str, typer.Option("--model", help="Folder, hub id, or 'demo': whose session it is.")]
TextOption = Annotated[Path | None, typer.Option(help="UTF-8 text to read.", metavar="FILE")]
TokensOption = Annotated[Path | None, typer.Option(help="Token ids instead of a text.", metavar="FILE")]
FirstOption = Annotated[int | None, typer.Option(min=1, help="Read only so many tokens of it.")]
CalibrationOption = Annotated[
    Path | None, typer.Option(help="Of the model; the bundled model has its own.", metavar="FILE")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OfflineFlag = Annotated[bool, typer.Option("--offline", help="Never ask the Hugging Face hub.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]


@session.command("save")
def save_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id, or 'demo', the bundled model.")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    text: TextOption = None,
    tokens: TokensOption = None,
    first: FirstOption = None,
    recipe: Annotated[str, typer.Option(help="Of klt-storage.", metavar="RECIPE")] = "klt-storage-1",
    calibration: CalibrationOption = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens it can hold in all [1024 more than are read].")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of weights and exact tokens: float32 or bfloat16.")] = "float32",
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Read a text through a model and save its cache, entropy-coded."""
    work = _work(offline)
    request = work.SaveRequest(
        model=model,
        source=work.Source(text=text, tokens=tokens, first=first),
        recipe=recipe,
        out=out,
        calibration=calibration,
        max_length=max_length,
        dtype=dtype,
        offline=offline,
    )
    _print_info(work.save(request, quiet=quiet), as_json)


@session.command("info")
def info_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of kakeya session save.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a session file holds, all of its checksums compared; needs neither model nor calibration."""
    _work(True)
    from kakeya_jax.session_file import session_info

    _print_info(session_info(file), as_json)


@session.command("continue")
def continue_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of kakeya session save, or of this command.")],
    model: ModelOption,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write; fewer if the text ends.")] = 64,
    text: TextOption = None,
    tokens: TokensOption = None,
    first: FirstOption = None,
    out: Annotated[Path | None, typer.Option(help="Save the session as it is then.", metavar="FILE")] = None,
    calibration: CalibrationOption = None,
    temperature: Annotated[float, typer.Option(help="0: the most probable token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    as_json: JsonFlag = False,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Go on with a session: print what the model writes next, after --text or --tokens if there are more.

    In parts (--out FILE, and again) it writes what it writes in one go.
    """
    work = _work(offline)
    request = work.ContinueRequest(
        session=file,
        model=model,
        source=work.Source(text=text, tokens=tokens, first=first),
        max_new_tokens=max_new_tokens,
        out=out,
        calibration=calibration,
        temperature=temperature,
        seed=seed,
        offline=offline,
    )
    found = work.go_on(request, quiet=quiet)
    if as_json:
        size = None if found.size is None else {"file_nbytes": found.size.file_nbytes}
        print(json.dumps(dataclasses.asdict(found) | {"size": size}, indent=1, allow_nan=False))
        return
    print(" ".join(map(str, found.tokens)) if found.text is None else found.text)
    if not quiet:
        written = "" if found.size is None else f"; written: {out}, {found.size.file_nbytes:,} bytes"
        print(f"{len(found.tokens)} tokens, {found.length} in all{written}", file=sys.stderr)


def _work(offline: bool) -> Any:
    from kakeya_jax.eval.environment import configure

    configure(offline=offline)
    from kakeya_jax.eval import run_session

    return run_session


def _print_info(info: Any, as_json: bool) -> None:
    from kakeya_jax.eval.session_table import as_dict, table

    if as_json:
        print(json.dumps(as_dict(info), indent=1, allow_nan=False))
        return
    from kakeya_jax.eval.table import make_console

    make_console().print(table(info))
