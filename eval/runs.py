"""Measurements from files of either kind: results of ``kakeya eval``, and the cells of ``kakeya sweep``."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from kakeya_jax.eval.cells import cell_key
from kakeya_jax.eval.merge import SAME, load_result, merge, result_from_dict, why_no_result
from kakeya_jax.eval.results import EvalResult


def load_runs(paths: Sequence[str | pathlib.Path]) -> list[EvalResult]:
    """The measurements in all files, rows of one measurement together, in the order in which they first occur.

    Args:
        paths: ``.json`` files of ``kakeya eval`` or merged ones, and ``.jsonl`` files of ``kakeya sweep``. Cells of a
            sweep that differ in the recipe alone are one measurement.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is of neither kind, holds nothing, or a recipe was measured twice in the same way.
    """
    groups: dict[str, list[EvalResult]] = {}
    for path in paths:
        for result in _load(pathlib.Path(path).expanduser()):
            groups.setdefault(_measurement(result), []).append(result)
    return [_merged(results) for results in groups.values()]


def load_run(path: str | pathlib.Path) -> EvalResult:
    """The one measurement in a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is of neither kind, or holds several measurements.
    """
    runs = load_runs([path])
    if len(runs) > 1:
        kinds = "; ".join(f"{run.model} on {run.text}, {run.protocol}, context {run.context}" for run in runs[:4])
        raise ValueError(f"{path} holds {len(runs)} measurements ({kinds}); name a file of one")
    return runs[0]


def _merged(results: list[EvalResult]) -> EvalResult:
    if len(results) == 1:
        return results[0]
    merged = merge(results)
    devices = list(dict.fromkeys(", ".join(result.environment.get("devices", ())) for result in results))
    if len(devices) == 1:
        return merged
    warning = f"rows were measured on different devices: {'; '.join(devices)}"
    return dataclasses.replace(merged, warnings=(*merged.warnings, warning))


def _load(path: pathlib.Path) -> list[EvalResult]:
    if path.suffix != ".jsonl":
        return [load_result(path)]
    if not path.is_file():
        raise FileNotFoundError(f"sweep file {path} does not exist")
    # A sweep that is still running may be writing its last line, so lines without their end are left to it.
    lines = path.read_text().split("\n")[:-1]
    if not lines:
        raise ValueError(f"{path} holds no finished cell")
    results = []
    for number, line in enumerate(lines, start=1):
        try:
            cell = json.loads(line)
            if cell["key"] != cell_key(cell["request"]):
                raise ValueError("its key is not that of its request")
            results.append(result_from_dict(cell["result"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"line {number} of {path} is no cell of kakeya sweep: {why_no_result(error)}") from None
    return results


def _measurement(result: EvalResult) -> str:
    """Equal for results whose rows may stand in one table."""
    return json.dumps([*(getattr(result, name) for name in SAME), result.text_sha256])
