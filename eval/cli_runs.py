"""Commands over many measurements: ``kakeya sweep``, ``compare`` and ``report``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kakeya_jax.eval.cli_options import JsonFlag, OfflineFlag, QuietFlag, configure, show


def add_commands(app: typer.Typer) -> None:
    """Adds them to the command line."""
    for command in (sweep, compare, report):
        app.command()(command)


def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="A .yaml file: models, texts, recipes, options.")],
    out: Annotated[
        Path | None, typer.Option(help="The .jsonl file [GRID's name]; finished cells in it are kept.", metavar="FILE")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the grid and print its commands.")] = False,
    max_cells: Annotated[int, typer.Option(min=1, help="Refuse a grid of more cells.")] = 1000,
    offline: OfflineFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure every combination of models, texts, recipes and options; killed, the same command goes on.

    One line of JSON for each finished cell, with the full result and the command that repeats it.
    """
    configure(offline=offline)
    from kakeya_jax.eval import run_sweep as work
    from kakeya_jax.eval.grid import GridError

    try:
        plan = work.plan_sweep(grid, max_cells=max_cells, offline=offline)
    except GridError as error:
        for problem in error.problems:
            print(f"kakeya: error: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    target = out or grid.with_suffix(".jsonl")
    if dry_run:
        for cell in plan.cells:
            print(cell.command)
        return
    print(work.run_sweep(plan, target, quiet=quiet), file=sys.stderr)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Results: .json of eval, .jsonl of sweep.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Results of the same model, text and protocol.")],
    recipe_a: Annotated[str | None, typer.Option(help="A row of A, paired with --recipe-b.", metavar="RECIPE")] = None,
    recipe_b: Annotated[str | None, typer.Option(help="A row of B.", metavar="RECIPE")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Differences of KL and loss between two measurements, paired over passages, with 95 % intervals."""
    from kakeya_jax.eval import compare as work
    from kakeya_jax.eval.runs import load_run

    found = work.compare(load_run(first), load_run(second), recipe_a=recipe_a, recipe_b=recipe_b)
    show(work.to_dict(found) if as_json else work.to_table(found), as_json)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help=".json of eval, .jsonl of sweep.")],
    html: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")],
    peers: Annotated[
        Path | None,
        typer.Option(help="Rows of other implementations, such as docs/results/peers.json.", metavar="FILE"),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "KV-cache compression",
) -> None:
    """One HTML page of measurements: KL against bits, tables, gates, environment, commands; needs nothing else."""
    from kakeya_jax.eval import report as work
    from kakeya_jax.eval.outputs import check_output_file
    from kakeya_jax.eval.run_eval import shell_word
    from kakeya_jax.eval.runs import load_runs

    check_output_file("--html", html)
    words = ["kakeya", "report", *map(str, runs), "--html", str(html), *(["--peers", str(peers)] if peers else [])]
    work.save_report(
        load_runs(runs),
        html,
        title=title,
        peers=None if peers is None else work.load_peers(peers),
        command=" ".join(map(shell_word, words)),
    )
    print(f"written: {html}", file=sys.stderr)
