"""Speed of session files on this machine: a model's own K and V, coded, saved and loaded.

All speeds are megabytes (10^6 bytes) per second of what the coded tokens would take as bfloat16 K and V, whatever they
take in the file. Exact tokens are saved and loaded with the others, but no byte of them counts.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.cache import CompressedCache, Tables, dense_recipe, recode
from kakeya_jax.calibration.artifact import Calibration
from kakeya_jax.eval.protocols import default_chunk
from kakeya_jax.eval.text import check_vocabulary, cut_passages
from kakeya_jax.joint_layer import JointLayerCache
from kakeya_jax.recipe import Recipe
from kakeya_jax.session_file import SessionSize, load_session, save_session
from kakeya_jax.storage_pages import PageCoder, decode_layers, encode_layers
from kakeya_jax.stream import Stream, encode_blocks
from kakeya_jax.typing import Array, Int

BFLOAT16_NBYTES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageSpeed:
    """One recipe. Speeds are megabytes of bfloat16 K and V per second, from the median time of several calls.

    Attributes:
        recipe: its name.
        bits_per_value: of the file, everything but the exact tokens counted.
        megabytes: what the coded tokens would take as bfloat16 K and V.
        quantize: K and V into symbols, jitted.
        entropy_encode: symbols into bytes, tables made before.
        save: ``save_session``: everything from the symbols in a cache to a complete file.
        load: ``load_session``: everything from a file, held in memory by the system, to a cache that can be continued.
        entropy_decode: bytes into symbols, checksums compared, tables made before.
        reconstruct: symbols into K and V, jitted.
    """

    recipe: str
    bits_per_value: float
    megabytes: float
    quantize: float
    entropy_encode: float
    save: float
    load: float
    entropy_decode: float
    reconstruct: float


def bench_storage(
    model: Any,
    params: Any,
    tokens: Int[np.ndarray, " n"],
    recipes: Sequence[str],
    *,
    calibration: Calibration,
    context: int = 4096,
    passages: int = 4,
    repeats: int = 5,
    on_row: Callable[[StorageSpeed], None] = lambda row: None,
) -> list[StorageSpeed]:
    """Runs the model over passages of a text, and codes, saves and loads what it keeps, once for each recipe.

    Args:
        model: the decoder.
        params: its parameters.
        tokens: the text.
        recipes: of ``klt-storage``.
        calibration: of this model.
        context: tokens of each passage.
        passages: rows of the cache; evenly spaced in the text.
        repeats: calls of each step; the median counts.
        on_row: called with each row as soon as it is measured.

    Raises:
        ValueError: a recipe is not ``klt-storage`` or codes nothing at this context, or the text is too short or of
            another vocabulary.
    """
    parsed = [_storage_recipe(text, model.config.num_layers, context) for text in recipes]
    check_vocabulary(tokens, model.config.vocab_size)
    texts = cut_passages(tokens, context, passages)
    tables = [calibration.tables_for(recipe) for recipe in parsed]  # what the calibration lacks is told at once
    clean = _prefill(model, params, texts)
    rows = []
    for recipe, fitted in zip(parsed, tables, strict=True):
        cache = CompressedCache.init(
            model.config, recipe, batch_size=passages, max_length=context, dtype=jnp.bfloat16, tables=fitted
        )
        cache = recode(clean, cache, rope=model.config.rope, length=context)
        rows.append(_measure(cache, fitted, repeats))
        on_row(rows[-1])
    return rows


def _storage_recipe(text: str, num_layers: int, context: int) -> Recipe:
    recipe = Recipe.parse(text)
    for plan in recipe.plan(num_layers):
        if plan.key.codec.name != "klt-storage":
            raise ValueError(f"recipe {text!r} is not for session files; give one of klt-storage, as klt-storage-1")
        least = plan.sinks + plan.recent + plan.page
        if context < least:
            raise ValueError(f"context={context}: recipe {text!r} codes its first page at {least} tokens")
    return recipe


def _prefill(model: Any, params: Any, texts: Int[np.ndarray, "B T"]) -> CompressedCache:
    """A cache that codes nothing, with all passages in it."""
    batch, context = texts.shape
    chunk = default_chunk(context)
    step = jax.jit(lambda params, cache, piece: model.apply({"params": params}, piece, cache=cache)[1])
    cache = CompressedCache.init(
        model.config, dense_recipe(context), batch_size=batch, max_length=context, dtype=jnp.bfloat16
    )
    for start in range(0, context, chunk):
        cache = step(params, cache, jnp.asarray(texts[:, start : start + chunk]))
    return jax.block_until_ready(cache)


def _measure(cache: CompressedCache, tables: Tables, repeats: int) -> StorageSpeed:
    streams = [layer.both for layer in cache.layers if isinstance(layer, JointLayerCache)]
    held = [jax.tree.map(_all_pages, each.blocks) for each in streams]
    coders = [PageCoder.of(stream.codec) for stream in streams]
    coded = encode_layers(coders, held)
    pages = [_split(each.data, each.nbytes) for each in coded]

    # Codecs are arguments, not constants: their tables must not be folded into the programs.
    reconstruct = jax.jit(lambda stream: stream.decode_pages(0, stream.geometry.num_pages))
    quantize = jax.jit(encode_blocks)
    # Coding what was decoded is as much work as coding what it was made from.
    vectors = [_by_page(reconstruct(stream), stream) for stream in streams]
    steps: dict[str, Callable[[], Any]] = {
        "quantize": lambda: [quantize(each.codec, block) for each, block in zip(streams, vectors, strict=True)],
        "entropy_encode": lambda: encode_layers(coders, held),
        "entropy_decode": lambda: decode_layers(coders, pages, [each.checksums for each in coded]),
        "reconstruct": lambda: [reconstruct(stream) for stream in streams],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "session"
        steps["save"] = lambda: save_session(cache, path)
        steps["load"] = lambda: load_session(path, tables=tables)
        size: SessionSize = save_session(cache, path)
        seconds = {name: _median_seconds(step, repeats) for name, step in steps.items()}
    megabytes = BFLOAT16_NBYTES * size.coded_values / 1e6
    return StorageSpeed(
        recipe=cache.recipe.name or cache.recipe.to_text(),
        bits_per_value=size.bits_per_value,
        megabytes=megabytes,
        **{name: megabytes / taken for name, taken in seconds.items()},
    )


def _all_pages(leaf: Array) -> np.ndarray:
    """``[B, 1, pages, ...]`` as ``[B pages, ...]``; a code may have leaves without a value."""
    return np.asarray(leaf).reshape(leaf.shape[0] * leaf.shape[2], *leaf.shape[3:])


def _by_page(tokens: Array, stream: Stream) -> Array:
    batch, heads, _, dim = tokens.shape
    return tokens.reshape(batch, heads, -1, stream.block_size, dim)


def _split(data: bytes, nbytes: np.ndarray) -> list[memoryview]:
    ends = np.cumsum(nbytes, dtype=np.int64)
    return [memoryview(data)[end - size : end] for end, size in zip(ends, nbytes, strict=True)]


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of ``repeats`` calls, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)
