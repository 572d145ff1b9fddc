"""``kakeya bench encode``: the measured speeds as a table and as JSON."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import rich.box
from rich.table import Table

from kakeya_jax.eval.bench_encode import EncodeSpeed, bench_encode
from kakeya_jax.eval.environment import environment


def measure(
    codecs: Sequence[str] | None, *, vectors: int, head_dim: int, repeats: int, quiet: bool = False
) -> list[EncodeSpeed]:
    """``bench_encode`` with a line on stderr for each row as it comes.

    Raises:
        ValueError: an unknown codec, or sizes that a codec cannot take.
    """

    def announce(row: EncodeSpeed) -> None:
        if not quiet:
            print(f"{row.codec} {row.settings}: {row.vectors_per_second:,.0f} vectors/s", file=sys.stderr)

    for name, value in (("vectors", vectors), ("head_dim", head_dim), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    return bench_encode(codecs or None, vectors=vectors, head_dim=head_dim, repeats=repeats, on_row=announce)


def table(rows: list[EncodeSpeed], vectors: int, head_dim: int) -> Table:
    """The rows for a terminal."""
    title = f"encoding {vectors} vectors of dimension {head_dim}, median time"
    shown = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    shown.add_column("codec")
    shown.add_column("settings")
    ratios = ("times\nas fast", "on one\nthread")
    for name in ("vectors/s", "numpy\nvectors/s", *ratios, "compile\ns", "bits/value\nall-in"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row.codec,
            row.settings,
            f"{row.vectors_per_second:,.0f}",
            "-" if row.numpy_vectors_per_second is None else f"{row.numpy_vectors_per_second:,.0f}",
            "-" if row.ratio is None else f"{row.ratio:.1f}",
            "-" if row.ratio_one_thread is None else f"{row.ratio_one_thread:.1f}",
            f"{row.compile_seconds:.2f}",
            f"{row.bits_per_value:.3f}",
        )
    return shown


def as_dict(rows: list[EncodeSpeed], vectors: int, head_dim: int) -> dict[str, Any]:
    """The rows as plain data for JSON, with the environment."""
    return {
        "vectors": vectors,
        "head_dim": head_dim,
        "environment": environment(),
        "rows": [
            {**dataclasses.asdict(row), "ratio": row.ratio, "ratio_one_thread": row.ratio_one_thread} for row in rows
        ],
    }
