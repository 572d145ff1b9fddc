"""Every byte of a cache, from shapes alone.

Counted are the arrays the cache holds for ``max_length`` tokens, so that a report is what memory shows: coded blocks
(*payload*: the indices; *side*: scales, norms, bases, means, centres, ids, outliers), exact sinks and tail, and the
calibrated tables (*fitted*: once for a model, whatever the rows, sequences and contexts that share them, so they are
summed apart and are no part of bits per value or bytes per token). Tables that a seed makes again (*seeded*: rotations,
fixed levels) are listed and charged to nothing.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from kakeya_jax.cache import CompressedCache, LayerCache, ModelShape, Tables
from kakeya_jax.recipe import Recipe
from kakeya_jax.recipe_text import format_codec
from kakeya_jax.typing import StoredName


def nbytes(tree: Any) -> int:
    """Bytes of all arrays (or shapes) of a pytree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def payload_nbytes(code: Any) -> int:
    """Bytes of a code's payload fields."""
    return _marked_nbytes(code, "payload")


def side_nbytes(code: Any) -> int:
    """Bytes of a code's side information."""
    return nbytes(code) - payload_nbytes(code)


def fitted_nbytes(codec: Any) -> int:
    """Bytes of a codec's calibrated tables."""
    return _marked_nbytes(codec, "fitted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamReport:
    """Bytes of one stream of one layer, all rows and heads.

    Attributes:
        layer: layer index.
        stream: ``"key"`` or ``"value"``, or ``"both"`` if they are coded together.
        codec: its codec in text form.
        rope: ``"pre"`` or ``"post"`` for keys.
        coded_values: numbers held as codes.
        payload, side, fitted, seeded, sinks, tail: bytes.
        exact_min, exact_max: recent tokens that are exact at any time, least and most.
    """

    layer: int
    stream: StoredName
    codec: str
    rope: str | None
    coded_values: int
    payload: int
    side: int
    fitted: int
    seeded: int
    sinks: int
    tail: int
    exact_min: int
    exact_max: int

    @property
    def total(self) -> int:
        """Bytes of what the cache holds of its tokens: everything but tables."""
        return self.payload + self.side + self.sinks + self.tail


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheReport:
    """Bytes of a whole cache that is full.

    Attributes:
        streams: one report for each layer and stream.
        batch_size: rows.
        max_length: tokens in each row.
        dense_nbytes: bytes of the same tokens as bfloat16.
        sinks: exact first tokens.
    """

    streams: tuple[StreamReport, ...]
    batch_size: int
    max_length: int
    dense_nbytes: int
    sinks: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens, exact window included."""
        return sum(stream.total for stream in self.streams)

    @property
    def table_nbytes(self) -> int:
        """Bytes of calibrated tables, which all sequences of a model share."""
        return sum(stream.fitted for stream in self.streams)

    @property
    def payload_bits_per_value(self) -> float:
        """Bits of indices for each coded value; not a number if nothing is coded at this length."""
        return _bits(sum(stream.payload for stream in self.streams), self.coded_values)

    @property
    def all_in_bits_per_value(self) -> float:
        """Bits for each coded value with all side information, without the exact window and without tables."""
        coded = sum(stream.payload + stream.side for stream in self.streams)
        return _bits(coded, self.coded_values)

    @property
    def coded_values(self) -> int:
        """Numbers held as codes."""
        return sum(stream.coded_values for stream in self.streams)

    @property
    def bytes_per_token(self) -> float:
        """Bytes for each token held, over all layers, exact window included."""
        return self.nbytes / (self.batch_size * self.max_length)

    @property
    def compression_ratio(self) -> float:
        """Bytes of the same tokens as bfloat16 over bytes charged, exact window included."""
        return self.dense_nbytes / self.nbytes

    @property
    def exact_tokens(self) -> tuple[int, int]:
        """Least and most recent tokens that are exact at any time, over all layers that code anything."""
        coded = [stream for stream in self.streams if stream.coded_values and not stream.codec.startswith("identity")]
        streams = coded or list(self.streams)
        return min(stream.exact_min for stream in streams), max(stream.exact_max for stream in streams)


def cache_report(
    config: ModelShape,
    recipe: Recipe,
    *,
    max_length: int,
    batch_size: int = 1,
    tables: Tables | None = None,
) -> CacheReport:
    """Bytes of the cache that ``CompressedCache.init`` makes with these arguments, without allocating it.

    Raises:
        ValueError: the recipe does not fit the model.
    """
    cache = jax.eval_shape(
        lambda: CompressedCache.init(
            config, recipe, batch_size=batch_size, max_length=max_length, dtype=jnp.bfloat16, tables=tables
        )
    )
    return report(cache)


def report(cache: CompressedCache) -> CacheReport:
    """Bytes of a cache, or of the shapes of one."""
    shape, max_length = cache.shape, cache.max_length
    values = 2 * shape.num_layers * cache.batch_size * shape.num_kv_heads * shape.head_dim * max_length
    return CacheReport(
        streams=tuple(_reports(cache.layers)),
        batch_size=cache.batch_size,
        max_length=max_length,
        dense_nbytes=2 * values,
        sinks=cache.layers[0].key.geometry.sinks,
    )


def _reports(layers: Iterable[LayerCache]) -> Iterable[StreamReport]:
    for index, layer in enumerate(layers):
        for name, stream in layer.streams():
            geometry = stream.geometry
            batch, heads, _, dim = stream.tail.shape
            codec: Any = stream.codec
            yield StreamReport(
                layer=index,
                stream=name,
                codec=format_codec(codec.config),
                rope=stream.rope,
                coded_values=geometry.num_pages * geometry.page * batch * heads * dim,
                payload=payload_nbytes(stream.blocks),
                side=side_nbytes(stream.blocks),
                fitted=fitted_nbytes(codec) + nbytes(stream.frame),
                seeded=nbytes(codec) - fitted_nbytes(codec),
                sinks=nbytes(stream.sinks),
                tail=nbytes(stream.tail),
                exact_min=geometry.recent,
                exact_max=geometry.recent + geometry.page - 1,
            )


def _marked_nbytes(tree: Any, mark: str) -> int:
    """Bytes under the dataclass fields of ``tree`` whose metadata has ``mark`` set."""
    return sum(
        nbytes(getattr(tree, field.name)) for field in dataclasses.fields(tree) if field.metadata.get(mark, False)
    )


def _bits(count: int, values: int) -> float:
    return 8 * count / values if values else math.nan
