"""Commands over many measurements: ``kakeya sweep``, ``compare`` and ``report``."""

import typer


def add_commands(app: typer.Typer) -> None:
    """Adds them to the command line."""
