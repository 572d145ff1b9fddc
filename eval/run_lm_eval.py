"""``kakeya lm-eval``: tasks of lm-evaluation-harness scored through a compressed cache."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.recipe_tables import recipe_tables
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import display_name
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya lm-eval``.

    Attributes:
        model: folder, hub id, or ``"demo"``.
        tasks: names of the harness, or of tasks in ``include``.
        recipes: what to measure, as recipes, names, or recipe texts.
        include: a folder of task files besides the harness's own.
        limit: documents of each task; None for all.
        calibration: of the model; the demo has its own.
    """

    model: str
    tasks: tuple[str, ...]
    recipes: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    calibration: Path | None = None
    batch_size: int = 4
    max_length: int | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError("lm-evaluation-harness is not installed: pip install 'kakeya-jax[lm-eval]'")
        if not self.tasks or not self.recipes:
            raise ValueError("name at least one --task and one --recipe")


def run_request(request: Request) -> dict[str, Any]:
    """The harness's results for every recipe: plain JSON.

    Returns:
        ``{"schema_version", "model", "tasks", "limit", "num_fewshot", "max_length", "environment", "rows": [{"recipe",
        "results": {task: {metric: number}}}]}``.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    import lm_eval.evaluator
    from lm_eval.tasks import TaskManager

    from kakeya_jax.eval.lm_harness import CompressedLM

    model, params = checkpoint.load(request.model, offline=request.offline)
    tokenizer = load_tokenizer(request.model, offline=request.offline)
    if request.include is not None and not request.include.is_dir():
        raise ValueError(f"--include {request.include} is no folder; name the one that holds your task files")
    manager = TaskManager(include_path=None if request.include is None else str(request.include))
    unknown = [task for task in request.tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(f"unknown task {', '.join(unknown)}; `lm-eval ls tasks` lists them, --include adds a folder")
    evaluate: Any = lm_eval.evaluator.simple_evaluate  # a decorator there hides its parameters
    rows, max_length = [], 0
    for text in request.recipes:
        recipe = Recipe.parse(text)
        scorer = CompressedLM(
            model,
            params,
            tokenizer,
            recipe,
            tables=recipe_tables(recipe, request.model, request.calibration, model, params),
            max_length=request.max_length,
            batch_size=request.batch_size,
        )
        found: Any = evaluate(
            model=scorer,
            tasks=list(request.tasks),
            num_fewshot=request.fewshot,
            limit=request.limit,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
        if found is None:
            raise ValueError("the harness gave no results")
        rows.append({"recipe": text, "results": {task: _numbers(each) for task, each in found["results"].items()}})
        max_length = scorer.max_length
    return {
        "schema_version": SCHEMA_VERSION,
        "model": display_name(request.model),
        "tasks": list(request.tasks),
        "limit": request.limit,
        "num_fewshot": request.fewshot,
        "max_length": max_length,
        "environment": environment() | {"lm_eval": _harness_version()},
        "rows": rows,
    }


def to_table(results: dict[str, Any]) -> Any:
    """A rich table: one line for each task and metric, one column for each recipe."""
    from rich.table import Table

    table = Table(title=f"{results['model']}, lm-evaluation-harness {results['environment']['lm_eval']}")
    table.add_column("task")
    table.add_column("metric")
    for row in results["rows"]:
        table.add_column(row["recipe"], justify="right")
    first = results["rows"][0]["results"]
    for task, metrics in first.items():
        for metric in metrics:
            if "_stderr" in metric:
                continue
            cells = [_cell(row["results"][task], metric) for row in results["rows"]]
            table.add_row(task, metric.removesuffix(",none"), *cells)
    return table


def _cell(metrics: dict[str, float], metric: str) -> str:
    name, _, kept = metric.partition(",")
    error = metrics.get(f"{name}_stderr,{kept}")
    return f"{metrics[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in results.items() if isinstance(value, int | float)}


def _harness_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("lm-eval")


def split_tasks(texts: Sequence[str]) -> tuple[str, ...]:
    """Task names of options that may each hold several, with commas between them."""
    return tuple(name for text in texts for name in text.split(",") if name)
