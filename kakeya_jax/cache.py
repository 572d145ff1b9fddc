"""The KV cache: every layer's two streams, as one pytree that ``jit`` and ``lax.scan`` carry."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp

from kakeya_jax import numeric
from kakeya_jax.fitted_tables import check_tables
from kakeya_jax.frame import build_frame, check_frame
from kakeya_jax.pytree import pytree_dataclass, static_field
from kakeya_jax.recipe import LayerPlan, Recipe, StreamPlan
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import ExactWindow, Geometry, Stream, append, fits, read
from kakeya_jax.typing import Array, Bool, Float, Int, StoredName

Tables = Mapping[tuple[int, Any], Mapping[str, Array]]
"""Calibrated tables by ``(layer, stream)``, then by the codec's field name; ``stream`` is a ``StoredName``."""


class ModelShape(Protocol):
    """What of a model decides its cache; a decoder's config has it."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of a layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Dimension of a head's vectors."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheShape:
    """The sizes of a model that decide its cache: a hashable ``ModelShape``."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: ModelShape) -> "CacheShape":
        """The sizes of a model's config."""
        return cls(num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim)


@pytree_dataclass
class ChunkWindow:
    """The exact windows of K and V that a chunk of several queries sees."""

    key: ExactWindow
    value: ExactWindow


@pytree_dataclass
class LayerCache:
    """One layer's K and V."""

    key: Stream
    value: Stream

    def streams(self) -> tuple[tuple[StoredName, Stream], ...]:
        """What is stored, by name."""
        return ("key", self.key), ("value", self.value)

    def append(
        self,
        key: Float[Array, "B T K D"],
        value: Float[Array, "B T K D"],
        *,
        rope: Rope,
        valid: Bool[Array, "B T"] | None = None,
        check_finite: bool = False,
        pages_closed: bool = False,
    ) -> "LayerUpdate":
        """Appends a chunk; keys come before their rotary embedding.

        Args:
            key: keys of the chunk.
            value: values of the chunk.
            rope: the model's rotary embedding, applied here if this layer stores keys after it.
            valid: which tokens are real; ``None`` means all.
            check_finite: refuse NaN and infinities (only outside ``jit``). Without it codecs count NaN as 0 and clip
                huge values, so that one broken number costs itself and not its block.
            pages_closed: the pages that this chunk of one token closes are coded already (``page_closing``).

        Raises:
            ValueError: outside ``jit``, if a row would hold more than ``max_length`` tokens, or, with ``check_finite``,
                if a value is NaN or infinite.
        """
        if check_finite:
            numeric.check_finite({"key": key, "value": value}, "chunk")
        if self.key.rope == "post":
            key = apply_rope(key, chunk_positions(self.key.length, key.shape[1], valid)[..., None], rope)
        row_fits = fits(self.key, key.shape[1], valid)
        key_stream, key_window = append(self.key, key, valid, pages_closed=pages_closed)
        value_stream, value_window = append(self.value, value, valid, pages_closed=pages_closed)
        chunk = None
        if key_window is not None and value_window is not None:
            chunk = ChunkWindow(key=key_window, value=value_window)
        return LayerUpdate(layer=LayerCache(key=key_stream, value=value_stream), chunk=chunk, fits=row_fits)


@pytree_dataclass
class LayerUpdate:
    """What appending a chunk to a layer gives.

    Attributes:
        layer: the layer with the chunk in it.
        chunk: the exact tokens that the chunk's queries see; ``None`` for a chunk of one token (the tail has them).
        fits: ``[B]`` rows that had room; the others are unchanged, and their attention output is not a number.
    """

    layer: LayerCache
    chunk: ChunkWindow | None
    fits: Array


