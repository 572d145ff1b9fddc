"""The forward pass: as transformers, with padding, in chunks through a cache, and without recompiling."""

import dataclasses
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from golden_models import NAMES, compilations, expected, golden, run

from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.models import Decoder, DecoderOutput
from kakeya_jax.models.decoder import token_positions
from kakeya_jax.recipe import Recipe
from kakeya_jax.rope import Rope


def exact_cache(config, batch_size, max_length):
    """A cache that keeps every token in float32: results must be those without a cache."""
    recipe = dense_recipe(max_length)
    return CompressedCache.init(config, recipe, batch_size=batch_size, max_length=max_length, dtype=jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    model, params = golden(name)
    tokens, logits = expected(name)
    out = run(model, params, tokens)
    assert out.cache is None
    assert out.logits.dtype == jnp.float32
    # Measured: at most 1.7e-5 on logits of magnitude 7.
    np.testing.assert_allclose(out.logits, logits, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-linear", "llama-llama3", "llama-yarn", "llama-yarn-mscale", "qwen2-yarn"])
def test_golden_logits_notice_a_wrong_rope(name):
    model, params = golden(name)
    tokens, logits = expected(name)
    plain = Rope(head_dim=model.config.head_dim, theta=model.config.rope.theta)
    wrong = dataclasses.replace(model, config=dataclasses.replace(model.config, rope=plain))
    assert np.abs(run(wrong, params, tokens).logits - logits).max() > 0.1


@pytest.mark.parametrize("name", ["llama-yarn", "qwen3"])
def test_prefill_chunks_and_single_tokens_through_a_cache_are_the_dense_pass(name):
    model, params = golden(name)
    tokens, logits = expected(name)
    for sizes in ([40], [13, 13, 13, 1], [1] * 40):
        cache, parts, start = exact_cache(model.config, 2, 48), [], 0
        for size in sizes:
            out = run(model, params, tokens[:, start : start + size], cache)
            cache, start = out.cache, start + size
            parts.append(out.logits)
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1), logits, atol=1e-4)
        np.testing.assert_array_equal(cache.length, [40, 40])


def padded(tokens, lengths, side, width):
    """Rows of different lengths, padded with a real token id on one side, and their mask."""
    batch, mask = np.full((len(lengths), width), 5, np.int32), np.zeros((len(lengths), width), bool)
    for row, length in enumerate(lengths):
        part = slice(width - length, width) if side == "left" else slice(0, length)
        batch[row, part], mask[row, part] = tokens[row, :length], True
    return batch, mask


def alone_logits(model, params, tokens):
    """Logits of one row without a mask; what follows it in the buffer is in its future and cannot matter."""
    text = np.zeros((1, 24), np.int32)
    text[0, : len(tokens)] = tokens
    return run(model, params, text).logits[0, : len(tokens)]


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_of_a_padded_batch_is_as_alone(side, with_cache):
    model, params = golden("qwen3")
    tokens = np.random.default_rng(0).integers(0, 128, (3, 20), dtype=np.int32)
    lengths = [20, 3, 11]
    batch, mask = padded(tokens, lengths, side, 20)
    cache = exact_cache(model.config, 3, 24) if with_cache else None
    out = run(model, params, batch, cache, mask)
    for row, length in enumerate(lengths):
        alone = alone_logits(model, params, tokens[row, :length])
        np.testing.assert_allclose(out.logits[row][mask[row]], alone, atol=2e-5)
    if with_cache:
        np.testing.assert_array_equal(out.cache.length, lengths)
        # What follows continues every row at its own length.
        following = np.asarray([[1, 2], [3, 4], [5, 6]], np.int32)
        after = run(model, params, following, out.cache).logits
        for row, length in enumerate(lengths):
            alone = alone_logits(model, params, np.concatenate([tokens[row, :length], following[row]]))
            np.testing.assert_allclose(after[row], alone[-2:], atol=2e-5)


