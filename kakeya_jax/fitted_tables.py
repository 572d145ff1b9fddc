"""Taking a calibrated table out of what a caller passed: one check, one sentence, for every method."""

import shlex
from collections.abc import Mapping

from kakeya_jax.codec import CodecConfig
from kakeya_jax.typing import Array

CALIBRATE = (
    "fit it with `kakeya calibrate` and pass it with --calibration FILE (in Python: "
    "tables=calibration.tables_for(recipe))"
)
"""Where most tables come from."""


def check_tables(config: CodecConfig, tables: Mapping[str, Array] | None, *, recipe: str, where: str) -> None:
    """Raises a ``ValueError`` that names the command to fit them with if a codec's tables are missing.

    Args:
        config: of the codec.
        tables: what it is given; None for nothing.
        recipe: its recipe, as ``Recipe.parse`` reads it.
        where: the layer and stream, for the message.
    """
    missing = [name for name in config.needs_tables() if name not in (tables or {})]
    if missing:
        raise ValueError(
            f"{config.name}, {where}: needs the table {missing[0]!r}; fit it with `kakeya calibrate MODEL --text "
            f"TRAIN.txt --recipe {shlex.quote(recipe)} --out FILE` and pass it with --calibration FILE (in Python: "
            "tables=load_calibration(FILE, model.config, params).tables_for(recipe))"
        )


def fitted_table(
    tables: Mapping[str, Array] | None,
    name: str,
    shape: tuple[int, ...] | None,
    *,
    of: str,
    hint: str = CALIBRATE,
) -> Array:
    """The table ``name``, as it was given: a concrete array stays one while a caller is traced.

    Args:
        tables: by name; None for none.
        name: which.
        shape: what it must be; None if the table itself decides.
        of: who needs it, for the message.
        hint: how to come by it, likewise.

    Raises:
        ValueError: it is missing, or of another shape.
    """
    if tables is None or name not in tables:
        raise ValueError(f"{of}: needs the table {name!r}; {hint}")
    table = tables[name]
    if shape is not None and table.shape != shape:
        raise ValueError(f"{of}: table {name!r} has shape {table.shape}, needs {shape}; {hint}")
    return table
