"""The coordinates a stream is coded in: entered before a codec encodes, left after it decodes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.accounting import cache_report
from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache, Tables, cache_nbytes
from kakeya_jax.models.attention import attend, dense_attention
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope, YarnScaling, apply_rope
from kakeya_jax.stream import read
from kakeya_jax.testing import synthetic_kv
from kakeya_jax.whitening import whitening_tables

SHAPE = CacheShape(num_layers=1, num_kv_heads=2, head_dim=16)
ROPE = Rope(head_dim=16)
LENGTH, MAX_LENGTH = 61, 64
WINDOW = "sinks=3,recent=5"


def parse(rules: str) -> Recipe:
    """Rules under a small window; what they leave out is kept exact."""
    complete = "both=" in rules or ("key" in rules and "value=" in rules)
    exact = "" if complete else ",both=identity(block_size=4)"
    return Recipe.parse(f"{rules}{exact},{WINDOW}")


"""Ends every recipe: what it does not code stays dense, in pages short enough for this text."""
MEAN = 4.0 * np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)

FRAMED = [
    "key@pre=int4(group_size=16,block_size=8,static_mean=true)",
    "key=int4(group_size=16,block_size=8,static_mean=true)",
    "key@pre=turboquant(bits=3,block_size=8,whiten=true)",
    "key@pre=lattice(block_size=4,static_mean=true,whiten=true)",
    "key=turboquant(bits=4,block_size=8,static_mean=true,mix_heads=true)",
    "both=kivi(bits=4,group_size=8,block_size=16,static_mean=true)",
    "value=turboquant(bits=4,block_size=8,static_mean=true)",
]


@pytest.fixture(scope="module")
def text() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values; keys and values about ``MEAN``."""
    key, value, query = jax.random.split(jax.random.key(0), 3)
    spread = jnp.exp(-jnp.arange(16) / 4)
    return (
        jax.random.normal(query, (2, LENGTH, 4, 16)) * spread[::-1],
        jax.random.normal(key, (2, LENGTH, 2, 16)) * spread + MEAN,
        jax.random.normal(value, (2, LENGTH, 2, 16)) + MEAN,
    )


@pytest.fixture(scope="module")
def tables(text) -> Tables:
    query, key, _ = (np.asarray(array) for array in text)
    grouped, deviations = query.reshape(2, LENGTH, 2, 2, 16), key - MEAN
    maps = whitening_tables(
        jnp.asarray(np.einsum("btkgd,btkge->kde", grouped, grouped) / (4 * LENGTH)),
        key_moment=jnp.asarray(np.einsum("btkd,btke->kde", deviations, deviations) / (2 * LENGTH)),
        key_largest=jnp.asarray(np.abs(deviations).max(axis=(0, 1))),
    )
    both = {**maps, "static_mean": jnp.asarray(MEAN), "rope_frequencies": jnp.asarray(ROPE.frequencies)}
    return {(0, "key"): both, (0, "value"): both}


def empty(recipe: str | Recipe, tables: Tables | None, *, batch_size: int = 2, dtype=jnp.float32) -> LayerCache:
    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    cache = CompressedCache.init(
        SHAPE, recipe, batch_size=batch_size, max_length=MAX_LENGTH, dtype=dtype, tables=tables
    )
    return cache.layers[0]


append = jax.jit(LayerCache.append, static_argnames="rope")


def fill(layer: LayerCache, key: jax.Array, value: jax.Array, rope: Rope = ROPE) -> LayerCache:
    return append(layer, key, value, rope=rope).layer


def error(served: jax.Array, original: jax.Array) -> float:
    """Relative root mean square error of ``[B, K, max_length, D]`` against ``[B, T, K, D]``."""
    original = jnp.swapaxes(original, 1, 2)
    return float(jnp.linalg.norm(served[:, :, :LENGTH] - original) / jnp.linalg.norm(original))


def assert_same_bits(left, right) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("recipe", FRAMED)
def test_token_by_token_gives_the_codes_of_bulk(recipe: str, text, tables: Tables) -> None:
    _, key, value = text
    bulk = fill(empty(recipe, tables), key, value)
    for sizes in ([1] * LENGTH, [20, 1, 20, 20]):  # each length compiles
        layer, start = empty(recipe, tables), 0
        for size in sizes:
            part = slice(start, start + size)
            layer = fill(layer, key[:, part], value[:, part])
            start += size
        assert_same_bits(bulk, layer)


