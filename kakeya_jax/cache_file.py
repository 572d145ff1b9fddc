"""A cache in one file: safetensors, with everything needed to rebuild it in the header.

Every array is stored as it is, codes packed; a cache that is read back is equal bit for bit. Nothing is unpickled. A
checksum of all of it is in the header, so that a file that was altered is not taken for the cache it was.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
import safetensors
import safetensors.numpy

from kakeya_jax.cache import CacheShape, CompressedCache, Tables
from kakeya_jax.recipe import Recipe
from kakeya_jax.whole_file import whole_file

FORMAT = "kakeya-cache"
VERSION = 8
"""8: values of `turboquant`, `int4`, `int8` and `kivi` lie tile after tile of 64 tokens. 7: codes of `int4`, `kivi` and
`kakeya`, and values of `besicovitch`, lie as kernels read them. 3: a checksum.
2: fast `klt` takes the mean of keys out before their rotation, which tables of version 1 do not hold.
"""

_LENGTH_BYTES = 8
"""A safetensors file starts with the length of its own header, little-endian, and the header is a JSON object."""


def save_cache(cache: CompressedCache, path: str | os.PathLike[str]) -> None:
    """Writes ``cache`` to ``path``; the file appears complete or not at all."""
    header = {
        "recipe": cache.recipe.to_dict(),
        "shape": vars(cache.shape),
        "batch_size": cache.batch_size,
        "max_length": cache.max_length,
        "dtype": str(cache.layers[0].key.tail.dtype),
    }
    arrays = {_name(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(cache)}
    text = json.dumps(header)
    metadata = {"format": FORMAT, "version": str(VERSION), "checksum": _checksum(text, arrays), "header": text}
    with whole_file(path) as partial:
        safetensors.numpy.save_file(arrays, partial, metadata=metadata)


def load_cache(path: str | os.PathLike[str]) -> CompressedCache:
    """Reads a cache file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, altered, not a cache, of another format version, or its arrays do not match its
            header.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"cache file {path} does not exist")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_format(metadata, path)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(_why_unreadable(pathlib.Path(path), error)) from None
    if metadata.get("checksum") != _checksum(metadata.get("header", ""), arrays):
        raise ValueError(f"{path} was altered after it was written: its checksum does not match; save it anew")
    header = json.loads(metadata["header"])
    structure = _structure(header, arrays)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(structure)
    expected = {_name(key): leaf for key, leaf in leaves}
    if set(expected) != set(arrays):
        odd = sorted(set(expected) ^ set(arrays))
        raise ValueError(f"{path} does not hold the arrays its header promises; first difference: {odd[0]}")
    for name, leaf in expected.items():
        if arrays[name].shape != leaf.shape or arrays[name].dtype != leaf.dtype:
            got, want = arrays[name], leaf
            raise ValueError(f"{path}: {name} is {got.dtype}{got.shape}, its header says {want.dtype}{want.shape}")
    return jax.tree_util.tree_unflatten(treedef, [jnp.asarray(arrays[name]) for name in expected])


def _check_format(metadata: dict[str, str], path: Any) -> None:
    found = metadata.get("format")
    if found != FORMAT:
        what = f"a {found!r} file" if found else "a safetensors file of another kind"
        raise ValueError(f"{path} is {what}, not a {FORMAT} file")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} has cache format {metadata.get('version')}; this kakeya-jax reads {VERSION}: save it anew"
        )


def _checksum(header: str, arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32 of the header, then of every array's name, dtype, shape and bytes in the order of names."""
    value = zlib.crc32(header.encode())
    for name, array in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"


def _why_unreadable(path: pathlib.Path, error: Exception) -> str:
    """What is wrong with a file that safetensors cannot read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = file.read(1)
        if size > _LENGTH_BYTES and start != b"{":
            return f"{path} is not a kakeya cache file"
        if size < _LENGTH_BYTES + length or size <= _LENGTH_BYTES:
            return f"{path} is truncated: {size} bytes do not hold its header; copy or save it anew"
        try:
            tensors = json.loads(start + file.read(length - 1))
            data = max(each["data_offsets"][1] for name, each in tensors.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"{path} was altered after it was written: {error}; save it anew"
    whole = _LENGTH_BYTES + length + data
    if size < whole:
        return f"{path} is truncated: {size} of {whole} bytes; copy or save it anew"
    return f"{path} was altered after it was written: {error}; save it anew"


def _structure(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> CompressedCache:
    """The shapes of the cache that the header describes."""
    shape = CacheShape(**header["shape"])
    return jax.eval_shape(
        lambda: CompressedCache.init(
            shape,
            Recipe.from_dict(header["recipe"]),
            batch_size=header["batch_size"],
            max_length=header["max_length"],
            dtype=np.dtype(header["dtype"]),
            tables=_tables(arrays, shape),
        )
    )


def _tables(arrays: dict[str, np.ndarray], shape: CacheShape) -> Tables:
    """The codec tables in the file, by layer and stream: a codec that needs a fitted table finds it here."""
    tables = {}
    for layer in range(shape.num_layers):
        for stream in ("key", "value", "both"):
            tables[layer, stream] = {
                name.removeprefix(prefix): array
                for prefix in (f"layers.{layer}.{stream}.codec.", f"layers.{layer}.{stream}.frame.")
                for name, array in arrays.items()
                if name.startswith(prefix)
            }
    return tables


def _name(path: tuple[Any, ...]) -> str:
    """``layers.0.key.blocks.codes`` for a path in the tree."""
    return ".".join(str(getattr(part, "name", getattr(part, "idx", part))) for part in path)
