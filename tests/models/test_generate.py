import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import golden, run

from kakeya_jax.cache import CompressedCache, dense_recipe
from kakeya_jax.models import generate
from kakeya_jax.models.generate import _generate
from kakeya_jax.recipe import Recipe

PROMPT = np.random.default_rng(3).integers(0, 128, (2, 9), dtype=np.int32)


def exact_cache(config, batch_size, max_length):
    recipe = dense_recipe(max_length)
    return CompressedCache.init(
        config, recipe, batch_size=batch_size, max_length=max_length, dtype=jnp.float32
    )


def naive(model, params, prompt, steps):
    """Greedy decoding by a dense forward pass over the whole text for each token."""
    text = np.zeros((len(prompt), prompt.shape[1] + steps), np.int32)
    text[:, : prompt.shape[1]] = prompt
    for end in range(prompt.shape[1], text.shape[1]):
        text[:, end] = np.argmax(run(model, params, text).logits[:, end - 1], axis=-1)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_greedy_is_the_loop_of_dense_passes(name):
    model, params = golden(name)
    out = generate(model, params, PROMPT, max_new_tokens=12, cache=exact_cache(model.config, 2, 21))
    np.testing.assert_array_equal(out.tokens, naive(model, params, PROMPT, 12))
    np.testing.assert_array_equal(out.lengths, [12, 12])
    np.testing.assert_array_equal(out.cache.length, [21, 21])


def test_padded_prompts_continue_as_alone():
    model, params = golden("qwen3")
    padded, mask = np.zeros((2, 9), np.int32), np.zeros((2, 9), bool)
    padded[0], mask[0] = PROMPT[0], True
    for part in (slice(5, 9), slice(0, 4)):
        padded[1], mask[1] = 7, False
        padded[1, part], mask[1, part] = PROMPT[1, :4], True
        out = generate(
            model, params, padded, max_new_tokens=8, mask=mask, cache=exact_cache(model.config, 2, 17)
        )
        np.testing.assert_array_equal(out.tokens[:1], naive(model, params, PROMPT[:1], 8))
        np.testing.assert_array_equal(out.tokens[1:], naive(model, params, PROMPT[1:, :4], 8))
        np.testing.assert_array_equal(out.cache.length, [17, 12])


def test_rows_end_at_a_stop_token():
    model, params = golden("llama-tied")
    free = np.asarray(generate(model, params, PROMPT, max_new_tokens=12).tokens)
    stop = [int(free[0, 4]), 127]
    expected, lengths = free.copy(), []
    for row in range(2):
        hits = np.flatnonzero(np.isin(free[row], stop))
        lengths.append(int(hits[0]) + 1 if hits.size else 12)
        expected[row, lengths[-1] :] = 99
    assert min(lengths) < 12
    out = generate(model, params, PROMPT, max_new_tokens=12, stop_tokens=stop, pad_token=99)
    np.testing.assert_array_equal(out.tokens, expected)
    np.testing.assert_array_equal(out.lengths, lengths)
    # Padding is never read: the cache ends with the stop token.
    np.testing.assert_array_equal(out.cache.length, 9 + np.asarray(lengths))


def test_a_returned_cache_continues_the_text():
    model, params = golden("qwen2")
    whole = generate(model, params, PROMPT, max_new_tokens=10, cache=exact_cache(model.config, 2, 40))
    first = generate(model, params, PROMPT, max_new_tokens=4, cache=exact_cache(model.config, 2, 40))
    question = np.asarray([[17], [23]], np.int32)
    second = generate(model, params, question, max_new_tokens=5, cache=first.cache)
    np.testing.assert_array_equal(first.tokens, whole.tokens[:, :4])
    text = np.concatenate([PROMPT, first.tokens, question], axis=1)
    np.testing.assert_array_equal(second.tokens, naive(model, params, text, 5))


def test_seeds():
    model, params = golden("llama")

    def draw(seed):
        return np.asarray(generate(model, params, PROMPT, max_new_tokens=20, temperature=1.0, seed=seed).tokens)

    np.testing.assert_array_equal(draw(1), draw(1))
    np.testing.assert_array_equal(draw(1), draw(jax.random.key(1)))
    assert np.any(draw(1) != draw(2))
    # Rows with the same prompt draw independently.
    same = generate(model, params, PROMPT[[0, 0]], max_new_tokens=20, temperature=1.0).tokens
    assert np.any(same[0] != same[1])


def test_top_k_of_one_and_a_tiny_top_p_are_greedy():
    model, params = golden("llama")
    greedy = generate(model, params, PROMPT, max_new_tokens=10).tokens
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        drawn = generate(model, params, PROMPT, max_new_tokens=10, **({"temperature": 1.0} | options)).tokens
        np.testing.assert_array_equal(drawn, greedy)


def test_one_compilation_for_prompts_of_a_shape():
    model, params = golden("llama")
    options = {"max_new_tokens": 6, "top_p": 0.9, "stop_tokens": [3]}
    generate(model, params, PROMPT, temperature=0.7, seed=0, **options)
    before = _generate._cache_size()
    generate(model, params, PROMPT + 1, temperature=1.3, seed=5, **(options | {"top_p": 0.5, "stop_tokens": [4]}))
    assert _generate._cache_size() == before


def test_compressed_recipes_generate():
    model, params = golden("llama-bias")
    model = dataclasses.replace(model, precision=None)
    out = generate(model, params, PROMPT, max_new_tokens=6, recipe=Recipe.named("int8"))
    assert out.tokens.shape == (2, 6)
    assert out.cache.recipe == Recipe.named("int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k=0 must be at least 1"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p=0.0 must be in"),
        ({"max_new_tokens": 1, "mask": np.ones((2, 3), bool)}, r"mask has shape \(2, 3\)"),
        ({"max_new_tokens": 1, "mask": np.zeros((2, 9), bool)}, "at least one valid token"),
    ],
)
def test_rejects(options, message):
    model, params = golden("llama")
    with pytest.raises(ValueError, match=message):
        generate(model, params, PROMPT, **options)


def test_rejects_what_does_not_fit_the_cache_before_anything_is_lost():
    model, params = golden("llama")
    cache = exact_cache(model.config, 2, 16)
    with pytest.raises(ValueError, match="max_length=16 tokens.* max_new_tokens=8 need 17"):
        generate(model, params, PROMPT, max_new_tokens=8, cache=cache)
    cache = generate(model, params, PROMPT, max_new_tokens=5, cache=cache).cache
    with pytest.raises(ValueError, match="need 17"):
        generate(model, params, PROMPT[:, :2], max_new_tokens=1, cache=cache)
    with pytest.raises(ValueError, match="either a cache or the recipe"):
        generate(model, params, PROMPT[:, :1], max_new_tokens=1, cache=cache, recipe=Recipe.named("int8"))
    with pytest.raises(ValueError, match="prompt_tokens has shape"):
        generate(model, params, PROMPT[0], max_new_tokens=1)