@pytest.mark.parametrize(
    ("rope", "options", "bound"),
    [
        ("pre", "static_mean=true", 0.01),
        ("post", "static_mean=true", 0.01),
        ("pre", "whiten=true", 0.05),  # unwhitening lets errors grow that queries do not see
        ("pre", "static_mean=true,whiten=true", 0.01),
    ],
)
def test_decode_undoes_encode(rope: str, options: str, bound: float, text, tables: Tables) -> None:
    _, key, value = text
    positions = jnp.arange(LENGTH)[None, :, None]
    stored = key if rope == "pre" else apply_rope(key, positions, ROPE)
    layer = fill(empty(f"key@{rope}=int8(block_size=4,{options})", tables), key, value)
    assert layer.key.frame is not None
    assert error(read(layer.key), stored) < bound
    for start, count in ((0, 3), (5, 2), (layer.key.geometry.num_pages, 2)):  # the last is moved back to fit
        first = min(start, layer.key.geometry.num_pages - count) * layer.key.geometry.page
        pages = layer.key.decode_pages(start, count)
        whole = layer.key.decode_pages(0, layer.key.geometry.num_pages)
        np.testing.assert_allclose(pages, whole[:, :, first : first + pages.shape[2]], atol=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        pytest.param(ROPE, id="default"),
        pytest.param(
            Rope(head_dim=16, scaling=YarnScaling(factor=4.0, original_max_position_embeddings=32)), id="yarn"
        ),
    ],
)
def test_static_mean_of_rotated_keys_is_that_of_keys_before_it(rope: Rope, text) -> None:
    """Rotation is linear: taking the rotated mean out of rotated keys codes rotated deviations."""
    _, key, value = text
    tables: Tables = {
        (0, "key"): {
            "static_mean": jnp.asarray(rope.attention_factor * MEAN),
            "rope_frequencies": jnp.asarray(rope.frequencies),
        }
    }
    codec = "key=turboquant(bits=4,block_size=8"
    framed = fill(empty(f"{codec},static_mean=true)", tables), key, value, rope)
    plain = fill(empty(f"{codec})", None), key - MEAN, value, rope)
    rotated = apply_rope(jnp.broadcast_to(MEAN, key.shape), jnp.arange(LENGTH)[None, :, None], rope)
    mean = jnp.zeros_like(read(plain.key)).at[:, :, :LENGTH].set(jnp.swapaxes(rotated, 1, 2))
    served, expected = read(framed.key), read(plain.key) + mean
    # A coordinate between two levels may be rounded either way; everything else agrees.
    same = np.isclose(served, expected, atol=2e-4).all(axis=-1)
    assert same.mean() > 0.98
    assert float(jnp.linalg.norm(served - expected) / jnp.linalg.norm(expected)) < 0.01


def test_static_mean_is_not_paid_for(text, tables: Tables) -> None:
    _, key, value = text
    for name in ("key@pre", "key@post", "value"):
        errors = []
        for flag in ("false", "true"):
            layer = fill(empty(f"{name}=turboquant(bits=3,block_size=8,static_mean={flag})", tables), key, value)
            stream = layer.value if name == "value" else layer.key
            original = {"key@pre": key, "value": value}.get(
                name, apply_rope(key, jnp.arange(LENGTH)[None, :, None], ROPE)
            )
            errors.append(error(read(stream), original))
        assert errors[1] < 0.5 * errors[0]


def test_whitening_lowers_the_error_of_logits(text, tables: Tables) -> None:
    query, key, value = text
    grouped = query.reshape(2, LENGTH, 2, 2, 16)

    def logits(keys: jax.Array) -> jax.Array:
        return jnp.einsum("btkgd,bksd->bkgts", grouped, keys, precision="highest")

    exact = logits(jnp.swapaxes(key, 1, 2))
    errors = []
    for flag in ("false", "true"):
        recipe = f"key@pre=turboquant(bits=4,block_size=8,static_mean=true,whiten={flag})"
        layer = fill(empty(recipe, tables), key, value)
        errors.append(float(jnp.linalg.norm(logits(read(layer.key)[:, :, :LENGTH]) - exact)))
    assert errors[1] < 0.8 * errors[0]


