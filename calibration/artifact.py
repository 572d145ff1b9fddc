"""Calibrated tables in one file: safetensors with a JSON header that says where they came from.

Nothing is unpickled. A file made for another model shape is refused, and so is a text that the tables were fitted on.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kakeya_jax.cache import CacheShape, ModelShape, Tables
from kakeya_jax.typing import Int

FORMAT = "kakeya-calibration"
VERSION = 1

_HASHED_WINDOW = 64
"""Tokens in each hashed window of the corpus: a text leaks if it shares one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted tables and their origin.

    Attributes:
        tables: arrays by layer and stream, then by name.
        shape: the sizes of the model they were fitted for.
        model: fingerprint of that model's parameters (see ``fingerprint``).
        recipe: the recipe they were fitted for, in text form.
        windows: hashes of the calibration text, one for every 64 tokens.
        about: anything else worth knowing: corpus name, number of tokens, seed, versions.
    """

    tables: Tables
    shape: CacheShape
    model: str
    recipe: str
    windows: tuple[str, ...]
    about: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file; it appears complete or not at all."""
        arrays = {
            f"layers.{layer}.{stream}.{name}": np.asarray(array)
            for (layer, stream), named in self.tables.items()
            for name, array in named.items()
        }
        header = {
            "shape": dataclasses.asdict(self.shape),
            "model": self.model,
            "recipe": self.recipe,
            "windows": list(self.windows),
            "about": self.about,
        }
        checksum = _checksum(arrays)
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "checksum": checksum,
            "header": json.dumps(header),
        }
        target = pathlib.Path(path)
        partial = target.with_name(target.name + ".partial")
        safetensors.numpy.save_file(arrays, partial, metadata=metadata)
        os.replace(partial, target)

    def check_model(self, config: ModelShape, params: Any) -> None:
        """Raises a ``ValueError`` unless these tables were fitted for this model."""
        found = CacheShape.of(config)
        if found != self.shape:
            raise ValueError(
                f"calibration was fitted for a model of {_sizes(self.shape)}; this one has {_sizes(found)}"
            )
        if fingerprint(params) != self.model:
            raise ValueError(
                f"calibration was fitted for other weights (fingerprint {self.model[:12]}); calibrate this model"
            )

    def check_text(self, tokens: Int[np.ndarray, " n"]) -> None:
        """Raises a ``ValueError`` if ``tokens`` contains a window of the calibration text, at any offset."""
        leaked = len(set(self.windows) & set(_window_hashes(tokens, stride=1)))
        if leaked:
            raise ValueError(
                f"the evaluation text contains {leaked} windows of {_HASHED_WINDOW} tokens that the calibration was "
                "fitted on; evaluate on other text"
            )


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Reads what ``Calibration.save`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, altered, of another kind, or of a newer format.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"calibration file {path} does not exist")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable calibration file (truncated, or of another kind): {error}"
        ) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a {metadata.get('format', 'safetensors')!r} file, not a {FORMAT} file")
    if int(metadata["version"]) > VERSION:
        raise ValueError(
            f"{path} has format {metadata['version']}; this version reads up to {VERSION}: upgrade kakeya-jax"
        )
    if metadata.get("checksum") != _checksum(arrays):
        raise ValueError(f"{path} was altered after it was written: its checksum does not match; calibrate again")
    header = json.loads(metadata["header"])
    tables: dict[Any, dict[str, Any]] = {}
    for name, array in arrays.items():
        _, layer, stream, table = name.split(".", 3)
        tables.setdefault((int(layer), stream), {})[table] = jnp.asarray(array)
    return Calibration(
        tables=tables,
        shape=CacheShape(**header["shape"]),
        model=header["model"],
        recipe=header["recipe"],
        windows=tuple(header["windows"]),
        about=header["about"],
    )


def fingerprint(params: Any) -> str:
    """A hash of a model's parameters: the same for the same values, whatever dtype they were loaded as.

    Hashes a strided sample of every tensor, rounded to bfloat16: cheap, and any retraining changes it.
    """
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        flat = leaf.reshape(-1)
        sample = flat[:: max(1, flat.size // 4096)]
        digest.update(np.asarray(sample.astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()


def text_windows(tokens: Int[np.ndarray, "*passages n"]) -> tuple[str, ...]:
    """Hashes of the consecutive 64-token windows of each passage, for ``Calibration.windows``."""
    passages = np.asarray(tokens).reshape(-1, np.shape(tokens)[-1])
    return tuple(window for passage in passages for window in _window_hashes(passage, stride=_HASHED_WINDOW))


def _window_hashes(tokens: Int[np.ndarray, " n"], *, stride: int) -> list[str]:
    data = np.ascontiguousarray(np.asarray(tokens, np.uint32))
    starts = range(0, len(data) - _HASHED_WINDOW + 1, stride)
    return [
        hashlib.blake2b(data[start : start + _HASHED_WINDOW].tobytes(), digest_size=8).hexdigest() for start in starts
    ]


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _sizes(shape: CacheShape) -> str:
    return f"{shape.num_layers} layers, {shape.num_kv_heads} key/value heads, head_dim {shape.head_dim}"
