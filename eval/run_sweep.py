"""``kakeya sweep``: a grid checked whole before its first cell, run cell by cell, and gone on with after a kill."""

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from kakeya_jax.accounting import cache_report
from kakeya_jax.cache import CacheShape
from kakeya_jax.calibration.artifact import Calibration, load_calibration
from kakeya_jax.eval.cells import Cells
from kakeya_jax.eval.demo import bundled_calibration, bundled_text
from kakeya_jax.eval.explain import load_config
from kakeya_jax.eval.gates import parse_gates
from kakeya_jax.eval.grid import GridCell, GridError, load_grid
from kakeya_jax.eval.outputs import check_output_file
from kakeya_jax.eval.progress import show_progress
from kakeya_jax.eval.run_eval import Inputs, Request, load_inputs, load_text, measure
from kakeya_jax.eval.text import check_vocabulary
from kakeya_jax.models.config import ModelConfig
from kakeya_jax.models.locate import DEMO
from kakeya_jax.recipe import Recipe

_SAMPLE = 1 << 20
"""Bytes hashed at either end of a file of weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCell:
    """A combination that was checked.

    Attributes:
        cell: what runs.
        identity: whatever its result depends on, as JSON: the request, the recipe spelled out, hashes of the files.
    """

    cell: GridCell
    identity: dict[str, Any]

    @property
    def command(self) -> str:
        """The ``kakeya eval`` command that repeats it."""
        return self.cell.command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All cells of a grid, in the order in which they run."""

    cells: tuple[SweepCell, ...]


def plan_sweep(grid: str | os.PathLike[str], *, max_cells: int = 1000, offline: bool = False) -> Plan:
    """Reads a grid and checks every cell of it, without loading weights.

    Raises:
        FileNotFoundError: there is no such grid.
        GridError: something is wrong; with a line for each thing that is.
    """
    cells = [
        dataclasses.replace(cell, request=dataclasses.replace(cell.request, offline=offline))
        for cell in load_grid(grid, max_cells=max_cells)
    ]
    checker = _Checker()
    for cell in cells:
        checker.check(cell.request)
    if checker.problems:
        raise GridError(checker.problems)
    return Plan(cells=tuple(SweepCell(cell=cell, identity=checker.identity(cell)) for cell in cells))


def run_sweep(plan: Plan, out: str | os.PathLike[str], *, quiet: bool = False) -> str:
    """Runs the cells that are not finished yet; each is kept as soon as it is done.

    Args:
        plan: from ``plan_sweep``.
        out: the JSON Lines file; see ``eval.cells``.
        quiet: no progress on stderr.

    Returns:
        What was done, in a sentence.

    Raises:
        ValueError: the file holds something else, or another run is writing it.
    """
    check_output_file("--out", out)
    with Cells(out) as finished, show_progress(quiet=quiet) as progress:
        open_cells = [each for each in plan.cells if each.identity not in finished]
        done_before = len(plan.cells) - len(open_cells)
        others = len(finished) - done_before
        held: tuple[tuple[Any, ...], Inputs] | None = None
        start = time.monotonic()
        for number, each in enumerate(open_cells):
            request = each.cell.request
            what = f"cell {done_before + number + 1}/{len(plan.cells)}: {request.model}, {request.recipes[0]}"
            progress(number, len(open_cells), what)
            key = _inputs_key(request)
            if held is None or held[0] != key:
                held = None  # the old model goes before the new one comes
                same = [other.cell.request for other in open_cells if _inputs_key(other.cell.request) == key]
                held = key, load_inputs(_of_all(request, same))

            def within(done: int, total: int, step: str, number: int = number, what: str = what) -> None:
                progress(number + done / total, len(open_cells), f"{what} ({done}/{total} {step})")

            result = measure(request, held[1], within)
            finished.add(each.identity, {**result.to_dict(), "command": each.command})
        progress(len(open_cells), len(open_cells), "done")
        seconds = time.monotonic() - start
    kept = f", {done_before} were finished before" if done_before else ""
    more = f"; {others} more in the file are of no cell of this grid" if others else ""
    return f"{len(open_cells)} cells in {seconds:.0f} s{kept}: {out}{more}"


def _inputs_key(request: Request) -> tuple[Any, ...]:
    return request.model, request.text, request.tokens, request.calibration, request.dtype, request.stress


def _of_all(request: Request, requests: list[Request]) -> Request:
    """A request whose inputs serve all of them: they differ in recipe and protocol alone."""
    recipes = tuple(dict.fromkeys(recipe for each in requests for recipe in each.recipes))
    return dataclasses.replace(request, recipes=recipes)


