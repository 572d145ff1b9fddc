"""Tables that belong to one codec of one stream: shared skeletons, calibrated scales and levels, symbol counts."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.calibration import collect
from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.calibration.fitted_streams import fitted_name, fitted_streams
from kakeya_jax.calibration.storage_counts import calibrate_storage, joint_blocks
from kakeya_jax.calibration.tables import layer_moments
from kakeya_jax.codecs.fitting import fit_own_tables
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.frame import build_frame
from kakeya_jax.models.probe import PerturbedCache
from kakeya_jax.recipe import Recipe, StreamPlan
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.typing import Array, Float, Int, StoredName

MOST_TOKENS = 32_768
"""Tokens that tables are fitted to: as many of the first passages as hold them. All are kept until then."""

_Where = tuple[int, str, str]
_Vectors = Mapping[tuple[int, str], np.ndarray]

_PARTS: Mapping[str, tuple[str, ...]] = {"key": ("key",), "value": ("value",), "both": ("key", "value")}
"""Streams of vectors that a stored stream is made of."""


def fit_codec_tables(
    model: Any,
    params: Any,
    passages: Int[np.ndarray, "N T"],
    recipes: Sequence[Recipe],
    calibration: Calibration,
) -> dict[_Where, dict[str, np.ndarray]]:
    """Tables by layer, stream and ``fitted_name``, of every codec of ``recipes`` that is fitted to its own stream.

    Args:
        model: the decoder.
        params: its parameters.
        passages: training text.
        recipes: see ``check_recipes``.
        calibration: the statistics of the same text: codecs may see vectors in a frame made of them.
    """
    jobs: dict[tuple[StoredName, str, tuple[int, ...]], tuple[Recipe, StreamPlan]] = {
        (name, fitted_name(stream, layers), layers): (recipe, stream)
        for recipe in recipes
        for (name, stream), layers in fitted_streams(recipe, model.config.num_layers).items()
    }
    if not jobs:
        return {}
    vectors_of = jax.jit(functools.partial(dense_vectors, model))
    wanted = {(layer, part) for name, _, layers in jobs for layer in layers for part in _PARTS[name]}
    held: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
    for passage in passages[: max(1, MOST_TOKENS // passages.shape[1])]:
        streams = vectors_of(params, jnp.asarray(passage))
        for layer, name in wanted:
            held[layer, name].append(np.asarray(streams[layer][name]))
    vectors = {where: np.stack(each) for where, each in held.items()}
    found: dict[_Where, dict[str, np.ndarray]] = {}
    for (name, called, layers), (recipe, stream) in jobs.items():
        if name == "both":
            fitted = _fit_storage(recipe, stream, layers, vectors, calibration)
        else:
            fitted = _fit_stream(recipe, name, stream, layers, vectors, calibration, model.config.rope)
        for layer, tables in zip(layers, fitted, strict=True):
            found[layer, name, called] = {each: np.asarray(table) for each, table in tables.items()}
    return found


def check_recipes(recipes: Sequence[Recipe], num_layers: int, length: int) -> None:
    """Raises a ``ValueError`` if tables for ``recipes`` cannot be fitted, or not all into one file.

    Raises:
        ValueError: a recipe needs no calibration; passages of ``length`` tokens are shorter than a codec's block and
            the sinks before it; or two recipes fit the same codec differently.
    """
    wanted: dict[_Where, tuple[Any, ...]] = {}
    for recipe in recipes:
        if not recipe.needs_calibration:
            raise ValueError(f"recipe {str(recipe)!r} needs no calibration; leave out --recipe to collect statistics")
        for (name, stream), layers in fitted_streams(recipe, num_layers).items():
            if recipe.sinks + stream.codec.block_size > length:
                raise ValueError(
                    f"{stream.codec.name}: passages of {length} tokens are shorter than {recipe.sinks} sinks and a "
                    f"block_size={stream.codec.block_size}; use longer ones"
                )
            called = fitted_name(stream, layers)
            # One budget of klt-storage is for all its layers; other tables are each layer's own, or named after all.
            how = (recipe.sinks, layers if isinstance(stream.codec, KltStorageConfig) else None)
            for layer in layers:
                if wanted.setdefault((layer, name, called), how) != how:
                    raise ValueError(f"two recipes fit {called} to other layers or sinks; calibrate one file for each")


def dense_vectors(model: Any, params: Any, tokens: Int[Array, " T"]) -> list[dict[str, Float[Array, "K T D"]]]:
    """Keys (before their rotary embedding), values and queries of every layer for one passage, float32."""
    cache = PerturbedCache.zeros(model.config, tokens.shape[0], ())
    _, sown = model.apply({"params": params}, tokens[None], cache=cache, mutable=["intermediates"])
    return [
        {name: vectors.astype(jnp.float32) for name, vectors in layer.items()}
        for layer in collect.activations(sown["intermediates"])
    ]


def _fit_stream(
    recipe: Recipe,
    name: StoredName,
    stream: StreamPlan,
    layers: Sequence[int],
    vectors: _Vectors,
    calibration: Calibration,
    rope: Rope,
) -> list[dict[str, Any]]:
    """Tables of keys or of values of some layers."""
    tables = calibration.tables_for(recipe)
    others = [dict(tables.get((layer, name), {})) for layer in layers]
    seen = [
        _as_coded(vectors[layer, name], stream, recipe.sinks, other, rope)
        for layer, other in zip(layers, others, strict=True)
    ]
    return fit_own_tables(stream.codec, seen, others)


def _fit_storage(
    recipe: Recipe, stream: StreamPlan, layers: Sequence[int], vectors: _Vectors, calibration: Calibration
) -> list[dict[str, Any]]:
    """Tables of layers whose keys and values are coded together: symbols counted, and a budget that the text meets."""
    assert isinstance(stream.codec, KltStorageConfig)
    plans = recipe.plan(calibration.shape.num_layers)
    blocks = [
        np.concatenate(
            [
                joint_blocks(key, value, stream.codec.block_size)
                for key, value in zip(
                    vectors[layer, "key"][:, :, recipe.sinks :],
                    vectors[layer, "value"][:, :, recipe.sinks :],
                    strict=True,
                )
            ]
        )
        for layer in layers
    ]
    moments = [layer_moments(calibration, layer, plans[layer]) for layer in layers]
    return calibrate_storage(stream.codec, moments, blocks)


def _as_coded(
    vectors: Float[np.ndarray, "N K T D"], stream: StreamPlan, sinks: int, tables: dict[str, Any], rope: Rope
) -> Float[np.ndarray, "N K t D"]:
    """What the codec sees of a stream: rotated as it is stored, in its frame, without sinks."""
    positions = jnp.arange(vectors.shape[2], dtype=jnp.int32)[None]
    seen = jnp.asarray(vectors)
    if stream.rope == "post":
        seen = apply_rope(seen, positions, rope)
    frame = build_frame(stream.codec, stream.rope, vectors.shape[1], vectors.shape[3], tables)
    if frame is not None:
        seen = frame.enter(seen, positions)
    return np.asarray(seen[:, :, sinks:])
