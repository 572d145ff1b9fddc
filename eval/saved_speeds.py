"""Rows of ``kakeya bench attention --out FILE`` that an earlier run left, for one that goes on."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kakeya_jax.eval.bench_attention import AttentionSpeed
from kakeya_jax.pallas_kernels.attention.arg_specs import ARG_SPECS

_SIZES = ("batch", "num_kv_heads", "group", "head_dim", "tokens")


def saved_rows(path: Path, expected: Mapping[str, Any]) -> dict[str, list[AttentionSpeed]]:
    """The rows of each shape in a file; none if there is no file.

    Args:
        path: the file.
        expected: what this run would write, without rows: its environment and how it measures.

    Raises:
        ValueError: the file is none of that command, or of another environment, of other sizes or measured otherwise;
            the message says what differs.
    """
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text())
        differences = [*_differences(saved, expected)]
        if "complete" not in saved:
            raise KeyError("complete")
        found = {shape: [_row(row) for row in entry["rows"]] for shape, entry in saved["shapes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"--out {path} was not written by kakeya bench attention; name another file") from None
    if differences:
        raise ValueError(f"--out {path} holds rows of another run: {'; '.join(differences)}; name another file")
    return found


def _row(saved: Mapping[str, Any]) -> AttentionSpeed:
    row = {field.name: saved[field.name] for field in dataclasses.fields(AttentionSpeed)}
    low, high = row["quartiles"]
    return AttentionSpeed(**{**row, "quartiles": (low, high)})


def _differences(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    there, here = saved["environment"], expected["environment"]
    yield from _compare(there["packages"], here["packages"], here["packages"])
    yield from _compare(there, here, ("backend", "devices"))
    yield from _compare(saved, expected, ("repeats", "logits"))
    for shape, entry in saved["shapes"].items():
        sizes = dataclasses.asdict(ARG_SPECS[shape]) if shape in ARG_SPECS else {}
        for difference in _compare(entry, sizes, _SIZES):
            yield f"{shape}: {difference}"


def _compare(there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if there.get(name) != here.get(name):
            yield f"{name} is {there.get(name)} there, {here.get(name)} here"
