"""``kakeya lm-eval``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kakeya_jax.eval.cli_options import ModelArgument, OfflineFlag, configure, show


def add_command(app: typer.Typer) -> None:
    """Adds it to the command line."""
    app.command(name="lm-eval")(lm_eval)


def lm_eval(
    model: ModelArgument,
    task: Annotated[list[str], typer.Option(help="Task of the harness; repeat it.", metavar="NAME")],
    recipe: Annotated[list[str], typer.Option(help="Repeat it; one column each.", metavar="RECIPE")],
    include: Annotated[Path | None, typer.Option(help="Folder of your own task files.", metavar="FOLDER")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task [all].")] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each document [the task's].")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Of MODEL, for calibrated recipes.", metavar="FILE")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a request [the model's context].")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results.", metavar="FILE")] = None,
    offline: OfflineFlag = False,
) -> None:
    """Score tasks of lm-evaluation-harness through compressed caches (needs the extra lm-eval)."""
    configure(offline=offline)
    from kakeya_jax.eval import run_lm_eval as work
    from kakeya_jax.eval.outputs import check_output_file
    from kakeya_jax.whole_file import whole_file

    if json_path is not None:
        check_output_file("--json", json_path)
    results = work.run_request(
        work.Request(
            model=model,
            tasks=work.split_tasks(task),
            recipes=tuple(recipe),
            include=include,
            limit=limit,
            fewshot=fewshot,
            calibration=calibration,
            batch_size=batch_size,
            max_length=max_length,
            offline=offline,
        )
    )
    if json_path is not None:
        with whole_file(json_path) as partial:
            partial.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    show(work.to_table(results), False)