class _Checker:
    """Checks requests that share models, texts and recipes, each of these once."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._found: dict[Any, Any] = {}

    def check(self, request: Request) -> None:
        """Notes what would stop this request."""
        text = request.recipes[0]
        recipe = self._once(("recipe", text), text, lambda: Recipe.parse(text))
        config = self._config(request)
        self._once(("gates", request.gates), "gates", lambda: parse_gates(request.gates))
        tokens = self._tokens(request, config)
        if tokens is not None:
            self._once(
                ("length", request.tokens, request.text, request.model, request.context, request.passages),
                _text_name(request),
                lambda: _check_length(len(tokens), request),
            )
        if recipe is not None and config is not None:
            calibration = self._calibration(request, config, recipe)
            where = ("fits", request.model, text, request.context, request.calibration, request.stress)
            self._once(where, f"{text} on {request.model}", lambda: _check_fit(request, recipe, config, calibration))

    def identity(self, cell: GridCell) -> dict[str, Any]:
        """What the result of a checked cell depends on."""
        written, request = cell.written, cell.request
        named = {
            field.name: getattr(written, field.name)
            for field in dataclasses.fields(written)
            if field.name not in ("recipes", "offline")
        }
        texts = {
            name: None if value is None else str(value) for name, value in named.items() if isinstance(value, Path)
        }
        calibration = request.calibration
        if calibration is None and request.model == DEMO and request.stress is None:
            calibration = bundled_calibration()
        recipe = Recipe.parse(request.recipes[0])
        return {
            **named,
            **texts,
            "recipe": request.recipes[0],
            "recipe_text": recipe.to_text(),
            "model_hash": self._hash(_model_files(request.model)),
            "text_hash": self._hash((request.tokens or request.text or bundled_text(),)),
            "calibration_hash": self._hash((calibration,)) if calibration and recipe.needs_calibration else None,
        }

    def _config(self, request: Request) -> ModelConfig | None:
        return self._once(("config", request.model), "", lambda: load_config(request.model, offline=request.offline))

    def _tokens(self, request: Request, config: ModelConfig | None) -> Any:
        """The text's tokens; None if there is something wrong with it. Of texts the tokenizer of the model decides."""
        if config is None:
            return None
        key = ("text", request.tokens or (request.text, request.model))
        shortest = dataclasses.replace(request, context=2, warmup=None, continuation=None, chunk=None)
        tokens = self._once(key, "", lambda: load_text(shortest))
        if tokens is not None:
            self._once(
                ("vocabulary", key, request.model),
                f"{_text_name(request)} with {request.model}",
                lambda: check_vocabulary(tokens, config.vocab_size),
            )
        return tokens

    def _calibration(self, request: Request, config: ModelConfig, recipe: Recipe) -> Calibration | None:
        path = request.calibration
        if path is None:
            if request.model != DEMO or request.stress is not None or not recipe.needs_calibration:
                return None
            path = bundled_calibration()

        def load() -> Calibration:
            return load_calibration(path)

        calibration = self._once(("calibration", path), "", load)
        if calibration is not None:
            self._once(("shape", path, request.model), f"{path}", lambda: calibration.check_shape(config))
        return calibration

    def _hash(self, paths: tuple[Path, ...]) -> str:
        if paths not in self._found:
            self._found[paths] = hash_files(paths)
        return self._found[paths]

    def _once(self, key: Any, where: str, work: Any) -> Any:
        """The result of ``work``, done once for each key; None if it failed, which is noted once."""
        if key not in self._found:
            try:
                self._found[key] = work()
            except (ValueError, OSError, NotImplementedError) as error:
                self.problems.append(f"{where}: {error}" if where else str(error))
                self._found[key] = None
        return self._found[key]


def hash_files(paths: tuple[Path, ...]) -> str:
    """SHA-256 of names, sizes and contents; of files larger than two MiB of the first and last MiB."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLE))
            if size > 2 * _SAMPLE:
                file.seek(size - _SAMPLE)
            digest.update(file.read())
    return digest.hexdigest()


def _model_files(model: str) -> tuple[Path, ...]:
    """Config and weights of a folder; nothing of a hub id, whose name says which they are."""
    from kakeya_jax.models.locate import find_folder

    if model != DEMO and not Path(model).expanduser().is_dir():
        return ()
    folder = find_folder(model)
    return tuple(sorted([folder / "config.json", *folder.glob("*.safetensors")]))


def _text_name(request: Request) -> str:
    return str(request.tokens or request.text or "the bundled text")


def _check_length(length: int, request: Request) -> None:
    fit = length // request.context
    if (request.passages or 1) > fit:
        raise ValueError(
            f"has {length} tokens, which hold {fit} passages of context={request.context}, not {request.passages or 1}"
        )


def _check_fit(request: Request, recipe: Recipe, config: ModelConfig, calibration: Calibration | None) -> None:
    if recipe.needs_calibration and calibration is None:
        raise ValueError("takes calibrated tables; name a file of kakeya calibrate as calibration of the model")
    tables = calibration.tables_for(recipe) if calibration is not None and recipe.needs_calibration else None
    cache_report(CacheShape.of(config), recipe, max_length=request.context, tables=tables)
