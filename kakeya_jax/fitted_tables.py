"""Taking a calibrated table out of what a caller passed: one check, one sentence, for every method."""

from collections.abc import Mapping

from kakeya_jax.typing import Array

CALIBRATE = (
    "fit it with `kakeya calibrate` and pass it with --calibration FILE (in Python: "
    "tables=calibration.tables_for(recipe))"
)
"""Where most tables come from."""


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
