"""Attention over a compressed cache against attention over what the cache says it holds, in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CacheShape, CompressedCache, chunk_positions
from kakeya_jax.pallas_kernels.attention import compressed_attention, softmax_state
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope, apply_rope
from kakeya_jax.stream import read

HEAD_DIM, LENGTH = 32, 75
ROPE = Rope(head_dim=HEAD_DIM)
RECIPES = [
    "key=turboquant(bits=3,block_size=16),value=turboquant(bits=4,block_size=8)",
    "key=besicovitch(block_size=16),value=int4(block_size=16)",
    "key@pre=int8(block_size=8),value=kivi(bits=4,block_size=16,group_size=16)",
]


def decode_step(recipe: str, group: int, num_kv_heads: int = 2, batch: int = 3):
    """A filled layer, and one rotated query for each row at its newest token."""
    shape = CacheShape(num_layers=1, num_kv_heads=num_kv_heads, head_dim=HEAD_DIM)
    parsed = Recipe.parse(recipe + ",sinks=2,recent=5")
    layer = CompressedCache.init(shape, parsed, batch_size=batch, max_length=80).layers[0]
    k, v, q = jax.random.split(jax.random.key(group), 3)
    key = 1.0 + jax.random.normal(k, (batch, LENGTH, num_kv_heads, HEAD_DIM))
    value = jax.random.normal(v, (batch, LENGTH, num_kv_heads, HEAD_DIM))
    lengths = jnp.array([LENGTH, 40, 3][:batch])
    valid = jnp.arange(LENGTH) < lengths[:, None]
    layer = jax.jit(type(layer).append, static_argnames="rope")(layer, key, value, rope=ROPE, valid=valid).layer
    query = jax.random.normal(q, (batch, 1, num_kv_heads * group, HEAD_DIM))
    return layer, query, lengths


def by_hand(layer, query, lengths, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What is attended to, and the logarithm of what its weights were divided by."""
    key, value = read(layer.key), np.asarray(read(layer.value))
    if layer.key.rope == "pre":
        key = apply_rope(key, jnp.arange(key.shape[2])[None, None], ROPE)
    batch, num_kv_heads = key.shape[:2]
    heads = np.asarray(query).reshape(batch, num_kv_heads, -1, HEAD_DIM)
    out, lse = np.zeros_like(heads), np.zeros(heads.shape[:3])
    for row in range(batch):
        n = int(lengths[row])
        logits = np.einsum("kgd,ksd->kgs", heads[row], np.asarray(key[row, :, :n]), dtype=np.float64) * scale
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        out[row] = np.einsum("kgs,ksd->kgd", weights / total, value[row, :, :n])
        lse[row] = (np.log(total) + logits.max(-1, keepdims=True))[..., 0]
    return out.reshape(batch, 1, -1, HEAD_DIM), lse.reshape(batch, 1, -1)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("group", [1, 4])
def test_reference_attends_to_what_the_cache_holds(recipe: str, group: int):
    layer, query, lengths = decode_step(recipe, group)
    out = jax.jit(compressed_attention, static_argnames=("rope", "scale"))(
        query, layer.key, layer.value, positions=lengths[:, None] - 1, rope=ROPE, scale=0.3
    )
    np.testing.assert_allclose(out, by_hand(layer, query, lengths, 0.3)[0], atol=3e-6)


@pytest.mark.parametrize("implementation", ["reference", "dense_copy"])
def test_the_logarithm_of_the_denominator(implementation: str):
    layer, query, lengths = decode_step(RECIPES[0], 4)
    attend = jax.jit(compressed_attention, static_argnames=("rope", "scale", "implementation", "return_lse"))
    out, lse = attend(
        query, layer.key, layer.value,
        positions=lengths[:, None] - 1, rope=ROPE, scale=0.3, implementation=implementation, return_lse=True,
    )  # fmt: skip
    expected = by_hand(layer, query, lengths, 0.3)
    np.testing.assert_allclose(out, expected[0], atol=3e-6)
    np.testing.assert_allclose(lse, expected[1], atol=3e-6)


def test_attention_to_nothing_has_no_denominator():
    nothing = softmax_state.empty((2,), 8)
    assert np.all(np.asarray(softmax_state.log_sum(nothing)) == -np.inf)
    top, total = jnp.full((1, 3, 2), softmax_state.LOWEST), jnp.zeros((1, 3, 2))
    assert np.all(np.asarray(softmax_state.log_sum_of_powers(top, total)) == -np.inf)


def test_unknown_implementation_is_an_error():
    layer, query, lengths = decode_step(RECIPES[0], 1)
    with pytest.raises(
        ValueError, match="unknown implementation 'warp'; known: mosaic_gpu, triton, reference, dense_copy"
    ):
        compressed_attention(
            query, layer.key, layer.value,
            positions=lengths[:, None] - 1, rope=ROPE, scale=1.0, implementation="warp",
        )  # fmt: skip


def test_memory_of_a_decode_step_has_no_dense_copy_of_the_cache():
    """XLA's own account of temporaries must stay far below the bytes of a decoded cache."""
    shape = CacheShape(num_layers=1, num_kv_heads=2, head_dim=64)
    max_length = 32768
    cache = jax.eval_shape(
        lambda: CompressedCache.init(shape, Recipe.named("turboquant-4"), batch_size=1, max_length=max_length)
    )
    layer = cache.layers[0]

    def step(layer, query):
        positions = chunk_positions(layer.key.length, 1)
        return compressed_attention(
            query, layer.key, layer.value, positions=positions, rope=Rope(head_dim=64), scale=0.1
        )

    query = jax.ShapeDtypeStruct((1, 1, 4, 64), jnp.float32)
    memory = jax.jit(step).lower(layer, query).compile().memory_analysis()
    assert memory is not None
    decoded = 2 * 2 * max_length * 64 * 4
    assert memory.temp_size_in_bytes < decoded / 8


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_gpu_attends_as_the_cpu_does(recipe: str):
    layer, query, lengths = decode_step(recipe, 4)
    out = jax.jit(compressed_attention, static_argnames=("rope", "scale"))(
        query, layer.key, layer.value, positions=lengths[:, None] - 1, rope=ROPE, scale=0.3
    )
    np.testing.assert_allclose(out, by_hand(layer, query, lengths, 0.3)[0], atol=1e-5)
