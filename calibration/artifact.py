"""What calibration measured, in one file: safetensors with a JSON header that says where they came from.

Nothing is unpickled, and nothing is used unless all of the file is as it was written. A file made for another model is
refused, and so is a text that the tables were fitted on. Of symmetric matrices one triangle is stored.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kakeya_jax.cache import CacheShape, ModelShape, Tables
from kakeya_jax.recipe import Recipe
from kakeya_jax.typing import Int
from kakeya_jax.whole_file import whole_file

FORMAT = "kakeya-calibration"
VERSION = 3

_HASHED_WINDOW = 64
"""Tokens in each hashed window of the corpus: a text leaks if it shares one."""

LayerStream = tuple[int, str]
"""A layer index and ``"key"``, ``"value"`` or, for statistics of a layer's two streams together, ``"both"``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactTokens:
    """The exact window that Fisher matrices were measured for: see ``stream.Geometry``."""

    sinks: int
    recent: int
    page: int

    def __str__(self) -> str:
        return f"{self.sinks} sinks, {self.recent} recent, pages of {self.page}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Statistics of a model on training text, tables fitted to single codecs, and where they came from.

    Attributes:
        statistics: float32 arrays by layer and stream, then by name. Of keys (before their rotary embedding) and
            values: ``mean`` ``[K, D]``, ``covariance`` ``[K, D, D]``, ``largest`` ``[K, D]`` magnitudes, and for each
            exact window ``i`` ``fisher.i`` ``[K, D, D]``; of keys also ``query`` ``[K, D, D]``, the second moment of
            the queries. Of both, if collected: ``covariance`` ``[2 K D, 2 K D]`` of all keys, then all values. How
            many vectors they are means of: ``count`` (of ``mean`` and every ``covariance``), ``query.count`` and
            ``fisher.i.count`` (tokens that are coded for some query, once for each draw of labels).
        fitted: tables that only one codec can use, by layer, stream and ``fitted_streams.fitted_name``, then by name.
        exact: the windows of the Fisher matrices.
        rope_frequencies: ``[D / 2]`` radians per position, with
        rope_factor: what the rotary embedding multiplies by.
        shape: the sizes of the model.
        model: fingerprint of its parameters (see ``fingerprint``).
        corpus: hashes of the calibration text, one for every 64 tokens (see ``text_windows``).
        fisher: how the Fisher matrices were made: ``"gradients"``, or ``"differences"`` without a backward pass.
        about: plain data worth knowing: ``tokens``, ``passages``, ``passage_length``, ``label_samples``, ``seed``,
            ``corpus_hash``, ``stability`` (see ``calibration.stability``), and what the caller adds: names, versions,
            date, the hash of the tokenizer, the command.
    """

    statistics: Mapping[LayerStream, Mapping[str, np.ndarray]]
    fitted: Mapping[tuple[int, str, str], Mapping[str, np.ndarray]]
    exact: tuple[ExactTokens, ...]
    rope_frequencies: tuple[float, ...]
    rope_factor: float
    shape: CacheShape
    model: str
    corpus: tuple[str, ...]
    fisher: str
    about: dict[str, Any]

    def tables_for(self, recipe: Recipe) -> Tables:
        """The tables that a recipe's codecs need; see ``calibration.tables``."""
        from kakeya_jax.calibration.tables import tables_for

        return tables_for(self, recipe)

    def notes(self) -> tuple[str, ...]:
        """What whoever uses these tables should know; empty if nothing."""
        if self.fisher == "differences":
            return (
                "calibrated without a backward pass: expect more loss than with gradients (leave out --no-backward)",
            )
        return ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file; it appears complete or not at all."""
        arrays: dict[str, np.ndarray] = {}
        for (layer, stream), named in self.statistics.items():
            for name, array in named.items():
                kind, packed = ("symmetric", _triangle(array)) if _is_symmetric(name) else ("statistics", array)
                arrays[f"{kind}/{layer}/{stream}/{name}"] = np.asarray(packed, order="C")
        arrays |= {
            f"fitted/{layer}/{stream}/{codec}/{name}": np.asarray(array, order="C")
            for (layer, stream, codec), named in self.fitted.items()
            for name, array in named.items()
        }
        header = {
            "exact": [dataclasses.asdict(each) for each in self.exact],
            "rope_frequencies": list(self.rope_frequencies),
            "rope_factor": self.rope_factor,
            "shape": dataclasses.asdict(self.shape),
            "model": self.model,
            "corpus": list(self.corpus),
            "fisher": self.fisher,
            "about": self.about,
        }
        text = json.dumps(header)
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "checksum": _checksum(arrays, text),
            "header": text,
        }
        with whole_file(path) as partial:
            # Written by this process and not by safetensors, whose files nobody else may read, whatever the umask.
            partial.write_bytes(safetensors.numpy.save(arrays, metadata=metadata))

    def check_model(self, config: ModelShape, params: Any) -> None:
        """Raises a ``ValueError`` unless these tables were fitted for this model, to the weight."""
        self.check_shape(config)
        if fingerprint(params) != self.model:
            raise ValueError(
                f"calibration was fitted for other weights (fingerprint {self.model[:12]}); calibrate this model"
            )

    def check_shape(self, config: ModelShape) -> None:
        """Raises a ``ValueError`` unless these tables were fitted for a model of the same sizes."""
        found = CacheShape.of(config)
        if found != self.shape:
            differing = ", ".join(
                f"{name}={getattr(self.shape, name)} (this one: {getattr(found, name)})"
                for name in vars(found)
                if getattr(self.shape, name) != getattr(found, name)
            )
            raise ValueError(f"calibration was fitted for a model of {differing}; calibrate this model")

    def check_text(self, tokens: Int[np.ndarray, " n"]) -> None:
        """Raises a ``ValueError`` if ``tokens`` contains a window of the calibration text, at any offset."""
        by_length: dict[int, set[str]] = defaultdict(set)
        for window in self.corpus:
            by_length[_window_length(window)].add(window)
        for length, seen in by_length.items():
            leaked = len(seen & set(_window_hashes(tokens, length, stride=1)))
            if leaked:
                raise ValueError(
                    f"the evaluation text contains {leaked} windows of {length} tokens that the calibration was "
                    "fitted on; evaluate on other text"
                )


def load_calibration(path: str | os.PathLike[str], config: ModelShape | None = None, params: Any = None) -> Calibration:
    """Reads what ``Calibration.save`` wrote, for the model that it is of.

    Tables of another model of the same sizes fit every cache and code badly, without an error: give ``config`` and
    ``params`` wherever the model is at hand, or call ``Calibration.check_model`` before the tables are used.

    Args:
        path: the file.
        config: the model's, ``model.config``, together with
        params: its parameters; both None to read the file alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, altered, of another kind or format, or of another model.
    """
    if (config is None) != (params is None):
        raise ValueError("give both the model's config and its params, or neither to read the file alone")
    calibration = _calibration(*_read(path))
    if config is not None:
        calibration.check_model(config, params)
    return calibration


def _calibration(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Calibration:
    statistics: dict[LayerStream, dict[str, np.ndarray]] = {}
    fitted: dict[tuple[int, str, str], dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        kind, layer, stream, rest = name.split("/", 3)
        if kind == "fitted":
            codec, table = rest.rsplit("/", 1)
            fitted.setdefault((int(layer), stream, codec), {})[table] = array
        else:
            unpacked = _from_triangle(array) if kind == "symmetric" else array
            statistics.setdefault((int(layer), stream), {})[rest] = unpacked
    return Calibration(
        statistics=statistics,
        fitted=fitted,
        exact=tuple(ExactTokens(**each) for each in header["exact"]),
        rope_frequencies=tuple(header["rope_frequencies"]),
        rope_factor=header["rope_factor"],
        shape=CacheShape(**header["shape"]),
        model=header["model"],
        corpus=tuple(header["corpus"]),
        fisher=header["fisher"],
        about=header["about"],
    )


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file, checked to be as they were written."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"calibration file {path} does not exist")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # safetensors' own, and whatever numpy says to a shape or dtype that was altered
        raise ValueError(
            f"{path} is not a readable calibration file (truncated, or of another kind): {error}"
        ) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a {metadata.get('format', 'safetensors')!r} file, not a {FORMAT} file")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} has format {metadata.get('version')}, this version of kakeya-jax reads {VERSION}; calibrate again"
        )
    header = metadata.get("header", "")
    if metadata.get("checksum") != _checksum(arrays, header):
        raise ValueError(f"{path} was altered after it was written: its checksum does not match; calibrate again")
    return arrays, json.loads(header)


def fingerprint(params: Any) -> str:
    """A hash of a model's parameters: the same for the same values, whatever dtype they were loaded as.

    Hashes every value, rounded to bfloat16, with the name and shape of its tensor: a change of a single weight changes
    it, unless the change is lost in bfloat16. Tensors come to the host one after another.
    """
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(np.asarray(leaf.astype(jnp.bfloat16))).view(np.uint16).data)
    return digest.hexdigest()


def text_hash(tokens: Int[np.ndarray, "*passages n"]) -> str:
    """A hash of token ids and of how they are cut into passages."""
    data = np.ascontiguousarray(np.asarray(tokens, np.uint32))
    return hashlib.sha256(repr(data.shape).encode() + data.tobytes()).hexdigest()


def text_windows(tokens: Int[np.ndarray, "*passages n"]) -> tuple[str, ...]:
    """Hashes of windows of 64 tokens that cover each passage, for ``Calibration.corpus``.

    They are consecutive, and the last one is flush with the end of its passage. A shorter passage is one window.
    """
    passages = np.asarray(tokens).reshape(-1, np.shape(tokens)[-1])
    size = min(_HASHED_WINDOW, passages.shape[1])
    windows: list[str] = []
    for passage in passages:
        windows += _window_hashes(passage, size, stride=size)
        if len(passage) % size:
            windows += _window_hashes(passage[-size:], size, stride=size)
    return tuple(windows)


def _window_hashes(tokens: Int[np.ndarray, " n"], length: int, *, stride: int) -> list[str]:
    """Of every ``length`` tokens; in front of the hash their number, unless it is the usual one."""
    data = np.ascontiguousarray(np.asarray(tokens, np.uint32))
    prefix = "" if length == _HASHED_WINDOW else f"{length}:"
    return [
        prefix + hashlib.blake2b(data[start : start + length].tobytes(), digest_size=8).hexdigest()
        for start in range(0, len(data) - length + 1, stride)
    ]


def _window_length(window: str) -> int:
    length, _, _ = window.rpartition(":")
    return int(length) if length else _HASHED_WINDOW


def _checksum(arrays: dict[str, np.ndarray], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _is_symmetric(name: str) -> bool:
    """Whether a statistic is a stack of symmetric matrices."""
    return name in ("covariance", "query") or (name.startswith("fisher.") and not name.endswith(".count"))


def _triangle(matrix: np.ndarray) -> np.ndarray:
    """``[..., D, D]`` as ``[..., D (D + 1) / 2]``."""
    return matrix[(..., *np.triu_indices(matrix.shape[-1]))]


def _from_triangle(triangle: np.ndarray) -> np.ndarray:
    dim = (math.isqrt(8 * triangle.shape[-1] + 1) - 1) // 2
    row, column = np.triu_indices(dim)
    matrix = np.empty((*triangle.shape[:-1], dim, dim), triangle.dtype)
    matrix[..., row, column] = triangle
    matrix[..., column, row] = triangle
    return matrix
