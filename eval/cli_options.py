"""What the modules of the command line share: options of several commands, and how results are printed."""

import json
from typing import Annotated, Any

import typer

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id, or 'demo', the bundled model.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OfflineFlag = Annotated[bool, typer.Option("--offline", help="Never ask the Hugging Face hub.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]


def configure(*, offline: bool = False) -> None:
    """``environment.configure``, imported when a command runs."""
    from kakeya_jax.eval.environment import configure as set_up

    set_up(offline=offline)


def show(shown: Any, as_json: bool) -> None:
    """Prints plain data as JSON, anything else as rich renders it."""
    if as_json:
        print(json.dumps(shown, indent=1, allow_nan=False))
        return
    from kakeya_jax.eval.table import make_console

    make_console().print(shown)
