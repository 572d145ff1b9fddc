"""A table of quantiser levels as two files: the raw values, and a JSON header beside them.

``NAME`` holds ``2**bits`` ascending little-endian float32 and nothing else, the format of the KakeyaTurbo calibrator:
either program reads the other's. ``NAME.json`` says what the levels were fitted to. The header is not needed to read
the values, but if it is there it must agree with them.

`kakeya calibrate --check FILE --levels FOLDER` writes those of a calibration. A codec with
``centroids="calibrated"`` or ``"pooled"`` takes one as its table ``"centroids"``::

    tables[layer, "key"] |= {"centroids": load_levels("key.f32")[0]}
    CompressedCache.init(model.config, recipe, ..., tables=tables)
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kakeya_jax.lloyd_max import read_levels, write_levels
from kakeya_jax.typing import Array, Float

FORMAT = "kakeya-levels"

_OWN_KEYS = ("format", "bits", "sha256", "levels")


def save_levels(
    path: str | os.PathLike[str], levels: Float[Array, " levels"] | np.ndarray, header: Mapping[str, Any] | None = None
) -> None:
    """Writes the levels to ``path`` and the header to ``path`` with ``.json`` appended.

    Args:
        path: any name.
        levels: ``2**bits`` finite, strictly ascending values.
        header: what is worth knowing (model, stream, layers pooled, text, tokens); JSON values.

    Raises:
        ValueError: levels that are not such a table, or a header key that the format uses itself.
    """
    header = dict(header or {})
    taken = sorted(set(header) & set(_OWN_KEYS))
    if taken:
        raise ValueError(f"header key {taken[0]!r} is the format's own; choose another name")
    table = np.asarray(levels, np.float32)
    write_levels(path := pathlib.Path(path), table)
    own = {
        "format": FORMAT,
        "bits": table.size.bit_length() - 1,
        "sha256": _digest(table),
        "levels": [float(level) for level in table],
    }
    _header_path(path).write_text(json.dumps(own | header, indent=1) + "\n")


def load_levels(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The levels and what their header says (empty if there is none).

    Raises:
        ValueError: not a table of 2, 4, ... or 256 ascending values, or a header that belongs to others.
        OSError: the file cannot be read.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size
    bits = (size // 4).bit_length() - 1
    if size % 4 or bits < 1 or size != 4 * 2**bits:
        raise ValueError(f"{path}: {size} bytes are not 2, 4, 8, ... float32 levels")
    levels = read_levels(path, bits)
    if not _header_path(path).is_file():
        return levels, {}
    try:
        header = json.loads(_header_path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{_header_path(path)} is not valid JSON: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{_header_path(path)} is not a {FORMAT} header; remove it to read the bare levels")
    if header.get("sha256") != _digest(levels):
        raise ValueError(f"{_header_path(path)} belongs to other levels; remove it, or write both again")
    return levels, {name: value for name, value in header.items() if name not in _OWN_KEYS}


def _header_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")


def _digest(levels: np.ndarray) -> str:
    return hashlib.sha256(levels.astype("<f4").tobytes()).hexdigest()
