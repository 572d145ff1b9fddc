"""Decode steps over values coded by ``besicovitch``: in an emulator, lowered for a GPU without one, and on a GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_steps import LENGTHS, SCALE, assert_attends, assert_gpu_attends, assert_refused, attended, layer_of, step
from mosaic import lowered, needs_mosaic

from kakeya_jax import direction_words
from kakeya_jax.cache import CacheShape, CompressedCache, LayerCache
from kakeya_jax.codecs.besicovitch import BesicovitchConfig
from kakeya_jax.pallas_kernels.attention.besicovitch_shape import BesicovitchShape
from kakeya_jax.pallas_kernels.attention.besicovitch_tiles import pair_table
from kakeya_jax.pallas_kernels.attention.coded_shape import Codes
from kakeya_jax.recipe import Recipe
from kakeya_jax.stream import read

ALL_CODED = "key=turboquant(bits=4,block_size=64),value=besicovitch(block_size=64,subtract_mean=false),sinks=0,recent=1"
RECIPE = "key=turboquant(bits=4),value=besicovitch"
OF_64 = "key=turboquant(bits=3,block_size=64),value=besicovitch(block_size=64)"
CASES = [
    (RECIPE, 128, 4),
]
MORE_CASES = [
    (OF_64, 64, 8),
    ("key=turboquant(bits=3),value=besicovitch(block_size=64)", 64, 3),
    ("key=turboquant(bits=2),value=besicovitch(direction_bits=4)", 64, 1),
    ("key=turboquant(bits=4),value=besicovitch(magnitude_bits=2,subtract_mean=false),sinks=0,recent=1", 128, 5),
    ("key=turboquant(bits=3),value=besicovitch(magnitude_bits=3,magnitude_levels=reference)", 128, 2),
    ("key=int4,value=besicovitch(direction_bits=2,magnitude_bits=3)", 128, 3),
    ("key=kivi(bits=2),value=besicovitch", 128, 8),
    ("key=int8,value=besicovitch", 64, 6),
    (RECIPE, 64, 12),
]


def filled(
    recipe: str, dim: int, group: int, *, spread: float = 0.0, offset: float = 1.0
) -> tuple[LayerCache, jax.Array, jax.Array]:
    """A layer with rows of different lengths, a query for each, and their positions. Values of tokens differ in size
    by up to ``spread`` orders of magnitude, and have a mean of about ``offset`` in each channel."""
    k, v, q, s, m = jax.random.split(jax.random.key(group), 5)
    key = jax.random.normal(k, (3, 280, 2, dim))
    sizes = 10.0 ** -(spread * jax.random.uniform(s, (3, 280, 2, 1)))
    value = sizes * jax.random.normal(v, (3, 280, 2, dim)) + offset * jax.random.normal(m, (3, 1, 2, dim))
    return layer_of(recipe, key, value), jax.random.normal(q, (3, 1, 2 * group, dim)), jnp.array(LENGTHS)[:, None] - 1


@pytest.mark.parametrize(
    ("recipe", "dim", "group"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)]
)
def test_decode_step_emulated(recipe: str, dim: int, group: int):
    layer, query, positions = filled(recipe, dim, group)
    assert_attends(step(layer, query, positions, interpret=True), attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("group", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_values_of_sizes_that_span_orders_of_magnitude(group: int):
    """Scales of tokens between 1e-4 and 1, beside no mean and beside a mean far larger than they are."""
    for offset in (0.0, 30.0):
        layer, query, positions = filled(RECIPE, 128, group, spread=4.0, offset=offset)
        assert_attends(step(layer, query, positions, interpret=True), attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-6, 3e4])
def test_extreme_values_and_a_dominating_token(size: float):
    """Scales that are zero, the smallest and nearly the largest of float16; one token has nearly all weight."""
    k, v, q = jax.random.split(jax.random.key(0), 3)
    value = size * jax.random.normal(v, (1, 193, 2, 64))
    key = jax.random.normal(k, (1, 193, 2, 64)).at[:, 7].multiply(20.0)
    layer = layer_of(ALL_CODED, key, value)
    query, positions = jax.random.normal(q, (1, 1, 4, 64)), jnp.array([[192]])
    found, expected = step(layer, query, positions, interpret=True), attended(layer, query, positions)
    assert_attends(found, expected, 1e-3)
    assert np.isfinite(np.asarray(found)).all()


def test_many_small_weights_beside_a_large_one_are_not_lost():
    """Weights of 1e-6 in the tile of a dominating token whose value is zero: they alone make the result."""
    key = jnp.zeros((1, 193, 2, 64)).at[:, 5].set(1.0)
    value = jax.random.normal(jax.random.key(1), (1, 193, 2, 64)) + 1.0
    layer = layer_of(ALL_CODED, key, value.at[:, 5].set(0.0).at[:, 192].set(0.0))
    large = jnp.swapaxes(jax.jit(read)(layer.key)[:, :, 5:6], 1, 2)
    query = large * 14.0 / SCALE / jnp.sum(large * large, axis=-1, keepdims=True)
    positions = jnp.array([[192]])
    expected = attended(layer, query, positions)
    assert np.linalg.norm(expected) < 1e-2
    assert_attends(step(layer, query, positions, interpret=True), expected, 1e-3)


@pytest.mark.parametrize("splits", [1, 7])
def test_result_does_not_depend_on_the_number_of_splits(splits: int):
    layer, query, positions = filled(RECIPE, 128, 4)
    found = step(layer, query, positions, splits=splits, interpret=True)
    assert_attends(found, attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize(("dim", "bits", "width"), [(128, 4, 7), (128, 2, 7), (128, 4, 6), (64, 4, 7), (64, 3, 7)])
def test_three_programs_fit_on_a_multiprocessor(dim: int, bits: int, width: int):
    """Of an H100: 228 KB of shared memory, one of them for each program besides its own."""
    shape = BesicovitchShape(
        dim=dim, group=4, splits=1, states=1, warps=4, page=128, capacity=128, means=True,
        key=Codes(bits=bits, table=()), value=Codes(bits=width, table=(), halfway=False),
    )  # fmt: skip
    assert shape.stages >= 2
    assert 3 * (4 * shape.shared_floats + 1024) <= 228 * 1024


def test_the_table_holds_what_codes_decode_to():
    codec = BesicovitchConfig().build(64, stream="value")
    levels = codec.config.levels(64)
    assert levels is not None
    points = pair_table(levels, np.asarray(codec.directions)).view(np.float16).reshape(-1, 2)
    code = jax.eval_shape(codec.encode, jnp.zeros((64, 64)))
    every = np.arange(64 * 32).reshape(64, 32) % 128
    code = dataclasses.replace(
        code,
        pairs=direction_words.pack(jnp.asarray(every), 7),
        scale=jnp.ones(64, jnp.float16),
        mean=jnp.zeros(64, jnp.float16),
    )
    decoded = np.asarray(jax.jit(type(codec).decode)(codec, code))
    np.testing.assert_allclose(decoded.reshape(64, 32, 2), points[every], rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("both=besicovitch", "besicovitch in keys"),
        (
            "key=turboquant,value=besicovitch(group_size=4)",
            r"besicovitch\(group_size=4, direction_bits=3, magnitudes=4",
        ),
        ("key=turboquant,value=besicovitch(direction_bits=5)", "direction_bits=5, magnitudes=4"),
        ("key=turboquant,value=besicovitch(magnitude=float16)", "magnitudes=float16"),
        ("key=kakeya,value=besicovitch", "besicovitch"),
        ("key=turboquant,value=besicovitch(mix_heads=true)", "besicovitch of all heads together"),
        ("key=turboquant(block_size=32),value=besicovitch(block_size=32)", "pages of 32 tokens"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(recipe: str, reason: str):
    assert_refused(recipe, reason)


@needs_mosaic
def test_lowers_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    parsed = Recipe.parse(RECIPE + ",sinks=2,recent=5")
    layer = CompressedCache.init(shape, parsed, batch_size=1, max_length=300, dtype=jnp.float32).layers[0]
    query, positions = jnp.zeros((1, 1, 8, 64)), jnp.array([[200]])
    assert lowered(step, layer, query, positions).count("custom_call @mosaic_gpu") == 1


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize(("recipe", "dim", "group"), [*CASES, *MORE_CASES])
def test_gpu_decode_step(recipe: str, dim: int, group: int):
    for spread, offset in ((0.0, 1.0), (4.0, 0.0)):
        layer, query, positions = filled(recipe, dim, group, spread=spread, offset=offset)
        assert_gpu_attends(layer, query, positions)
