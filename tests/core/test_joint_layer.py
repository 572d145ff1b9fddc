"""A layer whose keys and values are coded together keeps every promise of one whose are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import cache_report, report
from kakeya_jax.cache import (
    CacheShape,
    CompressedCache,
    LayerCache,
    cache_nbytes,
    chunk_positions,
    dense_recipe,
    recode,
)
from kakeya_jax.codecs.klt_storage import KltStorageConfig
from kakeya_jax.joint_layer import JointLayerCache
from kakeya_jax.models.attention import attend, dense_attention
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import read

K, D = 2, 16
SHAPE = CacheShape(num_layers=2, num_kv_heads=K, head_dim=D)
ROPE = Rope(head_dim=D)
LENGTH, MAX_LENGTH = 61, 64
SINKS, RECENT, PAGE = 3, 5, 8
RECIPE = Recipe.parse(f"klt-storage(bits=2,block_size={PAGE}),sinks={SINKS},recent={RECENT}")
CONFIG = KltStorageConfig(bits=2, block_size=PAGE)
TABLES = {(layer, "both"): jax.tree.map(np.asarray, CONFIG.neutral_tables(D, num_kv_heads=K)) for layer in range(2)}
attend_jit = jax.jit(attend, static_argnames=("rope", "scale", "implementation"))
append = jax.jit(lambda layer, key, value, valid=None: layer.append(key, value, rope=ROPE, valid=valid))


@pytest.fixture(scope="module")
def text() -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(query, (2, LENGTH, 4, D)),
        jax.random.normal(key, (2, LENGTH, K, D)) + 0.5,
        jax.random.normal(value, (2, LENGTH, K, D)),
    )


def empty(batch_size: int = 2, max_length: int = MAX_LENGTH, **options) -> CompressedCache:
    return CompressedCache.init(SHAPE, RECIPE, batch_size=batch_size, max_length=max_length, tables=TABLES, **options)


def run(text, chunks: list[int], layer: LayerCache | None = None) -> tuple[jax.Array, LayerCache]:
    outs, start = [], 0
    layer = empty().layers[0] if layer is None else layer
    for size in chunks:
        part = slice(start, start + size)
        positions = chunk_positions(layer.key.length, size)
        out, layer = attend_jit(
            *(array[:, part] for array in text), layer, positions=positions, valid=None, rope=ROPE, scale=0.25
        )
        assert layer is not None
        outs.append(out)
        start += size
    return jnp.concatenate(outs, axis=1), layer


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7, 20, 1, 30, 3], [8] * 7 + [5]], ids=["token", "mixed", "page"])
def test_chunking_changes_nothing(text, chunks: list[int]):
    bulk_out, bulk = run(text, [LENGTH])
    out, layer = run(text, chunks)
    chex.assert_trees_all_equal(bulk, layer)
    chex.assert_trees_all_close(out, bulk_out, atol=2e-6)


def test_attention_is_that_over_what_is_read_back(text):
    query, _, _ = text
    out, layer = run(text, [LENGTH])
    key, value = (jnp.swapaxes(read(part)[:, :, :LENGTH], 1, 2) for part in (layer.key, layer.value))
    positions = jnp.arange(LENGTH)[None, :, None]
    rotated = apply_rope(key, positions, ROPE)
    dense = dense_attention(apply_rope(query, positions, ROPE), rotated, value, scale=0.25)
    chex.assert_trees_all_close(out[:, -1], dense[:, -1], atol=1e-5)  # the last query sees all that is coded now


def test_keys_and_values_come_back_in_place(text):
    _, key, value = text
    _, layer = run(text, [LENGTH])
    first_exact = SINKS + (LENGTH - SINKS - RECENT) // PAGE * PAGE
    for part, original in ((layer.key, key), (layer.value, value)):
        served, original = read(part)[:, :, :LENGTH], jnp.swapaxes(original, 1, 2)
        error = jnp.sqrt(jnp.sum((served - original) ** 2, axis=(0, 2, 3)) / jnp.sum(original**2, axis=(0, 2, 3)))
        assert float(error.max()) < 0.35  # a swap of heads, tokens or streams would give an error above 1
        exact = np.asarray(jnp.all(served == original.astype(jnp.bfloat16).astype(jnp.float32), axis=(0, 1, 3)))
        np.testing.assert_array_equal(exact, (np.arange(LENGTH) < SINKS) | (np.arange(LENGTH) >= first_exact))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_match_the_row_alone(text, side: str):
    query, key, value = text
    n = 38
    offset = jnp.arange(LENGTH)
    valid = jnp.stack([offset < LENGTH, offset < n if side == "right" else offset >= LENGTH - n])
    positions = chunk_positions(jnp.zeros(2, jnp.int32), LENGTH, valid)

    def place(array: jax.Array) -> jax.Array:
        return array.at[1].set(jnp.zeros_like(array[1]).at[valid[1]].set(array[1, :n]))

    out, layer = attend_jit(
        place(query), place(key), place(value), empty().layers[0],
        positions=positions, valid=valid, rope=ROPE, scale=0.25,
    )  # fmt: skip
    alone_out, alone = run([array[1:, :n] for array in text], [n], empty(1).layers[0])
    chex.assert_trees_all_close(out[1][valid[1]], alone_out[0], atol=2e-6)
    for view in ("key", "value"):
        one, many = read(getattr(alone, view))[0, :, :n], read(getattr(layer, view))[1, :, :n]
        chex.assert_trees_all_equal(one, many)


def test_overflow_and_broken_numbers_are_refused_or_contained(text):
    _, key, value = text
    _, layer = run(text, [LENGTH])
    with pytest.raises(ValueError, match="max_length=64; make it with max_length=71 or more"):
        layer.append(key[:, :10], value[:, :10], rope=ROPE)
    update = append(layer, key[:, :10], value[:, :10])
    assert not bool(update.fits.any())
    chex.assert_trees_all_equal(update.layer, layer)
    broken = key.at[0, 20, 0, 3].set(jnp.nan).at[0, 21, 0, 4].set(jnp.inf)
    with pytest.raises(ValueError, match=r"chunk\['key'\] holds 2 non-finite values"):
        empty().layers[0].append(broken, value, rope=ROPE, check_finite=True)
    held = append(empty().layers[0], broken, value).layer
    assert bool(jnp.isfinite(read(held.key)[:, :, :50]).all())
    chex.assert_trees_all_equal(read(held.key)[1], read(layer.key)[1])


def test_no_retrace_and_one_decode_for_both_views():
    chex.clear_trace_counter()
    layer = empty(1, 200).layers[0]

    def step(layer: LayerCache, x: jax.Array):
        positions = layer.key.length[:, None]
        return attend(jnp.repeat(x, 2, axis=2), x, x, layer, positions=positions, valid=None, rope=ROPE, scale=0.25)

    compiled = jax.jit(step).lower(layer, jnp.ones((1, 1, K, D))).compile().as_text() or ""
    # Products with the synthesis map of all channels: of symbols and of page means, once each, and one to encode.
    maps = [line for line in compiled.splitlines() if " dot(" in line and f",{2 * K * D}]{{1,0}} dot(" in line]
    assert len(maps) == 3, compiled
    jitted = jax.jit(chex.assert_max_traces(step, n=1), donate_argnums=0)
    out = x = jnp.ones((1, 1, K, D))
    for _ in range(200):
        out, layer = jitted(layer, x)
    assert int(layer.key.length[0]) == 200
    chex.assert_trees_all_close(out, jnp.ones_like(out), atol=0.3)


def test_bytes_are_counted_once(text):
    _, key, value = text
    cache = empty()
    layers = tuple(append(layer, key, value).layer for layer in cache.layers)
    cache = cache.replace_layers(layers)
    held = report(cache)
    assert held == cache_report(SHAPE, RECIPE, max_length=MAX_LENGTH, batch_size=2, tables=TABLES)
    assert [stream.stream for stream in held.streams] == ["both", "both"]
    pages = (MAX_LENGTH - SINKS - RECENT) // PAGE
    channels = 2 * K * D
    for stream in held.streams:
        assert stream.coded_values == 2 * pages * PAGE * channels
        assert stream.payload == 2 * pages * PAGE * channels  # a byte for each channel, all kept
        assert stream.side == 2 * pages * channels
        assert stream.tail == 2 * 2 * (RECENT + PAGE - 1) * channels
        assert stream.sinks == 2 * 2 * SINKS * channels
        assert stream.seeded == 0
        assert stream.fitted > 2 * 4 * channels**2
    assert held.dense_nbytes == 2 * 2 * 2 * MAX_LENGTH * channels
    lengths = 2 * 2 * 4
    assert sum(stream.total + stream.fitted for stream in held.streams) + lengths == cache_nbytes(cache)


def test_cache_file_is_exact(text, tmp_path):
    _, key, value = text
    cache = empty()
    cache = cache.replace_layers(tuple(append(layer, key, value).layer for layer in cache.layers))
    cache.save(tmp_path / "cache")
    loaded = CompressedCache.load(tmp_path / "cache")
    assert jax.tree.structure(loaded) == jax.tree.structure(cache)
    chex.assert_trees_all_equal(loaded, cache)
    chex.assert_trees_all_equal_dtypes(loaded, cache)


def test_recode_in_and_out(text):
    _, key, value = text
    dense = CompressedCache.init(SHAPE, dense_recipe(LENGTH), batch_size=2, max_length=LENGTH, dtype=jnp.float32)
    dense = dense.replace_layers(tuple(layer.append(key, value, rope=ROPE).layer for layer in dense.layers))
    coded = recode(dense, empty(dtype=jnp.float32), rope=ROPE, length=LENGTH)
    appended = append(empty(dtype=jnp.float32).layers[0], key, value).layer
    chex.assert_trees_all_equal(coded.layers[0], appended)
    back = CompressedCache.init(SHAPE, dense_recipe(LENGTH), batch_size=2, max_length=LENGTH, dtype=jnp.float32)
    back = recode(coded, back, rope=ROPE, length=LENGTH)
    chex.assert_trees_all_equal(read(back.layers[1].value), read(coded.layers[1].value)[:, :, :LENGTH])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("key=klt-storage,value=int8", "give layer 0 the same for both, both=klt-storage"),
        ("value=klt-storage", "give layer 0 the same for both"),
        ("key=klt-storage(bits=2),value=klt-storage(bits=1)", "give layer 0 the same for both"),
        ("key[1]=int8,both=klt-storage", "give layer 1 the same for both"),
        ("both@post=klt-storage", "before their rotary embedding"),
    ],
)
def test_one_stream_alone_is_refused(recipe: str, message: str):
    parsed = Recipe.parse(recipe)
    with pytest.raises(ValueError, match=message):
        parsed.plan(2)


def test_other_layers_may_be_coded_otherwise(text):
    _, key, value = text
    recipe = Recipe.parse(
        f"both[1]=klt-storage(bits=2,block_size={PAGE}),both=int8(block_size={PAGE}),sinks=0,recent=5"
    )
    cache = CompressedCache.init(SHAPE, recipe, batch_size=2, max_length=MAX_LENGTH, tables=TABLES)
    assert isinstance(cache.layers[0], LayerCache)
    assert isinstance(cache.layers[1], JointLayerCache)
    layers = tuple(layer.append(key, value, rope=ROPE).layer for layer in cache.layers)
    assert [stream.stream for stream in report(cache.replace_layers(layers)).streams] == ["key", "value", "both"]