def test_last_only_gives_the_last_valid_token_of_each_row():
    model, params = golden("qwen3")
    tokens = np.random.default_rng(0).integers(0, 128, (3, 20), dtype=np.int32)
    lengths = [20, 3, 11]
    for side in ("left", "right"):
        batch, mask = padded(tokens, lengths, side, 20)
        last = run(model, params, batch, None, mask, last_only=True).logits
        assert last.shape == (3, 1, 128)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(last[row, 0], alone_logits(model, params, tokens[row, :length])[-1], atol=2e-5)


def test_positions_count_valid_tokens_after_what_is_cached():
    mask = jnp.asarray([[False, True, True], [True, False, True]])
    positions = token_positions((2, 3), mask, jnp.asarray([10, 20], jnp.int32))
    np.testing.assert_array_equal(np.where(mask, positions, -1), [[-1, 10, 11], [20, -1, 21]])
    np.testing.assert_array_equal(token_positions((2, 3), None, None), [[0, 1, 2], [0, 1, 2]])


def test_512_decode_steps_compile_once():
    model, params = golden("llama")
    cache = CompressedCache.init(model.config, Recipe.named("identity"), batch_size=1, max_length=520)
    donating = partial(jax.jit, donate_argnames="cache")

    @donating
    @chex.assert_max_traces(n=1)
    def step(params, token, cache):
        out = cast(DecoderOutput, model.apply({"params": params}, token, cache=cache))
        return jnp.argmax(out.logits[:, -1:], axis=-1).astype(jnp.int32), out.cache

    chex.clear_trace_counter()
    token = jnp.ones((1, 1), jnp.int32)
    for _ in range(512):
        token, cache = step(params, token, cache)
    np.testing.assert_array_equal(cache.length, [512])


def test_equal_models_share_one_compilation():
    model, params = golden("llama")
    config = dataclasses.replace(model.config)
    other = Decoder(config, dtype=model.dtype, param_dtype=model.param_dtype, precision="highest")
    tokens, _ = expected("llama")
    run(model, params, tokens[:, :9])
    before = compilations(run)
    run(other, params, tokens[:, 1:10])
    assert compilations(run) == before


def test_works_under_strict_promotion_in_bfloat16():
    model, params = golden("qwen3")
    tokens, logits = expected("qwen3")
    half = dataclasses.replace(model, dtype=jnp.dtype("bfloat16"))
    with jax.numpy_dtype_promotion("strict"):
        out = run(half, params, tokens)
    assert out.logits.dtype == jnp.float32
    assert np.abs(out.logits - logits).max() < 0.5


def test_queries_keys_and_values_can_be_collected():
    model, params = golden("qwen3")
    tokens, _ = expected("qwen3")
    _, state = jax.jit(partial(model.apply, mutable="intermediates"))({"params": params}, tokens)
    streams = state["intermediates"]["layers_1"]["attention"]
    assert {name: stream[0].shape for name, stream in streams.items()} == {
        "query": (2, 40, 4, 16),
        "key": (2, 40, 2, 16),
        "value": (2, 40, 2, 16),
    }
    # Keys have been through their norm: root mean square of the norm's scale.
    scale = params["layers_1"]["attention"]["k_norm"]["scale"]
    rms = jnp.sqrt(jnp.mean((streams["key"][0] / scale) ** 2, axis=-1))
    np.testing.assert_allclose(rms, 1.0, rtol=1e-3)


def test_initialisation_has_the_stated_spread():
    model, _ = golden("llama")
    params: Any = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    assert set(params) == {"embed_tokens", "layers_0", "layers_1", "final_norm", "lm_head"}
    assert float(jnp.std(params["embed_tokens"]["embedding"])) == pytest.approx(0.02, rel=0.05)
    np.testing.assert_array_equal(params["final_norm"]["scale"], 1.0)


def test_runs_as_an_nnx_module():
    model, params = golden("qwen3")
    tokens, logits = expected("qwen3")
    nnx_model = bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(tokens)
    nnx.update(nnx_model, params)
    np.testing.assert_allclose(nnx_model(tokens).logits, logits, atol=1e-4)
    out = nnx_model(tokens, cache=exact_cache(model.config, 2, 40))
    np.testing.assert_allclose(out.logits, logits, atol=1e-4)
    np.testing.assert_array_equal(out.cache.length, [40, 40])
