"""Attention over transform-coded pages: against the reference in an emulator, lowered for a GPU, and on one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from klt_streams import ROPE, klt_layer
from late_copies import LateCopies
from mosaic import lowered, needs_mosaic

from kakeya_jax.pallas_kernels.attention import compressed_attention, mosaic_gpu
from kakeya_jax.pallas_kernels.attention.klt_step import layout_table
from kakeya_jax.pallas_kernels.attention.program_counts import HeadShares
from kakeya_jax.rope import Rope, YarnScaling

SCALE = 0.1
KEY_WIDTHS = [[8, 6, 4, 4, 2, 2, 0, 0], [6, 4, 4, 4, 2, 0, 0, 0]]
VALUE_WIDTHS = [[4, 4, 2, 2, 2, 2, 0, 0], [8, 6, 4, 0, 2, 0, 0, 0]]
NOTHING = [[0] * 8] * 2


def difference(found: Any, expected: Any) -> float:
    """Of the row where it is largest, beside the length of the row."""
    found, expected = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (found, expected))
    return float(np.max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)))


def emulated(query: Any, layer: Any, positions: Any, *, splits: int | HeadShares = 2, rope: Rope = ROPE) -> Any:
    def step(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(
            query, key, value, positions=positions, rope=rope, scale=SCALE, interpret=True, splits=splits
        ).out

    return jax.jit(step)(query, layer.key, layer.value, positions)


def reference(query: Any, layer: Any, positions: Any, *, rope: Rope = ROPE) -> Any:
    step = jax.jit(compressed_attention, static_argnames=("rope", "scale", "implementation"))
    return step(query, layer.key, layer.value, positions=positions, rope=rope, scale=SCALE, implementation="reference")


@pytest.mark.parametrize(("group", "splits"), [(1, 1), (2, 3), (3, 1), (4, 2), (5, 7), (12, 2)])
def test_emulated_steps_are_the_reference(group: int, splits: int):
    step = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=group)
    assert difference(emulated(step[1], step[0], step[2], splits=splits), reference(step[1], step[0], step[2])) < 1e-3


@pytest.mark.parametrize("widths", [KEY_WIDTHS, [[2] * 8] * 2, [[2] + [0] * 7] * 2], ids=["two", "three", "four"])
def test_programs_wait_for_their_copies(widths: Any, monkeypatch: pytest.MonkeyPatch):
    """Of tiles of these sizes, so many are under way in a warp, which has four tiles and more."""
    layer, query, positions = klt_layer(widths, widths, group=4, length=1100)
    expected = np.asarray(emulated(query, layer, positions, splits=1))
    late = LateCopies(monkeypatch)
    np.testing.assert_array_equal(emulated(query, layer, positions, splits=1), expected)
    assert late.waits > 8
    assert late.waits_out > 2


@pytest.mark.parametrize(("group", "splits"), [(4, 3), (8, 6), (2, 6)])
def test_programs_of_a_block_make_operands_together(group: int, splits: int):
    """Of heads that have a multiple of three programs; a mean of another size for each."""
    mean = np.random.default_rng(7).standard_normal((2, 128)) * [[1.0], [0.01]]
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=group, length=700, mean=mean)
    found = emulated(query, layer, positions, splits=splits)
    assert difference(found, reference(query, layer, positions)) < 1e-3
    np.testing.assert_allclose(found, emulated(query, layer, positions, splits=2), atol=1e-5)


def test_unequal_programs_are_refused():
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=1)
    for shares in (HeadShares(3, 1, (2, 1)), HeadShares(4, residents=4, teams=4)):
        with pytest.raises(ValueError, match="give their number alone"):
            emulated(query, layer, positions, splits=shares)


@pytest.mark.parametrize(
    ("key_widths", "value_widths"),
    [(NOTHING, VALUE_WIDTHS), (KEY_WIDTHS, NOTHING), ([[8] * 8] * 2, [[8] * 8] * 2), ([[2] * 8] * 2, [[6] * 8] * 2)],
    ids=["no keys", "no values", "8 bits", "2 and 6 bits"],
)
def test_any_widths(key_widths: Any, value_widths: Any):
    layer, query, positions = klt_layer(key_widths, value_widths, group=4)
    assert difference(emulated(query, layer, positions), reference(query, layer, positions)) < 1e-3


@pytest.mark.parametrize(
    "recipe",
    [
        "both=klt(block_size=64),sinks=0,recent=1",
        "both=klt(block_size=128,page_mean=false),sinks=4,recent=128",
        "both=klt(block_size=192),sinks=2,recent=5",
    ],
)
def test_other_pages_and_windows(recipe: str):
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=4, recipe=recipe)
    assert difference(emulated(query, layer, positions), reference(query, layer, positions)) < 1e-3


def test_fewer_curves():
    """A base of 5e5 takes 32, 1e4 takes 40; two queries more than columns have room for in pairs."""
    rope = Rope(head_dim=128, theta=5e5)
    for group in (4, 6):
        layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=group, rope=rope)
        found = emulated(query, layer, positions, rope=rope)
        assert difference(found, reference(query, layer, positions, rope=rope)) < 1e-3


@pytest.mark.parametrize(
    "pair", [0, pytest.param(20, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.slow)]
)
def test_a_mean_with_a_large_pair(pair: int):
    """Its logits go to a hundred, and the fastest pair turns by a radian a token."""
    mean = np.random.default_rng(5).standard_normal(128) / 10
    mean[[pair, pair + 64]] = 60, 30
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=4, mean=mean)
    assert difference(emulated(3 * query, layer, positions), reference(3 * query, layer, positions)) < 3e-3


def test_programs_of_many_pages():
    """Products of two times four pages' queries, and of four that are left."""
    layer, query, positions = klt_layer(
        KEY_WIDTHS, VALUE_WIDTHS, group=4, recipe="both=klt(block_size=64),sinks=2,recent=5", length=1000
    )
    assert difference(emulated(query, layer, positions), reference(query, layer, positions)) < 1e-3


