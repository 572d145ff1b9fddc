"""Fitted quantiser levels of a calibration as files of their own, for other programs (``kakeya_jax.level_file``)."""

import pathlib
import re
from collections import defaultdict
from typing import Any

import numpy as np

from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.level_file import save_levels

SUFFIX = ".f32"

_LONGEST_NAME = 100
"""Characters of a codec's text in a file's name; all of it is in the header."""


def export_levels(calibration: Calibration, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Writes every table ``centroids`` of a calibration, each with a header that says what it was fitted to.

    ``level_file.load_levels`` reads one back, to be given as the table ``"centroids"`` of any layer and stream.

    Args:
        calibration: made with recipes whose codecs have ``centroids=calibrated`` or ``pooled``.
        folder: made if it does not exist; files of the same names are replaced.

    Returns:
        The files of values, in order of stream and layer: one for each table, and one where layers share a table.

    Raises:
        ValueError: the calibration has no such table.
    """
    layers: dict[tuple[str, str, bytes], list[int]] = defaultdict(list)
    for layer, stream, fitted in sorted(calibration.fitted):
        tables = calibration.fitted[layer, stream, fitted]
        if "centroids" in tables:
            layers[stream, fitted, np.asarray(tables["centroids"], "<f4").tobytes()].append(layer)
    if not layers:
        raise ValueError(
            "this calibration has no fitted levels; make one with --recipe RECIPE, of a codec with "
            "centroids=calibrated or centroids=pooled"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written: list[pathlib.Path] = []
    for (stream, fitted, levels), where in sorted(layers.items(), key=lambda item: (item[0][0], item[1], item[0][1])):
        path = _free(folder, _name(stream, fitted, where), written)
        save_levels(path, np.frombuffer(levels, "<f4"), _header(calibration, stream, fitted, where))
        written.append(path)
    return tuple(written)


def _header(calibration: Calibration, stream: str, fitted: str, layers: list[int]) -> dict[str, Any]:
    return {
        "stream": stream,
        "layers": layers,
        "codec": fitted,
        "model_fingerprint": calibration.model,
        **{name: calibration.about[name] for name in ("model", "text", "tokens", "date") if name in calibration.about},
    }


def _name(stream: str, fitted: str, layers: list[int]) -> str:
    codec = re.sub(r"[^A-Za-z0-9.=]+", "-", fitted.split(" over layers ")[0])[:_LONGEST_NAME].strip("-")
    where = f"layer-{layers[0]}" if len(layers) == 1 else f"layers-{layers[0]}-to-{layers[-1]}"
    return f"{stream}-{where}-{codec}"


def _free(folder: pathlib.Path, name: str, taken: list[pathlib.Path]) -> pathlib.Path:
    """A name that no other table of this calibration has: codecs may differ in what was cut off."""
    names = (folder / f"{name}{'' if count == 1 else f'-{count}'}{SUFFIX}" for count in range(1, len(taken) + 2))
    return next(path for path in names if path not in taken)
