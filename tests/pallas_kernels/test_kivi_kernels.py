"""Decode steps over ``kivi``: keys with a scale and a minimum for each channel, values for each token."""

import jax.numpy as jnp
import numpy as np
import pytest
from decode_steps import assert_attends, assert_gpu_attends, attend, attended, filled, step
from mosaic import needs_mosaic

FEW = [
    ("both=kivi(bits=2)", 64, 2),
    ("key=kivi(bits=4,group_size=128),value=int4(affine=true)", 64, 8),
]
CASES = [
    *FEW,
    ("both=kivi(bits=4)", 128, 4),
    ("both=kivi(bits=2,group_size=64,block_size=64),sinks=0,recent=1", 128, 5),
    ("key=kivi(bits=2),value=turboquant(bits=2)", 64, 1),
    ("key=kivi(bits=4),value=int8", 128, 2),
    ("key=turboquant(bits=4),value=kivi(bits=2)", 128, 3),
]


@pytest.mark.parametrize(
    ("recipe", "dim", "group"), [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[len(FEW) :])]
)
def test_decode_step_emulated(recipe: str, dim: int, group: int):
    layer, query, positions = filled(recipe, dim, group)
    assert_attends(step(layer, query, positions, interpret=True), attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("group", [4, 8])
def test_queries_of_16_bits_are_not_rounded(group: int):
    """What stands for them has one part: logits are those of the same numbers as float32."""
    layer, query, positions = filled("both=kivi(bits=2)", 64, group)
    short = query.astype(jnp.bfloat16)
    found = attend(layer, short, positions, interpret=True)
    expected = attend(layer, short.astype(jnp.float32), positions, interpret=True)
    np.testing.assert_allclose(found.lse, expected.lse, rtol=3e-6, atol=3e-6)
    assert_attends(found.out, np.asarray(expected.out, np.float64), 2.0**-8)


@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_channel_far_from_zero_is_exact(bits: int):
    """What it adds to all logits is a thousand times what they differ by."""
    layer, query, positions = filled(f"both=kivi(bits={bits}),sinks=0,recent=1", 64, 4, outlier=300.0)
    assert_attends(step(layer, query, positions, interpret=True), attended(layer, query, positions), 1e-3)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("group", [4, 8])
def test_gpu_queries_of_16_bits_are_not_rounded(group: int):
    layer, query, positions = filled("both=kivi(bits=2)", 128, group)
    short = query.astype(jnp.bfloat16)
    found, expected = (attend(layer, each, positions).lse for each in (short, short.astype(jnp.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize(("recipe", "dim", "group"), CASES)
def test_gpu_decode_step(recipe: str, dim: int, group: int):
    layer, query, positions = filled(recipe, dim, group)
    assert_gpu_attends(layer, query, positions)
