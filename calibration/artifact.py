"""Calibrated tables in one file: safetensors with one array for each table, named ``LAYER.STREAM.TABLE``."""

import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from kakeya_jax.cache import Tables
from kakeya_jax.typing import StreamName

FORMAT = "kakeya-tables"


def save_tables(tables: Tables, path: str | os.PathLike[str]) -> None:
    """Writes tables, exact; the file appears complete or not at all."""
    arrays = {
        f"{layer}.{stream}.{name}": np.ascontiguousarray(table)
        for (layer, stream), named in tables.items()
        for name, table in named.items()
    }
    target = pathlib.Path(path)
    partial = target.with_name(target.name + ".partial")
    safetensors.numpy.save_file(arrays, partial, metadata={"format": FORMAT})
    os.replace(partial, target)


def load_tables(path: str | os.PathLike[str]) -> Tables:
    """Reads what ``save_tables`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated file, or one of another kind.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"calibration file {path} does not exist")
    try:
        with safetensors.safe_open(path, framework="flax") as opened:
            kind = (opened.metadata() or {}).get("format")
            if kind != FORMAT:
                raise ValueError(f"{path} is not a calibration file: its format is {kind!r}, not {FORMAT!r}")
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a calibration file: {error}") from None
    tables: dict[tuple[int, StreamName], dict] = {}
    for name, array in arrays.items():
        layer, stream, table = name.split(".", 2)
        if stream not in ("key", "value"):
            raise ValueError(f"{path}: table {name!r} is of neither key nor value")
        tables.setdefault((int(layer), stream), {})[table] = array
    return tables
