"""What ``kakeya session info`` shows of a session, as a table and as JSON."""

import dataclasses
import math
from typing import Any

import rich.box
from rich.table import Table

from kakeya_jax.session_file import SessionInfo

BFLOAT16_NBYTES = 2


def as_dict(info: SessionInfo) -> dict[str, Any]:
    """Plain data for JSON."""
    bits = info.size.bits_per_value
    return {
        "model": info.about.get("model"),
        "recipe": info.recipe.to_dict(),
        "recipe_text": info.recipe.to_text(),
        "shape": dataclasses.asdict(info.shape),
        "lengths": list(info.lengths),
        "max_length": info.max_length,
        "coded_pages": [list(rows) for rows in info.pages],
        "exact_dtype": info.dtype,
        "file_nbytes": info.size.file_nbytes,
        "exact_nbytes": info.size.exact_nbytes,
        "coded_nbytes": info.size.coded_nbytes,
        "bits_per_value": None if math.isnan(bits) else bits,
        "bfloat16_nbytes": _dense_nbytes(info),
        "compression_ratio": _dense_nbytes(info) / info.size.file_nbytes,
        "tables": info.tables,
        "about": dict(info.about),
    }


def table(info: SessionInfo) -> Table:
    """For a terminal."""
    shown = Table(box=rich.box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    size, about = info.size, info.about
    ratio = _dense_nbytes(info) / size.file_nbytes
    bits = f", {size.bits_per_value:.3f} bits/value" if size.coded_values else ""
    made = about.get("date"), (about.get("packages") or {}).get("kakeya-jax")
    rows = {
        "model": f"{about.get('model', 'not said')}, {info.shape.num_layers} layers",
        "recipe": str(info.recipe),
        "tokens": f"{', '.join(f'{each:,}' for each in info.lengths)} of at most {info.max_length:,}",
        "coded": f"{sum(map(sum, info.pages)):,} pages, {size.coded_nbytes:,} bytes{bits}",
        "exact": f"{size.exact_nbytes:,} bytes of {info.dtype}",
        "file": f"{size.file_nbytes:,} bytes, {ratio:.2f} times fewer than K and V as bfloat16",
        "made": ", kakeya-jax ".join(map(str, made)) if all(made) else "not said",
        "checksums": "all as written",
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _dense_nbytes(info: SessionInfo) -> int:
    """Of all its tokens as plain K and V."""
    shape = info.shape
    return 2 * BFLOAT16_NBYTES * sum(info.lengths) * shape.num_layers * shape.num_kv_heads * shape.head_dim