@pytree_dataclass
class CompressedCache:
    """All layers' streams, with the recipe that made them.

    Attributes:
        layers: one ``LayerCache`` for each decoder layer; where keys and values are coded together, a
            ``JointLayerCache``, which has the same interface.
        recipe: how they are coded (static).
        shape: the sizes of the model it belongs to (static).
    """

    layers: tuple[LayerCache, ...]
    recipe: Recipe = static_field()
    shape: CacheShape = static_field()

    @classmethod
    def init(
        cls,
        config: ModelShape,
        recipe: Recipe,
        *,
        batch_size: int,
        max_length: int,
        dtype: Any = jnp.bfloat16,
        tables: Tables | None = None,
    ) -> "CompressedCache":
        """An empty cache. Works under ``jax.eval_shape``, which tells the bytes of any context without allocating it.

        Args:
            config: the model's config (number of layers, key/value heads, head dimension).
            recipe: how each stream is coded.
            batch_size: rows.
            max_length: tokens each row can hold.
            dtype: of the exact tokens.
            tables: calibrated tables, for codecs that need them.

        Raises:
            ValueError: the recipe does not fit the model, or a codec's table is missing.
        """
        if batch_size < 1 or max_length < 1:
            raise ValueError(f"batch_size={batch_size} and max_length={max_length} must be at least 1")
        shape = CacheShape.of(config)
        recipe_text = recipe.name if recipe.name in Recipe.names() else recipe.to_text()

        def stream(layer: int, plan: LayerPlan, name: StoredName) -> Stream:
            part: StreamPlan = plan.key if name == "both" else getattr(plan, name)
            fitted = (tables or {}).get((layer, name))
            codec_stream = "key" if name == "both" else name
            check_frame(part.codec, part.rope)
            where = f"layer {layer}" if name == "both" else f"layer {layer}'s {name}s"
            check_tables(part.codec, fitted, recipe=recipe_text, where=where)
            codec = part.codec.build(shape.head_dim, layer=layer, stream=codec_stream, tables=fitted)
            frame = build_frame(part.codec, part.rope, shape.num_kv_heads, shape.head_dim, fitted)
            geometry = Geometry(sinks=plan.sinks, recent=plan.recent, page=plan.page, max_length=max_length)
            return Stream.init(
                codec,
                geometry,
                batch_size=batch_size,
                num_kv_heads=shape.num_kv_heads * (2 if name == "both" else 1),
                head_dim=shape.head_dim,
                dtype=dtype,
                rope=part.rope,
                frame=frame,
            )

        def layer_cache(layer: int, plan: LayerPlan) -> LayerCache:
            if plan.joint:
                from kakeya_jax.joint_layer import JointLayerCache

                return cast(LayerCache, JointLayerCache(both=stream(layer, plan, "both")))
            return LayerCache(key=stream(layer, plan, "key"), value=stream(layer, plan, "value"))

        layers = tuple(layer_cache(layer, plan) for layer, plan in enumerate(recipe.plan(shape.num_layers)))
        return cls(layers=layers, recipe=recipe, shape=shape)

    @property
    def length(self) -> Int[Array, " B"]:
        """Tokens held in each row."""
        return self.layers[0].key.length

    @property
    def max_length(self) -> int:
        """Tokens each row can hold."""
        return self.layers[0].key.geometry.max_length

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.length.shape[0]

    def replace_layers(self, layers: tuple[LayerCache, ...]) -> "CompressedCache":
        """The same cache with other layers."""
        return dataclasses.replace(self, layers=tuple(layers))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the cache to one file, exact; see ``kakeya_jax.cache_file``."""
        from kakeya_jax.cache_file import save_cache

        save_cache(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CompressedCache":
        """Reads what ``save`` wrote.

        Raises:
            ValueError: the file is truncated, of another kind, or of a newer format.
        """
        from kakeya_jax.cache_file import load_cache

        return load_cache(path)


def chunk_positions(
    length: Int[Array, " B"], chunk_length: int, valid: Bool[Array, "B T"] | None = None
) -> Int[Array, "B T"]:
    """Absolute position of each token of a chunk that follows ``length`` tokens; padding repeats the one before."""
    if valid is None:
        return length[:, None] + jnp.arange(chunk_length, dtype=jnp.int32)
    return length[:, None] + jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)


def dense_recipe(max_length: int) -> Recipe:
    """A recipe that codes nothing and keeps keys before their rotary embedding: what ``recode`` reads best."""
    from kakeya_jax.codecs.identity import IdentityConfig
    from kakeya_jax.recipe import Rule

    rules = (
        Rule(stream="key", codec=IdentityConfig(), rope="pre"),
        Rule(stream="value", codec=IdentityConfig()),
    )
    return Recipe(rules=rules, sinks=0, recent=max_length, name="dense")


def recode(source: CompressedCache, target: CompressedCache, *, rope: Rope, length: int) -> CompressedCache:
    """Appends the first ``length`` tokens that ``source`` holds to ``target``, in bulk.

    Args:
        source: a cache whose keys are stored before their rotary embedding (``dense_recipe``), every row holding at
            least ``length`` tokens.
        target: an empty cache of the same model.
        rope: the model's rotary embedding.
        length: tokens to move.

    Raises:
        ValueError: a key stream of ``source`` is stored after its rotary embedding.
    """

    def layer(held: LayerCache, empty: LayerCache) -> LayerCache:
        if held.key.rope != "pre":
            raise ValueError(
                "recode needs keys stored before their rotary embedding; fill the source with dense_recipe()"
            )
        key, value = (jnp.swapaxes(read(part)[:, :, :length], 1, 2) for part in (held.key, held.value))
        return empty.append(key, value, rope=rope).layer

    return target.replace_layers(tuple(map(layer, source.layers, target.layers)))


def cache_nbytes(cache: CompressedCache) -> int:
    """Bytes of every array of the cache, codec tables included."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