def test_attention_reads_through_the_frame(text, tables: Tables) -> None:
    query, key, value = text
    positions = jnp.arange(LENGTH)[None, :, None]
    dense = dense_attention(apply_rope(query, positions, ROPE), apply_rope(key, positions, ROPE), value, scale=0.25)
    for recipe in (
        "both=int8(block_size=4,static_mean=true)",
        "key@pre=int8(block_size=4,static_mean=true,whiten=true),value=int8(block_size=4,static_mean=true)",
    ):
        out, _ = attend(
            query, key, value, empty(recipe, tables), positions=positions[..., 0], valid=None, rope=ROPE, scale=0.25
        )
        chex.assert_trees_all_close(out, dense, atol=0.1)
        assert float(jnp.linalg.norm(out - dense) / jnp.linalg.norm(dense)) < 0.01


def test_rows_of_different_lengths_are_framed_at_their_own_positions(text, tables: Tables) -> None:
    _, key, value = text
    recipe = "both=int4(group_size=16,block_size=8,static_mean=true)"
    lengths = (LENGTH, 38)
    valid = jnp.stack([jnp.arange(LENGTH) >= LENGTH - n for n in lengths])
    placed = [
        jnp.zeros_like(a[0]).at[LENGTH - n :].set(a[row, :n]) for a in (key, value) for row, n in enumerate(lengths)
    ]
    layer = append(empty(recipe, tables), jnp.stack(placed[:2]), jnp.stack(placed[2:]), rope=ROPE, valid=valid).layer
    for row, n in enumerate(lengths):
        alone = fill(empty(recipe, tables, batch_size=1), key[row : row + 1, :n], value[row : row + 1, :n])
        for stream in ("key", "value"):
            one, many = getattr(alone, stream), getattr(layer, stream)
            assert_same_bits(one.blocks, jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], many.blocks))


def test_broken_numbers_stay_in_their_token(text, tables: Tables) -> None:
    _, key, value = text
    broken = key.at[0, 20, 0, 3].set(jnp.nan).at[0, 21, 0, 4].set(jnp.inf).at[0, 22, 0, 5].set(3e38)
    for recipe in FRAMED[:4]:
        served, clean = (read(fill(empty(recipe, tables), each, value).key) for each in (broken, key))
        assert bool(jnp.isfinite(served).all())
        assert float(jnp.abs(served).max()) < 2.0**24
        others = np.setdiff1d(np.arange(50), [20, 21, 22])
        np.testing.assert_allclose(served[:, :, others], clean[:, :, others], atol=1e-4)


def test_a_missing_number_counts_as_its_mean_and_costs_no_other(text, tables: Tables) -> None:
    _, key, value = text
    layer = empty("key@pre=int8(block_size=4,static_mean=true,whiten=true)", tables)
    served = read(fill(layer, key.at[0, 20, 0, 3].set(jnp.nan), value).key)[0, 0, 20]
    np.testing.assert_allclose(served, key[0, 20, 0].at[3].set(MEAN[0, 3]), atol=0.05)


def test_cache_file_keeps_frames_bit_for_bit(text, tables: Tables, tmp_path) -> None:
    _, key, value = text
    recipe = Recipe.parse(
        "key=turboquant(bits=3,block_size=8,static_mean=true),value=lattice(block_size=8,static_mean=true),recent=4"
    )
    whitened = parse("key@pre=lattice(block_size=8,whiten=true,static_mean=true)")
    for each in (recipe, whitened):
        cache = CompressedCache.init(SHAPE, each, batch_size=2, max_length=MAX_LENGTH, tables=tables)
        cache = cache.replace_layers((fill(cache.layers[0], key, value),))
        cache.save(tmp_path / "cache")
        loaded = CompressedCache.load(tmp_path / "cache")
        assert jax.tree.structure(loaded) == jax.tree.structure(cache)
        assert_same_bits(loaded, cache)
        assert loaded.layers[0].key.frame is not None
        assert_same_bits(read(loaded.layers[0].key), read(cache.layers[0].key))


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("key=int8(block_size=4)", 0, 0),
        ("both=int8(block_size=4,static_mean=true)", 2 * 16 + 8, 2 * 16),
        ("key@pre=int8(block_size=4,static_mean=true)", 2 * 16, 0),
        ("key@pre=int8(block_size=4,whiten=true)", 2 * 2 * 16 * 16, 0),
        ("key@pre=int8(block_size=4,static_mean=true,whiten=true)", 2 * 16 + 2 * 2 * 16 * 16, 0),
    ],
)
def test_tables_are_charged_as_fitted(recipe: str, key: int, value: int, tables: Tables) -> None:
    parsed = parse(recipe)
    report = cache_report(SHAPE, parsed, max_length=MAX_LENGTH, tables=tables)
    assert [stream.fitted for stream in report.streams] == [4 * key, 4 * value]
    cache = CompressedCache.init(SHAPE, parsed, batch_size=1, max_length=MAX_LENGTH, tables=tables)
    assert report.table_nbytes == 4 * (key + value)
    seeded = sum(stream.seeded for stream in report.streams)
    lengths = 2 * 4
    assert report.nbytes + report.table_nbytes + seeded + lengths == cache_nbytes(cache)


