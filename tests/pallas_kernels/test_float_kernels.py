"""Decode steps over ``fp8`` and ``identity``: in an emulator, lowered for a GPU without one, and on a GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from decode_steps import SCALE, assert_attends, assert_gpu_attends, assert_refused, attended, filled, layer_of, step
from mosaic import lowered, needs_mosaic

from kakeya_jax.cache import CacheShape, CompressedCache
from kakeya_jax.pallas_kernels.attention import emulated_ops, warp_lane
from kakeya_jax.pallas_kernels.attention.float_shape import FloatCodes, FloatShape
from kakeya_jax.pallas_kernels.attention.float_tiles import FloatRefs, FloatTiles
from kakeya_jax.recipe import Recipe
from kakeya_jax.stream import read

ALL_CODED = ",sinks=0,recent=1"
FEW = [
    ("both=fp8", 128, 4),
    ("both=identity", 128, 4),
    ("key=fp8,value=identity", 64, 8),
]
CASES = [
    *FEW,
    ("both=fp8(block_size=64)", 64, 3),
    ("both=fp8(block_size=64),sinks=0,recent=1", 128, 8),
    ("both=fp8(scale=none)", 128, 1),
    ("key=fp8,value=fp8(scale=none)", 64, 5),
    ("both=identity(block_size=64)", 64, 1),
    ("both=identity,sinks=0,recent=1", 128, 7),
    ("key=identity,value=fp8", 128, 2),
    ("both=identity", 64, 12),
]


@pytest.mark.parametrize(
    ("recipe", "dim", "group"), [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[len(FEW) :])]
)
def test_decode_step_emulated(recipe: str, dim: int, group: int):
    layer, query, positions = filled(recipe, dim, group)
    assert_attends(step(layer, query, positions, interpret=True), attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("codec", ["fp8(block_size=64)", "identity(block_size=64)"])
@pytest.mark.parametrize("size", [1e-6, pytest.param(0.0, marks=pytest.mark.slow), 3e4])
def test_extreme_values_and_a_dominating_token(codec: str, size: float):
    """Values that are zero, or near either end of float16; one token has nearly all weight."""
    k, v, q = jax.random.split(jax.random.key(0), 3)
    value = size * jax.random.normal(v, (1, 193, 2, 64))
    key = jax.random.normal(k, (1, 193, 2, 64)).at[:, 7].multiply(20.0)
    layer = layer_of(f"both={codec}{ALL_CODED}", key, value)
    query, positions = jax.random.normal(q, (1, 1, 4, 64)), jnp.array([[192]])
    found, expected = step(layer, query, positions, interpret=True), attended(layer, query, positions)
    assert_attends(found, expected, 1e-3)
    assert np.isfinite(np.asarray(found)).all()


def test_bfloat16_beyond_the_range_of_float16_is_attended_to():
    k, v, q = jax.random.split(jax.random.key(0), 3)
    key, value = 1e20 * jax.random.normal(k, (1, 193, 1, 64)), 1e30 * jax.random.normal(v, (1, 193, 1, 64))
    layer = layer_of(f"both=identity(block_size=64){ALL_CODED}", key, value)
    query, positions = 1e-20 * jax.random.normal(q, (1, 1, 2, 64)), jnp.array([[192]])
    found, expected = step(layer, query, positions, interpret=True), attended(layer, query, positions)
    assert_attends(found / 1e30, expected / 1e30, 1e-3)


@pytest.mark.parametrize("codec", ["fp8(block_size=64)", "identity(block_size=64)"])
def test_many_small_weights_beside_a_large_one_are_not_lost(codec: str):
    """Weights of 1e-6 in the tile of a dominating token whose value is zero: they alone make the result."""
    key = jnp.zeros((1, 193, 2, 64)).at[:, 5].set(1.0)
    value = jax.random.normal(jax.random.key(1), (1, 193, 2, 64)) + 1.0
    layer = layer_of(f"both={codec}{ALL_CODED}", key, value.at[:, 5].set(0.0).at[:, 192].set(0.0))
    large = jnp.swapaxes(jax.jit(read)(layer.key)[:, :, 5:6], 1, 2)
    query = large * 14.0 / SCALE / jnp.sum(large * large, axis=-1, keepdims=True)
    positions = jnp.array([[192]])
    expected = attended(layer, query, positions)
    assert np.linalg.norm(expected) < 1e-2
    assert_attends(step(layer, query, positions, interpret=True), expected, 1e-3)


@pytest.mark.parametrize("splits", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_result_does_not_depend_on_the_number_of_splits(splits: int):
    layer, query, positions = filled("both=fp8(block_size=64)", 64, 4)
    found = step(layer, query, positions, splits=splits, interpret=True)
    assert_attends(found, attended(layer, query, positions), 1e-3)


def test_every_number_of_e4m3_becomes_float16():
    every = np.arange(256, dtype=np.uint8)
    with emulated_ops.launch(2, 1):
        pairs = emulated_ops.halves_of_e4m3(every.view(np.uint32).reshape(2, 32))
    found = np.stack(pairs, axis=-1).view(np.float16).reshape(-1)
    np.testing.assert_array_equal(found, every.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


SHAPES = [(128, 1, 1, 32), (128, 2, 2, 16), (64, 1, 1, 64), (64, 2, 2, 32), (128, 1, 2, 16), (64, 1, 2, 32)]


def shape_of(dim: int, key: int, value: int, group: int = 4) -> FloatShape:
    return FloatShape(
        dim=dim, group=group, splits=1, states=1, warps=4, capacity=128,
        key=FloatCodes(nbytes=key, scaled=key == 1), value=FloatCodes(nbytes=value, scaled=value == 1),
    )  # fmt: skip


@pytest.mark.parametrize(("dim", "key", "value", "tile"), SHAPES)
@pytest.mark.parametrize("group", [4, 8])
def test_three_programs_fit_on_a_multiprocessor(dim: int, key: int, value: int, tile: int, group: int):
    """Of an H100: 228 KB of shared memory, one of them for each program besides its own. Copies under way at any time
    hide the latency of memory: 3 TB/s times 1 us are 23 KB for each."""
    shape = shape_of(dim, key, value, group)
    assert shape.tile == tile
    assert shape.stages >= 2
    assert 3 * (4 * shape.shared_floats + 1024) <= 228 * 1024
    assert 12 * (shape.stages - 1) * shape.stage_nbytes >= 40 * 1024


@pytest.mark.parametrize(("dim", "nbytes"), [(128, 1), (128, 2), (64, 1), (64, 2)])
def test_eight_tokens_are_transposed_without_bank_conflicts(dim: int, nbytes: int):
    """The eight rows of each matrix are in eight different groups of four banks."""
    shape = shape_of(dim, nbytes, nbytes)
    with emulated_ops.launch(1, 4):
        lane = warp_lane.Lane(emulated_ops)
        nothing = FloatRefs(np.zeros(4, np.uint8), np.zeros(4, np.float16))
        tiles = FloatTiles(emulated_ops, shape, lane, emulated_ops.integer(0), (nothing, nothing))
        loaded = []

        @dataclasses.dataclass
        class Ops:
            def __getattr__(self, name: str):
                return getattr(emulated_ops, name)

            def shared_transposes(self, where: emulated_ops.Pointer, at: int):
                loaded.append(where.at[0] + at)
                return [emulated_ops.integer(0)] * 4

        tiles.ops = Ops()
        slot = emulated_ops.shared_address(shape.shared_floats)
        for pair in range(shape.value_row // 32):
            tiles.value_words(slot, pair)
    for places in loaded:
        for matrix in places.reshape(4, 8):
            assert len(set(matrix // 16 % 8)) == 8
    assert sorted(np.concatenate(loaded)) == list(
        range(shape.stage_values, shape.stage_values + shape.tile * shape.value_row, 16)
    )


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("key=fp8,value=turboquant", "fp8 beside turboquant"),
        ("key=int8,value=identity", "int8 beside identity"),
        ("both=fp8(mix_heads=true)", r"fp8\(mix_heads=True\)"),
        ("both=identity(block_size=32)", "pages of 32 tokens"),
        ("key@pre=fp8,value=fp8", "before their rotary embedding"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(recipe: str, reason: str):
    assert_refused(recipe, reason)


@needs_mosaic
@pytest.mark.parametrize("recipe", ["both=fp8", "both=identity"])
@pytest.mark.parametrize("group", [4, 8])
def test_lowers_for_a_gpu(recipe: str, group: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    parsed = Recipe.parse(recipe + ",sinks=2,recent=5")
    layer = CompressedCache.init(shape, parsed, batch_size=1, max_length=300, dtype=jnp.float32).layers[0]
    query, positions = jnp.zeros((1, 1, 2 * group, 64)), jnp.array([[200]])
    assert lowered(step, layer, query, positions).count("custom_call @mosaic_gpu") == 1


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize(("recipe", "dim", "group"), CASES)
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_gpu_decode_step(recipe: str, dim: int, group: int, spread: float):
    layer, query, positions = filled(recipe, dim, group, spread)
    assert_gpu_attends(layer, query, positions)
