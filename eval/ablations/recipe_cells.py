"""Cells that are recipes: measured by ``evaluate``, compared with a baseline passage by passage."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kakeya_jax import accounting
from kakeya_jax.cache import Tables
from kakeya_jax.eval import statistics
from kakeya_jax.eval.ablations.ablation import Column, Row, Setup
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.eval.table import format_kl
from kakeya_jax.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledRecipe:
    """What cells of one recipe share; ``text`` is any form that ``Recipe.parse`` reads."""

    label: str
    text: str

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return Recipe.parse(self.text)

    def tables(self, setup: Setup) -> Tables | None:
        """Calibrated tables of the recipe, if it needs any."""
        if setup.calibration is None or not self.recipe.needs_calibration:
            return None
        return setup.calibration.tables_for(self.recipe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeCell(LabelledRecipe):
    """One recipe, measured by ``evaluate``."""

    def request(self) -> dict[str, Any]:
        """See ``Cell``."""
        return {"recipe": self.recipe.to_text()}

    def measure(self, setup: Setup) -> Row:
        """A row of ``kakeya eval``'s results, with the bits of what is coded alone."""
        calibration = setup.calibration if self.recipe.needs_calibration else None
        result = evaluate(
            setup.model,
            setup.params,
            setup.tokens,
            [self.recipe],
            passages=setup.passages,
            calibration=calibration,
            encode_time=False,
            **self.sizes(setup),
        )
        tables = self.tables(setup)
        report = accounting.cache_report(setup.model.config, self.recipe, max_length=result.context, tables=tables)
        return _row(result) | {"coded_bits": coded_bits(report)}

    def sizes(self, setup: Setup) -> dict[str, Any]:
        """Options of ``evaluate`` that say what of the text is run and scored."""
        return {"context": setup.context}


def recipe_cells(recipes: Mapping[str, str]) -> tuple[RecipeCell, ...]:
    """Cells by label, in order."""
    return tuple(RecipeCell(label=label, text=text) for label, text in recipes.items())


def coded_bits(report: accounting.CacheReport) -> float | None:
    """All-in bits for each value of the streams that a recipe codes: those left exact (``identity``) do not count."""
    streams = [each for each in report.streams if not each.codec.startswith("identity")]
    values = sum(each.coded_values for each in streams)
    return 8 * sum(each.payload + each.side for each in streams) / values if values else None


def compare(row: Row, baseline: Row) -> dict[str, Any]:
    """A row beside the baseline, over the same passages.

    Returns:
        ``kl_ratio``, the geometric mean over passages of the KL over the baseline's, and ``delta_ppl_percent``, how far
        perplexity moves from the baseline's; each with a 95 % bootstrap interval. None where a number is not finite.
    """
    kl, kl_base = _passages(row, "kl"), _passages(baseline, "kl")
    delta = _passages(row, "delta_nll") - _passages(baseline, "delta_nll")
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log(kl) - np.log(kl_base)
    return {
        "kl_ratio": _finite(np.exp(log_ratio.mean())),
        "kl_ratio_ci95": statistics.bootstrap_interval(log_ratio, np.exp),
        "delta_ppl_percent": _finite(statistics.delta_ppl_percent(delta.mean())),
        "delta_ppl_ci95": statistics.bootstrap_interval(delta, statistics.delta_ppl_percent),
    }


def number(value: Any, form: str = ".3f") -> str:
    """A number as text; a dash for what is not there."""
    return "-" if value is None else format(value, form)


def interval(value: Any, ends: Sequence[Any] | None, form: str = ".2f") -> str:
    """``value [low, high]``."""
    between = "" if ends is None else f" [{number(ends[0], form)}, {number(ends[1], form)}]"
    return number(value, form) + between


def _kl(row: Row) -> str:
    if row["kl_mean"] is None:
        return "-"
    ends = row["kl_ci95"]
    return format_kl(row["kl_mean"]) + ("" if ends is None else f" [{format_kl(ends[0])}, {format_kl(ends[1])}]")


def _against(row: Row) -> str:
    paired = row.get("paired")
    return "" if paired is None else interval(paired["kl_ratio"], paired["kl_ratio_ci95"])


def _top1(row: Row) -> str:
    return "-" if row["top1_agreement"] is None else f"{100 * row['top1_agreement']:.2f}"


BITS = Column(title="bits/value of coded streams, all-in", text=lambda row: number(row["coded_bits"]))
RATIO = Column(title="ratio of the cache", text=lambda row: number(row["compression_ratio"], ".2f"))
DELTA = Column(
    title="dPPL % [95 %]", text=lambda row: interval(row["delta_ppl_percent"], row["delta_ppl_ci95"], "+.2f")
)
KL = Column(title="KL mean [95 %]", text=_kl)
TOP1 = Column(title="top-1 %", text=_top1)
AGAINST = Column(title="KL / baseline's [95 %]", text=_against)
VERDICT = Column(title="verdict", text=lambda row: row["verdict"])
COLUMNS = (BITS, RATIO, DELTA, KL, TOP1, AGAINST, VERDICT)
"""Of ablations whose rows are recipes."""


def _row(result: EvalResult) -> Row:
    row = result.to_dict()["rows"][0]
    shared = ("tokens_scored", "reference_ppl", "warmup", "passages", "gates", "dtype", "cache_dtype")
    kept = [text for text in result.warnings if "tokens scored" not in text]
    return row | {name: getattr(result, name) for name in shared} | {"warnings": kept}


def _passages(row: Row, name: str) -> np.ndarray:
    return np.asarray([math.nan if value is None else value for value in row["per_passage"][name]], np.float64)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
