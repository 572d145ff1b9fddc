"""Programs of a head whose shares of its coded tokens differ."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_steps import assert_attends, attended, filled, step
from mosaic import needs_mosaic

from kakeya_jax.cache import LayerCache
from kakeya_jax.pallas_kernels.attention.program_counts import HeadShares, choose_shares, choose_splits
from kakeya_jax.stream import Stream

RECIPES = pytest.mark.parametrize(
    "recipe",
    [
        "both=turboquant(bits=4,block_size=64)",
        "both=int4(block_size=64)",
        "both=kivi(bits=2,block_size=64)",
        "key=turboquant(bits=4,block_size=64),value=besicovitch(block_size=64)",
        "both=identity(block_size=64)",
    ],
)
SHARES = pytest.mark.parametrize("shares", [HeadShares(3, 2, (2, 1)), HeadShares(2, 1, (7, 2))])


def _with_exact_tokens_of_16_bits(stream: Stream) -> Stream:
    """Those of 32 bits have a program without stages."""
    exact = {"sinks": stream.sinks.astype(jnp.bfloat16), "tail": stream.tail.astype(jnp.bfloat16)}
    return dataclasses.replace(stream, **exact)


@RECIPES
@SHARES
def test_late_programs_have_smaller_shares(recipe: str, shares: HeadShares):
    layer, query, positions = filled(recipe, 64, 4)
    found = step(layer, query, positions, splits=shares, interpret=True)
    assert_attends(found, attended(layer, query, positions), 1e-3)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("recipe", ["both=turboquant(bits=2,block_size=64)", "both=kivi(bits=2,block_size=64)"])
def test_four_programs_on_a_multiprocessor_have_fewer_or_smaller_stages(recipe: str, dim: int):
    layer, query, positions = filled(f"{recipe},sinks=2,recent=128", dim, 4)
    layer = LayerCache(key=_with_exact_tokens_of_16_bits(layer.key), value=_with_exact_tokens_of_16_bits(layer.value))
    shares = HeadShares(3, 1, (2, 1), residents=4)
    found = step(layer, query, positions, splits=shares, interpret=True)
    assert_attends(found, attended(layer, query, positions), 1e-3)


@pytest.mark.gpu
@needs_mosaic
@RECIPES
@SHARES
def test_gpu_late_programs(recipe: str, shares: HeadShares):
    layer, query, positions = filled(recipe, 128, 4)
    run = jax.jit(step, static_argnames="splits")
    first, second = (run(layer, query, positions, splits=shares) for _ in range(2))
    assert_attends(first, attended(layer, query, positions), 2e-3)
    np.testing.assert_array_equal(first, second)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("teams", [1, 4])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("recipe", ["both=turboquant(bits=2,block_size=64)", "both=kivi(bits=2,block_size=64)"])
def test_gpu_four_programs_on_a_multiprocessor(recipe: str, dim: int, teams: int):
    layer, query, positions = filled(f"{recipe},sinks=2,recent=128", dim, 4)
    layer = LayerCache(key=_with_exact_tokens_of_16_bits(layer.key), value=_with_exact_tokens_of_16_bits(layer.value))
    shares = HeadShares(3, 1, (2, 1), residents=4, teams=teams)
    found = jax.jit(step, static_argnames="splits")(layer, query, positions, splits=shares)
    assert_attends(found, attended(layer, query, positions), 2e-3)


@pytest.mark.parametrize(("heads", "tokens"), [(64, 32768), (128, 16384), (128, 32768), (256, 8192), (100, 50000)])
def test_late_programs_take_what_programs_that_run_at_once_leave(heads: int, tokens: int):
    shares = choose_shares(heads, tokens, late=True)
    early, (weight, late_weight) = shares.splits - shares.late, shares.weights
    assert early == 396 // heads
    assert late_weight <= weight / 5
    tiles = 4 * (early * weight + shares.late * late_weight)
    assert abs(tiles - tokens // 64) < 4 * late_weight


@pytest.mark.parametrize(("heads", "tokens"), [(8, 131072), (64, 4096), (64, 512), (396, 4096), (500, 32768)])
def test_no_late_programs_for_few_heads_or_tokens_or_more_heads_than_places(heads: int, tokens: int):
    assert choose_shares(heads, tokens, late=True) == HeadShares(choose_splits(heads, tokens))


def test_shares_of_long_caches_stay_small_numbers():
    """Programs multiply them with a head's tiles in 32 bits."""
    for heads, tokens in ((64, 2**26), (256, 2**24), (396, 2**25)):
        shares = choose_shares(heads, tokens, late=True)
        weight, late_weight = shares.weights
        assert 4 * ((shares.splits - shares.late) * weight + shares.late * late_weight) * tokens // 64 < 2**32
