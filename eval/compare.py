"""Two measurements of the same text, row by row: paired differences of KL and loss, with intervals over passages.

Both results must come from the same model, passages, protocol and precision, and rows of a pair must keep the same
tokens exact: then passage ``i`` of one is passage ``i`` of the other, the dense model's part cancels, and what is left
is the recipes' (or, for one recipe in two files, the versions' or the devices').
"""

import dataclasses
import math
from typing import Any

import numpy as np
import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.close_names import did_you_mean
from kakeya_jax.eval import statistics
from kakeya_jax.eval.merge import REFERENCE_TOLERANCE
from kakeya_jax.eval.results import EvalResult, Pair, Row
from kakeya_jax.eval.table import format_kl

SETTINGS = (
    ("model", "model"),
    ("text", "text"),
    ("protocol", "protocol"),
    ("context", "context"),
    ("warmup", "scoring (warmup)"),
    ("continuation", "scoring (continuation)"),
    ("passages", "scoring (passages)"),
    ("tokens_scored", "scoring (tokens)"),
    ("dtype", "dtype"),
    ("cache_dtype", "cache dtype"),
)
"""Fields that must be equal, and what they are called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """A number of the second file minus that of the first, paired over passages.

    Attributes:
        mean: nats for each token.
        ci95: 95 % bootstrap interval; None for fewer than two passages or numbers that are not finite.
    """

    mean: float
    ci95: Pair | None

    @property
    def sign(self) -> int:
        """-1 or 1 if the interval leaves out zero, else 0."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return 0
        return 1 if self.ci95[0] > 0 else -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A pair of rows.

    Attributes:
        first: row of the first file.
        second: row of the second.
        kl: difference of mean KL.
        nll: difference of the mean negative log-likelihood.
    """

    first: Row
    second: Row
    kl: Delta
    nll: Delta

    @property
    def delta_ppl_percent(self) -> float:
        """The same as ``nll``: how much larger the second one's perplexity is, percent."""
        return float(statistics.delta_ppl_percent(np.asarray(self.nll.mean)))

    @property
    def better(self) -> str:
        """``"first"`` or ``"second"`` where the interval of KL says so, else ``"-"``."""
        return {-1: "second", 0: "-", 1: "first"}[self.kl.sign]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All pairs, and what to know beside them."""

    measured: EvalResult
    pairs: tuple[Comparison, ...]
    notes: tuple[str, ...]


def compare(
    first: EvalResult, second: EvalResult, *, recipe_a: str | None = None, recipe_b: str | None = None
) -> Report:
    """Pairs rows and takes differences, second minus first.

    Args:
        first: one measurement.
        second: another of the same passages.
        recipe_a: a row of the first; with ``recipe_b`` that pair alone. By default, or with one of the two, rows of the
            same recipe.
        recipe_b: a row of the second.

    Raises:
        ValueError: the measurements differ in what was measured, no row of one is in the other, a recipe is not there,
            or the rows of a pair keep different tokens exact.
    """
    check_comparable(first, second)
    if recipe_a is None and recipe_b is None:
        rows = {row.recipe: row for row in second.rows}
        chosen = [(row, rows[row.recipe]) for row in first.rows if row.recipe in rows]
        if not chosen:
            raise ValueError(
                "no recipe is in both files; pair two by --recipe-a and --recipe-b: "
                f"{_names(first)} and {_names(second)}"
            )
    else:
        named_a, named_b = recipe_a or recipe_b, recipe_b or recipe_a
        chosen = [(_row(first, str(named_a), "first"), _row(second, str(named_b), "second"))]
    pairs = tuple(_pair(*each) for each in chosen)
    return Report(measured=first, pairs=pairs, notes=tuple(_notes(first, second, pairs, all_rows=recipe_a is recipe_b)))


def check_comparable(first: EvalResult, second: EvalResult) -> None:
    """Raises a ``ValueError`` that says in which settings two measurements differ, if they do."""
    differ = [
        f"{what}: {getattr(first, name)!r} and {getattr(second, name)!r}"
        for name, what in SETTINGS
        if getattr(first, name) != getattr(second, name)
    ]
    if differ:
        raise ValueError(f"not comparable, they differ in {'; '.join(differ)}")
    if first.text_sha256 and second.text_sha256 and first.text_sha256 != second.text_sha256:
        raise ValueError(f"not comparable: both texts are called {first.text!r}, but their scored passages differ")
    if not (first.reference_ppl and second.reference_ppl):
        raise ValueError("not comparable: a dense perplexity is no finite number")
    gap = abs(second.reference_ppl / first.reference_ppl - 1)
    if not gap <= REFERENCE_TOLERANCE:
        raise ValueError(
            f"not comparable: the dense perplexities differ ({first.reference_ppl} and {second.reference_ppl}): other "
            "weights or another text"
        )


def to_dict(report: Report) -> dict[str, Any]:
    """Plain data for JSON; numbers that are not finite become None."""
    shown = {name: getattr(report.measured, name) for name, _ in SETTINGS}
    pairs = [
        {
            "recipe_a": pair.first.recipe,
            "recipe_b": pair.second.recipe,
            "all_in_bits": [_finite(pair.first.all_in_bits), _finite(pair.second.all_in_bits)],
            "kl_mean": [_finite(pair.first.kl_mean), _finite(pair.second.kl_mean)],
            "delta_kl": _delta_dict(pair.kl),
            "delta_nll": _delta_dict(pair.nll),
            "delta_ppl_percent": _finite(pair.delta_ppl_percent),
            "better": pair.better,
        }
        for pair in report.pairs
    ]
    return {"measured": shown, "pairs": pairs, "notes": list(report.notes)}


def to_table(report: Report) -> Group:
    """For a terminal: one line for each pair."""
    result = report.measured
    title = (
        f"second - first, {result.model} on {result.text}: {result.protocol}, context {result.context}, "
        f"{result.passages} passages, {result.tokens_scored:,} tokens"
    )
    table = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in ("first", "second"):
        table.add_column(name, overflow="fold", min_width=12)
    for name in ("bits/value", "KL first", "KL second", "dKL [95 %]", "dNLL [95 %]", "dPPL %", "better"):
        table.add_column(name, justify="right", no_wrap=name != "better")
    for pair in report.pairs:
        table.add_row(
            pair.first.recipe,
            "same" if pair.second.recipe == pair.first.recipe else pair.second.recipe,
            f"{pair.first.all_in_bits:.3f}, {pair.second.all_in_bits:.3f}",
            format_kl(pair.first.kl_mean),
            format_kl(pair.second.kl_mean),
            _delta_text(pair.kl),
            _delta_text(pair.nll),
            f"{pair.delta_ppl_percent:+.3f}",
            pair.better,
        )
    lines = [
        "KL, dKL, dNLL: nats, means over tokens; differences paired over passages, with 95 % bootstrap intervals over "
        "passages. better: whose KL is lower, where the interval leaves out zero.",
        *(f"note: {note}" for note in report.notes),
    ]
    return Group(table, *(Text(line, style="yellow" if line.startswith("note") else "dim") for line in lines))


def _pair(first: Row, second: Row) -> Comparison:
    if first.window != second.window:
        windows = " and ".join(
            f"{row.sinks} sinks + {row.recent_min}-{row.recent_max} recent" for row in (first, second)
        )
        raise ValueError(
            f"not comparable: {first.recipe!r} and {second.recipe!r} keep different tokens exact ({windows}); compare "
            "codecs only within one window"
        )
    return Comparison(
        first=first,
        second=second,
        kl=_delta(first.passage_kl, second.passage_kl),
        nll=_delta(first.passage_delta_nll, second.passage_delta_nll),
    )


def _delta(first: tuple[float, ...], second: tuple[float, ...]) -> Delta:
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return Delta(mean=float(difference.mean()), ci95=statistics.bootstrap_interval(difference))


def _row(result: EvalResult, recipe: str, which: str) -> Row:
    for row in result.rows:
        if recipe in (row.recipe, row.recipe_text):
            return row
    meant = did_you_mean(recipe, (row.recipe for row in result.rows))
    raise ValueError(f"the {which} file has no row {recipe!r};{meant} its rows: {_names(result)}")


def _notes(first: EvalResult, second: EvalResult, pairs: tuple[Comparison, ...], *, all_rows: bool) -> list[str]:
    notes = []
    if all_rows:
        for which, result, other in (("first", first, second), ("second", second, first)):
            names = {row.recipe for row in other.rows}
            alone = [row.recipe for row in result.rows if row.recipe not in names]
            if alone:
                notes.append(f"only in the {which} file: {', '.join(alone)}")
    notes += [
        f"{pair.first.recipe!r} is spelled out differently: {pair.first.recipe_text} and {pair.second.recipe_text}"
        for pair in pairs
        if pair.first.recipe == pair.second.recipe and pair.first.recipe_text != pair.second.recipe_text
    ]
    if not (first.text_sha256 and second.text_sha256):
        notes.append("a file does not say which tokens were scored; the texts have the same name and dense perplexity")
    devices = [result.environment.get("devices") for result in (first, second)]
    if devices[0] != devices[1]:
        notes.append(f"different devices: {devices[0]} and {devices[1]}")
    if first.passages < 6:
        notes.append(f"only {first.passages} passages: the intervals are rough")
    return notes


def _names(result: EvalResult) -> str:
    names = [row.recipe for row in result.rows]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _delta_text(delta: Delta) -> str:
    interval = "" if delta.ci95 is None else f" [{delta.ci95[0]:+.1e}, {delta.ci95[1]:+.1e}]"
    return f"{delta.mean:+.2e}{interval}"


def _delta_dict(delta: Delta) -> dict[str, Any]:
    return {"mean": _finite(delta.mean), "ci95": None if delta.ci95 is None else list(delta.ci95)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
