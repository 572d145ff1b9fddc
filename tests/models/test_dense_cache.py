"""The plain cache that compressed ones are timed against: the dense model, step by step, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import golden, run

from kakeya_jax.models import DenseCache, load
from kakeya_jax.models.decoder import Decoder

LENGTH = 24


@pytest.fixture(scope="module")
def bundled() -> tuple[Decoder, dict]:
    return load("demo")


@pytest.mark.parametrize("name", ["llama-llama3", "qwen2-yarn"])
def test_chunks_and_steps_are_the_dense_model(name: str) -> None:
    model, params = golden(name)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.config.vocab_size, (2, LENGTH)))
    dense = run(model, params, tokens).logits
    apply = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache=cache))
    cache = DenseCache.init(model.config, batch_size=2, max_length=LENGTH, dtype=jnp.float32)
    parts = []
    for first, last in ((0, 10), (10, 20), *((at, at + 1) for at in range(20, LENGTH))):
        logits, cache = apply(tokens[:, first:last], cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), dense, atol=2e-4)
    assert cache.length.tolist() == [LENGTH, LENGTH]
    logits, _ = apply(tokens[:, :1], cache)  # no room
    assert np.isnan(logits).all()


def test_a_step_copies_no_cache(bundled) -> None:
    model, params = bundled
    cache = jax.eval_shape(lambda: DenseCache.init(model.config, batch_size=2, max_length=8192))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    step = jax.jit(lambda params, cache, token: model.apply({"params": params}, token, cache=cache), donate_argnums=1)
    analysis = step.lower(params, cache, jax.ShapeDtypeStruct((2, 1), jnp.int32)).compile().memory_analysis()
    assert analysis is not None
    assert analysis.alias_size_in_bytes >= held
    assert analysis.temp_size_in_bytes < held


def test_padding_is_refused(bundled) -> None:
    model, params = bundled
    cache = DenseCache.init(model.config, batch_size=1, max_length=LENGTH)
    with pytest.raises(NotImplementedError, match="DenseLayer takes texts without padding"):
        model.apply({"params": params}, jnp.zeros((1, 3), jnp.int32), cache=cache, mask=jnp.array([[0, 1, 1]], bool))
