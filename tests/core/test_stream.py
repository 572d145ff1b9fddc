"""The cache's promise: how a text is cut into chunks changes nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kakeya_jax import stream
from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache, chunk_positions
from kakeya_jax.codecs.registry import codec_config, codec_names
from kakeya_jax.models.attention import attend, dense_attention
from kakeya_jax.neutral_tables import neutral_tables
from kakeya_jax.recipe import Recipe, Rule
from kakeya_jax.rope import Rope, apply_rope

SHAPE = CacheShape(num_layers=1, num_kv_heads=2, head_dim=16)
ROPE = Rope(head_dim=16)
LENGTH, MAX_LENGTH = 61, 64
INT_RECIPE = Recipe(
    rules=(
        Rule(stream="key", codec=codec_config("int4", group_size=16, block_size=8), rope="pre"),
        Rule(codec=codec_config("int8", block_size=4)),
    ),
    sinks=3,
    recent=5,
)
attend_jit = jax.jit(attend, static_argnames=("rope", "scale", "implementation"))
append = jax.jit(lambda layer, key, value, *, rope: layer.append(key, value, rope=rope), static_argnames="rope")
read = jax.jit(stream.read)


@pytest.fixture(scope="module")
def text() -> tuple[jax.Array, jax.Array, jax.Array]:
    key, value, query = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(query, (2, LENGTH, 4, 16)),
        jax.random.normal(key, (2, LENGTH, 2, 16)),
        jax.random.normal(value, (2, LENGTH, 2, 16)),
    )


def empty(recipe: Recipe, batch_size: int = 2, max_length: int = MAX_LENGTH) -> LayerCache:
    tables = neutral_tables(SHAPE, recipe)
    return CompressedCache.init(SHAPE, recipe, batch_size=batch_size, max_length=max_length, tables=tables).layers[0]


def run(recipe: Recipe, text, chunks: list[int]) -> tuple[jax.Array, LayerCache]:
    layer, outs, start = empty(recipe), [], 0
    for size in chunks:
        part = slice(start, start + size)
        positions = chunk_positions(layer.key.length, size)
        out, layer = attend_jit(
            *(array[:, part] for array in text), layer, positions=positions, valid=None, rope=ROPE, scale=0.25
        )
        outs.append(out)
        start += size
    assert start == LENGTH
    return jnp.concatenate(outs, axis=1), layer


def assert_same_bits(left, right) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7, 20, 1, 30, 3], [8] * 7 + [5]], ids=["token", "mixed", "page"])
def test_chunking_changes_nothing(text, chunks: list[int]):
    bulk_out, bulk = run(INT_RECIPE, text, [LENGTH])
    out, layer = run(INT_RECIPE, text, chunks)
    assert_same_bits(bulk, layer)
    chex.assert_trees_all_close(out, bulk_out, atol=2e-6)


SMALL = {
    "kakeya": "block_size=16,kmeans_centers=4,mix_heads=true",
    "kivi": "block_size=16,group_size=8",
    "int4": "group_size=16",
}


@pytest.mark.parametrize("name", codec_names())
def test_every_codec_gives_the_same_codes_however_it_is_fed(name: str, text):
    recipe = Recipe.parse(f"both={name}({SMALL.get(name, 'block_size=8')}),sinks=3,recent=5")
    _, key, value = text
    bulk = append(empty(recipe), key, value, rope=ROPE).layer
    for sizes in ([9] * 6 + [1] * 7, [1] * LENGTH):  # each length compiles
        layer, start = empty(recipe), 0
        for size in sizes:
            part = slice(start, start + size)
            layer = append(layer, key[:, part], value[:, part], rope=ROPE).layer
            start += size
        assert_same_bits(bulk, layer)


@settings(max_examples=4, deadline=None)
@given(
    sinks=st.sampled_from([0, 5]),
    recent=st.sampled_from([1, 7]),
    cuts=st.lists(st.sampled_from([1, 9, 24]), min_size=2, max_size=6),
)
def test_any_window_and_cut_gives_the_same_codes(sinks: int, recent: int, cuts: list[int]):
    recipe = Recipe(rules=INT_RECIPE.rules, sinks=sinks, recent=recent)
    total = sum(cuts)
    new = jax.random.normal(jax.random.key(total), (1, total, 2, 16))
    bulk = append(empty(recipe, 1, 200), new, new, rope=ROPE).layer
    layer, start = empty(recipe, 1, 200), 0
    for size in cuts:
        layer = append(layer, new[:, start : start + size], new[:, start : start + size], rope=ROPE).layer
        start += size
    assert_same_bits(bulk, layer)


def test_mixed_heads_share_one_skeleton_and_come_back_in_place(text):
    _, key, value = text
    recipe = Recipe.parse("both=kakeya(bits=4,block_size=16,kmeans_centers=4,mix_heads=true),sinks=3,recent=5")
    layer = append(empty(recipe), key, value, rope=ROPE).layer
    assert layer.key.blocks.basis.shape == (2, 1, 3, 16, 16)
    assert layer.key.blocks.norm.shape == (2, 1, 3, 2 * 16)
    served, original = read(layer.key)[:, :, :LENGTH], jnp.swapaxes(key, 1, 2)
    error = jnp.sqrt(jnp.sum((served - original) ** 2, axis=(0, 2, 3)) / jnp.sum(original**2, axis=(0, 2, 3)))
    assert float(error.max()) < 0.2  # a swap of heads or tokens would give an error near 1.4


def test_identity_is_dense_attention(text):
    query, key, value = text
    positions = jnp.arange(LENGTH)[None, :, None]
    dense = dense_attention(apply_rope(query, positions, ROPE), apply_rope(key, positions, ROPE), value, scale=0.25)
    out, _ = run(Recipe(rules=(), sinks=2, recent=3), text, [20, 41])
    # The only difference is the rounding of K and V to bfloat16.
    chex.assert_trees_all_close(out, dense, atol=0.01)
    coded, _ = run(INT_RECIPE, text, [20, 41])
    assert float(jnp.abs(coded - dense).max()) > 0.05


def test_exactly_the_promised_tokens_are_exact(text):
    _, key, value = text
    layer = append(empty(INT_RECIPE), key, value, rope=ROPE).layer
    served = read(layer.key)[:, :, :LENGTH]
    exact = jnp.all(served == jnp.swapaxes(key, 1, 2).astype(jnp.bfloat16).astype(jnp.float32), axis=-1)
    sinks, recent, page = 3, 5, 8
    first_exact = sinks + (LENGTH - sinks - recent) // page * page
    expected = (np.arange(LENGTH) < sinks) | (np.arange(LENGTH) >= first_exact)
    np.testing.assert_array_equal(np.asarray(exact[0, 0]), expected)
    assert expected[-recent:].all()
    assert expected.sum() - sinks < recent + page


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_match_the_row_alone(text, side: str):
    query, key, value = text
    lengths = (LENGTH, 38)
    offset = jnp.arange(LENGTH)
    valid = jnp.stack([offset < n if side == "right" else offset >= LENGTH - n for n in lengths])
    positions = chunk_positions(jnp.zeros(2, jnp.int32), LENGTH, valid)

    def place(array: jax.Array) -> jax.Array:
        rows = [array[0], jnp.zeros_like(array[1]).at[valid[1]].set(array[1, : lengths[1]])]
        return jnp.stack(rows)

    out, layer = attend_jit(
        place(query), place(key), place(value), empty(INT_RECIPE),
        positions=positions, valid=valid, rope=ROPE, scale=0.25,
    )  # fmt: skip
    for row, n in enumerate(lengths):
        alone_out, alone = attend_jit(
            query[row : row + 1, :n], key[row : row + 1, :n], value[row : row + 1, :n], empty(INT_RECIPE, 1),
            positions=jnp.arange(n)[None], valid=None, rope=ROPE, scale=0.25,
        )  # fmt: skip
        chex.assert_trees_all_close(out[row][valid[row]], alone_out[0], atol=2e-6)
        for name in ("key", "value"):
            one, many = getattr(alone, name), getattr(layer, name)
            assert_same_bits(one.blocks, jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], many.blocks))
            assert_same_bits(read(one)[0, :, :n], read(many)[row, :, :n])


def test_overflow_is_an_error_before_anything_is_lost(text):
    _, key, value = text
    layer = append(empty(INT_RECIPE), key, value, rope=ROPE).layer
    with pytest.raises(ValueError, match="max_length=64; make it with max_length=71 or more"):
        layer.append(key[:, :10], value[:, :10], rope=ROPE)
    update = append(layer, key[:, :10], value[:, :10], rope=ROPE)
    assert not bool(update.fits.any())
    assert_same_bits(update.layer, layer)


def test_a_cache_may_be_a_constant_of_a_compiled_function(text):
    _, key, value = text
    held = empty(INT_RECIPE)
    found = jax.jit(lambda key, value: held.append(key, value, rope=ROPE).layer)(key, value)
    assert_same_bits(found, append(held, key, value, rope=ROPE).layer)


def test_broken_numbers_are_contained_or_refused(text):
    _, key, value = text
    broken = key.at[0, 20, 0, 3].set(jnp.nan).at[0, 21, 0, 4].set(jnp.inf)
    served, clean = (
        read(append(empty(INT_RECIPE), each, value, rope=ROPE).layer.key)[:, :, :50] for each in (broken, key)
    )
    assert bool(jnp.isfinite(served).all())
    assert_same_bits(served[1], clean[1])
    with pytest.raises(ValueError, match=r"chunk\['key'\] holds 2 non-finite values"):
        empty(INT_RECIPE).append(broken, value, rope=ROPE, check_finite=True)


def test_overflow_inside_jit_poisons_the_output(text):
    query, key, value = text
    layer = append(empty(INT_RECIPE), key, value, rope=ROPE).layer
    positions = chunk_positions(layer.key.length, 10)
    out, after = attend_jit(
        query[:, :10],
        key[:, :10],
        value[:, :10],
        layer,
        positions=positions,
        valid=None,
        rope=ROPE,
        scale=0.25,
    )
    assert bool(jnp.isnan(out).all())
    assert_same_bits(after, layer)


def test_a_chunk_longer_than_the_cache_is_refused_at_trace_time(text):
    _, key, value = text
    with pytest.raises(ValueError, match="61 tokens does not fit a cache of max_length=32"):
        append(empty(INT_RECIPE, 2, 32), key, value, rope=ROPE)


def test_no_retrace_over_512_steps():
    chex.clear_trace_counter()
    layer = empty(INT_RECIPE, 1, 512)
    step = jax.jit(
        chex.assert_max_traces(
            lambda layer, x: attend(
                jnp.repeat(x, 2, axis=2), x, x, layer,
                positions=layer.key.length[:, None], valid=None, rope=ROPE, scale=0.25,
            ),
            n=1,
        ),
        donate_argnums=0,
    )  # fmt: skip
    out = x = jnp.ones((1, 1, 2, 16))
    for _ in range(512):
        out, layer = step(layer, x)
    chex.assert_trees_all_close(out, jnp.ones_like(out), atol=0.02)
    assert int(layer.key.length[0]) == 512
