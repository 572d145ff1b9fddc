"""Decode steps of the bundled model on a GPU run through the kernels: the same model, the same losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.eval.demo import bundled_text
from kakeya_jax.eval.text import encode_text
from kakeya_jax.models.checkpoint import load
from kakeya_jax.models.tokenizer import load_tokenizer
from kakeya_jax.recipe import Recipe

PREFILL, STEPS = 768, 64


@pytest.mark.gpu
@pytest.mark.skipif(jax.__version_info__[:2] < (0, 11), reason="Mosaic GPU kernels need jax 0.11")
@pytest.mark.parametrize("recipe", ["turboquant-4", "turboquant-3", "turboquant-2"])
def test_gpu_losses_are_those_of_the_reference(recipe: str):
    """KL of the dense model's predictions to those over the cache, kernels against reference: within 2 %."""
    model, params = load("demo")
    text = encode_text(bundled_text(), load_tokenizer("demo"))
    tokens = jnp.asarray(text[: PREFILL + STEPS])[None]
    dense = jax.nn.log_softmax(model.apply({"params": params}, tokens)[0][0, PREFILL:])

    def losses(implementation: str | None) -> np.ndarray:
        decoder = model.clone(implementation=implementation)
        cache = CompressedCache.init(model.config, Recipe.named(recipe), batch_size=1, max_length=PREFILL + STEPS)
        fill = jax.jit(model.apply, donate_argnames="cache")
        _, cache = fill({"params": params}, tokens[:, :PREFILL], cache=cache)

        def one(cache, token):
            logits, cache = decoder.apply({"params": params}, token[None, None], cache=cache)
            return cache, jax.nn.log_softmax(logits[0, -1])

        _, found = jax.jit(lambda cache, tokens: jax.lax.scan(one, cache, tokens))(cache, tokens[0, PREFILL:])
        return np.asarray(jnp.sum(jnp.exp(dense) * (dense - found), axis=-1), np.float64)

    through_kernels, reference = losses("mosaic_gpu"), losses("reference")
    np.testing.assert_array_equal(losses(None), through_kernels)  # the default on a GPU
    assert reference.mean() > 1e-5
    assert abs(through_kernels.mean() / reference.mean() - 1) <= 0.02
