"""A session in one file: the cache of a text, its coded pages entropy-coded, to be continued later or elsewhere.

For caches whose layers are all ``klt-storage``. The file (safetensors) holds the pages, an index with the length and
checksum of each, and the exact tokens; calibrated tables, which belong to a model and not to a text, are not in it and
must be given again: the same, but for the last digits in which eigenvectors differ from one processor to another. With
the very same, continuing from a loaded session gives bit for bit what it would have given without saving. Any page can
be read without the others.
"""

import dataclasses
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from kakeya_jax.cache import CacheShape, CompressedCache, Tables
from kakeya_jax.codecs.klt_storage import KltStorage, KltStorageCode
from kakeya_jax.joint_layer import JointLayerCache
from kakeya_jax.recipe import Recipe
from kakeya_jax.session_header import SessionHeader, altered, open_session, read_array, read_slice
from kakeya_jax.storage_pages import PageCoder, decode_layers, encode_layers, tables_fingerprint, tables_sketch
from kakeya_jax.stream import Geometry, Stream
from kakeya_jax.typing import Float
from kakeya_jax.whole_file import whole_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionSize:
    """Bytes of a session file.

    Attributes:
        file_nbytes: the whole file.
        exact_nbytes: of the exact tokens in it.
        coded_values: numbers that are in coded pages.
    """

    file_nbytes: int
    exact_nbytes: int
    coded_values: int

    @property
    def coded_nbytes(self) -> int:
        """Everything but the exact tokens: pages with their means, index, checksums, and the file's header."""
        return self.file_nbytes - self.exact_nbytes

    @property
    def bits_per_value(self) -> float:
        """Bits of ``coded_nbytes`` for each coded value; not a number if nothing is coded yet."""
        return 8 * self.coded_nbytes / self.coded_values if self.coded_values else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What a session file says of itself, all of its checksums compared.

    Attributes:
        recipe: how its cache is coded.
        shape: the sizes of the model it belongs to.
        lengths: tokens held in each row.
        max_length: tokens that each row can hold.
        dtype: of the exact tokens.
        pages: coded pages of each layer's row: ``[layers][rows]``.
        tables: fingerprint of the calibrated tables it was coded with.
        size: its bytes.
        about: what ``save_session`` was given.
    """

    recipe: Recipe
    shape: CacheShape
    lengths: tuple[int, ...]
    max_length: int
    dtype: str
    pages: tuple[tuple[int, ...], ...]
    tables: str
    size: SessionSize
    about: Mapping[str, Any]


def save_session(
    cache: CompressedCache, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None
) -> SessionSize:
    """Writes ``cache`` to ``path``; the file appears complete or not at all.

    Args:
        cache: of ``klt-storage`` in every layer.
        path: the file.
        about: plain data to keep with it, which ``session_info`` gives back.

    Raises:
        ValueError: a layer is not coded with ``klt-storage``.
    """
    data, size = _serialize(cache, about or {})
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return size


def session_size(cache: CompressedCache) -> SessionSize:
    """The size of the file that ``save_session`` would write: encodes everything, writes nothing."""
    return _serialize(cache, {})[1]


def coded_bits_per_value(cache: CompressedCache) -> float:
    """Bits for each coded value in the file of this cache, everything but the exact tokens counted."""
    return session_size(cache).bits_per_value


def load_session(path: str | os.PathLike[str], *, tables: Tables) -> CompressedCache:
    """Reads a session.

    Args:
        path: of the file.
        tables: the calibrated tables it was coded with; those that its calibration gives on another processor will do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, altered, not a session, of a newer format, or was coded with other tables.
    """
    with open_session(path) as file:
        header = SessionHeader.read(file, path)
        codecs = header.codecs(tables, path)
        codes = _read_pages(file, header, codecs, [header.layer_pages(layer) for layer in range(len(codecs))], path)
        exact = [_read_exact(file, header, layer, path) for layer in range(len(codecs))]
    empty = CompressedCache.init(
        header.shape,
        header.recipe,
        batch_size=len(header.lengths),
        max_length=header.max_length,
        dtype=header.dtype,
        tables=tables,
    )
    layers: Any = [
        JointLayerCache(both=_restore(layer.both, header.lengths, code, tokens))
        for layer, code, tokens in zip(_joint_layers(empty), codes, exact, strict=True)
    ]
    return empty.replace_layers(layers)


def session_info(path: str | os.PathLike[str]) -> SessionInfo:
    """Reads a session without its tables: what it holds, and whether all of it is as it was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, altered, not a session, or of a newer format.
    """
    with open_session(path) as file:
        header = SessionHeader.read(file, path)
        layers = range(len(header.pages))
        for layer in layers:
            where = header.layer_pages(layer)
            for page, checksum in zip(
                _page_bytes(file, header, where, path), header.page_checksums[where], strict=True
            ):
                if zlib.crc32(page) != int(checksum):
                    raise altered(path, f"a page of layer {layer}")
        exact_nbytes = sum(_read_exact(file, header, layer, path).nbytes for layer in layers)
    plans = header.recipe.plan(header.shape.num_layers)
    tokens = sum(sum(counts) * plan.page for counts, plan in zip(header.pages, plans, strict=True))
    return SessionInfo(
        recipe=header.recipe,
        shape=header.shape,
        lengths=header.lengths,
        max_length=header.max_length,
        dtype=str(header.dtype),
        pages=header.pages,
        tables=header.tables,
        size=SessionSize(
            file_nbytes=os.path.getsize(path),
            exact_nbytes=exact_nbytes,
            coded_values=2 * tokens * header.shape.num_kv_heads * header.shape.head_dim,
        ),
        about=header.about,
    )


def read_page(
    path: str | os.PathLike[str], layer: int, page: int, *, tables: Tables, row: int = 0
) -> tuple[Float[np.ndarray, "K n D"], Float[np.ndarray, "K n D"]]:
    """One page's keys, before their rotary embedding, and values, float32, without reading the other pages.

    Raises:
        IndexError: the session has no such layer, row or page.
        ValueError: as ``load_session``.
    """
    with open_session(path) as file:
        header = SessionHeader.read(file, path)
        where = header.one_page(layer, row, page)
        codec = header.codecs(tables, path)[layer]
        (code,) = _read_pages(file, header, [codec], [where], path)
    both = codec.decode(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), code))
    key, value = np.split(np.asarray(both), 2)
    return key, value


def _serialize(cache: CompressedCache, about: Mapping[str, Any]) -> tuple[bytes, SessionSize]:
    layers = _joint_layers(cache)
    lengths = np.asarray(cache.length)
    coders, codes, pages, exact = [], [], [], {}
    for index, layer in enumerate(layers):
        stream = layer.both
        counts = _closed_pages(stream.geometry, lengths)
        codes.append(jax.tree.map(lambda leaf, counts=counts: _held_pages(np.asarray(leaf), counts), stream.blocks))
        coders.append(PageCoder.of(stream.codec))
        pages.append(tuple(map(int, counts)))
        exact[_exact_name(index)] = _exact_tokens(stream, lengths)
    coded = encode_layers(coders, codes)
    codecs: Any = [layer.both.codec for layer in layers]
    header = SessionHeader(
        recipe=cache.recipe,
        shape=cache.shape,
        max_length=cache.max_length,
        dtype=np.dtype(layers[0].both.tail.dtype),
        tables=tables_fingerprint(codecs),
        sketch=tables_sketch(codecs),
        lengths=tuple(map(int, lengths)),
        pages=tuple(pages),
        exact_checksums=tuple(zlib.crc32(array.tobytes()) for array in exact.values()),
        about=about,
        page_nbytes=np.concatenate([each.nbytes for each in coded]),
        page_checksums=np.concatenate([each.checksums for each in coded]),
    )
    arrays = {
        "pages": np.frombuffer(b"".join(each.data for each in coded), np.uint8),
        "page_nbytes": header.page_nbytes,
        "page_checksums": header.page_checksums,
        **exact,
    }
    data = safetensors.numpy.save(arrays, metadata=header.metadata())
    size = SessionSize(
        file_nbytes=len(data),
        exact_nbytes=sum(array.nbytes for array in exact.values()),
        coded_values=sum(
            sum(counts) * layer.both.geometry.page * layer.both.tail.shape[1] * cache.shape.head_dim
            for counts, layer in zip(pages, layers, strict=True)
        ),
    )
    return data, size


def _joint_layers(cache: CompressedCache) -> list[JointLayerCache]:
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, JointLayerCache) or not isinstance(layer.both.codec, KltStorage):
            raise ValueError(
                f"layer {index} is not coded with klt-storage; sessions are for such caches, cache.save() is for all"
            )
    return list(cache.layers)  # pyright: ignore[reportReturnType]


def _closed_pages(geometry: Geometry, lengths: np.ndarray) -> np.ndarray:
    return np.maximum(0, (lengths - geometry.sinks - geometry.recent) // geometry.page)


def _held_pages(leaf: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``[B, 1, pages, ...]`` as ``[coded pages, ...]``, row after row."""
    held = np.arange(leaf.shape[2]) < counts[:, None]
    return leaf[:, 0][held]


