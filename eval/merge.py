"""Results of one measurement that was split over several processes, put together again."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from kakeya_jax.eval.results import EvalResult, Row, window_warning

SAME = (
    "model",
    "text",
    "protocol",
    "context",
    "warmup",
    "passages",
    "continuation",
    "tokens_scored",
    "gates",
    "dtype",
    "cache_dtype",
    "note",
)
"""What is the same in all parts of one measurement."""

_FLOATS = ("ppl", "delta_ppl_percent", "kl_mean", "kl_p99", "top1_agreement")

REFERENCE_TOLERANCE = 1e-4
"""Largest relative difference of the dense perplexity: the same computation on the same kind of device."""


def merge_files(paths: Sequence[str | pathlib.Path]) -> EvalResult:
    """The rows of all files in one result, in the order given.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is no results file, files measured different things, or a recipe occurs twice.
    """
    return merge([load_result(path) for path in paths])


def merge(results: Sequence[EvalResult]) -> EvalResult:
    """The rows of all results in one; see ``merge_files``. Rows from elsewhere than the first result's say so."""
    if not results:
        raise ValueError("nothing to merge; name at least one results file")
    _check_same(results)
    rows = tuple(row for result in results for row in _rows_beside(results[0], result))
    names = [row.recipe for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"recipe {', '.join(twice)} is in several results; give each measurement once")
    return _with_rows(results, rows)


def replace_rows(old: EvalResult, new: EvalResult) -> EvalResult:
    """``old`` with its rows of the recipes that were measured anew: for a codec that has changed.

    Everything but the rows, the commands and the warnings stays that of ``old``; rows from elsewhere say so.

    Raises:
        ValueError: they measured different things, or ``new`` has a recipe that ``old`` has not.
    """
    _check_same([old, new])
    found = {row.recipe: row for row in _rows_beside(old, new)}
    unknown = sorted(found.keys() - {row.recipe for row in old.rows})
    if unknown:
        raise ValueError(f"recipe {', '.join(unknown)} has no row to replace")
    return _with_rows([old, new], tuple(found.get(row.recipe, row) for row in old.rows))


def _rows_beside(old: EvalResult, new: EvalResult) -> tuple[Row, ...]:
    """The rows of ``new`` as they stand in a file of ``old``: with their environment, if it is another."""
    if new.environment == old.environment:
        return new.rows
    return tuple(dataclasses.replace(row, environment=row.environment or new.environment) for row in new.rows)


def _check_same(results: Sequence[EvalResult]) -> None:
    first, *others = results
    for other in others:
        for name in SAME:
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"results differ in {name} ({getattr(first, name)!r} and {getattr(other, name)!r}): "
                    "only one measurement's parts can be merged"
                )
        if first.text_sha256 and other.text_sha256 and other.text_sha256 != first.text_sha256:
            raise ValueError(f"results differ in the passages of {first.text!r}: texts of one name, not of one content")
        if abs(other.reference_ppl / first.reference_ppl - 1) > REFERENCE_TOLERANCE:
            raise ValueError(
                f"results have different dense perplexities ({first.reference_ppl} and {other.reference_ppl}): "
                "other weights, or another device"
            )


def _with_rows(results: Sequence[EvalResult], rows: tuple[Row, ...]) -> EvalResult:
    kept = (text for result in results for text in result.warnings if not text.startswith("rows keep"))
    warned = [*dict.fromkeys(kept), window_warning(rows)]
    commands = "\n".join(dict.fromkeys(result.command for result in results if result.command))
    return dataclasses.replace(results[0], rows=rows, warnings=tuple(text for text in warned if text), command=commands)


def load_result(path: str | pathlib.Path) -> EvalResult:
    """Reads a results file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a results file of this schema.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"results file {path} does not exist")
    try:
        return result_from_dict(json.loads(pathlib.Path(path).read_text()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = why_no_result(error)
        raise ValueError(
            f"{path} is not a results file of this version, as kakeya eval --json writes them: {reason}"
        ) from None


def why_no_result(error: Exception) -> str:
    """What an error of ``json.loads`` or ``result_from_dict`` says of the file, in words of the file."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return f"it is no readable JSON ({error})"
    if isinstance(error, TypeError):
        unknown = re.search(r"unexpected keyword argument ('\w+')", str(error))
        return f"it has an unknown {unknown[1]}" if unknown else "it has another structure"
    return str(error)


def result_from_dict(data: dict[str, Any]) -> EvalResult:
    """Reads what ``EvalResult.to_dict`` gave.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is something else.
    """
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not an object")
    data = dict(data)
    rows = tuple(_row(row) for row in data.pop("rows"))
    data.pop("schema_version")
    data["warnings"] = tuple(data["warnings"])
    return EvalResult(**data, rows=rows)


def _row(data: dict[str, Any]) -> Row:
    data = dict(data)
    bits, window, passages = data.pop("bits_per_value"), data.pop("exact_window"), data.pop("per_passage")
    for name in ("delta_ppl_ci95", "kl_ci95"):
        data[name] = None if data[name] is None else tuple(data[name])
    for name in _FLOATS:
        data[name] = _float(data[name])
    return Row(
        **data,
        **window,
        payload_bits=_float(bits["payload"]),
        all_in_bits=_float(bits["all_in"]),
        passage_delta_nll=tuple(map(_float, passages["delta_nll"])),
        passage_kl=tuple(map(_float, passages["kl"])),
    )


def _float(value: float | None) -> float:
    """A number that was not finite is null in a file."""
    return math.nan if value is None else value
