"""Measures every row of docs/results.md for one model: calibrates, evaluates in several processes, merges.

python scripts/measure_results.py MODEL_FOLDER DATA_FOLDER TRAIN.npy OUT [--processes N] [--rows PATTERN] [--dry-run]
python scripts/measure_results.py --replace OUT docs/results

DATA_FOLDER holds eval_book_dev.npy and eval_wikitext2_valid.npy, TRAIN.npy the tokens that calibration reads. OUT gets
MODEL.TEXT.json for either text, and stress/MODEL.xFACTOR.json, which is what docs/results/ holds; the calibrations and
the parts of each measurement beside them. What is there already is not made again: an interrupted run goes on.

``--rows`` measures only the recipes that a regular expression finds something in, after a codec has changed;
``--replace`` then puts these rows into the files of another folder.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys

from kakeya_jax.calibration.fitted_streams import fitted_streams
from kakeya_jax.eval.merge import load_result, merge_files, replace_rows
from kakeya_jax.recipe import Recipe

TEXTS = ("eval_book_dev", "eval_wikitext2_valid")
TIGHTLY = ",sinks=0,recent=1"
FACTORS = (8, 32, 128)
D4, E8 = (f"both=lattice(lattice={lattice},scale_levels=4)" for lattice in ("d4", "e8"))
MEAN_2, MEAN_3 = (f"both=turboquant(bits={bits},static_mean=true)" for bits in (2, 3))
STANDARD = (*Recipe.names(), D4, E8, MEAN_2, MEAN_3, "both=turboquant(static_mean=true,bits=4)")
TIGHT = (
    *("int8", "int4", "int4-affine", "kivi-2", "kivi-4", "turboquant-2", "turboquant-3", "turboquant-4"),
    *("turboquant-k3v2", "turboquant-k4v3", "kakeya-pareto", "kakeya-ratio", "besicovitch"),
    *("klt-1", "klt-1.5", "klt-2", "klt-3", "klt-4", "klt-pairs-2", "klt-pairs-2.5", "klt-pairs-3", "klt-pairs-4"),
    *("klt-quality-2", "klt-quality-3", "klt-quality-4", "klt-trellis-2", "klt-trellis-3", "klt-trellis-4"),
    *("klt-trellis-pairs-2", "both=kivi(group_size=64)", D4, E8, MEAN_2),
)
ROWS = (*STANDARD, *(recipe + TIGHTLY for recipe in TIGHT))
STRESS = (
    *("int8", "int4", "kivi-2", "kivi-4", "turboquant-2", "turboquant-3", "turboquant-4", "kakeya-pareto"),
    *("kakeya-ratio", "besicovitch", "klt-2", "klt-3", "klt-pairs-2", "klt-quality-2", "klt-storage-1", "ladder-f1"),
    *("kakeya-v1.3-ppl", E8, MEAN_3),
)
WINDOWS = ("--window", "4:128", "--window", "0:1")
ROWS_OF_A_PART = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A ``kakeya`` command and the file it writes."""

    arguments: tuple[str, ...]
    writes: pathlib.Path

    def run(self) -> int:
        """Its exit code; 0 at once if the file is there."""
        if self.writes.exists():
            return 0
        self.writes.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.run([sys.executable, "-m", "kakeya_jax.eval", *self.arguments, "--quiet"]).returncode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One measurement: its parts, in the order of its rows."""

    parts: tuple[Command, ...]
    writes: pathlib.Path


def main(arguments: list[str] | None = None) -> int:
    """Runs or prints all commands; 0 if all went well, 1 if one failed, 2 for wrong arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--replace"]:
        folders = [pathlib.Path(each) for each in arguments[1:]]
        if len(folders) != 2 or not all(folder.is_dir() for folder in folders):
            print(
                "measure_results.py: --replace takes two folders, the measured one and the one to change",
                file=sys.stderr,
            )
            return 2
        return replace(*folders)
    options = _parse(arguments)
    calibrations, tables = commands(options.model, options.data, options.train, options.out, options.rows)
    parts = [part for table in tables for part in table.parts]
    if options.dry_run:
        for command in (*calibrations, *parts):
            print(shlex.join(["kakeya", *command.arguments]))
        for table in tables:
            print(f"# merged: {table.writes}")
        return 0
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one GPU
    for stage in (calibrations, parts):
        with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
            codes = list(pool.map(Command.run, stage))
        failed = [command for command, code in zip(stage, codes, strict=True) if code]
        for command in failed:
            print(f"failed: {shlex.join(['kakeya', *command.arguments])}", file=sys.stderr)
        if failed:
            return 1
    for table in tables:
        table.writes.parent.mkdir(parents=True, exist_ok=True)
        merge_files([part.writes for part in table.parts]).save(table.writes)
        print(f"written: {table.writes}")
    return 0


