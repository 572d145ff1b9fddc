"""Decode steps over ``int4``, whose scales differ by group of channels: in an emulator and on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_steps import assert_attends, assert_gpu_attends, attended, filled, layer_of, step
from mosaic import needs_mosaic

FEW = [("both=int4", 128, 4), ("key=turboquant(bits=3),value=int4(affine=true)", 64, 8)]
CASES = [
    *FEW,
    ("both=int4", 64, 2),
    ("key=turboquant(bits=3),value=int4", 128, 8),
    ("both=int4(affine=true)", 128, 4),
    ("both=int4(block_size=64),sinks=0,recent=1", 128, 5),
    ("both=int4(group_size=64)", 128, 1),
    ("key=int4(group_size=64),value=int4(group_size=128)", 128, 3),
    ("key=int4,value=turboquant(bits=2)", 64, 4),
    ("key=int8,value=int4(group_size=64)", 64, 1),
    ("key=int8,value=int4(affine=true)", 64, 1),
    ("key=int4(affine=true,group_size=64),value=int4", 128, 6),
]


@pytest.mark.parametrize(
    ("recipe", "dim", "group"), [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[len(FEW) :])]
)
def test_decode_step_emulated(recipe: str, dim: int, group: int):
    layer, query, positions = filled(recipe, dim, group)
    assert_attends(step(layer, query, positions, interpret=True), attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("spread", [3.0, pytest.param(6.0, marks=pytest.mark.slow)])
def test_every_group_of_channels_is_as_exact_as_the_largest(spread: float):
    """Scales of a token that span orders of magnitude, in keys and in values."""
    layer, query, positions = filled("both=int4,sinks=0,recent=1", 64, 2, spread)
    expected = attended(layer, query, positions)
    found = np.asarray(step(layer, query, positions, interpret=True))
    for group in range(2):
        channels = slice(32 * group, 32 * group + 32)
        assert_attends(found[..., channels], expected[..., channels], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 1e-6, 4e5])
def test_extreme_values(size: float):
    """Scales that are zero, the smallest and the largest of float16; keys of another size in each group, so that one
    token's scales are far apart, and one token dominates."""
    k, v, q = jax.random.split(jax.random.key(0), 3)
    value = jax.random.normal(v, (1, 200, 1, 64)).at[:, :, :, :32].multiply(size)
    key = jax.random.normal(k, (1, 200, 1, 64)).at[:, 7, :, 32:].multiply(50.0)
    layer = layer_of("both=int4,sinks=0,recent=1", key.at[:, ::3, :, :32].multiply(1e-4), value)
    query, positions = jax.random.normal(q, (1, 1, 4, 64)), jnp.array([[199]])
    found, expected = step(layer, query, positions, interpret=True), attended(layer, query, positions)
    for channels in (slice(0, 32), slice(32, 64)):
        assert_attends(np.asarray(found)[..., channels], expected[..., channels], 1e-3)


@pytest.mark.parametrize("splits", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_result_does_not_depend_on_the_number_of_splits(splits: int):
    layer, query, positions = filled("both=int4(block_size=64)", 64, 4)
    found = step(layer, query, positions, splits=splits, interpret=True)
    assert_attends(found, attended(layer, query, positions), 1e-3)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize(("recipe", "dim", "group"), CASES)
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_gpu_decode_step(recipe: str, dim: int, group: int, spread: float):
    layer, query, positions = filled(recipe, dim, group, spread)
    assert_gpu_attends(layer, query, positions)
