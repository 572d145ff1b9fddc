"""Rows and columns of ablations that judge decode steps by the gates."""

from collections.abc import Callable, Mapping
from typing import Any

from kakeya_jax.eval import quality_gates
from kakeya_jax.eval.ablations.ablation import Column, Row
from kakeya_jax.eval.ablations.recipe_cells import number
from kakeya_jax.eval.quality_gates import StepMetrics


def step_row(metrics: StepMetrics) -> Row:
    """What the gates say of measured steps; ``tokens_scored`` are the steps."""
    judged = quality_gates.load().judge(metrics)
    return {"tokens_scored": judged["steps"], **judged}


def _pair(name: str, form: str, factor: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        median, worst = (row[name][which] for which in ("median", "worst"))
        return " / ".join("-" if value is None else number(factor * value, form) for value in (median, worst))

    return text


def _passed(row: Row) -> str:
    return f"{100 * row['steps_passed']['all'] / row['steps']:.2f} %"


STEP_COLUMNS = (
    Column(title="logit MSE, median / worst", text=_pair("logit_mse", ".2g")),
    Column(title="top-10 overlap, median / worst", text=_pair("top_k_overlap", ".2f")),
    Column(title="argmax kept %", text=lambda row: number(100 * row["argmax_agreement"], ".2f")),
    Column(title="layer L2 (median over layers), median / worst", text=_pair("layer_relative_l2", ".3f")),
    Column(title="steps passed", text=_passed),
    Column(title="implementation", text=lambda row: "passes" if row["implementation_passes"] else "fails"),
)
"""Numbers of the steps, which share of them passes all gates, and whether all do."""


def passing(rows: Mapping[str, Row]) -> list[str]:
    """Which implementations pass, and the gate that fails most steps of the best that does not."""
    found = [label for label, row in rows.items() if row["implementation_passes"]]
    sentences = [f"Implementations that pass (every step does): {'; '.join(found) or 'none'}."]
    failing: list[tuple[str, Any]] = [(label, row) for label, row in rows.items() if not row["implementation_passes"]]
    if failing:
        label, row = max(failing, key=lambda each: each[1]["steps_passed"]["all"] / each[1]["steps"])
        gates = {name: count for name, count in row["steps_passed"].items() if name != "all"}
        worst = min(gates, key=lambda name: gates[name])
        sentences.append(
            f"Nearest to passing of the others: {label}, {row['steps_passed']['all']:,} of {row['steps']:,} steps; the "
            f"gate most of its steps fail: {worst} ({row['steps'] - gates[worst]:,} steps)."
        )
    return sentences