def replace(measured: pathlib.Path, results: pathlib.Path) -> int:
    """Puts the rows of every measurement in one folder into the file of the same name in the other; 0."""
    for found in sorted([*measured.glob("*.json"), *measured.glob("stress/*.json")]):
        target = results / found.relative_to(measured)
        replace_rows(load_result(target), load_result(found)).save(target)
        print(f"written: {target}")
    return 0


def commands(
    model: pathlib.Path, data: pathlib.Path, train: pathlib.Path, out: pathlib.Path, pattern: str = ""
) -> tuple[list[Command], list[Table]]:
    """The calibrations, and the measurements of the recipes that ``pattern`` is found in."""
    rows_of_text, rows_of_stress = (tuple(row for row in rows if re.search(pattern, row)) for rows in (ROWS, STRESS))
    calibrations = [_calibrate(model, train, out / "klt.safetensors", *WINDOWS)]
    if any(map(_is_fitted, rows_of_text)):
        fitted = _calibrate(model, train, out / "fitted.safetensors", "--window", "4:128", "--recipe", "all")
        calibrations.append(fitted)
    tables = []
    for text in TEXTS:
        table, name = data / f"{text}.npy", f"{model.name}.{text}"
        parts = [
            _evaluate(model, table, out / "parts" / f"{name}.{index:02}.json", rows, calibration=_file_for(rows, out))
            for index, rows in enumerate(_split(rows_of_text))
        ]
        tables.append(Table(parts=tuple(parts), writes=out / f"{name}.json"))
    fitted = [word for recipe in rows_of_stress if _is_fitted(recipe) for word in ("--recipe", recipe)]
    for factor in FACTORS if rows_of_stress else ():
        stress, name = ("--stress", str(factor)), f"{model.name}.x{factor}"
        calibration = out / "stress" / f"{name}.safetensors"
        calibrations.append(_calibrate(model, train, calibration, "--window", "4:128", *stress, *fitted))
        parts = [
            _evaluate(
                model,
                data / f"{TEXTS[1]}.npy",
                out / "parts" / f"{name}.{index:02}.json",
                rows,
                *stress,
                calibration=calibration,
            )
            for index, rows in enumerate(_split(rows_of_stress))
        ]
        tables.append(Table(parts=tuple(parts), writes=out / "stress" / f"{name}.json"))
    return calibrations, [table for table in tables if table.parts]


def _calibrate(model: pathlib.Path, train: pathlib.Path, out: pathlib.Path, *options: str) -> Command:
    arguments = ("calibrate", str(model), "--tokens", str(train), "--passages", "64", *options, "--out", str(out))
    return Command(arguments=arguments, writes=out)


def _evaluate(
    model: pathlib.Path,
    tokens: pathlib.Path,
    out: pathlib.Path,
    recipes: tuple[str, ...],
    *options: str,
    calibration: pathlib.Path | None,
) -> Command:
    tables = () if calibration is None else ("--calibration", str(calibration))
    chosen = [word for recipe in recipes for word in ("--recipe", recipe)]
    arguments = ("eval", str(model), "--tokens", str(tokens), "--no-encode-time", *options, *tables, *chosen)
    return Command(arguments=(*arguments, "--json", str(out)), writes=out)


def _split(rows: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Rows that follow each other and need the same calibration, a few at a time."""
    parts: list[tuple[str, ...]] = []
    for row in rows:
        here = pathlib.Path()
        fits = parts and len(parts[-1]) < ROWS_OF_A_PART and _file_for(parts[-1], here) == _file_for((row,), here)
        if fits:
            parts[-1] = (*parts[-1], row)
        else:
            parts.append((row,))
    return parts


def _file_for(rows: tuple[str, ...], out: pathlib.Path) -> pathlib.Path | None:
    if not any(Recipe.parse(row).needs_calibration for row in rows):
        return None
    return out / ("fitted.safetensors" if any(map(_is_fitted, rows)) else "klt.safetensors")


def _is_fitted(recipe: str) -> bool:
    """Whether tables were fitted to this very recipe."""
    return bool(fitted_streams(Recipe.parse(recipe), num_layers=8))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="measure_results.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL_FOLDER")
    parser.add_argument("data", type=pathlib.Path, metavar="DATA_FOLDER")
    parser.add_argument("train", type=pathlib.Path, metavar="TRAIN.npy")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT")
    parser.add_argument("--processes", type=int, default=2, help="commands at a time [2]")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only recipes in which this is found [all]")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    options = parser.parse_args(arguments)
    try:
        found = [row for row in (*ROWS, *STRESS) if re.search(options.rows, row)]
    except re.error as error:
        parser.error(f"--rows {options.rows!r} is no regular expression: {error}")
    if not found:
        parser.error(f"--rows {options.rows!r} is found in no recipe")
    if options.processes < 1:
        parser.error(f"--processes {options.processes} must be at least 1")
    for path in (options.model / "config.json", options.train, *(options.data / f"{text}.npy" for text in TEXTS)):
        if not path.is_file():
            parser.error(f"{path} does not exist")
    return options


if __name__ == "__main__":
    sys.exit(main())
