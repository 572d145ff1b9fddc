"""``kakeya search``: the best recipe for a budget from a calibration, then measured on text."""

import dataclasses
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kakeya_jax.accounting import cache_report
from kakeya_jax.calibration.artifact import Calibration, load_calibration
from kakeya_jax.calibration.search import Found, Options, options
from kakeya_jax.eval.environment import environment, one_blas_thread, package_versions
from kakeya_jax.eval.outputs import check_output_file
from kakeya_jax.eval.perplexity import evaluate
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.results import EvalResult
from kakeya_jax.eval.run_calibrate import parse_window
from kakeya_jax.eval.text import encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import display_name
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.whole_file import whole_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya search``: one budget, and optionally a text to measure on.

    Attributes:
        model: folder, hub id, or ``"demo"``.
        calibration: of this model.
        out: the recipe's JSON file to write.
        max_bits: all-in bits per coded value, or
        max_bytes_per_token: of a full cache of ``context`` tokens, or
        max_kl: expected loss in nats for each token.
        text, tokens: what to measure on; calibration must not have seen it.
        context: tokens of each passage, and of the cache whose bytes are counted.
        passages: how many; see ``evaluate``.
        forms: of ``klt`` that a stream may take; see ``calibration.search``.
        window: exact tokens ``SINKS:RECENT`` of the recipe; None for the first that the calibration was made for.
    """

    model: str
    calibration: Path
    out: Path
    max_bits: float | None = None
    max_bytes_per_token: float | None = None
    max_kl: float | None = None
    text: Path | None = None
    tokens: Path | None = None
    context: int = 4096
    passages: int | None = None
    forms: tuple[str, ...] = ()
    window: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        budgets = [value for value in (self.max_bits, self.max_bytes_per_token, self.max_kl) if value is not None]
        if len(budgets) != 1:
            raise ValueError("give one budget: --max-bits, --max-bytes-per-token or --max-kl")
        if not budgets[0] > 0:
            raise ValueError(f"a budget of {budgets[0]:g} must be above 0")
        if self.text is not None and self.tokens is not None:
            raise ValueError("give either --text or --tokens, not both")
        if self.out.suffix != ".json":
            raise ValueError(f"--out {self.out} must end in .json, for recipe files are known by it")
        check_output_file("--out", self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchReport:
    """A recipe with what was expected and what was measured of it.

    Attributes:
        model: as it was named.
        found: the recipe and its expected loss.
        context: tokens that ``bytes_per_token`` is for.
        bytes_per_token: exact window included.
        measured: None without a text.
        notes: what whoever uses the calibration should know.
    """

    model: str
    found: Found
    context: int
    bytes_per_token: float
    measured: EvalResult | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "recipe": self.found.recipe.to_dict(),
            "recipe_text": self.found.recipe.to_text(),
            "all_in_bits": self.found.bits,
            "context": self.context,
            "bytes_per_token": self.bytes_per_token,
            "predicted_kl": self.found.kl,
            "measured": None if self.measured is None else self.measured.to_dict(),
            "streams": [dataclasses.asdict(each) for each in self.found.streams],
            "notes": list(self.notes),
        }


def run_search(request: Request, *, quiet: bool = False) -> SearchReport:
    """Searches, measures the recipe if there is a text, and writes it with what was expected and measured of it.

    Raises:
        ValueError, OSError: wrong input, or a budget that no recipe meets; the message is one line.
    """
    calibration = load_calibration(request.calibration)
    window = None if request.window is None else parse_window(request.window)
    tokens = None
    if request.tokens is not None:
        tokens = load_tokens(request.tokens)
    elif request.text is not None:
        tokens = encode_text(request.text, load_tokenizer(request.model, offline=request.offline))
    model, params = checkpoint.load(request.model, offline=request.offline)
    calibration.check_model(model.config, params)
    if tokens is not None:
        calibration.check_text(tokens)
        if len(tokens) < request.context:
            raise ValueError(
                f"{request.tokens or request.text} has {len(tokens)} tokens, fewer than one context of "
                f"{request.context}; use a longer text or a smaller --context"
            )
    with one_blas_thread():
        choices = options(calibration, forms=request.forms or ("fast",), window=window)
        found = _search(choices, request)
    found = dataclasses.replace(found, recipe=dataclasses.replace(found.recipe, name=request.out.stem))
    measured = None
    if tokens is not None:
        with show_progress(quiet=quiet) as progress, one_blas_thread():
            measured = evaluate(
                model,
                params,
                tokens,
                [found.recipe],
                context=request.context,
                passages=request.passages,
                calibration=calibration,
                progress=progress,
            )
        source = request.tokens or request.text
        measured = dataclasses.replace(measured, model=request.model, text=source.name if source else "")
    report = SearchReport(
        model=request.model,
        found=found,
        context=request.context,
        bytes_per_token=_bytes_per_token(calibration, found, request.context),
        measured=measured,
        notes=calibration.notes(),
    )
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(request.out) as partial:
        partial.write_text(found.recipe.to_json(_about(report, request, calibration)) + "\n")
    return report


def _about(report: SearchReport, request: Request, calibration: Calibration) -> dict[str, Any]:
    """Where the recipe comes from, what was expected of it and what was measured; no paths, for files travel."""
    measured = None
    if report.measured is not None:
        result = report.measured.to_dict()
        (row,) = result["rows"]
        of_text = ("text", "protocol", "context", "warmup", "passages", "tokens_scored", "reference_ppl")
        of_row = ("kl_mean", "kl_ci95", "delta_ppl_percent", "top1_agreement", "bits_per_value", "bytes_per_token")
        measured = {name: result[name] for name in of_text} | {name: row[name] for name in of_row}
    return {
        "command": "kakeya search",
        "date": environment()["date"],
        "packages": package_versions(),
        "model": display_name(request.model),
        "model_fingerprint": calibration.model,
        "calibration_text": calibration.about.get("text"),
        "budget": {
            name: value
            for name in ("max_bits", "max_bytes_per_token", "max_kl")
            if (value := getattr(request, name)) is not None
        },
        "klt_forms": list(request.forms or ("fast",)),
        "exact_window": {"sinks": report.found.recipe.sinks, "recent": report.found.recipe.recent},
        "all_in_bits": report.found.bits,
        "context": report.context,
        "bytes_per_token": report.bytes_per_token,
        "predicted_kl": report.found.kl,
        "measured_kl": None if measured is None else measured["kl_mean"],
        "measured": measured,
    }


def _search(choices: Options, request: Request) -> Found:
    if request.max_bits is not None:
        return choices.within_bits(request.max_bits)
    if request.max_bytes_per_token is not None:
        return choices.within_bytes(request.max_bytes_per_token, request.context)
    assert request.max_kl is not None
    return choices.within_kl(request.max_kl)


def _bytes_per_token(calibration: Calibration, found: Found, context: int) -> float:
    tables = calibration.tables_for(found.recipe)
    return cache_report(calibration.shape, found.recipe, max_length=context, tables=tables).bytes_per_token


def report_table(report: SearchReport) -> Group:
    """What each stream takes, then the whole, expected and measured."""
    found = report.found
    title = f"{report.model}: {found.recipe.to_text()}"
    table = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_footer=True)
    table.add_column("layer", "all", justify="right")
    table.add_column("stream")
    table.add_column("codec")
    table.add_column("bits/value\nall-in", f"{found.bits:.3f}", justify="right", no_wrap=True)
    table.add_column("expected\nKL", f"{found.kl:.2e}", justify="right", no_wrap=True)
    for each in found.streams:
        table.add_row(str(each.layer), each.stream, each.codec, f"{each.bits:.3f}", f"{each.kl:.2e}")
    lines = [f"{report.bytes_per_token:,.0f} bytes/token at a context of {report.context:,}, exact window included"]
    if report.measured is None:
        lines.append(f"expected KL {found.kl:.2e} nats for each token; not measured: give --text or --tokens")
    else:
        lines += _measured_lines(report.measured, found.kl)
    notes = [*report.notes, *(report.measured.warnings if report.measured else ())]
    return Group(table, *map(Text, lines), *(Text(f"warning: {note}", style="yellow") for note in notes))


def _measured_lines(measured: EvalResult, expected: float) -> list[str]:
    (row,) = measured.rows
    interval = "" if row.kl_ci95 is None else f" [{row.kl_ci95[0]:.2e}, {row.kl_ci95[1]:.2e}]"
    return [
        f"expected KL {expected:.2e}, measured {row.kl_mean:.2e}{interval} nats for each token; "
        f"dPPL {row.delta_ppl_percent:+.2f} %, top-1 {100 * row.top1_agreement:.2f} %; "
        f"{measured.tokens_scored:,} tokens of {measured.text} scored, {measured.protocol} protocol"
    ]
