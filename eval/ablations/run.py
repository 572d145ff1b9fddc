"""``kakeya ablate``: from what was asked for on the command line to an ablation's results."""

import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kakeya_jax.calibration.artifact import fingerprint, text_hash
from kakeya_jax.eval import quality_gates
from kakeya_jax.eval.ablations.ablation import Ablation, Cell, Row, Setup, Size
from kakeya_jax.eval.ablations.recipe_cells import compare
from kakeya_jax.eval.ablations.registry import find_ablation
from kakeya_jax.eval.ablations.results import AblationResult
from kakeya_jax.eval.ablations.tables import Tables
from kakeya_jax.eval.cells import Cells
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.environment import environment
from kakeya_jax.eval.perplexity import Progress
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.text import check_vocabulary, encode_text, load_tokens
from kakeya_jax.models import checkpoint
from kakeya_jax.models.locate import DEMO, display_name
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.typing import Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``kakeya ablate NAME``.

    Attributes:
        name: of the ablation.
        model: folder, hub id, or ``"demo"``. Its bundled text is cut in two: tables are fitted to the first half, and
            the second half is scored.
        text, tokens: what is scored; one of them, unless the model is the demo.
        calibration: statistics of the model on training text; the demo has its own.
        train: tokens of training text, to which tables are fitted that ``calibration`` lacks.
        context, passages: of the scored text; by default the ablation's own.
        json_path: where the results go; beside it ``FILE.cells.jsonl``, from which an interrupted run goes on.
        part: ``(k, n)``: only every ``n``-th cell, starting with the ``k``-th; they are kept in a file of their own,
            and no results are made. A run without it then finds all of them.
    """

    name: str
    model: str = DEMO
    text: Path | None = None
    tokens: Path | None = None
    calibration: Path | None = None
    train: Path | None = None
    context: int | None = None
    passages: int | None = None
    json_path: Path | None = None
    part: tuple[int, int] | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        find_ablation(self.name)
        if self.text is not None and self.tokens is not None:
            raise ValueError("give either --text or --tokens, not both")
        if self.text is None and self.tokens is None and self.model != DEMO:
            raise ValueError("nothing to measure on; give --text FILE or --tokens FILE")
        if self.part is not None and self.json_path is None:
            raise ValueError("--part K/N keeps its cells beside the results; give --json FILE too")

    def command(self) -> str:
        """The command that repeats it; files and folders by their names alone."""
        words = ["kakeya", "ablate", self.name, display_name(self.model)]
        for option in ("text", "tokens", "calibration", "train", "context", "passages"):
            value = getattr(self, option)
            if value is not None:
                words += [f"--{option}", value.name if isinstance(value, Path) else str(value)]
        if self.json_path is not None:
            words += ["--json", self.json_path.name]
        return shlex.join(words)


def parse_part(text: str | None) -> tuple[int, int] | None:
    """``K/N`` as numbers, ``1 <= K <= N``.

    Raises:
        ValueError: it is not of that form.
    """
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"--part {text!r} must be K/N with K from 1 to N, such as 1/4")
    return int(part), int(parts)


def run_request(request: Request, *, quiet: bool = False) -> AblationResult | None:
    """Measures an ablation's cells, those that are not finished yet; None for a part.

    Raises:
        ValueError, OSError: wrong input; the message is one line.
    """
    ablation = find_ablation(request.name)
    scored, train, text = _texts(request)
    model, params = checkpoint.load(request.model, offline=request.offline)
    check_vocabulary(scored, model.config.vocab_size)
    size = _size(ablation, request)
    cells = ablation.cells(model.config, size.context)
    if request.part is not None:
        cells = cells[request.part[0] - 1 :: request.part[1]]
    tables = Tables.of(
        request.name,
        request.calibration or (bundled_calibration() if request.model == DEMO else None),
        model,
        params,
        cells,
        train,
    )
    tables.check_text(scored)
    setup = Setup(model=model, params=params, tokens=scored, context=size.context, passages=size.passages)
    with show_progress(quiet=quiet) as progress:
        rows = _measure(request, ablation, cells, setup, tables, progress)
    if request.part is not None:
        return None
    return make_result(
        ablation,
        rows,
        setup,
        model=display_name(request.model),
        text=text,
        command=request.command(),
        calibration=tables.about_all(cells),
    )


def make_result(
    ablation: Ablation,
    rows: list[Row],
    setup: Setup,
    *,
    model: str,
    text: str,
    command: str,
    calibration: Row | None,
) -> AblationResult:
    """The results of measured rows: comparisons with the baseline, findings, and where all of it comes from."""
    by_label = {row["label"]: row for row in rows}
    baseline = ablation.baseline if ablation.baseline in by_label else None
    if baseline is not None:
        for row in rows:
            if row["label"] != baseline and "per_passage" in row:
                row["paired"] = _plain(compare(row, by_label[baseline]))
    warned = dict.fromkeys(text for row in rows for text in row.get("warnings", ()))
    return AblationResult(
        ablation=ablation.name,
        question=ablation.question,
        claims=ablation.claims,
        model=model,
        text=text,
        context=setup.context,
        passages=max(row.get("passages", 0) for row in rows) or (setup.passages or 1),
        tokens_scored=min(row["tokens_scored"] for row in rows),
        baseline=baseline,
        gates=quality_gates.load().to_dict() if ablation.gates else None,
        calibration=calibration,
        command=command,
        environment=environment(),
        findings=tuple(ablation.findings(by_label)),
        warnings=tuple(warned),
        rows=tuple(rows),
    )


def _measure(
    request: Request, ablation: Ablation, cells: tuple[Cell, ...], setup: Setup, tables: Tables, progress: Progress
) -> list[Row]:
    """The rows of the cells; finished ones from the files beside the results."""
    finished, keep, close = _finished(request)
    weights = fingerprint(setup.params)
    keys = [_cell_request(cell, setup, weights, tables, ablation) for cell in cells]
    try:
        left = [cell for cell, key in zip(cells, keys, strict=True) if finished(key) is None]
        setup = dataclasses.replace(setup, calibration=tables.fitted_for(left))
        rows = []
        for index, (cell, key) in enumerate(zip(cells, keys, strict=True)):
            progress(index, len(cells), f"{ablation.name}: {cell.label}")
            result = finished(key)
            if result is None:
                start = time.perf_counter()
                result = _plain(cell.measure(setup)) | {"seconds": round(time.perf_counter() - start, 2)}
                keep(key, result)
            rows.append({"label": cell.label, **result})
        progress(len(cells), len(cells), "done")
    finally:
        close()
    return rows


def _finished(request: Request) -> tuple[Callable[[Row], Any], Callable[[Row, Row], None], Callable[[], None]]:
    """How to look up and to keep finished cells, and what to call in the end."""
    path = request.json_path
    if path is None:
        return (lambda key: None), (lambda key, result: None), (lambda: None)
    named = f".part{request.part[0]}of{request.part[1]}" if request.part else ""
    own = Cells(path.with_name(f"{path.name}{named}.cells.jsonl"))
    others = [] if request.part else sorted(path.parent.glob(f"{path.name}.part*.cells.jsonl"))
    held = []
    for other in others:
        with Cells(other) as cells:
            held.append(cells)  # closed, but what it has read stays

    def find(key: Row) -> Any:
        return next((found for cells in (own, *held) if (found := cells.get(key)) is not None), None)

    return find, own.add, own.close


def _cell_request(cell: Cell, setup: Setup, weights: str, tables: Tables, ablation: Ablation) -> Row:
    """All that a cell's result depends on."""
    versions = environment()
    return {
        "cell": cell.request(),
        "model": weights,
        "text": text_hash(setup.tokens[None]),
        "context": setup.context,
        "passages": setup.passages,
        "calibration": tables.about(cell),
        "gates": quality_gates.load().sha256 if ablation.gates else None,
        "version": versions["packages"]["kakeya-jax"],
        "jax": versions["packages"]["jax"],
        "devices": versions["devices"],
    }


def _texts(request: Request) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"] | None, str]:
    """Tokens to score, tokens to fit tables to, and the name of the text."""
    train = None if request.train is None else load_tokens(request.train)
    if request.tokens is not None:
        return load_tokens(request.tokens), train, request.tokens.name
    text = request.text or bundled_text()
    tokens = encode_text(text, load_tokenizer(request.model, offline=request.offline))
    if request.text is not None:
        return tokens, train, text.name
    half = len(tokens) // 2
    return tokens[half:], tokens[:half] if train is None else train, f"second half of {text.name}"


def _size(ablation: Ablation, request: Request) -> Size:
    own = ablation.demo if request.model == DEMO else ablation.usual
    return Size(
        context=own.context if request.context is None else request.context,
        passages=own.passages if request.passages is None else request.passages,
    )


def _plain(value: Any) -> Any:
    """Plain JSON: numpy numbers as Python's, tuples as lists, ``None`` for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