def _exact_slots(stream: Stream, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which sink and tail slots hold exact tokens: bool ``[B, sinks]``, ``[B, tail]``."""
    geometry = stream.geometry
    sinks, capacity = stream.sinks.shape[2], stream.tail.shape[2]
    first = geometry.sinks + _closed_pages(geometry, lengths) * geometry.page
    tail = np.zeros((len(lengths), capacity), bool)
    for row, (start, stop) in enumerate(zip(first, lengths, strict=True)):
        tail[row, (np.arange(start, stop) - geometry.sinks) % capacity] = True
    return np.arange(sinks) < lengths[:, None], tail


def _exact_tokens(stream: Stream, lengths: np.ndarray) -> np.ndarray:
    """Exact tokens that are still read, ``[tokens, 2 K, D]``: of all rows the sinks, then the tails by slot."""
    sinks, tail = _exact_slots(stream, lengths)
    held = (np.asarray(stream.sinks), sinks), (np.asarray(stream.tail), tail)
    return np.ascontiguousarray(np.concatenate([array.transpose(0, 2, 1, 3)[slots] for array, slots in held]))


def _restore(empty: Stream, lengths: tuple[int, ...], code: KltStorageCode, exact: np.ndarray) -> Stream:
    """The stream with its pages and exact tokens in place; slots that are not read are zero."""
    length = np.asarray(lengths)
    counts = _closed_pages(empty.geometry, length)

    def place(leaf: Any, coded: Any) -> jax.Array:
        array = np.zeros(leaf.shape, leaf.dtype)
        array[:, 0][np.arange(leaf.shape[2]) < counts[:, None]] = coded
        return jnp.asarray(array)

    slots = _exact_slots(empty, length)
    parts = np.split(exact, [int(slots[0].sum())])
    arrays = []
    for held, where, tokens in zip((empty.sinks, empty.tail), slots, parts, strict=True):
        array = np.zeros((*where.shape, held.shape[1], held.shape[3]), held.dtype)
        array[where] = tokens
        arrays.append(jnp.asarray(array.transpose(0, 2, 1, 3)))
    return dataclasses.replace(
        empty,
        blocks=jax.tree.map(place, empty.blocks, code),
        sinks=arrays[0],
        tail=arrays[1],
        length=jnp.asarray(length, jnp.int32),
    )


def _read_pages(
    file: Any, header: SessionHeader, codecs: list[KltStorage], pages: list[slice], path: Any
) -> list[KltStorageCode]:
    """The codes of some pages of some layers, reading only their bytes."""
    parts = [_page_bytes(file, header, each, path) for each in pages]
    coders = [PageCoder.of(codec) for codec in codecs]
    try:
        return decode_layers(coders, parts, [header.page_checksums[each] for each in pages])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _page_bytes(file: Any, header: SessionHeader, pages: slice, path: Any) -> list[memoryview]:
    sizes = header.page_nbytes.astype(np.int64)
    start, ends = int(sizes[: pages.start].sum()), np.cumsum(sizes[pages])
    data = memoryview(b"")
    if len(ends):  # an empty slice is an error to safetensors
        data = memoryview(read_slice(file, "pages", slice(start, start + int(ends[-1])), path).tobytes())
    return [data[end - size : end] for end, size in zip(ends, sizes[pages], strict=True)]


def _read_exact(file: Any, header: SessionHeader, layer: int, path: Any) -> np.ndarray:
    array = read_array(file, _exact_name(layer), path)
    heads = 2 * header.shape.num_kv_heads, header.shape.head_dim
    same = array.dtype == header.dtype and array.shape[1:] == heads
    if not same or zlib.crc32(array.tobytes()) != header.exact_checksums[layer]:
        raise altered(path, f"the exact tokens of layer {layer}")
    return array


def _exact_name(layer: int) -> str:
    return f"layers.{layer}.exact"
