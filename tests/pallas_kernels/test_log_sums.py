"""The logarithm of the softmax's denominator, of every kernel: in an emulator, against numbers of 64 bits."""

from typing import Any

import jax
import kakeya_streams
import klt_streams
import numpy as np
import pytest
from decode_steps import SCALE, attend, filled
from mosaic import needs_mosaic

from kakeya_jax.pallas_kernels.attention import mosaic_gpu
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import read

RECIPES = [
    "both=turboquant(bits=2)",
    "both=int4",
    "both=kivi(bits=2)",
    "key=turboquant(bits=4),value=besicovitch",
    "both=fp8",
    "both=identity(block_size=64)",
]
KLT_WIDTHS = [[8, 6, 4, 4, 2, 2, 0, 0], [6, 4, 4, 4, 2, 0, 0, 0]]
KAKEYA = "key=kakeya(block_size=128),value=turboquant(bits=4,block_size=128),sinks=2,recent=5"


def exactly(layer: Any, query: Any, positions: Any, scale: float, rope: Rope) -> np.ndarray:
    """In float64, over keys as they are decoded."""
    keys = jax.jit(read)(layer.key)
    if layer.key.rope == "pre":
        keys = apply_rope(keys, np.arange(keys.shape[2])[None, None], rope)
    keys, query = np.asarray(keys, np.float64), np.asarray(query, np.float64)
    found = np.zeros(query.shape[:3])
    group = query.shape[2] // keys.shape[1]
    for row, head in np.ndindex(len(query), query.shape[2]):
        logits = keys[row, head // group, : int(positions[row, 0]) + 1] @ query[row, 0, head] * scale
        found[row, 0, head] = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_log_sums_of_codes_in_the_emulator(recipe: str):
    layer, query, positions = filled(recipe, 64, 4)
    found = attend(layer, query, positions, interpret=True, splits=2)
    np.testing.assert_allclose(found.lse, exactly(layer, query, positions, SCALE, Rope(head_dim=64)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "group"), [("klt", 4), ("kakeya", 5)])
def test_log_sums_of_keys_before_their_rotary_embedding_in_the_emulator(name: str, group: int):
    layer, query, positions, rope, scale = turned(name, group)
    found = run(layer, query, positions, rope, scale, interpret=True, splits=3)
    np.testing.assert_allclose(found.lse, exactly(layer, query, positions, scale, rope), atol=2e-3, rtol=0)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("group", [4, 12])
def test_log_sums_of_codes_on_a_gpu(recipe: str, group: int):
    layer, query, positions = filled(recipe, 128, group)
    found = jax.jit(attend)(layer, query, positions)
    expected = exactly(layer, query, positions, SCALE, Rope(head_dim=128))
    np.testing.assert_allclose(found.lse, expected, atol=1e-3, rtol=0)


@pytest.mark.gpu
@needs_mosaic
@pytest.mark.parametrize("name", ["klt", "kakeya"])
def test_log_sums_of_keys_before_their_rotary_embedding_on_a_gpu(name: str):
    layer, query, positions, rope, scale = turned(name, 4)
    found = run(layer, query, positions, rope, scale)
    np.testing.assert_allclose(found.lse, exactly(layer, query, positions, scale, rope), atol=2e-3, rtol=0)


def turned(name: str, group: int) -> tuple[Any, Any, Any, Rope, float]:
    """A layer, queries, positions, and by what its keys are turned and logits scaled."""
    if name == "klt":
        return *klt_streams.klt_layer(KLT_WIDTHS, KLT_WIDTHS, group=group), klt_streams.ROPE, 0.1
    return *kakeya_streams.kakeya_layer(KAKEYA, group=group), kakeya_streams.ROPE, kakeya_streams.SCALE


def run(layer: Any, query: Any, positions: Any, rope: Rope, scale: float, **options: Any) -> Any:
    def step(query: Any, key: Any, value: Any, positions: Any) -> Any:
        return mosaic_gpu.attention_mosaic_gpu(
            query, key, value, positions=positions, rope=rope, scale=scale, **options
        )

    return jax.jit(step)(query, layer.key, layer.value, positions)