@pytest.mark.parametrize("size", [1e5, pytest.param(1e-5, marks=pytest.mark.slow)])
def test_maps_and_queries_of_any_size(size: float):
    """Keys so much larger, queries so much smaller; one query is zero."""
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=4)
    key = layer.key
    codec = dataclasses.replace(key.codec, synthesis=key.codec.synthesis * size, mean=key.codec.mean * size)
    key = dataclasses.replace(key, codec=codec, sinks=key.sinks * size, tail=key.tail * size)
    layer, query = dataclasses.replace(layer, key=key), query.at[:, :, 1].set(0) / size
    found = emulated(query, layer, positions)
    assert difference(found, reference(query, layer, positions)) < 1e-3


def test_a_rotary_embedding_with_a_factor():
    rope = dataclasses.replace(ROPE, scaling=YarnScaling(factor=4.0, original_max_position_embeddings=128))
    assert rope.attention_factor > 1
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=4)
    codec = dataclasses.replace(layer.key.codec, rope_frequencies=jnp.asarray(rope.frequencies))
    layer = dataclasses.replace(layer, key=dataclasses.replace(layer.key, codec=codec))
    found = emulated(query, layer, positions, rope=rope)
    assert difference(found, reference(query, layer, positions, rope=rope)) < 1e-3


def test_pages_that_are_not_there_are_not_read():
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=4)

    def poisoned(stream: Any) -> Any:
        """The second row has one page, the third has none."""
        nan = jnp.asarray(jnp.nan, jnp.float16)
        scale = stream.blocks.page_mean_scale.at[1, :, 1:].set(nan).at[2].set(nan)
        codes = stream.blocks.words.at[1, :, 1:].set(255).at[2].set(255)
        blocks = dataclasses.replace(stream.blocks, page_mean_scale=scale, words=codes)
        return dataclasses.replace(stream, blocks=blocks)

    broken = dataclasses.replace(layer, key=poisoned(layer.key), value=poisoned(layer.value))
    np.testing.assert_array_equal(emulated(query, broken, positions), emulated(query, layer, positions))


def test_a_token_that_dominates():
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=4)
    scale = layer.key.blocks.scale.at[:, :, 0, :, 17].set(220)
    blocks = dataclasses.replace(layer.key.blocks, scale=scale)
    layer = dataclasses.replace(layer, key=dataclasses.replace(layer.key, blocks=blocks))
    assert difference(emulated(query, layer, positions), reference(query, layer, positions)) < 1e-3


def test_where_a_head_begins_and_what_it_holds():
    layer, _, _ = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=1)
    table = layout_table(layer.key.codec.layout, layer.value.codec.layout, 128)
    words = layer.key.codec.page_words(128)
    assert table[:, 0].tolist() == [words.head_offset(0), words.head_offset(1)]
    assert table[:, 1].tolist() == [64 * 16 * sum(head) // 8 for head in KEY_WIDTHS]
    assert [int(table[1, 5]) >> 4 * group & 15 for group in range(8)] == VALUE_WIDTHS[1]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("both=klt(form=quality),sinks=0,recent=1", "klt's quality form"),
        ("both=klt(block_size=32),sinks=0,recent=1", "pages of 32 tokens"),
        ("key=klt,value=int4(block_size=128),sinks=0,recent=1", "klt"),
    ],
)
def test_what_the_kernel_does_not_take(recipe: str, reason: str):
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=1, recipe=recipe)
    with pytest.raises(NotImplementedError, match=reason):
        emulated(query, layer, positions)


@needs_mosaic
@pytest.mark.parametrize("group", [4, 8])
def test_steps_lower_for_cuda(group: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=group)

    def step(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(query, key, value, positions=positions, rope=ROPE, scale=SCALE)

    program = lowered(step, query, layer.key, layer.value, positions)
    assert program.count("custom_call @mosaic_gpu") == 1


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("group", [1, 4, 8, 12])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gpu_steps_are_the_reference(group: int, dtype: Any):
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=group, length=2500, dtype=dtype)
    step = jax.jit(compressed_attention, static_argnames=("rope", "scale", "implementation"))

    def run(name: str) -> Any:
        return step(
            query, layer.key, layer.value, positions=positions, rope=ROPE, scale=SCALE, implementation=name
        ).astype(jnp.float32)

    found = run("mosaic_gpu")
    # Results of two bytes are rounded to a part in 256.
    assert difference(found, run("reference")) < (2e-3 if dtype == jnp.float32 else 4e-3)
    np.testing.assert_array_equal(found, run("mosaic_gpu"))


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("group", [4, 8])
@pytest.mark.parametrize("splits", [1, 2, 3, 6, 7])
def test_gpu_steps_do_not_depend_on_how_many_programs_share_a_head(group: int, splits: int):
    """Of a multiple of three or four, those of a block make operands together."""
    layer, query, positions = klt_layer(KEY_WIDTHS, VALUE_WIDTHS, group=group, length=2500)

    @jax.jit
    def run(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(
            query, key, value, positions=positions, rope=ROPE, scale=SCALE, splits=splits
        ).out

    found = run(query, layer.key, layer.value, positions)
    assert difference(found, reference(query, layer, positions)) < 2e-3
    np.testing.assert_array_equal(found, run(query, layer.key, layer.value, positions))
