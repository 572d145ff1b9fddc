"""What a session file says about itself, and the checks that it is what it says."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
import safetensors

from kakeya_jax.cache import CacheShape, Tables
from kakeya_jax.codecs.klt_storage import KltStorage
from kakeya_jax.recipe import Recipe
from kakeya_jax.storage_pages import SKETCH_TOLERANCE, tables_fingerprint, tables_sketch

FORMAT = "kakeya-session"
VERSION = 3
"""3: values lie tile after tile of 64 tokens.
2: tables that a calibration gives again on another processor, but for their last digits, are the same tables."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SessionHeader:
    """Everything of a session but its pages and its exact tokens.

    Attributes:
        recipe: how its cache is coded.
        shape: the sizes of the model it belongs to.
        max_length: tokens each row of its cache can hold.
        dtype: of the exact tokens.
        tables: fingerprint of the calibrated tables, and
        sketch: of those that are computed: see ``storage_pages``.
        lengths: tokens held in each row.
        pages: coded pages of each layer's row: ``[layers][rows]``.
        exact_checksums: CRC-32 of each layer's exact tokens.
        about: plain data that whoever saved it added.
        page_nbytes: uint32, layer after layer, row after row, page after page, and
        page_checksums: uint32, likewise.
    """

    recipe: Recipe
    shape: CacheShape
    max_length: int
    dtype: np.dtype
    tables: str
    sketch: tuple[float, ...]
    lengths: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    exact_checksums: tuple[int, ...]
    about: Mapping[str, Any]
    page_nbytes: np.ndarray
    page_checksums: np.ndarray

    def metadata(self) -> dict[str, str]:
        """The strings of the file's header."""
        text = json.dumps(
            {
                "recipe": self.recipe.to_dict(),
                "shape": dataclasses.asdict(self.shape),
                "max_length": self.max_length,
                "dtype": str(self.dtype),
                "tables": self.tables,
                "sketch": self.sketch,
                "lengths": self.lengths,
                "pages": self.pages,
                "exact_checksums": self.exact_checksums,
                "about": dict(self.about),
            }
        )
        checksum = _checksum(text, self.page_nbytes, self.page_checksums)
        return {"format": FORMAT, "version": str(VERSION), "checksum": checksum, "header": text}

    @classmethod
    def read(cls, file: Any, path: Any) -> "SessionHeader":
        """The header of an open safetensors file.

        Raises:
            ValueError: not a session, of a newer format, or altered.
        """
        metadata = file.metadata() or {}
        _check_format(metadata, path)
        text = metadata.get("header", "")
        index = [read_array(file, name, path) for name in ("page_nbytes", "page_checksums")]
        if metadata.get("checksum") != _checksum(text, *index) or any(array.dtype != np.uint32 for array in index):
            raise altered(path, "its header")
        held = json.loads(text)
        return cls(
            recipe=Recipe.from_dict(held["recipe"]),
            shape=CacheShape(**held["shape"]),
            max_length=held["max_length"],
            dtype=np.dtype(held["dtype"]),
            tables=held["tables"],
            sketch=tuple(held["sketch"]),
            lengths=tuple(held["lengths"]),
            pages=tuple(map(tuple, held["pages"])),
            exact_checksums=tuple(held["exact_checksums"]),
            about=held.get("about", {}),
            page_nbytes=index[0],
            page_checksums=index[1],
        )

    def codecs(self, tables: Tables, path: Any) -> list[KltStorage]:
        """The codec of each layer.

        Raises:
            ValueError: ``tables`` are not those that the session was coded with.
        """
        codecs: Any = [
            plan.key.codec.build(self.shape.head_dim, layer=layer, tables=tables.get((layer, "both")))
            for layer, plan in enumerate(self.recipe.plan(self.shape.num_layers))
        ]
        found = tables_fingerprint(codecs)
        if found != self.tables:
            raise ValueError(
                f"{path} was coded with other tables (fingerprint {self.tables[:12]}, those given {found[:12]}); load "
                "it with the calibration it was made with"
            )
        differs = np.abs(np.subtract(tables_sketch(codecs), self.sketch)).max(initial=0.0)
        if not differs <= SKETCH_TOLERANCE:
            raise ValueError(
                f"{path} was coded with other tables (other coordinates of the same means); load it with the "
                "calibration and the version of kakeya-jax it was made with"
            )
        return codecs

    def layer_pages(self, layer: int) -> slice:
        """A layer's pages in the index."""
        counts = [sum(rows) for rows in self.pages]
        return slice(sum(counts[:layer]), sum(counts[: layer + 1]))

    def one_page(self, layer: int, row: int, page: int) -> slice:
        """One page in the index.

        Raises:
            IndexError: there is no such page.
        """
        for what, index, count in (("layer", layer, len(self.pages)), ("row", row, len(self.lengths))):
            if not 0 <= index < count:
                raise IndexError(f"{what}={index}: the session has {count}")
        if not 0 <= page < self.pages[layer][row]:
            raise IndexError(f"page={page}: row {row} of layer {layer} has {self.pages[layer][row]} coded pages")
        index = self.layer_pages(layer).start + sum(self.pages[layer][:row]) + page
        return slice(index, index + 1)


def open_session(path: str | os.PathLike[str]) -> Any:
    """The file, open for reading its parts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no safetensors file, or a part of one.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"session file {path} does not exist")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable session file (truncated, or of another kind): {error}") from None


def read_array(file: Any, name: str, path: Any) -> np.ndarray:
    """An array of an open safetensors file; an error of ours if there is none."""
    try:
        return file.get_tensor(name)
    except safetensors.SafetensorError:
        raise altered(path, name) from None


def read_slice(file: Any, name: str, part: slice, path: Any) -> np.ndarray:
    """A part of a vector, reading only its bytes."""
    try:
        return file.get_slice(name)[part]
    except safetensors.SafetensorError:
        raise altered(path, name) from None


def altered(path: Any, what: str) -> ValueError:
    """The error of a file whose content is not what was written."""
    return ValueError(f"{path} was altered after it was written: {what} does not match its checksum")


def _check_format(metadata: dict[str, str], path: Any) -> None:
    found, version = metadata.get("format"), metadata.get("version", "")
    if found != FORMAT:
        what = f"a {found!r} file" if found else "a safetensors file of another kind"
        raise ValueError(f"{path} is {what}, not a {FORMAT} file")
    if version != str(VERSION):
        remedy = "save it anew" if version.isdecimal() and int(version) < VERSION else "upgrade kakeya-jax"
        raise ValueError(f"{path} has session format {version!r}; this version reads {VERSION}: {remedy}")


def _checksum(header: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(header.encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
