"""Fits the tables that a recipe's codecs need, on training text, through the model itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax import lloyd_max
from kakeya_jax.cache import CacheShape, CompressedCache, Tables, dense_recipe
from kakeya_jax.calibration.artifact import Calibration, fingerprint, text_windows
from kakeya_jax.codec import CodecConfig
from kakeya_jax.codecs.kakeya import KakeyaConfig, fit_shared
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import apply_rope
from kakeya_jax.stream import read
from kakeya_jax.typing import Array, Float, Int, RopeClass, StreamName


def fit(
    model: Any,
    params: Any,
    passages: Int[np.ndarray, "N T"],
    recipe: Recipe,
    *,
    about: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Calibration:
    """The tables of every codec of ``recipe`` that needs some.

    Args:
        model: the decoder.
        params: its parameters.
        passages: training text; never text that will be evaluated.
        recipe: what will be run with the tables.
        about: notes for the file's header.
        progress: told the passages done, their number, and what comes next.

    Raises:
        ValueError: no codec of the recipe takes tables, or a passage is shorter than a codec's block.
    """
    plan = recipe.plan(model.config.num_layers)
    wanted: list[tuple[int, StreamName, KakeyaConfig, RopeClass | None]] = [
        (layer, name, stream.codec, stream.rope)
        for layer, of_layer in enumerate(plan)
        for name, stream in of_layer.streams()
        if isinstance(stream.codec, KakeyaConfig) and needs_tables(stream.codec)
    ]
    if not wanted:
        raise ValueError(f"recipe {recipe} needs no calibration: none of its codecs takes fitted tables")
    length = passages.shape[1]
    for _, _, codec, _ in wanted:
        if codec.block_size > length:
            raise ValueError(
                f"passages of {length} tokens are shorter than block_size={codec.block_size}; use longer ones"
            )
    vectors_of = jax.jit(functools.partial(dense_vectors, model))
    collected: dict[tuple[int, StreamName], list[np.ndarray]] = {(layer, name): [] for layer, name, _, _ in wanted}
    for index, passage in enumerate(passages):
        progress(index, len(passages), "collecting keys and values")
        streams = vectors_of(params, jnp.asarray(passage))
        for layer, name, _, rope in wanted:
            vectors = streams[layer][name]
            if rope == "post":
                vectors = apply_rope(vectors, jnp.arange(length, dtype=jnp.int32)[None], model.config.rope)
            collected[layer, name].append(np.asarray(vectors))
    progress(len(passages), len(passages), "fitting")
    tables: Tables = {
        (layer, name): _fit_kakeya(codec, np.stack(collected[layer, name])) for layer, name, codec, _ in wanted
    }
    notes = {
        "tokens": int(passages.size),
        "passages": len(passages),
        "passage_length": length,
        **(about or {}),
    }
    return Calibration(
        tables=tables,
        shape=CacheShape.of(model.config),
        model=fingerprint(params),
        recipe=recipe.to_text(),
        windows=text_windows(passages),
        about=notes,
    )


def needs_tables(codec: CodecConfig) -> bool:
    """Whether a codec must be calibrated before it can code."""
    return isinstance(codec, KakeyaConfig) and (codec.basis == "shared" or codec.centroids == "calibrated")


def dense_vectors(
    model: Any, params: Any, tokens: Int[Array, " T"], *, chunk: int = 512
) -> list[dict[str, Float[Array, "K T D"]]]:
    """Keys (before their rotary embedding) and values of every layer for one passage, float32."""
    length = tokens.shape[0]
    cache = CompressedCache.init(model.config, dense_recipe(length), batch_size=1, max_length=length, dtype=jnp.float32)
    for start in range(0, length, chunk):  # traced once for each chunk of a passage, of which there are few
        _, cache = model.apply({"params": params}, tokens[None, start : start + chunk], cache=cache)
    return [{"key": read(layer.key)[0], "value": read(layer.value)[0]} for layer in cache.layers]


def _fit_kakeya(config: KakeyaConfig, vectors: Float[np.ndarray, "N K T D"]) -> dict[str, Array]:
    """Shared skeleton, calibrated centroids, or both; heads pooled, centroids on what the quantiser really sees."""
    dim = vectors.shape[-1]
    tables: dict[str, Array] = {}
    if config.basis == "shared":
        tables |= fit_shared(jnp.asarray(vectors.reshape(-1, dim)), config.rank_of(dim))
    if config.centroids == "calibrated":
        start = jnp.asarray(lloyd_max.gaussian_levels(config.bits))
        codec = config.build(dim, tables={**tables, "centroids": start})
        whole = vectors.shape[2] // config.block_size * config.block_size
        blocks = vectors[:, :, :whole].reshape(-1, config.block_size, dim)
        residuals = jax.lax.map(codec.standard_residual, jnp.asarray(blocks))
        tables["centroids"] = jnp.asarray(lloyd_max.fit_levels(residuals, config.bits))
    return tables
