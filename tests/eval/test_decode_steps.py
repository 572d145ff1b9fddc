"""Approximate decode steps beside exact ones: reading all changes nothing, and what is coded is what a cache holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kakeya_jax.cache import CompressedCache
from kakeya_jax.eval.ablations.integer_gates import read_coded
from kakeya_jax.eval.ablations.selection import selected_attention
from kakeya_jax.eval.decode_steps import measure_steps, step_passages, top_k_overlap
from kakeya_jax.models.altered import AlteredCache
from kakeya_jax.recipe import Recipe


def _everything(state, inputs):
    return selected_attention(inputs, lambda inputs, logits: logits > -jnp.inf)[0]


def test_reading_everything_is_exact(tiny_model, tiny_tokens):
    model, params = tiny_model
    metrics = measure_steps(model, params, tiny_tokens[None, :96], _everything, steps=40)
    assert metrics.logit_mse.shape == (40,)
    assert metrics.layer_relative_l2.shape == (40, model.config.num_layers)
    assert metrics.logit_mse.max() < 1e-9
    assert metrics.top_k_overlap.min() == 1
    assert metrics.same_argmax.all()
    assert metrics.layer_relative_l2.max() < 1e-5


def test_errors_are_local_and_reach_only_the_steps(tiny_model, tiny_tokens):
    """A layer's error is that on its own inputs: if only the first layer is changed, the others have none."""
    model, params = tiny_model
    tokens = jnp.asarray(tiny_tokens[:96])

    def attend(factor, inputs):
        return factor * _everything(None, inputs)

    states = [jnp.float32(0.9), *(jnp.float32(1.0) for _ in range(model.config.num_layers - 1))]
    metrics = measure_steps(model, params, np.asarray(tokens)[None], attend, states, steps=30)
    np.testing.assert_allclose(metrics.layer_relative_l2[:, 0], 0.1, rtol=1e-3)
    assert metrics.layer_relative_l2[:, 1].max() < 1e-5
    assert metrics.logit_mse.min() > 1e-6
    altered = AlteredCache.of(attend, tuple(states), steps=30)
    dense, changed = (
        jax.jit(lambda cache: model.apply({"params": params}, tokens[None], cache=cache).logits[0])(cache)
        for cache in (None, altered)
    )
    np.testing.assert_allclose(changed[:66], dense[:66], atol=2e-5)
    assert np.abs(changed[66:] - dense[66:]).max() > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "both=int4(block_size=16),sinks=0,recent=1",
        "key@pre=int4(block_size=16),value=identity(block_size=16),recent=1",
    ],
)
def test_coded_past_is_what_the_cache_would_read(tiny_model, tiny_tokens, text: str):
    """One step, against the library's own cache filled with the same past and fed the same token."""
    model, params = tiny_model
    recipe, past = Recipe.parse(text), 60
    tokens = jnp.asarray(tiny_tokens[: past + 1])

    variables = {"params": params}

    def last(tokens, cache):
        return jax.jit(lambda cache: model.apply(variables, tokens[None], cache=cache).logits[0, -1])(cache)

    empty = functools.partial(CompressedCache.init, model.config, recipe, batch_size=1, dtype=jnp.float32)
    altered = AlteredCache.of(read_coded, empty(max_length=past).layers, steps=1)
    got, dense = last(tokens, altered), last(tokens, None)

    def filled():
        _, sown = model.apply(variables, tokens[None, :past], mutable=["intermediates"])
        held = empty(max_length=past + 1)
        vectors = [sown["intermediates"][f"layers_{index}"]["attention"] for index in range(len(held.layers))]
        return held.replace_layers(
            tuple(
                layer.append(each["key"][0], each["value"][0], rope=model.config.rope).layer
                for layer, each in zip(held.layers, vectors, strict=True)
            )
        )

    expected = last(tokens[past:], jax.jit(filled)())
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.abs(got - dense).max() > 1e-4


def test_overlap_and_passages(tiny_tokens):
    exact = jnp.array([[5.0, 4.0, 3.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    other = jnp.array([[5.0, 0.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    assert jax.jit(functools.partial(top_k_overlap, k=2))(exact, other).tolist() == [0.5, 1.0]
    assert step_passages(tiny_tokens, 192, None, 96).shape == (8, 192)
    assert step_passages(np.zeros(10**6, np.int32), 4096, None, 2048).shape == (10, 4096)
    with pytest.raises(ValueError, match="steps=97 must be between 1 and 96"):
        measure_steps(None, None, np.zeros((1, 96), np.int32), _everything, steps=97)