def test_tables_of_other_layers_do_not_retrace(text, tables: Tables) -> None:
    _, key, value = text
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(LayerCache.append, n=1), static_argnames="rope")
    for scale in (1.0, 2.0):
        other = {where: jax.tree.map(lambda leaf, scale=scale: leaf * scale, found) for where, found in tables.items()}
        traced(empty(FRAMED[3], other), key, value, rope=ROPE)


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("key=int8(static_mean=true)", {"static_mean": None}, "needs the table 'static_mean'; fit it with"),
        ("key=int8(static_mean=true)", {"rope_frequencies": None}, "needs the table 'rope_frequencies'"),
        ("key@pre=int8(whiten=true)", {"unwhitening": None}, "needs the table 'unwhitening'"),
        (
            "key=int8(static_mean=true)",
            {"static_mean": (3, 16)},
            "table 'static_mean' has shape (3, 16), needs (2, 16); fit it with",
        ),
        ("key@pre=int8(whiten=true)", {"whitening": (2, 16, 8)}, "'whitening' has shape (2, 16, 8)"),
        (
            "key=int8(whiten=true)",
            {},
            "whiten=true is for keys stored before their rotary embedding; write key@pre=int8(whiten=true)",
        ),
        ("value=int8(whiten=true)", {}, "whiten=true is for keys"),
    ],
)
def test_what_is_missing_is_said_in_one_line(recipe: str, change: dict, message: str, tables: Tables) -> None:
    found = dict(tables[0, "key"])
    for name, shape in change.items():
        if shape is None:
            del found[name]
        else:
            found[name] = jnp.zeros(shape)
    with pytest.raises(ValueError, match=r"(?s).") as caught:
        empty(recipe, {(0, "key"): found, (0, "value"): found})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "None" in str(list(change.values())):
        with pytest.raises(ValueError, match="needs the table"):
            empty(recipe, None)


def test_a_frame_is_asked_for_by_the_codec_alone(tables: Tables) -> None:
    assert empty("key=int8(block_size=4)", tables).key.frame is None
    framed = empty("key=int8(block_size=4,static_mean=true)", tables)
    assert framed.key.frame is not None
    assert framed.key.frame.whitening is None
    assert framed.value.frame is None


def test_realistic_keys_lose_less_in_their_frame() -> None:
    """Synthetic keys have a mean and channels far above the rest, as those of trained models have."""
    shape = CacheShape(num_layers=1, num_kv_heads=1, head_dim=64)
    keys = synthetic_kv(0, 512, 64, "key")
    found = {"static_mean": jnp.mean(keys, axis=0, keepdims=True)}
    errors = []
    for flag in ("false", "true"):
        recipe = Recipe.parse(f"key@pre=turboquant(bits=3,block_size=16,static_mean={flag}),sinks=0,recent=1")
        cache = CompressedCache.init(
            shape, recipe, batch_size=1, max_length=513, dtype=jnp.float32, tables={(0, "key"): found}
        )
        new = keys[None, :, None]
        layer = append(cache.layers[0], new, new, rope=dataclasses.replace(ROPE, head_dim=64)).layer
        served = read(layer.key)[0, 0, :512]
        errors.append(float(jnp.sum((served - keys) ** 2) / jnp.sum((keys - keys.mean(axis=0)) ** 2)))
    assert errors[1] < 0.15 * errors[0]
